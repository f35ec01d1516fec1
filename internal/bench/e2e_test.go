package bench

import (
	"context"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// delivering starts a system that delivers each new event to the sink as often as copies says, on
// its own or before the acknowledgement.
func delivering(t *testing.T, e2e E2E, before bool, copies func(id string) int) (Report, error) {
	t.Helper()
	ln := listen(t)
	system, wait := newDelivering(t, ln, nil, before, copies)
	e2e.Target = system.URL
	report, err := RunE2E(t.Context(), ln, e2e)
	wait()
	return report, err
}

// newDelivering starts such a system. The returned function waits until it has delivered
// everything.
func newDelivering(t *testing.T, ln net.Listener, meddle func(w http.ResponseWriter, r *http.Request, n int) bool,
	before bool, copies func(id string) int,
) (s *system, wait func()) {
	t.Helper()
	system := newSystem(t, meddle)
	client := &http.Client{Transport: &http.Transport{}}
	var deliveries sync.WaitGroup
	system.deliver = func(id string, body []byte) {
		all := func() {
			for range copies(id) {
				header := id
				if id[len(id)-1]%2 == 0 {
					header = "" // found in the body
				}
				deliverTo(t.Context(), t, client, ln, header, body)
			}
		}
		if before {
			all()
		} else {
			deliveries.Go(all)
		}
	}
	return system, func() {
		deliveries.Wait()
		client.CloseIdleConnections()
	}
}

func TestE2EThatMakesNoSense(t *testing.T) {
	_, err := RunE2E(t.Context(), listen(t), E2E{Drain: -1})
	require.ErrorContains(t, err, "drain ")
	ln := listen(t)
	_, err = RunE2E(t.Context(), ln, E2E{Load: Load{Target: "nowhere"}})
	require.ErrorContains(t, err, "target ")
	_, err = ln.Accept()
	require.Error(t, err, "the listener is closed in any case")
}

func TestE2EWhereNothingArrives(t *testing.T) {
	ln := listen(t)
	load := Load{Target: newSystem(t, nil).URL, Count: 5}
	report, err := RunE2E(t.Context(), ln, E2E{Load: load, Drain: 50 * time.Millisecond})
	require.ErrorIs(t, err, ErrNothingArrived)
	require.ErrorContains(t, err, "DESTINATION_URL=http://"+ln.Addr().String()+"/")
	assert.Equal(t, int64(5), report.Accepted)
	assert.Equal(t, int64(5), report.Delivery.Lost)
}

func TestE2ELost(t *testing.T) {
	e2e := E2E{Load: Load{Count: 20, Connections: 2, RunID: "r"}, Drain: time.Second}
	report, err := delivering(t, e2e, false, func(id string) int {
		if id == "r-0000000003" || id == "r-0000000008" {
			return 0
		}
		return 1
	})
	require.NoError(t, err)
	assert.Equal(t, int64(20), report.Accepted)
	assert.Equal(t, int64(18), report.Delivery.Delivered)
	assert.Equal(t, int64(2), report.Delivery.Lost)
	assert.Equal(t, uint64(18), report.Delivery.Latency.Count)
}

func TestE2ERepeated(t *testing.T) {
	for _, before := range []bool{true, false} {
		report, err := delivering(
			t,
			E2E{Load: Load{Count: 10, Connections: 1, RunID: "r"}},
			before,
			func(id string) int {
				switch {
				case before && id == "r-0000000004":
					return 3
				case before && id == "r-0000000005":
					return 2
				}
				return 1
			},
		)
		require.NoError(t, err)
		assert.Equal(t, int64(10), report.Delivery.Delivered)
		assert.Zero(t, report.Delivery.Lost)
		assert.Zero(t, report.Delivery.Unacknowledged)
		if before {
			assert.Equal(t, int64(2), report.Delivery.Repeated)
			assert.Equal(t, int64(3), report.Delivery.Repeats)
		} else {
			assert.Zero(t, report.Delivery.Repeated)
		}
		assert.Positive(t, report.Delivery.PerSecond)
		assert.Positive(t, report.Delivery.Latency.P50)
	}
}

func TestE2EAtARateWithDuplicatesAndWarmUp(t *testing.T) {
	report, err := delivering(t, E2E{Load: Load{
		Rate: 200, Connections: 4, WarmUp: 50 * time.Millisecond, Duration: 200 * time.Millisecond, DuplicateRatio: 0.5,
	}}, false, func(string) int { return 1 })
	require.NoError(t, err)
	assert.Equal(t, int64(40), report.Sent+report.Unsent)
	assert.Equal(t, report.Accepted, report.Delivery.Delivered, "duplicates are not delivered, warm-up is not counted")
	assert.Zero(t, report.Delivery.Lost)
	assert.Zero(t, report.Delivery.Repeated)
	assert.Zero(t, report.Delivery.Foreign)
}

func TestE2EInterruptedWhileDraining(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	system := newSystem(t, nil)
	ln := listen(t)
	e2e := E2E{Load: Load{Target: system.URL, Count: 3, Connections: 1}, Drain: time.Hour}
	timer := time.AfterFunc(2*time.Second, cancel)
	defer timer.Stop()
	report, err := RunE2E(ctx, ln, e2e)
	require.NoError(t, err)
	assert.True(t, report.Interrupted)
	assert.Equal(t, int64(3), report.Delivery.Lost)
}

func TestE2EWithoutItsSinkStops(t *testing.T) {
	ln := listen(t)
	system := newSystem(t, func(_ http.ResponseWriter, _ *http.Request, n int) bool {
		if n == 0 {
			_ = ln.Close()
		}
		return false
	})
	report, err := RunE2E(t.Context(), ln, E2E{Load: Load{Target: system.URL, Connections: 1, Duration: time.Hour}})
	require.ErrorContains(t, err, "sink")
	assert.True(t, report.Interrupted)
}

func TestLedger(t *testing.T) {
	due := time.Now()
	l := newLedger("r")
	id := func(n uint64) []byte {
		digits := make([]byte, idDigits)
		putDigits(digits, n)
		return append([]byte("r-"), digits...)
	}
	l.issued(1, due, true) // before 0
	l.issued(0, due, false)
	l.issued(2, due, true)
	l.issued(3, due, true)

	l.arrived([]byte("another"), due)
	l.arrived(id(99), due)
	l.acknowledged(0)
	assert.False(t, l.anything())
	l.arrived(id(0), due) // of the warm-up
	assert.True(t, l.anything())
	l.arrived(id(1), due.Add(3*time.Millisecond))
	l.acknowledged(1)
	l.arrived(id(2), due.Add(5*time.Millisecond)) // its POST failed
	l.acknowledged(3)

	all := l.finish()
	select {
	case <-all:
		require.Fail(t, "event 3 is missing")
	default:
	}
	l.arrived(id(3), due.Add(10*time.Millisecond))
	<-all
	l.arrived(id(3), due.Add(time.Second))

	d := l.delivery(due)
	assert.Equal(t, uint64(3), d.Latency.Count)
	assert.InEpsilon(t, 10, d.Latency.Max, 1e-9)
	assert.InEpsilon(t, 200, d.PerSecond, 1e-9)
	d.Latency, d.PerSecond = Latency{}, 0
	assert.Equal(t, &Delivery{Delivered: 2, Unacknowledged: 1, Repeated: 1, Repeats: 1, Foreign: 2}, d)
}
