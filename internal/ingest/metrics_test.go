package ingest

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

// F11, F14: the counters of a source begin at 0 when it is known, and leave with it.
func TestCountersFollowTheSources(t *testing.T) {
	m := metrics()
	m.KnowSources([]string{"default", "github"})
	require.Equal(t, 6, testutil.CollectAndCount(m.outcomes))
	accepted, deduplicated := event.Receipt{Outcome: event.Accepted}, event.Receipt{Outcome: event.Deduplicated}
	m.count([]event.Event{{Source: "github"}, {Source: "late"}}, []event.Receipt{accepted, {Outcome: event.Conflict}})
	m.count([]event.Event{{Source: "github"}, {Source: "github"}}, []event.Receipt{accepted, deduplicated})
	require.InDelta(t, 2, testutil.ToFloat64(m.outcomes.WithLabelValues("github", "accepted")), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.outcomes.WithLabelValues("github", "deduplicated")), 0)

	m.KnowSources([]string{"default"})
	require.Equal(t, 3, testutil.CollectAndCount(m.outcomes), "also one that came after it was gone")
	require.Zero(t, m.outcomes.DeletePartialMatch(prometheus.Labels{"source": "github"}))
	m.count([]event.Event{{Source: "github"}}, []event.Receipt{accepted})
	require.InDelta(t, 1, testutil.ToFloat64(m.outcomes.WithLabelValues("github", "accepted")), 0, "made again, anew")
}

// F11: every cause of a rejection that the code names has a counter from the start.
func TestEveryCauseBeginsAtZero(t *testing.T) {
	var known []string
	for _, causes := range rejectionCauses {
		known = append(known, causes...)
	}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	named := 0
	for _, file := range files {
		text, err := os.ReadFile(file) //nolint:gosec // of this package
		require.NoError(t, err)
		if matched, _ := filepath.Match("*_test.go", file); matched {
			continue
		}
		for _, found := range regexp.MustCompile(`\bcause: +"(\w+)"`).FindAllStringSubmatch(string(text), -1) {
			require.Contains(t, known, found[1], file)
			named++
		}
	}
	require.Greater(t, named, 10)
	require.Equal(t, len(known), testutil.CollectAndCount(metrics().rejections))
}

// G16: the page offers the causes as choices.
func TestThePageKnowsEveryCause(t *testing.T) {
	text, err := os.ReadFile("../dashboard/page/words.js")
	require.NoError(t, err)
	list := regexp.MustCompile(`(?s)export const knownCauses = \[(.*?)\]`).FindSubmatch(text)
	require.Len(t, list, 2)
	var known, causes []string
	for _, cause := range regexp.MustCompile(`[a-z_]+`).FindAll(list[1], -1) {
		known = append(known, string(cause))
	}
	for _, some := range rejectionCauses {
		causes = append(causes, some...)
	}
	require.ElementsMatch(t, causes, known)
}
