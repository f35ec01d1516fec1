package systemtest

import (
	"encoding/json"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/bench"
	"github.com/webhookspine/spine/internal/observe"
)

// TestBenchSoak does not run beside other tests. A busy machine is late for samples and leaves them out, and the test
// needs three.
func TestBenchSoak(t *testing.T) {
	wholeRun(t)
	l, err := observe.Listen(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	sink := l.Addr().String()
	require.NoError(t, l.Close())
	database := databases.New(t)
	s := startService(t, both, database, "DESTINATION_URL=http://"+sink+"/")

	arguments := []string{
		"bench", "soak", "--url", s.url, "--sink", sink, "--database", database, "--rate", "100",
		"--duration", "3s", "--warm-up", "200ms", "--interval", "200ms", "--pid", strconv.Itoa(os.Getpid()),
	}
	code, stdout, stderr := spine(t, nil, append(arguments, "--json")...)
	require.Zero(t, code, stderr)
	var report bench.SoakReport
	require.NoError(t, json.Unmarshal([]byte(stdout), &report))
	assert.Equal(t, "soak", report.Scenario)
	assert.Empty(t, report.Errors)
	assert.Equal(t, report.Accepted, report.Delivery.Delivered)
	assert.NotEmpty(t, report.Samples)
	assert.Positive(t, report.Database.WALBytes)
	_, ok := report.Trend(bench.TrendDeadTuples, "processing_state")
	assert.True(t, ok, "%v", report.Remarks)
	_, ok = report.Trend(bench.TrendMemory, "target")
	assert.True(t, ok, "%v", report.Remarks)

	code, stdout, stderr = spine(
		t,
		[]string{"DATABASE_URL=" + database},
		"bench",
		"soak",
		"--url",
		s.url,
		"--sink",
		sink,
		"--rate",
		"50",
		"--duration",
		"3s",
		"--warm-up",
		"0s",
		"--interval",
		"200ms",
	)
	require.Zero(t, code, stderr)
	assert.Contains(t, stdout, "memory of target, MB")
	assert.NotContains(t, stdout, "dead tuples", "the database is not named")
}
