package ingest

import (
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
