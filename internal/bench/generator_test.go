package bench

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestATargetThatIsNotThereIsAnError(t *testing.T) {
	ln := listen(t)
	require.NoError(t, ln.Close())
	_, err := RunIngest(t.Context(), Load{Target: "http://" + ln.Addr().String(), Count: 1})
	require.ErrorContains(t, err, "reaching the target http://"+ln.Addr().String())
}

func TestOtherAnswersAreCountedByKind(t *testing.T) {
	slow := make(chan struct{})
	t.Cleanup(func() { close(slow) })
	for _, c := range []struct {
		kind   string
		meddle func(http.ResponseWriter, *http.Request, int) bool
	}{
		{"http 503", alwaysAnswer(http.StatusServiceUnavailable, `{"status":"accepted"}`)},
		{"http 301", alwaysAnswer(http.StatusMovedPermanently, "")},
		{"http 409", alwaysAnswer(http.StatusConflict, "")},
		{kindUnknown, alwaysAnswer(http.StatusOK, "thank you")},
		{kindUnknown, alwaysAnswer(http.StatusNoContent, "")},
		{kindBroken, func(http.ResponseWriter, *http.Request, int) bool { panic(http.ErrAbortHandler) }},
		{kindTimeout, func(_ http.ResponseWriter, r *http.Request, _ int) bool {
			select {
			case <-slow:
			case <-r.Context().Done():
			}
			return true
		}},
	} {
		load := Load{Target: newSystem(t, c.meddle).URL, Connections: 2, Count: 3}
		if c.kind == kindTimeout {
			load.Timeout = 100 * time.Millisecond
		}
		report := ingest(t, load)
		assert.Equal(t, map[string]int64{c.kind: 3}, report.Errors)
		assert.Equal(t, int64(3), report.Sent)
		assert.Zero(t, report.Acknowledged)
		assert.Zero(t, report.AcknowledgeLatency.Count)
	}
}

func TestATargetThatGoesAwayIsCounted(t *testing.T) {
	ln := listen(t)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for range 2 { // the look whether it is there, and the first request
			conn, err := ln.Accept()
			if assert.NoError(t, err) {
				_ = conn.Close()
			}
		}
		_ = ln.Close()
	}()
	report := ingest(t, Load{Target: "http://" + ln.Addr().String(), Connections: 1, Count: 3})
	<-gone
	assert.Equal(t, map[string]int64{kindBroken: 1, kindRefused: 2}, report.Errors)
}

func TestKindsOfFailedConnects(t *testing.T) {
	assert.Equal(t, kindNoConnect, kindOf(0, dialError{errors.New("no route to host")}))
	assert.Equal(t, kindTimeout, kindOf(0, dialError{&net.OpError{Op: "dial", Err: context.DeadlineExceeded}}))
}

func TestACancelledRunStopsAndReports(t *testing.T) {
	for _, rate := range []float64{0, 1000} {
		ctx, cancel := context.WithCancel(t.Context())
		system := newSystem(t, func(_ http.ResponseWriter, r *http.Request, n int) bool {
			if n < 5 {
				return false
			}
			if n == 7 { // three connections hang
				cancel()
			}
			<-r.Context().Done()
			return true
		})
		report, err := RunIngest(ctx, Load{
			Target: system.URL, Connections: 3, Rate: rate, Duration: time.Hour, Timeout: time.Hour,
		})
		require.NoError(t, err)
		assert.True(t, report.Interrupted)
		assert.Equal(t, int64(5), report.Accepted)
		assert.Equal(t, int64(3), report.Unanswered)
		assert.Equal(t, int64(8), report.Sent)
		assert.Empty(t, report.Errors)
	}
}

func TestClosedLoop(t *testing.T) {
	system := newSystem(t, nil)
	report := ingest(t, Load{Target: system.URL, Connections: 4, Count: 500, BodySize: 321, RunID: "r"})
	assert.Equal(t, int64(500), report.Sent)
	assert.Equal(t, int64(500), report.SentFresh)
	assert.Equal(t, int64(500), report.Acknowledged)
	assert.Equal(t, int64(500), report.Accepted)
	assert.Empty(t, report.Errors)
	assert.Equal(t, uint64(500), report.AcknowledgeLatency.Count)
	assert.Positive(t, report.AcknowledgeLatency.P50)
	assert.InEpsilon(t, 500/report.Seconds, report.AcknowledgedPerSecond, 1e-6)
	assert.Nil(t, report.SendLag)
	assert.Nil(t, report.Delivery)
	assert.False(t, report.Interrupted)

	assert.Len(t, system.payloads, 500, "ids are unique")
	assert.Contains(t, system.payloads, "r-0000000499")
	assert.Equal(t, map[int]int{321: 500}, system.sizes)
}

func TestConnectionsAreKept(t *testing.T) {
	var opened sync.Map // by the client's address
	system := newSystem(t, func(w http.ResponseWriter, r *http.Request, n int) bool {
		opened.Store(r.RemoteAddr, true)
		if n == 50 {
			w.Header().Set("Connection", "close")
		}
		return false
	})
	report := ingest(t, Load{Target: system.URL, Connections: 2, Count: 100})
	assert.Equal(t, int64(100), report.Accepted)
	connections := 0
	opened.Range(func(any, any) bool { connections++; return true })
	assert.LessOrEqual(t, connections, 3, "two, and another in place of the closed one")
}

func TestDuplicatesAndConflictsAreWhatTheyAre(t *testing.T) {
	system := newSystem(t, nil)
	report := ingest(t, Load{
		Target: system.URL, Connections: 3, Count: 600, DuplicateRatio: 0.6, ConflictRatio: 0.2, Seed: 5,
	})
	assert.Equal(t, int64(600), report.Acknowledged)
	assert.Equal(t, report.SentFresh, report.Accepted)
	assert.Equal(t, report.SentDuplicates, report.Deduplicated)
	assert.Equal(t, report.SentConflicts, report.Conflicts)
	assert.InDelta(t, 360, report.SentDuplicates, 60)
	assert.InDelta(t, 120, report.SentConflicts, 45)
	assert.Len(t, system.payloads, int(report.SentFresh))
}

func TestTheSameSeedMakesTheSameRun(t *testing.T) {
	load := Load{Connections: 1, Count: 100, DuplicateRatio: 0.5, Seed: 9, RunID: "r"}
	first, second := newSystem(t, nil), newSystem(t, nil)
	load.Target = first.URL
	report := ingest(t, load)
	load.Target = second.URL
	assert.Equal(t, report.SentDuplicates, ingest(t, load).SentDuplicates)
	assert.Equal(t, first.payloads, second.payloads)
}

func TestWarmUpIsNotCounted(t *testing.T) {
	for _, rate := range []float64{0, 200} {
		system := newSystem(t, nil)
		report := ingest(
			t,
			Load{Target: system.URL, Connections: 2, Rate: rate, WarmUp: 100 * time.Millisecond, Count: 20},
		)
		assert.Equal(t, int64(20), report.Sent)
		assert.Equal(t, int64(20), report.Accepted)
		assert.Equal(t, uint64(20), report.AcknowledgeLatency.Count)
		assert.Greater(t, system.requests, 20)
		if rate > 0 {
			assert.Equal(t, 40, system.requests)
			assert.InDelta(t, 0.1, report.Seconds, 0.05+report.AcknowledgeLatency.Max/1000)
		}
	}
}

func TestDurationEndsAClosedLoop(t *testing.T) {
	start := time.Now()
	report := ingest(t, Load{Target: newSystem(t, nil).URL, Connections: 2, Duration: 150 * time.Millisecond})
	assert.GreaterOrEqual(t, time.Since(start), 150*time.Millisecond)
	assert.Positive(t, report.Accepted)
	assert.False(t, report.Interrupted)
}

