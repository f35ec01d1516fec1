package bench

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// draining drains a system that has at most two deliveries under way and never delivers the ids
// that lost names.
func draining(ctx context.Context, t *testing.T, ln net.Listener, d Drain, lost func(id string) bool) (Report, error) {
	t.Helper()
	system := newSystem(t, nil)
	client := &http.Client{Transport: &http.Transport{}}
	var deliveries sync.WaitGroup
	slots := make(chan struct{}, 2)
	system.deliver = func(id string, body []byte) {
		if lost(id) {
			return
		}
		deliveries.Go(func() {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			deliverTo(ctx, t, client, ln, id, body)
			<-slots
		})
	}
	d.Target = system.URL
	report, err := RunDrain(ctx, ln, d)
	deliveries.Wait()
	client.CloseIdleConnections()
	return report, err
}

func none(string) bool { return false }

func TestDrain(t *testing.T) {
	report, err := draining(t.Context(), t, listen(t), Drain{Load: Load{Count: 50, Connections: 3}}, none)
	require.NoError(t, err)
	assert.Equal(t, "drain", report.Scenario)
	assert.Equal(t, int64(50), report.Accepted)
	assert.Equal(t, int64(50), report.Delivery.Delivered)
	assert.Zero(t, report.Delivery.Lost)
	counted := report.Delivery.Latency.Count
	assert.GreaterOrEqual(t, counted, uint64(48), "all but what was in hand")
	assert.LessOrEqual(t, counted, uint64(50), "on a busy machine nothing is in hand yet")
	assert.Positive(t, report.Delivery.PerSecond)
	assert.InDelta(
		t,
		float64(counted)/report.Delivery.PerSecond,
		report.Delivery.Latency.Max/1000,
		1e-3,
		"from the opening to the last",
	)
}

func TestDrainOfASystemThatLoses(t *testing.T) {
	began := time.Now()
	drain := Drain{Load: Load{Count: 20, RunID: "r"}, Patience: time.Second}
	report, err := draining(t.Context(), t, listen(t), drain,
		func(id string) bool { return strings.HasSuffix(id, "7") })
	require.NoError(t, err)
	assert.Equal(t, int64(18), report.Delivery.Delivered)
	assert.Equal(t, int64(2), report.Delivery.Lost)
	assert.GreaterOrEqual(t, time.Since(began), time.Second)
}

func TestDrainOfNothing(t *testing.T) {
	drain := Drain{Load: Load{Count: 5}, Patience: 50 * time.Millisecond}
	report, err := draining(t.Context(), t, listen(t), drain, func(string) bool { return true })
	require.ErrorIs(t, err, ErrNothingArrived)
	assert.Equal(t, int64(5), report.Delivery.Lost)
}

func TestDrainInterrupted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // all but one have arrived by then
	defer cancel()
	report, err := draining(ctx, t, listen(t), Drain{Load: Load{Count: 5}},
		func(id string) bool { return strings.HasSuffix(id, "4") })
	require.NoError(t, err)
	assert.True(t, report.Interrupted)
}

func TestDrainThatMakesNoSense(t *testing.T) {
	for _, d := range []Drain{
		{Load: Load{Duration: time.Second}},
		{Load: Load{WarmUp: time.Second}},
		{Patience: -1},
		{Load: Load{Target: "nowhere"}},
	} {
		ln := listen(t)
		_, err := RunDrain(t.Context(), ln, d)
		require.Error(t, err)
		_, err = ln.Accept()
		require.Error(t, err, "the listener is closed in any case")
	}
}
