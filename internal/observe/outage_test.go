package observe

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
)

// linesOf decodes a log.
func linesOf(t *testing.T, log string) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(log) {
		var one map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &one), line)
		lines = append(lines, one)
	}
	return lines
}

// errRefused is what pgx says when nothing listens at a name with two addresses, tried with TLS and without.
var errRefused = errors.New("claiming events: failed to connect to `user=spine database=spine`:\n" +
	"\t127.0.0.1:5432 (db): dial error: dial tcp 127.0.0.1:5432: connect: connection refused\n" +
	"\t127.0.0.1:5432 (db): dial error: dial tcp 127.0.0.1:5432: connect: connection refused")

// G9: all parts together say one line a second while the database is away, with the last cause first.
func TestOutageIsOneLineASecond(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1_700_000_000, 0)
	log := zerolog.New(newOutageWriter(&out, func() time.Time { return now }))
	for range 70 { // 7 seconds
		log.Warn().Err(errRefused).Msg("claiming failed, trying again")
		log.Error().Err(fmt.Errorf("storing: %w", errRefused)).Int("events", 3).Msg("events could not be stored")
		log.Warn().Err(errors.New("renewing: unexpected EOF")).Msg("renewing leases failed, trying again")
		now = now.Add(100 * time.Millisecond)
	}
	lines := linesOf(t, out.String())
	require.Len(t, lines, 7)
	require.Equal(t, map[string]any{
		"level": "warn", "message": "claiming failed, trying again",
		"error": "connection refused (claiming events: failed to connect to `user=spine database=spine`: " +
			"127.0.0.1:5432 (db): dial error: dial tcp 127.0.0.1:5432: connect)",
	}, lines[0])
	require.InDelta(t, 29, lines[1]["lines_left_out"], 0)
}

// What is not about the database is said whole and at once, also during an outage.
func TestOutageHidesNothingElse(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1_700_000_000, 0)
	log := zerolog.New(newOutageWriter(&out, func() time.Time { return now }))
	log.Warn().Err(errRefused).Msg("claiming failed, trying again")
	log.Warn().Str("error", "connection reset by peer").Int("attempt", 5).Msg("delivery given up")
	log.Warn().Err(errors.New(`permission denied for "t"`)).Msg("claiming failed, trying again")
	log.Warn().Str("source", "github").Strs("problems", []string{"a: unexpected EOF"}).Msg("a source is broken")
	log.Info().Err(errors.New("two\n\tlines")).Msg("told")
	log.Info().Msg("the sources can be read again")
	log.Warn().Str("note", `"error":"unexpected EOF"`).Msg("a text that looks like a member")
	lines := linesOf(t, out.String())
	require.Len(t, lines, 7)
	require.Equal(t, "connection reset by peer", lines[1]["error"])
	require.Equal(t, `permission denied for "t"`, lines[2]["error"])
	require.Equal(t, "two; lines", lines[4]["error"])
	require.Equal(t, `"error":"unexpected EOF"`, lines[6]["note"])
}

func TestErrorsBeginWithTheirLastCause(t *testing.T) {
	for text, want := range map[string]string{
		"connecting to listen: FATAL: the database system is starting up (SQLSTATE 57P03)"://
		"the database system is starting up (SQLSTATE 57P03) (connecting to listen: FATAL)",
		"unexpected EOF":         "unexpected EOF",
		"a ping:\n\tconn closed": "conn closed (a ping:)",
	} {
		_, causes := flatten(text)
		require.Equal(t, want, causeFirst(causes))
	}
}
