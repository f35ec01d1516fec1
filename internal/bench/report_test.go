package bench

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTheTableTellsEverything(t *testing.T) {
	report := Report{
		Scenario:              "e2e",
		Target:                "http://127.0.0.1:8000",
		RunID:                 "r",
		Connections:           64,
		OfferedPerSecond:      50,
		BodyBytes:             1024,
		WarmUpSeconds:         2,
		Interrupted:           true,
		Sent:                  500,
		SentFresh:             450,
		SentDuplicates:        40,
		SentConflicts:         10,
		Acknowledged:          490,
		Accepted:              440,
		Deduplicated:          40,
		Conflicts:             10,
		Errors:                map[string]int64{"timeout": 2, "http 503": 8},
		Unanswered:            1,
		Unsent:                3,
		Seconds:               9.98,
		AcknowledgedPerSecond: 49.1,
		AcknowledgeLatency:    Latency{Count: 490, P50: 1.25, P90: 2, P99: 3, P999: 4, Max: 10.5, Mean: 1.4},
		SendLag:               &Latency{Count: 500, P50: 0.05, P90: 0.06, P99: 0.07, P999: 0.08, Max: 0.09, Mean: 0.05},
		Delivery: &Delivery{
			Delivered: 438, Lost: 2, Repeated: 1, Repeats: 1, Unacknowledged: 5, Foreign: 6, PerSecond: 43.9,
			Latency: Latency{Count: 443, P50: 2.5, P90: 3, P99: 4, P999: 5, Max: 12, Mean: 2.6},
		},
	}
	var table strings.Builder
	require.NoError(t, report.WriteTable(&table))
	assert.Equal(t, strings.TrimPrefix(`
e2e of http://127.0.0.1:8000: 50/s offered, 64 connections, 1024-byte bodies, run r
interrupted: the figures are those until then

sent              500  in 10.0 s after 2.0 s of warm-up
  new             450
  duplicates      40
  conflicts       10
acknowledged      490  49/s
  accepted        440
  deduplicated    40
  conflict        10
error: http 503   8
error: timeout    2
unanswered        1    under way at the interruption
unsent            3    due, but no connection was free
delivered         438  44/s
  lost            2
  repeated        1
  unacknowledged  5  arrived although their POST failed
  foreign         6  arrivals that are not of this run

latency, ms   p50   p90   p99   p99.9  max    mean
acknowledged  1.25  2.00  3.00  4.00   10.50  1.40
arrived       2.50  3.00  4.00  5.00   12.00  2.60
sent late by  0.05  0.06  0.07  0.08   0.09   0.05
`, "\n"), table.String())

	text, err := json.Marshal(report)
	require.NoError(t, err)
	var back Report
	require.NoError(t, json.Unmarshal(text, &back))
	assert.Equal(t, report, back)
}

func TestTheSinksTable(t *testing.T) {
	var table strings.Builder
	report := SinkReport{
		Deliveries: 12, WithoutID: 1, DistinctIDs: 9, RepeatedIDs: 2, MaxIDs: 9, MaxIDsReached: true, PerSecond: 3,
	}
	require.NoError(t, report.WriteTable(&table))
	assert.Equal(t, strings.TrimPrefix(`
deliveries    12  3/s
  ids         9
  repeated    2
  without id  1
only the first 9 ids were told apart
`, "\n"), table.String())

	text, err := json.Marshal(SinkReport{First: time.Unix(1, 0)})
	require.NoError(t, err)
	assert.Contains(t, string(text), `"first":`)
	assert.NotContains(t, string(text), `"last":`, "nothing is known of it")
}

func TestATableThatCannotBeWrittenIsAnError(t *testing.T) {
	err := Report{}.WriteTable(full{})
	require.ErrorIs(t, err, errFull)
	require.ErrorIs(t, SinkReport{}.WriteTable(full{}), errFull)
}

var errFull = errors.New("disk full")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }
