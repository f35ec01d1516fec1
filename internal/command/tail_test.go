package command

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/trail"
)

func TestRowsAreAlignedForAPersonAndPlainInAPipe(t *testing.T) {
	at := event.Timestamp{Time: time.Date(2024, 1, 30, 12, 0, 0, 123456789, time.UTC)}
	id, source, other := "a", "default", "github"
	rows := []trail.Step{
		{
			Timestamp: at,
			EventID:   &id,
			Source:    &source,
			Action:    "event_received",
			Success:   "success",
			Details:   json.RawMessage(`{}`),
		},
		{
			Timestamp: at,
			EventID:   &id,
			Source:    &other,
			Action:    "processing_attempt_failed",
			Success:   "failure",
			Details: json.RawMessage(
				`{"worker":"w","lease":7,"destination":"default","duration_ms":12.3456,"error":"HTTP 503","attempt":1}`,
			),
		},
		{
			Timestamp: event.Timestamp{Infinity: 1},
			Action:    "claims_paused",
			Success:   "success",
			Details:   json.RawMessage(`[1]`),
		},
		{
			Timestamp: at,
			Action:    "claims_resumed",
			Success:   "success",
			Details:   json.RawMessage(`{"destination":"default","by":"me"}`),
		},
	}
	var out strings.Builder
	require.NoError(t, printSteps(&out)(rows))
	require.Equal(t, `2024-01-30T12:00:00.123Z a event_received
2024-01-30T12:00:00.123Z github/a processing_attempt_failed attempt=1 duration=12ms error="HTTP 503" worker=w
infinity - claims_paused details=[1]
2024-01-30T12:00:00.123Z - claims_resumed by=me destination=default
`, out.String())

	out.Reset()
	require.NoError(t, printSentences(&out, func() int { return 80 }, true)(rows[:2]))
	require.Equal(t, "\x1b[2m2024-01-30 UTC\x1b[0m\n"+
		"\x1b[2m12:00:00.123\x1b[0m \x1b[32m✓\x1b[0m \x1b[1ma       \x1b[0m received\n"+
		"\x1b[2m12:00:00.123\x1b[0m \x1b[31m✗\x1b[0m \x1b[1mgithub/a\x1b[0m "+
		"\x1b[31mattempt 1 failed after 12ms: HTTP 503\x1b[0m\n", out.String())
}

// On a narrow terminal a sentence goes on in further lines. A long id is never cut: people copy it.
func TestLinesAreWrappedToTheTerminal(t *testing.T) {
	day := time.Date(2024, 1, 30, 23, 59, 59, 0, time.UTC)
	id, short, source := "72d3162e-cc78-11e3-81ab-4c9367dc0958", "受注-001", "default"
	failed := json.RawMessage(`{"attempt":1,"duration_ms":12,"error":"HTTP 503 Service Unavailable",` +
		`"answer":"{\"error\":\"the database is down\",\"status\":\"error\"}"}`)
	rows := []trail.Step{
		{
			Timestamp: event.Timestamp{Time: day},
			EventID:   &id,
			Source:    &source,
			Action:    "processing_attempt_failed",
			Success:   "failure",
			Details:   failed,
		},
		{
			Timestamp: event.Timestamp{Time: day.Add(time.Second)},
			EventID:   &short,
			Source:    &source,
			Action:    "event_deduped",
			Success:   "success",
		},
	}
	for width, want := range map[int]string{
		120: `2024-01-30 UTC
23:59:59.000 ✗ 72d3162e-cc78-11e3-81ab-4c9367dc0958 attempt 1 failed after 12ms: HTTP 503 Service Unavailable, answer
                                                    {"error":"the database is down","status":"error"}
2024-01-31 UTC
00:00:00.000 ✓ 受注-001                             known already, with this payload
`,
		80: `2024-01-30 UTC
23:59:59.000 ✗ 72d3162e-cc78-11e3-81ab-4c9367dc0958 attempt 1 failed after 12ms:
                 HTTP 503 Service Unavailable, answer {"error":"the database is
                 down","status":"error"}
2024-01-31 UTC
00:00:00.000 ✓ 受注-001                             known already, with this
                 payload
`,
	} {
		var out strings.Builder
		require.NoError(t, printSentences(&out, func() int { return width }, false)(rows))
		require.Equal(t, want, out.String())
	}
	for width := range 100 {
		var out strings.Builder
		require.NoError(t, printSentences(&out, func() int { return width }, false)(rows))
		require.Contains(t, out.String(), id)
	}
}

// Tail prints the steps that were committed before it learned that it is done.
func TestTailPrintsWhatCameBeforeItWasDone(t *testing.T) {
	t.Parallel()
	db := databases.Pool(t)
	database := db.Config().ConnString()
	s, err := store.Open(t.Context(), store.Config{URL: database, MaxConns: 1, AppName: "spine test"})
	require.NoError(t, err)
	defer s.Close()
	cursor, err := s.CurrentCursor(t.Context())
	require.NoError(t, err)
	var seen []string
	follower := tail{
		store: s, cursor: cursor, stderr: t.Output(),
		print: func(rows []trail.Step) error {
			for i := range rows {
				seen = append(seen, *rows[i].EventID)
			}
			return nil
		},
		done: func(ctx context.Context) (bool, error) {
			_, err := db.Exec(
				ctx,
				"insert into spine.audit_trail (event_id, source, action) values ('just before', 'default', 'status_changed')",
			)
			return true, err
		},
	}
	require.NoError(t, follower.run(t.Context(), database))
	require.Equal(t, []string{"just before"}, seen)
}

// The names that tail accepts are those of the database.
func TestActionsAreThoseOfTheSchema(t *testing.T) {
	t.Parallel()
	db := databases.Pool(t)
	var known []string
	require.NoError(t, db.QueryRow(t.Context(), "select enum_range(null::spine.audit_action)::text[]").Scan(&known))
	require.Equal(t, actions(), known)
}

func TestStatusesAreThoseOfTheSchema(t *testing.T) {
	t.Parallel()
	db := databases.Pool(t)
	var constraint string
	require.NoError(t, db.QueryRow(t.Context(), `select pg_get_constraintdef(oid) from pg_constraint
		where conrelid = 'spine.processing_state'::regclass and conname = 'processing_state_status_check'`).Scan(&constraint))
	var known []string
	for _, match := range regexp.MustCompile(`'([a-z]+)'`).FindAllStringSubmatch(constraint, -1) {
		known = append(known, match[1])
	}
	require.Equal(t, event.Statuses(), known)
}
