package ingest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/webhookspine/spine/internal/event"
)

// B, of its kind: a sender whose events are slow to store makes no other source wait for its turn.
func TestSourcesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &modelStore{before: slow} // a second for each transaction
		config := one()
		config.BatchBytes, config.QueueBytes, config.Patience = 100_000, 8<<20, time.Hour
		run := commit(t, config, store)
		var flood []event.Event
		for n := range 40 {
			flood = append(flood, event.Event{
				Source: "evil", ID: fmt.Sprint(n), Payload: []byte(strings.Repeat(" ", 60_000)),
			})
		}
		all := run.submit(t.Context(), flood...)
		time.Sleep(1500 * time.Millisecond)
		for range 5 {
			for _, a := range run.submit(t.Context(), of("victim", some(1, 3)...)...)() {
				require.LessOrEqual(t, a.after, 2*time.Second, "the transaction that runs, and the next one")
			}
		}
		for _, a := range all() {
			require.NoError(t, a.err)
		}
	})
}

// Where large events are slow to store, their source leaves a transaction to others at any time. It does so as long as
// others send, and not where the database is slow for all.
func TestSlowSourcesGoApart(t *testing.T) {
	t.Parallel()
	large := func(source, id string) event.Event {
		return event.Event{Source: source, ID: id, Payload: []byte(strings.Repeat(" ", 100_000))}
	}
	for name, c := range map[string]struct {
		small, large time.Duration // of a transaction, for each large event
		most         time.Duration // that a small event waits, once the large ones are known to be slow
		apart        bool
	}{
		"slow because of them": {time.Millisecond, time.Second, 30 * time.Millisecond, true},
		"slow for all":         {300 * time.Millisecond, 10 * time.Millisecond, time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &modelStore{before: func(_ context.Context, events []event.Event) error {
					time.Sleep(c.small)
					for _, e := range events {
						if len(e.Payload) > largeCost {
							time.Sleep(c.large)
						}
					}
					return nil
				}}
				config := DefaultCommitterConfig()
				config.Patience = time.Hour
				run := commit(t, config, store)
				var flood []event.Event
				for n := range 60 {
					flood = append(flood, large("evil", fmt.Sprint(n)))
				}
				run.submit(t.Context(), of("victim", some(1, 1)...)...)()
				all := run.submit(t.Context(), flood[:8]...)
				run.submit(t.Context(), of("victim", some(2, 3)...)...)()
				all()
				all = run.submit(t.Context(), flood[8:]...)
				for n := range 20 {
					for _, a := range run.submit(t.Context(), of("victim", some(10+n, 1)...)...)() {
						require.NoError(t, a.err)
						require.LessOrEqual(t, a.after, c.most)
					}
					time.Sleep(150 * time.Millisecond)
				}
				other := run.submit(t.Context(), large("other", "x"))()
				require.LessOrEqual(t, other[0].after, 2*(c.large+c.most), "the transaction that runs, and its own")
				all()
				require.Equal(t, c.apart, !run.loads["evil"].slowAt.IsZero())

				// Alone it has all transactions again.
				time.Sleep(2 * apartFor)
				began := time.Now()
				for n := range flood {
					flood[n].ID += "again"
				}
				run.submit(t.Context(), flood[:16]...)()
				require.Less(
					t,
					time.Since(began),
					c.small+15*c.large+100*time.Millisecond,
					"one beside the other fifteen",
				)
			})
		})
	}
}

// sift keeps the order. It takes all that do not go apart, or large ones of one source, and nothing only where it must.
func TestSift(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		now := time.Now()
		loads := map[string]*load{}
		for _, name := range []string{"a", "b", "c"} {
			loads[name] = &load{cost: rapid.IntRange(0, 9).Draw(r, "cost")}
			if rapid.Bool().Draw(r, "slow") {
				loads[name].slowAt = now.Add(-time.Duration(rapid.IntRange(0, 2).Draw(r, "ago")) * apartFor * 2 / 3)
			}
		}
		var waiting, ordinary []*waiter
		for range rapid.IntRange(0, 12).Draw(r, "n") {
			w := &waiter{size: rapid.SampledFrom([]int{0, 2 * largeCost}).Draw(r, "size"), events: some(1, 1)}
			w.load = loads[rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "source")]
			if waiting = append(waiting, w); !w.goesApart(now) {
				ordinary = append(ordinary, w)
			}
		}
		may := rapid.Bool().Draw(r, "may go apart")
		last := rapid.Bool().Draw(r, "the last one went apart")
		taken, apart := sift(waiting, now, may, last)
		left := without(waiting, taken)
		require.Len(r, left, len(waiting)-len(taken), "in their order")
		switch {
		case apart:
			require.True(r, may)
			require.False(r, last && len(ordinary) > 0, "they take turns")
			for _, w := range waiting {
				isOne := w.load == taken[0].load && w.goesApart(now)
				require.Equal(r, isOne, slices.Contains(taken, w))
				require.True(r, w.load.cost >= taken[0].load.cost || isOne || !w.goesApart(now))
			}
		default:
			require.Equal(r, ordinary, taken)
			require.False(r, len(taken) == 0 && len(waiting) > 0 && may)
			require.True(r, !may || last || len(ordinary) == len(waiting), "they take turns")
		}
	})
}

