package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// answerMetrics answers GET /metrics as a process that uses half a core and grows by a megabyte
// each time.
func answerMetrics() func(http.ResponseWriter, *http.Request, int) bool {
	began := time.Now()
	var asked atomic.Int64
	return func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodGet || r.URL.Path != "/metrics" {
			return false
		}
		_, _ = io.WriteString(w, metricsText(time.Since(began).Seconds()/2, 50+asked.Add(1)))
		return true
	}
}

func metricsText(cpu float64, mb int64) string {
	return fmt.Sprintf("# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total %g\n"+
		"process_max_fds 10\nprocess_resident_memory_bytes %g\n",
		cpu, float64(mb)*1e6)
}

func deliverOnce(string) int { return 1 }

func TestSoak(t *testing.T) {
	database := newTables(t, 10, 5)
	ln := listen(t)
	system, wait := newDelivering(t, ln, answerMetrics(), false, deliverOnce)
	var sampled []Sample
	report, err := RunSoak(t.Context(), ln, Soak{
		E2E: E2E{
			Load: Load{Target: system.URL, Rate: 150, WarmUp: 200 * time.Millisecond, Duration: 3 * time.Second},
		},
		Interval:  200 * time.Millisecond,
		Processes: []Process{{PID: os.Getpid(), Name: "this"}, {PID: os.Getpid()}},
		Database:  database,
		Sampled:   func(s Sample) { sampled = append(sampled, s) },
	})
	wait()
	require.NoError(t, err)
	assert.Equal(t, "soak", report.Scenario)
	assert.Equal(t, int64(450), report.Sent+report.Unsent)
	assert.Equal(t, report.Accepted, report.Delivery.Delivered)
	assert.Equal(t, sampled, report.Samples)
	require.Greater(t, len(sampled), 3, "less than fifteen where the machine is slow")

	var acknowledged, arrived uint64
	for _, s := range sampled {
		acknowledged += s.Acknowledge.Count
		arrived += s.Arrive.Count
		assert.Zero(t, s.Errors)
		assert.Positive(t, s.Processes[0].CPU)
		assert.Equal(t, &DatabaseSample{
			LiveTuples: 10, DeadTuples: 5, QueueLiveTuples: 10, QueueDeadTuples: 5,
			PerEvent: PerEvent{WALBytes: s.Database.WALBytes, Commits: s.Database.Commits},
		}, s.Database)
	}
	assert.Positive(t, sampled[0].AcknowledgedPerSecond)
	assert.LessOrEqual(t, acknowledged, uint64(report.Acknowledged)) //nolint:gosec // G115: not negative
	assert.InDelta(t, report.Acknowledged, acknowledged, 150, "but for the last answers")
	assert.InDelta(t, report.Delivery.Delivered, arrived, 150)

	memory, ok := report.Trend(TrendMemory, "target")
	require.True(t, ok)
	assert.Greater(t, memory.Last, memory.First)
	dead, ok := report.Trend(TrendDeadTuples, queue)
	require.True(t, ok)
	want := Trend{What: TrendDeadTuples, Of: queue, First: 5, Last: 5, Ratio: 1, Tolerance: 1005, Flat: true}
	assert.Equal(t, want, dead)
	_, ok = report.Trend(TrendMemory, "this")
	assert.Equal(t, proc != "", ok)
	_, ok = report.Trend(TrendArrive, "")
	assert.True(t, ok)
	assert.Positive(t, report.Database.SizeBegin)
	assert.Nil(t, report.Database.Statements)
	assert.Contains(t, report.Remarks,
		"left out: statements: the extension pg_stat_statements is not installed in the database")
	assert.Contains(t, report.Remarks,
		"dead tuples grow in so short a run: autovacuum runs every 60 s, and a third must be longer")
}

