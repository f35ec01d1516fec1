package ingest

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestASourceWithManyLargeRequestsHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := newTurns()
		all.free, all.most = 4, 2
		var mu sync.Mutex
		var began []string
		var requests sync.WaitGroup
		seen := func() []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(began)
		}
		come := func(source string, n int) {
			for range n {
				requests.Go(func() {
					end, ok := all.take(source)
					if !ok {
						return
					}
					mu.Lock()
					began = append(began, source)
					mu.Unlock()
					time.Sleep(100 * time.Millisecond)
					end()
				})
			}
			synctest.Wait()
		}
		come("a", 1000)
		require.Len(t, seen(), 2, "half of the turns is the most of one source")
		come("b", 1)
		require.Equal(t, []string{"a", "a", "b"}, seen(), "another source has its turn at once")
		come("c", 1000)
		come("d", 1)
		require.Equal(t, 1, countOf(seen(), "c"))
		time.Sleep(150 * time.Millisecond)
		synctest.Wait()
		require.Equal(t, 1, countOf(seen(), "d"), "or after one request of each other source")

		requests.Wait()
		require.InDelta(t, 2*turnPatience.Seconds()*10, countOf(seen(), "a"), 5)
		require.Less(t, len(seen()), 2002, "who waits for too long goes")
		require.Equal(t, 4, all.free)
		require.Empty(t, all.taken)
		require.Empty(t, all.waiting)
		require.Empty(t, all.order)
	})
}

func countOf(all []string, wanted string) int {
	return len(all) - len(slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == wanted }))
}

func TestTurnsOfManySources(t *testing.T) {
	all := newTurns()
	var at, most atomic.Int64
	var requests sync.WaitGroup
	for i := range 400 {
		requests.Go(func() {
			for range 50 {
				end, ok := all.take(fmt.Sprint("s", i%7))
				if !ok {
					t.Error("it waited for too long")
					return
				}
				n := at.Add(1)
				for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
				}
				at.Add(-1)
				end()
			}
		})
	}
	requests.Wait()
	require.LessOrEqual(t, most.Load(), int64(2*runtime.GOMAXPROCS(0)))
	require.Equal(t, 2*runtime.GOMAXPROCS(0), all.free)
	require.Empty(t, all.waiting)
}
