package api

import (
	"context"
	"errors"
	"time"

	"github.com/webhookspine/spine/internal/trail"
)

const (
	catchUpRounds = 3           // rounds of reading up to now. A slower client then gets a summary.
	catchUpRecent = time.Second // a round that took no longer is the last: the queue holds what came in meanwhile
	catchUpSteps  = 20_000      // read for a client that asked for few a second: as many as a queue holds
)

// A client whose catch-up ends with one of these, or with trail.ErrCursorAhead or trail.ErrBadCursor, must begin anew.
var (
	// errTooFar says that a client has missed too much. Either its filter finds so little that reading a page takes
	// longer than ReadTimeout, or it asked for few steps a second and missed more than catchUpSteps. A client that
	// asked for all steps is told all, however long that takes.
	errTooFar = errors.New("reading what was missed takes too long")
	// errElsewhere says that a client has seen what the hub has not.
	errElsewhere = errors.New("what was seen is of another database")
)

// catchUp reads for one client alone what it has missed, and tells it at once. It waits for a database that is away.
// Its error is why the client must begin anew, or that ctx ended.
type catchUp struct {
	stream *Stream
	out    *sender
	read   int // steps so far
}

// toNow tells what came after the cursor that the client was told last, up to a moment ago, and returns what it has
// seen then.
func (c *catchUp) toNow(ctx context.Context, lastID string) (seen *trail.Transactions, err error) {
	at, err := trail.ParseCursor(lastID)
	if err != nil {
		return nil, err
	}
	c.stream.catchUps.Inc()
	for range catchUpRounds {
		began, wholeRound := time.Now(), at.Until == nil
		if at, err = c.pages(ctx, at); err != nil {
			return nil, err
		}
		if wholeRound && time.Since(began) < catchUpRecent {
			break
		}
	}
	return &at.Seen, nil
}

// to tells what lies between what the client has seen and the place at which it joined the hub.
func (c *catchUp) to(ctx context.Context, seen trail.Transactions, place trail.Cursor) error {
	if !place.Seen.Contains(seen) {
		return errElsewhere
	}
	between := trail.CursorAt(seen).ReadingTo(place.Seen)
	if between.Settled() {
		return nil
	}
	_, err := c.pages(ctx, between)
	return err
}

// pages tells all pages after at, up to where at is reading to or else up to now, and returns the cursor after them.
func (c *catchUp) pages(ctx context.Context, at trail.Cursor) (trail.Cursor, error) {
	var outage trail.Backoff
	for {
		steps, next, err := c.page(ctx, at)
		switch {
		case ctx.Err() != nil:
			return at, context.Cause(ctx)
		case errors.Is(err, trail.ErrCursorAhead):
			return at, err
		case errors.Is(err, context.DeadlineExceeded) && next.Until != nil && c.out.selection.searches():
			return at, errTooFar // the database had said how far to read, and reading the page took too long
		case err != nil:
			outage.Wait(ctx)
			c.out.flush(ctx)
			continue
		}
		outage = trail.Backoff{}
		if c.read += len(steps); c.out.maxRows > 0 && c.read > catchUpSteps {
			return at, errTooFar
		}
		c.out.put(ctx, message{page: &page{steps: steps}, after: next.String()})
		if at = next; at.Settled() {
			return at, nil
		}
	}
}

// page reads a page as soon as one of the few slots is free. The slot is not held while the client takes the page.
func (c *catchUp) page(ctx context.Context, at trail.Cursor) (steps []trail.Step, next trail.Cursor, err error) {
	if _, ok := await(ctx, c.out, c.stream.slots); !ok {
		return nil, at, context.Cause(ctx)
	}
	defer func() { c.stream.slots <- struct{}{} }()
	ctx, cancel := context.WithTimeout(ctx, c.stream.config.ReadTimeout)
	defer cancel()
	return c.stream.reader.ReadSteps(ctx, at, c.out.selection.inDatabase())
}