func TestASoakGoesOnWithoutWhatFails(t *testing.T) {
	sleeper := exec.CommandContext(t.Context(), "sleep", "60")
	require.NoError(t, sleeper.Start())
	t.Cleanup(func() { _ = sleeper.Process.Kill() }) // if it is still there
	ln := listen(t)
	system, wait := newDelivering(t, ln, nil, false, deliverOnce) // it has no metrics
	pool := databases.Pool(t)
	report, err := RunSoak(t.Context(), ln, Soak{
		E2E:       E2E{Load: Load{Target: system.URL, Rate: 100, Duration: 2 * time.Second}},
		Interval:  200 * time.Millisecond,
		Processes: []Process{{PID: sleeper.Process.Pid, Name: "sleeper"}},
		Database:  pool.Config().ConnString(),
		Sampled: func(s Sample) {
			if s.Seconds > 0.25 && sleeper.ProcessState == nil {
				killErr := sleeper.Process.Kill()
				_ = sleeper.Wait() // it was killed
				_, err := pool.Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity
					where application_name = 'spine bench' and datname = current_database()`)
				if err := errors.Join(killErr, err); err != nil {
					t.Error(err) // not in the test's own goroutine
				}
			}
		},
	})
	wait()
	require.NoError(t, err)
	assert.Positive(t, report.Delivery.Delivered)
	last := report.Samples[len(report.Samples)-1]
	assert.Nil(t, last.Database)
	assert.Positive(t, report.Database.SizeBegin, "the figures are those until then")
	_, ok := last.Process("sleeper")
	assert.False(t, ok)
	_, ok = report.Trend(TrendMemory, "sleeper")
	assert.False(t, ok, "there is nothing to compare")
	remarks := strings.Join(report.Remarks, "\n")
	assert.Contains(t, remarks,
		"left out: target from 0 s on: asking for metrics: GET "+system.URL+"/metrics was answered with 400")
	assert.Regexp(t, "left out: the database from [01] s on: reading the database's statistics: ", remarks)
	assert.Contains(t, remarks, "left out: tuples: the database has no tables in schema spine")
	if proc != "" {
		assert.Regexp(t, "left out: sleeper from [01] s on: the process has ended", remarks)
	}
}

func TestASoakThatMakesNoSense(t *testing.T) {
	load := Load{Target: newSystem(t, nil).URL, Rate: 100, Duration: time.Second}
	for says, s := range map[string]Soak{
		"rate":                    {E2E: E2E{Load: Load{Duration: time.Second}}},
		"no count":                {E2E: E2E{Load: Load{Rate: 1, Count: 1}}},
		"interval must be":        {E2E: E2E{Load: load}, Interval: 400 * time.Millisecond},
		"interval must be at":     {E2E: E2E{Load: load}, Interval: -1},
		"drain ":                  {E2E: E2E{Load: load, Drain: -1}},
		"target ":                 {E2E: E2E{Load: Load{Target: "nowhere", Rate: 1}}},
		"the database's URL":      {E2E: E2E{Load: load}, Database: "nonsense"},
		"watching process 999999": {E2E: E2E{Load: load}, Processes: []Process{{PID: 999999999}}},
	} {
		if proc == "" && s.Processes != nil {
			continue
		}
		ln := listen(t)
		report, err := RunSoak(t.Context(), ln, s)
		require.ErrorContains(t, err, says)
		assert.Empty(t, report.Scenario)
		_, err = ln.Accept()
		require.Error(t, err, "the listener is closed in any case")
	}
	s, err := Soak{E2E: E2E{Load: Load{Rate: 1}}}.complete()
	require.NoError(t, err)
	assert.Equal(t, 10*time.Minute, s.Duration)
	assert.Equal(t, 10*time.Second, s.Interval)
}

func TestASoakInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	report, err := RunSoak(ctx, listen(t), Soak{
		E2E: E2E{
			Load: Load{Target: newSystem(t, answerMetrics()).URL, Rate: 100, Connections: 1, Duration: time.Hour},
		},
		Interval: 100 * time.Millisecond,
		Sampled: func(s Sample) {
			if s.Seconds > 0.25 {
				cancel()
			}
		},
	})
	require.NoError(t, err)
	assert.True(t, report.Interrupted)
	assert.NotEmpty(t, report.Samples)
}

func TestMetrics(t *testing.T) {
	u, err := parseMetrics(strings.NewReader("go_threads 9\n" + metricsText(1.25, 3)))
	require.NoError(t, err)
	assert.Equal(t, usage{1250 * time.Millisecond, 3e6}, u)
	for text, says := range map[string]string{
		"":                                     "no process_cpu_seconds_total",
		"process_cpu_seconds_total 1\n":        "no process_resident_memory_bytes",
		"process_cpu_seconds_total much\n":     "reading metrics",
		strings.Repeat("x", 1<<20):             "reading metrics",
		"process_cpu_seconds_total{a=\"b\"} 1": "no process_cpu_seconds_total",
	} {
		_, err := parseMetrics(strings.NewReader(text))
		require.ErrorContains(t, err, says)
	}
}

func TestUseIsCountedFromTheReadingBefore(t *testing.T) {
	now := usage{time.Hour, 50e6}
	w := &watched{name: "p", read: func(context.Context) (usage, error) { return now, nil }}
	u, err := w.use(t.Context())
	require.NoError(t, err)
	assert.Equal(t, ProcessUse{Name: "p", MemoryMB: 50}, u, "nothing is known yet")
	w.at = w.at.Add(-2 * time.Second)
	now = usage{time.Hour + time.Second, 60e6}
	u, err = w.use(t.Context())
	require.NoError(t, err)
	assert.InDelta(t, 0.5, u.CPU, 0.01)
	assert.InDelta(t, 60, u.MemoryMB, 1e-9)
	now.cpu = 0 // it was restarted
	u, err = w.use(t.Context())
	require.NoError(t, err)
	assert.Zero(t, u.CPU)
}

func TestPerEvent(t *testing.T) {
	was := statistics{commits: 100, wal: 1000, statements: 500}
	is := statistics{commits: 161, wal: 5000, statements: 711}
	two := 2.1
	assert.Equal(t, PerEvent{WALBytes: 40, Commits: 0.6, Statements: &two}, perEventOf(was, is, 1, 100))
	assert.Equal(t, PerEvent{}, perEventOf(was, was, 1, 0), "nothing happened, and no statements were counted")
}

func TestQuantilesOfAnInterval(t *testing.T) {
	var h histogram
	for range 1000 {
		h.record(time.Second)
	}
	before := h.counts()
	assert.Equal(t, Quantiles{}, quantilesOf(h.counts().minus(before)))
	for i := range 100 {
		h.record(time.Duration(i+1) * time.Millisecond)
	}
	q := quantilesOf(h.counts().minus(before))
	assert.Equal(t, uint64(100), q.Count)
	assert.InEpsilon(t, 50, q.P50, 0.004)
	assert.InEpsilon(t, 99, q.P99, 0.004)
}
