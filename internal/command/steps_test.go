package command

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// hostile is text with control characters of seven and of eight bits. They would move the cursor, ring, set a title,
// and change the direction of writing.
const hostile = "a\x1b[2J\x07\r\n\x9b\u009b31m\u202eb\u2028\"\\"

var unprintable = regexp.MustCompile(`[\x00-\x09\x0b-\x1f\x7f-\x{9f}\x{202e}\x{2028}]`)

func TestTextFromOutsideCannotDriveTheTerminal(t *testing.T) {
	name, source := hostile, "default"
	details, err := json.Marshal(
		map[string]string{
			hostile:       hostile,
			"error":       hostile,
			"answer":      hostile,
			"attempt":     hostile,
			"duration_ms": hostile,
		},
	)
	require.NoError(t, err)
	row := trail.Step{EventID: &name, Source: &source, Action: hostile, Success: hostile, Details: details}

	for _, action := range append(trail.Actions(), hostile) {

		all := map[string]json.RawMessage{}
		for _, member := range []string{
			"attempt", "destination", "by", "caller", "evidence", "status", "worker", "error", "answer", "duration_ms",
			"delay_ms", "outcome", "from", "to", "accepted_as", "request", "cause", "trust", "count", "since", "before",
			"oldest", "newest", "partition", "changes", "reason",
		} {
			all[member], err = json.Marshal(hostile)
			require.NoError(t, err)
		}
		for _, within := range []bool{false, true} {
			require.NotRegexp(t, unprintable, stepSentence(action, all, within), action)
			require.NotContains(t, stepSentence(action, all, within), "\n", action)
		}
	}

	var out strings.Builder
	require.NoError(t, printSteps(&out)([]trail.Step{row}))
	require.NotRegexp(t, unprintable, out.String())
	require.Equal(t, 1, strings.Count(out.String(), "\n"), "one line")

	out.Reset()
	require.NoError(t, printSentences(&out, func() int { return 500 }, false)([]trail.Step{row}))
	require.NotRegexp(t, unprintable, out.String())
	require.Equal(t, 2, strings.Count(out.String(), "\n"), "the day and one line")

	out.Reset()
	require.NoError(t, printStepsAsJSON(&out)([]trail.Step{row}))
	require.NotRegexp(t, unprintable, out.String())
	require.Equal(t, 1, strings.Count(out.String(), "\n"), "one line")
	var back struct {
		Details map[string]string `json:"details"`
	}
	require.NoError(t, json.Unmarshal([]byte(out.String()), &back))
	require.Equal(t, strings.ToValidUTF8(hostile, "\ufffd"), back.Details["error"], "a machine reads what was said")

	p := view.ProcessingRow{Destination: hostile, Worker: &name, ErrorMessage: &name}
	out.Reset()
	o := overview{
		Backlog: []view.BacklogRow{
			{Destination: hostile, Status: hostile},
		},
		Paused: []view.PauseRow{{Destination: hostile, PausedBy: &name}},
		Stuck:  []store.StuckRow{{EventID: hostile, Destination: hostile, Reason: hostile}},
		DeadLetters: []view.ProcessingRow{
			{EventID: hostile, Destination: hostile, ErrorMessage: &name},
		},
		LastArrival: map[string]time.Time{hostile: {}},
	}
	require.NoError(t, o.write(&out, time.Now(), 0))
	require.NotRegexp(t, unprintable, out.String())
	f := frame{overview: &o, readAt: time.Now(), away: time.Now(), failure: terminal.OneLine(hostile)}
	require.NotRegexp(t, unprintable, terminal.JoinLines(f.lines(200, 100, time.Now()), 0, false))
	h := view.History{
		StoredEvent: view.StoredEvent{
			EventID:   hostile,
			EventType: hostile,
			Source:    hostile,
			Content:   view.Content{Unqueryable: hostile},
		},
	}
	h.Processing, h.Timeline = []view.ProcessingRow{p}, []trail.Step{row}
	for _, topic := range []string{"standing", "attempts", "paused", "conflict", hostile} {
		h.Explanation = append(h.Explanation, view.Sentence{Topic: topic, Destination: &name, Says: hostile})
	}
	require.NotRegexp(t, unprintable, (&timeline{}).draw(h, time.Now())+currentStates(&h))
	require.Equal(t, `failed: a b\x1b`, terminal.OneLine("failed:\n\ta b\x1b"))
}

func TestEveryActionHasASentence(t *testing.T) {
	for _, action := range trail.Actions() {
		for _, within := range []bool{false, true} {
			require.NotContains(t, stepSentence(action, stepDetails{}, within), "_", action)
		}
	}
	require.Equal(t, "event_sung to=me", stepSentence("event_sung", readDetails(json.RawMessage(`{"to":"me"}`)), false),
		"an action of a newer version")
}

