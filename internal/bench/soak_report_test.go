package bench

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// samplesOf makes samples of one figure after the other.
func samplesOf(values []float64, set func(s *Sample, v float64)) []Sample {
	samples := make([]Sample, len(values))
	for i, v := range values {
		set(&samples[i], v)
	}
	return samples
}

func TestTrends(t *testing.T) {
	acknowledge := func(s *Sample, v float64) { s.Acknowledge = Quantiles{Count: 1, P99: v} }
	for _, c := range []struct {
		values             []float64
		first, last, ratio float64
		flat               bool
	}{
		{[]float64{10, 10, 10}, 10, 10, 1, true},
		{[]float64{10, 99, 12}, 10, 12, 1.2, true},
		{[]float64{10, 99, 12.1}, 10, 12.1, 1.21, false},
		{[]float64{1, 1, 2}, 1, 2, 2, true}, // a millisecond more is none
		{[]float64{0, 1, 2}, 0, 2, 0, false},
		{[]float64{10, 9, 5}, 10, 5, 0.5, true},
		{[]float64{10, 11, 300, 5, 5, 5, 500, 12, 13}, 11, 13, 13.0 / 11, true}, // medians
		{[]float64{10, 20, 5, 5, 5, 30, 40}, 15, 35, 35.0 / 15, false},
	} {
		trends := trendsOf(samplesOf(c.values, acknowledge), statistics{})
		require.Len(t, trends, 1)
		assert.InDelta(t, c.ratio, trends[0].Ratio, 1e-9)
		trends[0].Ratio = 0
		want := Trend{What: TrendAcknowledge, First: c.first, Last: c.last, Tolerance: 1, Flat: c.flat}
		assert.Equal(t, want, trends[0], c.values)
	}
	assert.Empty(t, trendsOf(samplesOf([]float64{1, 2}, acknowledge), statistics{}), "there are no thirds")
	assert.Empty(t, trendsOf(nil, statistics{}))
	gone := samplesOf([]float64{1, 2, 3}, acknowledge)
	gone[2].Acknowledge.Count = 0
	assert.Empty(t, trendsOf(gone, statistics{}), "nothing is known of the last third")
}

func TestDeadTuplesMayGrowUntilAutovacuumComes(t *testing.T) {
	samples := samplesOf([]float64{0, 500, 900}, func(s *Sample, v float64) {
		s.Database = &DatabaseSample{DeadTuples: int64(v), QueueDeadTuples: int64(v / 10)}
	})
	last := statistics{hasTables: true, tables: tuples{threshold: 1000}, queue: tuples{threshold: 80}}
	r := SoakReport{Trends: trendsOf(samples, last)}
	all, ok := r.Trend(TrendDeadTuples, "all tables")
	require.True(t, ok)
	assert.Equal(t, Trend{What: TrendDeadTuples, Of: "all tables", Last: 900, Tolerance: 1000, Flat: true}, all)
	own, ok := r.Trend(TrendDeadTuples, queue)
	require.True(t, ok)
	assert.False(t, own.Flat)
	assert.Equal(t, "dead tuples of processing_state: 0 → 90, not flat", own.String())
	_, ok = r.Trend(TrendMemory, "nobody")
	assert.False(t, ok)
	assert.Empty(t, trendsOf(samples, statistics{}), "there are no such tables")
}

func TestTheTableOfASoak(t *testing.T) {
	statements := 0.25
	report := SoakReport{
		Report: Report{
			Scenario: "soak", Target: "http://127.0.0.1:8000", RunID: "r",
			Connections: 64, OfferedPerSecond: 100, BodyBytes: 1024,
		},
		IntervalSeconds: 10,
		Database: &DatabaseUse{
			PerEvent:  PerEvent{WALBytes: 3943.4, Commits: 0.0834, Statements: &statements},
			SizeBegin: 10e6, SizeEnd: 44e6, GrowthBytes: 2515,
		},
		Remarks: []string{"left out: something"},
	}
	for i := range 3 {
		n := float64(i)
		s := Sample{
			Seconds: 10 + 10*n, AcknowledgedPerSecond: 100, DeliveredPerSecond: 99, Backlog: 3,
			Acknowledge: Quantiles{1000, 1, 2 + n}, Arrive: Quantiles{990, 2 + n, 5},
			Processes: []ProcessUse{{"target", 0.25, 40 + n}},
			Database:  &DatabaseSample{DeadTuples: 100, QueueDeadTuples: 90, PerEvent: PerEvent{WALBytes: 4000}},
		}
		if i == 0 {
			s.Processes = append(s.Processes, ProcessUse{"other", 1, 50})
		}
		report.Samples = append(report.Samples, s)
	}
	report.Trends = trendsOf(report.Samples, statistics{hasTables: true})
	var table, head strings.Builder
	require.NoError(t, report.WriteTable(&table))
	require.NoError(t, report.Report.WriteTable(&head))
	want, err := os.ReadFile("testdata/soak.txt")
	require.NoError(t, err)
	assert.Equal(t, string(want), strings.TrimPrefix(table.String(), head.String()))

	text, err := json.Marshal(report)
	require.NoError(t, err)
	assert.Contains(t, string(text), `"scenario":"soak"`)
	assert.Contains(t, string(text),
		`"dead_tuples":100,"queue_live_tuples":0,"queue_dead_tuples":90,"wal_bytes_per_event":4000`)
	var back SoakReport
	require.NoError(t, json.Unmarshal(text, &back))
	assert.Equal(t, report, back)
	require.ErrorIs(t, report.WriteTable(full{}), errFull)
}

func TestATableShowsFewOfManySamples(t *testing.T) {
	report := SoakReport{IntervalSeconds: 1}
	for i := range 90 {
		report.Samples = append(report.Samples, Sample{Seconds: float64(i + 1)})
	}
	var table strings.Builder
	require.NoError(t, report.WriteTable(&table))
	_, lines, _ := strings.Cut(table.String(), "at, s")
	assert.Equal(t, 18, strings.Count(lines, "\n")-1)
	assert.Contains(t, lines, "\n90 ", "the last is there")
}