func TestOpenLoopLatencyCountsFromTheDueTime(t *testing.T) {
	const stall = 300 * time.Millisecond
	system := newSystem(t, func(_ http.ResponseWriter, r *http.Request, n int) bool {
		if n == 0 {
			timer := time.NewTimer(stall)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-r.Context().Done():
			}
		}
		return false
	})
	report := ingest(t, Load{Target: system.URL, Connections: 1, Rate: 100, Count: 20})
	assert.Equal(t, int64(20), report.Accepted)
	// The twenty requests were due within 190 ms, all of them before the
	// stalled one was answered.
	assert.GreaterOrEqual(t, report.AcknowledgeLatency.P50, 195.0)
	assert.GreaterOrEqual(t, report.AcknowledgeLatency.Max, 300.0)
	require.NotNil(t, report.SendLag)
	assert.GreaterOrEqual(t, report.SendLag.P50, 185.0, "the first left in time")
	assert.Zero(t, report.Unsent)
}

func TestOpenLoopSaysWhatItCouldNotSend(t *testing.T) {
	system := newSystem(t, func(w http.ResponseWriter, r *http.Request, _ int) bool {
		timer := time.NewTimer(400 * time.Millisecond)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
		}
		return false
	})
	report := ingest(t, Load{Target: system.URL, Connections: 1, Rate: 100, Duration: 200 * time.Millisecond})
	assert.Equal(t, int64(1), report.Sent)
	assert.Equal(t, int64(19), report.Unsent)
}

func TestOpenLoopKeepsItsRate(t *testing.T) {
	var mu sync.Mutex
	var at []time.Time
	system := newSystem(t, func(http.ResponseWriter, *http.Request, int) bool {
		mu.Lock()
		defer mu.Unlock()
		at = append(at, time.Now())
		return false
	})
	start := time.Now()
	report := ingest(t, Load{Target: system.URL, Connections: 8, Rate: 400, Count: 80})
	assert.Equal(t, int64(80), report.Accepted)
	assert.InDelta(t, 400, report.OfferedPerSecond, 0)
	for i, arrived := range at {
		assert.GreaterOrEqual(t, arrived.Sub(start), time.Duration(i)*time.Second/400, "never ahead of the rate")
	}
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var shown []Snapshot
		g := &generator{
			load:   Load{WarmUp: 1500 * time.Millisecond, Progress: func(s Snapshot) { shown = append(shown, s) }},
			start:  time.Now(),
			errors: map[string]int64{},
		}
		stop := g.showProgress()
		<-time.After(1100 * time.Millisecond) // by the bubble's clock
		synctest.Wait()
		g.sent[fresh].Store(30)
		g.sent[conflict].Store(12)
		g.accepted.Store(25)
		g.conflicts.Store(10)
		g.mu.Lock()
		g.errors["http 503"] = 7
		g.mu.Unlock()
		<-time.After(time.Second)
		synctest.Wait()
		stop()
		assert.Equal(t, []Snapshot{
			{Elapsed: time.Second, WarmingUp: true},
			{Elapsed: 2 * time.Second, Sent: 42, Acknowledged: 35, Errors: 7, PerSecond: 35},
		}, shown)
	})
}

func TestTheAnswersBodyMayEndWithTheConnection(t *testing.T) {
	ln := listen(t)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for i := range 3 { // the look whether it is there, and two requests
			conn, err := ln.Accept()
			if !assert.NoError(t, err) {
				return
			}
			if i > 0 {
				_, _ = conn.Read(make([]byte, 4096))
				_, _ = io.WriteString(conn, "HTTP/1.0 200 OK\r\n\r\n{\"status\":\"accepted\"}")
			}
			_ = conn.Close()
		}
	}()
	report := ingest(t, Load{Target: "http://" + ln.Addr().String(), Connections: 1, Count: 2})
	<-served
	require.NoError(t, ln.Close())
	assert.Equal(t, int64(2), report.Accepted)
}