func TestStepsThatSumUpAreToldWithTheirCounts(t *testing.T) {
	for _, step := range []struct {
		action         trail.Action
		details, words string
	}{
		{
			trail.RequestRejected,
			`{"cause":"invalid","status":422,"count":7,"since":"2024-01-30T12:00:00+00:00"}`,
			"7 requests rejected: HTTP 422, invalid, since 2024-01-30T12:00:00+00:00",
		},
		{trail.RequestRejected, `{"count":"many"}`, "requests rejected"},
		{trail.ClaimsPaused, `{"destination":"default","by":"spine"}`, "claims paused for default by spine"},
		{trail.ClaimsResumed, `{"destination":"other"}`, "claims resumed for other"},
		{
			trail.EventsExpired,
			`{"count":1,"oldest":"2024-01-01","newest":"2024-01-02","before":"2024-02-01"}`,
			"1 old event deleted, stored 2024-01-01 to 2024-01-02, unchanged since 2024-02-01",
		},
		{
			trail.AuditExpired,
			`{"partition":"audit_trail_2024_01","before":"2024-02-01"}`,
			"old steps deleted from audit_trail_2024_01, before 2024-02-01",
		},
		{
			trail.SourceChanged,
			`{"by":"spine","caller":"spine source set","changes":{"conflicts":{"to":"refuse"}}}`,
			`source changed by spine (spine source set): {"conflicts":{"to":"refuse"}}`,
		},
	} {
		require.Equal(t, step.words, stepSentence(step.action, readDetails(json.RawMessage(step.details)), false))
	}
}

// F6: a step says why the next attempt waits.
func TestADelayIsToldWithItsReason(t *testing.T) {
	for details, want := range map[string]string{
		`{"attempt":1,"delay_ms":3600000,"reason":"Retry-After"}`: "next attempt in 1h, " +
			"as the destination asked (Retry-After)",
		`{"attempt":1,"delay_ms":2000,"reason":"policy"}`: "next attempt in 2s, by the retry policy",
		`{"attempt":1,"delay_ms":2000}`:                   "next attempt in 2s",
	} {
		require.Equal(t, want, stepSentence(trail.RetryScheduled, readDetails(json.RawMessage(details)), true))
	}
	d := readDetails(json.RawMessage(
		`{"attempt":1,"lease":1,"error":"connection refused","duration_ms":0.5,"delay_ms":1000}`))
	require.Equal(t, "attempt 1 not counted, the destination was not reached after 500µs: connection refused; "+
		"next attempt in 1s", stepSentence(trail.DeliveryDeferred, d, false))
	s := trail.Step{Action: trail.DeliveryDeferred, Success: trail.Success}
	require.Equal(t, "·", toneMark(stepTone(&s, d)), "no good news")
}

func TestAReplayIsToldWithWhoAskedForIt(t *testing.T) {
	d := readDetails(json.RawMessage(`{"from":"dead","by":"spine","caller":"192.0.2.1 as \"me\""}`))
	require.Equal(t, `replayed by spine (192.0.2.1 as "me"), was dead`, stepSentence("event_replayed", d, false))
	require.Equal(t, `by=spine caller="192.0.2.1 as \"me\"" from=dead`, d.pairs(true))
	delete(d, "caller") // from psql
	require.Equal(t, "replayed by spine, was dead", stepSentence("event_replayed", d, false))
}

// F13: a tick stands before good news alone, whatever the audit log counts as a success.
func TestATickStandsBeforeGoodNewsAlone(t *testing.T) {
	for _, step := range []struct {
		action                 trail.Action
		success, details, want string
	}{
		{trail.RequestRejected, trail.Failure, `{"cause":"invalid","count":1}`, "✗ 1 request rejected, invalid"},
		{
			trail.StatusChanged, trail.Success, `{"from":"pending","to":"dead","by":"ann","reason":"test order"}`,
			"✗ status changed by hand from pending to dead by ann, because: test order",
		},
		{
			trail.StatusChanged, trail.Success, `{"from":"dead","to":"pending","by":"ann"}`,
			"· status changed by hand from dead to pending by ann",
		},
		{
			trail.ClaimsPaused, trail.Success, `{"destination":"default","by":"ann","reason":"a deploy"}`,
			"· claims paused for default by ann, because: a deploy",
		},
		{
			trail.SourceDisabled,
			trail.Success,
			`{"by":"ann","reason":"moved"}`,
			"· source disabled by ann, because: moved",
		},
		{trail.EventReplayed, trail.Success, `{"by":"ann","from":"dead"}`, "· replayed by ann, was dead"},
		{trail.LeaseExpired, trail.Success, `{"attempt":1,"worker":"w"}`, "✗ attempt 1: the lease of w ran out"},
		{trail.EventsExpired, trail.Success, `{"count":3}`, "· 3 old events deleted"},
		{trail.ProcessingSucceeded, trail.Success, `{"attempt":1}`, "✓ attempt 1 delivered"},
		{"event_sung", trail.Success, `{}`, "· event_sung"},
	} {
		s := trail.Step{Action: step.action, Success: step.success, Details: json.RawMessage(step.details)}
		d := readDetails(s.Details)
		require.Equal(t, step.want, toneMark(stepTone(&s, d))+" "+stepSentence(s.Action, d, false))
	}
}
