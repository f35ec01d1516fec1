package trail_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/webhookspine/spine/internal/bell"
	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
)

var errAway = errors.New("the database is away")

// logReader is a trail.Reader of a log in memory, in which each step is a transaction of its own.
type logReader struct {
	mu     sync.Mutex
	steps  []trail.Step
	reads  []time.Duration // since the first one
	began  time.Time
	err    error  // of the reads to come
	onRead func() // called within each read
}

// write commits n steps.
func (l *logReader) write(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range n {
		at := event.Timestamp{Time: time.Now().UTC()}
		l.steps = append(l.steps, trail.Step{Timestamp: at, ID: int64(len(l.steps)) + 1, Action: trail.EventQueued})
	}
}

// fail makes reads fail from now on, until err is nil.
func (l *logReader) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// putBack forgets all but the first n steps.
func (l *logReader) putBack(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.steps = l.steps[:n]
}

// count notes a read. It is called with l.mu held.
func (l *logReader) count() {
	if len(l.reads) == 0 {
		l.began = time.Now()
	}
	l.reads = append(l.reads, time.Since(l.began))
	if l.onRead != nil {
		l.onRead()
	}
}

// readTimes returns when each read was, since the first one.
func (l *logReader) readTimes() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.reads)
}

func (l *logReader) now() trail.Transactions {
	return trail.Transactions{End: uint64(len(l.steps)) + 1}
}

func (l *logReader) CurrentCursor(context.Context) (trail.Cursor, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count()
	return trail.CursorAt(l.now()), l.err
}

func (l *logReader) ReadSteps(
	ctx context.Context,
	c trail.Cursor,
	_ trail.Filter,
) (steps []trail.Step, next trail.Cursor, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count()
	if err := errors.Join(l.err, ctx.Err()); err != nil {
		return nil, c, err
	}
	if c.Until == nil {
		if c.Seen.End > l.now().End {
			return nil, c, trail.ErrCursorAhead
		}
		if c = c.ReadingTo(l.now()); c.Settled() {
			return nil, c, nil
		}
	}
	last := trail.Key{}
	for xid := max(c.Seen.End, c.Last.XID+1); xid < c.Until.End && len(steps) < trail.PageSteps; xid++ {
		step := l.steps[xid-1]
		steps = append(steps, step)
		last = trail.Key{XID: xid, Timestamp: step.Timestamp, ID: step.ID}
	}
	return steps, c.After(last, len(steps) == trail.PageSteps), nil
}

// beginning is a cursor before all that a logReader holds.
func beginning() *trail.Cursor {
	c := trail.CursorAt(trail.Transactions{End: 1})
	return &c
}

// told is what a Follower has told.
type told struct {
	ids      []int64
	pages    []int // steps in each
	restarts int
	errors   []error
}

// followed is a Follower in a bubble.
type followed struct {
	*logReader
	bell *bell.Bell

	guard sync.Mutex
	told  told
}

// follow runs f beside a Follower of an empty log that begins at from. Within f, settle lets the Follower come to rest.
func follow(t *testing.T, from *trail.Cursor, f func(t *testing.T, all *followed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		all := &followed{logReader: &logReader{}, bell: bell.New()}
		follower := trail.Follower{Reader: all.logReader, From: from, Bell: all.bell, Timeout: time.Minute}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for page, err := range follower.Follow(ctx) {
				all.tell(page, err)
			}
		}()
		synctest.Wait()
		f(t, all)
		cancel()
		<-ended
	})
}

func (f *followed) tell(page trail.Page, err error) {
	f.guard.Lock()
	defer f.guard.Unlock()
	if err != nil {
		f.told.errors = append(f.told.errors, err)
		return
	}
	if page.Restarted {
		f.told.restarts++
	}
	f.told.pages = append(f.told.pages, len(page.Steps))
	for i := range page.Steps {
		f.told.ids = append(f.told.ids, page.Steps[i].ID)
	}
}

