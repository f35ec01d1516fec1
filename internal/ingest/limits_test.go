package ingest

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// rejectMany returns how long the brake takes for rejections of many senders. Each sender waits for one before it
// causes the next.
func rejectMany(t *testing.T, b *Brake, senders, each int) time.Duration {
	t.Helper()
	began := time.Now()
	var all sync.WaitGroup
	for range senders {
		all.Go(func() {
			for range each {
				b.Wait(t.Context())
			}
		})
	}
	all.Wait()
	return time.Since(began)
}

func TestRejectionsAreSlowedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBrake()
		require.Zero(t, rejectMany(t, b, 100, 5), "a burst is not")
		require.InDelta(t, 4*time.Second, rejectMany(t, b, 16, 250), float64(50*time.Millisecond), "a flood is")
		time.Sleep(time.Second)
		require.Zero(t, rejectMany(t, b, 100, 5), "nothing of it is left over")
	})
}

func TestRejectionsWaitForALimitedTimeAndNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBrake()
		require.Equal(t, brakePause, rejectMany(t, b, 10_000, 1))
		time.Sleep(brakePause)
		require.Zero(t, rejectMany(t, b, 1, 1), "no debt is left")
		require.Zero(t, b.waiting.Load())
	})
}