// choose loses nothing, keeps the order, is within its bounds, and leaves out no source whose next request fits.
func TestChoose(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		loads := map[string]*load{"a": {}, "b": {cost: rapid.IntRange(0, 9999).Draw(r, "cost")}, "c": {}}
		var waiting []*waiter
		for range rapid.IntRange(0, 40).Draw(r, "n") {
			w := &waiter{
				size: rapid.IntRange(0, 500).Draw(r, "size"), alone: rapid.IntRange(0, 9).Draw(r, "alone") == 0,
			}
			source := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "source")
			w.events = of(source, make([]event.Event, rapid.IntRange(1, 4).Draw(r, "events"))...)
			w.load = loads[source]
			waiting = append(waiting, w)
		}
		rows, bytes := rapid.IntRange(1, 30).Draw(r, "rows"), rapid.IntRange(1, 2000).Draw(r, "bytes")
		batch, left, _ := choose(slices.Clone(waiting), rows, bytes)
		if len(waiting) == 0 {
			require.Empty(r, batch)
			return
		}
		require.NotEmpty(r, batch)
		i, j := 0, 0
		firstLeft := map[string]*waiter{} // by source
		for _, w := range waiting {
			if i < len(batch) && batch[i] == w {
				i++
				require.Nil(r, firstLeft[w.source()], "each source in its order")
				continue
			}
			require.Same(r, left[j], w)
			j++
			if firstLeft[w.source()] == nil {
				firstLeft[w.source()] = w
			}
		}
		require.Equal(r, len(waiting), i+j)
		usedRows, usedBytes := 0, 0
		for _, w := range batch {
			require.True(r, !w.alone || len(batch) == 1)
			usedRows += len(w.events)
			usedBytes += w.size
		}
		if len(batch) > 1 {
			require.LessOrEqual(r, usedRows, rows)
			require.LessOrEqual(r, usedBytes, bytes)
		}
		for _, w := range firstLeft {
			fits := !w.alone && !batch[0].alone && usedRows+len(w.events) <= rows &&
				usedBytes+w.size <= bytes/mixedPart
			require.False(r, fits, "what fits is taken")
		}
	})
}

// B, of its kind: bodies that do not arrive, from however many addresses, leave room for small requests. What a source
// sends leaves room for other sources.
func TestRoom(t *testing.T) {
	const size = 8 << 20
	g := &gate{room: newRoom(size, 1<<20), shares: newShares(size, 1<<20)}
	arrive := func(from, source string, bytes int64) *arrival {
		a := &arrival{remote: from, name: source}
		if !g.reserve(a, bytes) {
			g.release(a)
			return nil
		}
		return a
	}
	var held []*arrival
	for n := range 1000 {
		if a := arrive(fmt.Sprintf("192.0.2.%d", n%40), "x", 60_000); a != nil {
			held = append(held, a)
		}
	}
	require.Nil(t, arrive("198.51.100.1", "x", 60_000), "it is full")
	for range 100 {
		a := arrive("198.51.100.1", "x", 3000)
		require.NotNil(t, a, "a small one has room")
		held = append(held, a)
	}
	require.False(t, g.reserve(held[len(held)-1], 100_000), "until it is small no more")
	for _, a := range held {
		g.release(a)
	}
	require.Empty(t, g.shares.held)
	require.True(t, g.room.large.TryAcquire(size/8*7) && g.room.small.TryAcquire(size/8), "all is given back")
	g.room.large.Release(size / 8 * 7)
	g.room.small.Release(size / 8)

	held = nil
	for n := range 200 { // verified ones of one source, that wait for their commit
		a := arrive(fmt.Sprintf("192.0.2.%d", n), "evil", 20_000)
		require.NotNil(t, a)
		if !g.vouch(a) || !g.reserve(a, 100_000) {
			g.release(a)
			continue
		}
		held = append(held, a)
	}
	require.InDelta(t, size/2, 120_000*len(held), 120_000, "it has half")
	a := arrive("198.51.100.1", "victim", 120_000)
	require.NotNil(t, a)
	require.True(t, g.vouch(a))
	for _, a := range append(held, a) {
		g.release(a)
	}
	require.Empty(t, g.shares.held)
}
