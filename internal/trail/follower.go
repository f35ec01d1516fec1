package trail

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/webhookspine/spine/internal/bell"
)

const (
	// PageSteps is the most steps that a page of the audit log has. They are some 100 kB as JSON: one message of the
	// stream.
	PageSteps = 500

	// pollInterval is how soon a Follower looks for new steps without a ring: a notification is a hint and may be lost.
	pollInterval = time.Second
	// readGap bounds how often a Follower reads, however often its bell rings. A Backoff begins with it.
	readGap = 50 * time.Millisecond
	// maxBackoff is the longest wait between two attempts to reach a database that is away.
	maxBackoff = 2 * time.Second
)

// Reader reads the audit log. Both methods heed their context and may be called concurrently.
type Reader interface {
	// CurrentCursor returns a cursor after all steps that are committed now.
	CurrentCursor(ctx context.Context) (Cursor, error)
	// ReadSteps returns the page after c of the steps that match f, ordered by timestamp and id, and the cursor after
	// the page. A page may be empty. Pages reach up to where c is reading to or, where it is not, up to what is
	// committed now. The cursor after the last of them is settled. The error is ErrCursorAhead where the log has not
	// got as far as c. After an error next is c; its Until may be set by then. A Follower ignores that next.
	ReadSteps(ctx context.Context, c Cursor, f Filter) (steps []Step, next Cursor, err error)
}

// Follower follows the audit log. The live stream and `spine tail` both use it. It promises that no step is missed and
// none is repeated, whatever happens to the database, unless it says that it was restarted.
type Follower struct {
	Reader  Reader
	Filter  Filter
	From    *Cursor       // where to begin; nil for the end of the log
	Bell    *bell.Bell    // required; rung when there may be new steps
	Timeout time.Duration // for one read; 0 for no limit
}

// Page is what a Follower has read.
type Page struct {
	Steps []Step // may be empty
	// After is the cursor after the steps. It is settled where the page ends with what was committed when it was read.
	After Cursor
	// Restarted says that the cursor was ahead of the log: the database was put back to an earlier state, or another
	// one took its place. After is the end of that log, and what was read before may be gone.
	Restarted bool
}

// Follow returns the pages of the log as it grows, until ctx ends. It waits for new steps after a settled page, and for
// the database after an error. An error stands for one attempt that failed: the next one goes on from the same place.
func (f Follower) Follow(ctx context.Context) iter.Seq2[Page, error] {
	return func(yield func(Page, error) bool) {
		at := f.From
		var outage Backoff
		for {
			page, err := f.read(ctx, at)
			if err != nil && ctx.Err() != nil || !yield(page, err) {
				return
			}
			if err != nil {
				if !outage.Wait(ctx) {
					return
				}
				continue
			}
			at, outage = &page.After, Backoff{}
			if at.Settled() && !f.awaitSteps(ctx) {
				return
			}
		}
	}
}

// awaitSteps waits until there may be new steps, and reports false where ctx ends first.
func (f Follower) awaitSteps(ctx context.Context) bool {
	return pause(ctx, nil, readGap) && pause(ctx, f.Bell.C(), pollInterval)
}

// read reads the page after at. It goes to the end of the log where at is nil, or is ahead of the log.
func (f Follower) read(ctx context.Context, at *Cursor) (Page, error) {
	if f.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.Timeout)
		defer cancel()
	}
	if at != nil {
		steps, next, err := f.Reader.ReadSteps(ctx, *at, f.Filter)
		if !errors.Is(err, ErrCursorAhead) {
			return Page{Steps: steps, After: next}, err
		}
	}
	end, err := f.Reader.CurrentCursor(ctx)
	if err != nil {
		return Page{}, fmt.Errorf("looking for the end of the audit log: %w", err)
	}
	return Page{After: end, Restarted: at != nil}, nil
}

// Backoff is the wait between attempts to reach a database that is away: each is twice as long as the one before, up
// to maxBackoff. The zero value is before the first one.
type Backoff struct{ last time.Duration }

// Wait waits for the next attempt, and reports false where ctx ends first.
func (b *Backoff) Wait(ctx context.Context) bool {
	b.last = min(max(2*b.last, readGap), maxBackoff)
	return pause(ctx, nil, b.last)
}

// pause waits for a ring or d, and reports false where ctx ends first.
func pause(ctx context.Context, ring <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ring:
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	return true
}
