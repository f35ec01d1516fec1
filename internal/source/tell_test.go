package source

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

// board is a ReportStore.
type board struct {
	mu    sync.Mutex
	told  map[string][]event.SourceReport
	times int
	err   error
}

func (b *board) TellSources(_ context.Context, process string, reports []event.SourceReport) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.times++
	if b.err == nil {
		b.told[process] = reports
	}
	return b.err
}

func (b *board) ForgetReceiver(ctx context.Context, process string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.told, process)
	return ctx.Err()
}

// state is what a process told of its one source, and in how many calls.
func (b *board) state() (told event.SourceReport, times int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.told["p"]) > 0 {
		told = b.told["p"][0]
	}
	return told, b.times
}

// G1: a process tells at once what it makes of a change, then every minute that it is alive, and nothing more at its
// end.
func TestRegistryTellsWhatItMakesOfTheSources(t *testing.T) {
	tab := newTable()
	secrets := vault{}
	inRegistry(t, tab, secrets.resolve, func(t *testing.T, r *Registry, l *logged) {
		b := &board{told: map[string][]event.SourceReport{}}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Tell(ctx, b, "p") }()

		at := event.Timestamp{Time: time.Date(2026, 1, 1, 0, 0, 0, 1000, time.UTC)}
		tab.put("a", `{"preset":"github","secrets":["env:S"]}`)
		tab.change(func() {
			row := tab.rows["a"]
			row.UpdatedAt = at
			tab.rows["a"] = row
		})
		r.Reload()
		synctest.Wait()
		told, before := b.state()
		require.Equal(t, event.SourceReport{
			Source: "a", SettingsAt: at, State: "broken", Problems: []string{"secrets[0] env:S is not set"},
		}, told)

		r.Reload()
		synctest.Wait()
		_, times := b.state()
		require.Equal(t, before, times, "nothing is new")
		time.Sleep(10 * tellInterval)
		synctest.Wait()
		_, times = b.state()
		require.InDelta(t, before+10, times, 1)

		// The same state of newer settings is news. A report that fails is repeated.
		b.mu.Lock()
		b.err = errors.New("away")
		b.mu.Unlock()
		tab.change(func() {
			row := tab.rows["a"]
			row.UpdatedAt = event.Timestamp{Time: at.Time.Add(time.Second)}
			tab.rows["a"] = row
			secrets["S"] = "hidden-from-all-eyes"
		})
		r.Reload()
		time.Sleep(time.Minute)
		require.Equal(t, 1, l.count("commands cannot tell"))
		b.mu.Lock()
		b.err = nil
		b.mu.Unlock()
		time.Sleep(tellAgain + time.Second)
		synctest.Wait()
		told, _ = b.state()
		require.Equal(t, "verified", told.State)
		require.Empty(t, told.Problems)
		require.Equal(t, at.Time.Add(time.Second), told.SettingsAt.Time)

		stop()
		require.NoError(t, <-ended)
		require.Empty(t, b.told)
	})
}