// elapse lets time pass in the bubble, and then lets everything in it come to rest.
func elapse(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// heard returns what was told up to now.
func (f *followed) heard() told {
	f.guard.Lock()
	defer f.guard.Unlock()
	all := f.told
	all.pages, all.errors = slices.Clone(all.pages), slices.Clone(all.errors)
	return all
}

// newIDs returns the ids of the steps that were told since it was called before.
func (f *followed) newIDs() (ids []int64) {
	synctest.Wait()
	f.guard.Lock()
	defer f.guard.Unlock()
	ids, f.told.ids = f.told.ids, nil
	return ids
}

func TestAFollowerReadsPageAfterPageAtOnce(t *testing.T) {
	t.Parallel()
	follow(t, beginning(), func(t *testing.T, all *followed) {
		all.write(2*trail.PageSteps + 7)
		all.bell.Ring()
		elapse(100 * time.Millisecond)
		require.Len(t, all.newIDs(), 2*trail.PageSteps+7)
		require.Equal(t, []int{0, trail.PageSteps, trail.PageSteps, 7}, all.heard().pages)
		require.Equal(t, all.readTimes()[1], all.readTimes()[3], "nothing waits between the pages")
	})
}

func TestAFollowerBeginsWithTheEndOfTheLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := &logReader{}
		log.write(3)
		for page, err := range (trail.Follower{Reader: log, Bell: bell.New()}).Follow(t.Context()) {
			require.NoError(t, err)
			require.Equal(t, trail.Page{After: trail.CursorAt(trail.Transactions{End: 4})}, page)
			break // leaving the loop ends it
		}
		require.Len(t, log.reads, 1)
	})
}

func TestAFollowerPollsWhereNothingRings(t *testing.T) {
	t.Parallel()
	follow(t, beginning(), func(t *testing.T, all *followed) {
		all.write(1)
		require.Empty(t, all.newIDs())
		elapse(1100 * time.Millisecond)
		require.Equal(t, []int64{1}, all.newIDs())
	})
}

func TestRingsBoundHowSoonAndNotHowOftenAFollowerReads(t *testing.T) {
	t.Parallel()
	follow(t, beginning(), func(t *testing.T, all *followed) {
		for range 1000 {
			all.bell.Ring()
			elapse(time.Millisecond)
		}
		require.InDelta(t, 20, len(all.readTimes()), 2, "in a second")
	})
}

func TestARingDuringAReadIsHeardAfterIt(t *testing.T) {
	t.Parallel()
	follow(t, beginning(), func(t *testing.T, all *followed) {
		elapse(10 * time.Second)
		before := len(all.readTimes())
		all.mu.Lock()
		all.onRead = sync.OnceFunc(func() {
			all.steps = append(all.steps, trail.Step{ID: 1}) // committed when this read has begun
			all.bell.Ring()
		})
		all.mu.Unlock()
		all.bell.Ring()
		elapse(60 * time.Millisecond)
		require.Len(t, all.readTimes(), before+2)
		require.Equal(t, 50*time.Millisecond, all.readTimes()[before+1]-all.readTimes()[before])
		require.Equal(t, []int64{1}, all.newIDs())
	})
}

func TestAFollowerWaitsForADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	follow(t, beginning(), func(t *testing.T, all *followed) {
		all.write(2)
		all.bell.Ring()
		elapse(100 * time.Millisecond)
		require.Equal(t, []int64{1, 2}, all.newIDs())

		all.fail(errAway)
		all.write(3)
		before := len(all.readTimes())
		all.bell.Ring()
		elapse(time.Minute)
		var waits []time.Duration
		reads := all.readTimes()
		for i := before + 1; i < len(reads); i++ {
			waits = append(waits, reads[i]-reads[i-1])
		}
		const ms = time.Millisecond
		require.Equal(
			t,
			[]time.Duration{50 * ms, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 2000 * ms, 2000 * ms},
			waits[:8],
		)
		require.Len(t, all.heard().errors, len(waits)+1, "each attempt that failed is told")
		require.ErrorIs(t, all.heard().errors[0], errAway)

		all.fail(nil)
		elapse(2 * time.Second)
		require.Equal(t, []int64{3, 4, 5}, all.newIDs())
		all.fail(errAway)
		before = len(all.readTimes())
		elapse(1200 * time.Millisecond)
		require.Equal(t, 50*ms, all.readTimes()[before+1]-all.readTimes()[before], "the next outage begins with a short wait")
	})
}

func TestAFollowerOfALogThatWasPutBackGoesOnFromItsEnd(t *testing.T) {
	t.Parallel()
	follow(t, beginning(), func(t *testing.T, all *followed) {
		all.write(10)
		all.bell.Ring()
		elapse(100 * time.Millisecond)
		require.Len(t, all.newIDs(), 10)
		all.putBack(4)
		all.bell.Ring()
		elapse(100 * time.Millisecond)
		require.Empty(t, all.newIDs())
		require.Equal(t, 1, all.heard().restarts)
		all.write(2)
		elapse(1100 * time.Millisecond)
		require.Equal(t, []int64{5, 6}, all.newIDs())
		require.Equal(t, 1, all.heard().restarts)
	})
}

func TestAReadTakesNoLongerThanTheTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		follower := trail.Follower{Reader: silent{}, Bell: bell.New(), Timeout: 5 * time.Second}
		began := time.Now()
		for _, err := range follower.Follow(t.Context()) {
			require.ErrorIs(t, err, context.DeadlineExceeded)
			break
		}
		require.Equal(t, 5*time.Second, time.Since(began))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, err := range follower.Follow(ctx) {
			t.Errorf("a read that was ended is not an outage: %v", err)
		}
	})
}

// silent is a database that does not answer.
type silent struct{}

func (silent) CurrentCursor(ctx context.Context) (trail.Cursor, error) {
	<-ctx.Done()
	return trail.Cursor{}, ctx.Err()
}

func (silent) ReadSteps(ctx context.Context, c trail.Cursor, _ trail.Filter) ([]trail.Step, trail.Cursor, error) {
	<-ctx.Done()
	return nil, c, ctx.Err()
}

// auditReader reads an auditLog, whose transactions commit in any order, for a Follower.
type auditReader struct {
	*auditLog
	err error
}

func (r *auditReader) CurrentCursor(context.Context) (trail.Cursor, error) {
	return trail.CursorAt(r.now(0)), r.err
}

func (r *auditReader) ReadSteps(
	_ context.Context,
	c trail.Cursor,
	_ trail.Filter,
) (steps []trail.Step, next trail.Cursor, err error) {
	if r.err != nil {
		return nil, c, r.err
	}
	ids, next := r.read(c)
	for _, id := range ids {
		steps = append(steps, trail.Step{ID: id})
	}
	return steps, next, nil
}

// Transactions begin, write, commit and abort in any order while the database comes and goes. The Follower tells each
// step that was committed once, and no other.
func TestAFollowerTellsEachStepOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(withoutDeadline{t}, func(t *rapid.T) {
			log := &auditReader{auditLog: &auditLog{rows: [][]int64{nil}, state: []string{"aborted"}}}
			times := map[int64]int{} // that each step was told
			runs := rapid.IntRange(1, 10).Draw(t, "runs")
			follower := trail.Follower{Reader: log, From: beginning(), Bell: bell.New()}
			for page, err := range follower.Follow(context.Background()) {
				for i := range page.Steps {
					times[page.Steps[i].ID]++
				}
				if err == nil && page.After.Settled() {
					runs--
				}
				if runs < 0 {
					break
				}
				if runs == 0 { // this one tells the rest
					log.err = nil
					log.commitAll()
					continue
				}
				for range rapid.IntRange(0, 5).Draw(t, "changes") {
					log.change(t)
				}
				log.err = rapid.SampledFrom([]error{nil, nil, nil, errAway}).Draw(t, "error")
			}
			for xid, state := range log.state {
				for _, id := range log.rows[xid] {
					if want := map[bool]int{true: 1}[state == "committed"]; times[id] != want {
						t.Fatalf("step %d of a transaction that is %s was told %d times", id, state, times[id])
					}
				}
			}
		})
	})
}

// withoutDeadline hides the deadline of a test, which cannot be asked for in a bubble.
type withoutDeadline struct{ testing.TB }

// change does something with a transaction.
func (l *auditLog) change(t *rapid.T) {
	open := []int{len(l.state)} // a new one
	for xid, state := range l.state {
		if state == "open" {
			open = append(open, xid)
		}
	}
	xid := rapid.SampledFrom(open).Draw(t, "xid")
	if xid == len(l.state) {
		l.rows, l.state = append(l.rows, nil), append(l.state, "open")
	}
	switch rapid.SampledFrom([]string{"write", "write", "commit", "abort"}).Draw(t, "change") {
	case "write":
		l.next++
		l.rows[xid] = append(l.rows[xid], l.next)
	case "commit":
		l.state[xid] = "committed"
	case "abort":
		l.state[xid] = "aborted"
	}
}

// commitAll commits all that is open.
func (l *auditLog) commitAll() {
	for xid, state := range l.state {
		if state == "open" {
			l.state[xid] = "committed"
		}
	}
}
