package ingest

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/webhookspine/spine/internal/event"
)

// Store keeps events. Ingest stores all of them in one transaction or none: a
// nil error means that they are committed, and any error that they may or may
// not be. It must be safe to ingest the same events again. An error that wraps
// event.ErrRefused lies in the data; one that wraps event.ErrLocked, in a row
// that somebody else has locked. Ingest is called concurrently.
type Store interface {
	Ingest(ctx context.Context, events []event.Event) ([]event.Receipt, error)
}

// ErrFull says that the intake holds as much as it may: try again soon.
var ErrFull = errors.New("the intake is full")

// ErrUnavailable says that the event could not be stored in time. It may have
// been stored all the same, when only the answer was lost.
var ErrUnavailable = errors.New("the event could not be stored")

// CommitterConfig bounds the group commit.
type CommitterConfig struct {
	Flushers   int           // transactions at once, 1 or more
	JoinRows   int           // events that must wait before a transaction starts beside another
	JoinAfter  time.Duration // and how long the others may take before it starts all the same
	BatchRows  int           // events in one transaction at most
	BatchBytes int           // payload bytes in one transaction at most; a larger event goes alone
	QueueRows  int           // events that may wait at most
	QueueBytes int           // payload bytes that may wait at most
	Patience   time.Duration // how long an event may wait and be tried in all

	// Committed, where set, is told what was committed, after the commit and
	// before the senders are answered. It must not block.
	Committed func(events []event.Event, receipts []event.Receipt)
}

// DefaultCommitterConfig returns bounds that suit most. One large transaction
// costs less than two small ones, which also queue up behind the lock that a
// notifying commit takes, in other processes too; so a second one starts only
// when there is plenty for it, or when the first hangs.
func DefaultCommitterConfig() CommitterConfig {
	return CommitterConfig{
		Flushers: 2, JoinRows: 256, JoinAfter: 20 * time.Millisecond, BatchRows: 500, BatchBytes: 4 << 20,
		QueueRows: 10_000, QueueBytes: 64 << 20,
		Patience: 4 * time.Second,
	}
}

// lockedPause is how long an event whose row is locked waits for its next try.
const lockedPause = 250 * time.Millisecond

// Committer is a self-clocking group commit. A flusher takes everything that
// waits, stores it in one transaction and answers each sender from the result.
// There is no timer: when little comes in, an event goes alone and at once;
// under load batches grow while the transactions before them run.
type Committer struct {
	store   Store
	config  CommitterConfig
	log     zerolog.Logger
	metrics *Metrics

	mu      sync.Mutex
	waiting []*waiter
	bytes   int
	ended   bool          // Run has returned: nothing is stored any more
	flights []time.Time   // for each flusher, since when its transaction runs; zero when none does
	wake    chan struct{} // has room for one signal for each flusher
}

// waiter is an event whose sender waits for an answer.
type waiter struct {
	event   event.Event
	since   time.Time
	alone   bool // its row is locked: it goes into a transaction of its own
	receipt event.Receipt
	err     error
	done    chan struct{} // closed once receipt or err is set
}

// NewCommitter returns a Committer; Run makes it work.
func NewCommitter(store Store, config CommitterConfig, log zerolog.Logger, metrics *Metrics) *Committer {
	return &Committer{
		store: store, config: config, log: log, metrics: metrics,
		flights: make([]time.Time, config.Flushers), wake: make(chan struct{}, config.Flushers),
	}
}

// Submit hands in an event and waits until it is committed or cannot be. The
// error is ErrFull at once when too much waits, ErrUnavailable when it could
// not be stored in time or Run has ended, or the cause of ctx's end: the event
// may then be stored or not.
func (c *Committer) Submit(ctx context.Context, e event.Event) (event.Receipt, error) {
	w := &waiter{event: e, since: time.Now(), done: make(chan struct{})}
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return event.Receipt{}, ErrUnavailable
	}
	if len(c.waiting) >= c.config.QueueRows || (c.bytes+len(e.Payload) > c.config.QueueBytes && len(c.waiting) > 0) {
		c.mu.Unlock()
		return event.Receipt{}, ErrFull
	}
	c.waiting = append(c.waiting, w)
	c.bytes += len(e.Payload)
	c.mu.Unlock()
	c.signal()

	select {
	case <-w.done:
		return w.receipt, w.err
	case <-ctx.Done():
		return event.Receipt{}, context.Cause(ctx)
	}
}

// signal wakes a flusher, if one sleeps.
func (c *Committer) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run commits what is submitted until ctx ends, and then what still waits. Stop
// taking requests in before ctx ends: what is submitted later is not stored.
func (c *Committer) Run(ctx context.Context) error {
	var g errgroup.Group
	for flusher := range c.config.Flushers {
		g.Go(func() error {
			// What waits for a transaction that hangs is looked at again.
			hangs := time.AfterFunc(time.Hour, c.signal)
			defer hangs.Stop()
			for {
				select {
				case <-c.wake:
				case <-ctx.Done():
				}
				for batch := c.take(flusher); len(batch) > 0; batch = c.take(flusher) {
					hangs.Reset(c.config.JoinAfter)
					c.flush(context.WithoutCancel(ctx), batch)
				}
				hangs.Stop()
				if ctx.Err() != nil {
					return nil
				}
			}
		})
	}
	err := g.Wait()
	c.mu.Lock()
	late := c.waiting
	c.waiting, c.ended = nil, true
	c.mu.Unlock()
	for _, w := range late {
		w.answer(event.Receipt{}, ErrUnavailable)
	}
	return err
}

// take removes the next batch from what waits: all of it, within the bounds.
// It leaves a little that waits to a flusher whose transaction is about to end.
func (c *Committer) take(flusher int) []*waiter {
	c.mu.Lock()
	c.flights[flusher] = time.Time{}
	now := time.Now()
	for _, since := range c.flights {
		if len(c.waiting) < c.config.JoinRows && now.Sub(since) < c.config.JoinAfter {
			c.mu.Unlock()
			return nil
		}
	}
	n, size := 0, 0
	for n < len(c.waiting) && n < c.config.BatchRows {
		if n > 0 && (c.waiting[n].alone || c.waiting[0].alone) {
			break
		}
		size += len(c.waiting[n].event.Payload)
		if n > 0 && size > c.config.BatchBytes {
			size -= len(c.waiting[n].event.Payload)
			break
		}
		n++
	}
	batch := c.waiting[:n:n]
	if n == len(c.waiting) {
		c.waiting = nil
	} else {
		c.waiting = c.waiting[n:]
	}
	c.bytes -= size
	if n > 0 {
		c.flights[flusher] = now
	}
	more := len(c.waiting) > 0
	c.mu.Unlock()
	if more {
		c.signal()
	}
	return batch
}

// flush stores a batch and answers its senders. Events that have waited for
// half of their patience are not tried at all: their senders are told to come
// again. What is tried has the other half, so that under overload no
// transaction is cut short in the middle of its work.
func (c *Committer) flush(ctx context.Context, batch []*waiter) {
	oldest := batch[0].since
	for len(batch) > 0 && time.Since(batch[0].since) >= c.config.Patience/2 && !batch[0].alone {
		batch[0].answer(event.Receipt{}, ErrUnavailable)
		batch = batch[1:]
	}
	if len(batch) == 0 {
		return
	}
	c.metrics.queueWait.Observe(time.Since(oldest).Seconds())
	ctx, cancel := context.WithDeadline(ctx, batch[0].since.Add(c.config.Patience))
	defer cancel()
	c.commit(ctx, batch)
}

// commit stores a batch, splitting it when the database refuses some of the
// data, so that one bad event does not fail its neighbours.
func (c *Committer) commit(ctx context.Context, batch []*waiter) {
	events := make([]event.Event, len(batch))
	for i, w := range batch {
		events[i] = w.event
	}
	receipts, err := c.try(ctx, events)
	switch {
	case err == nil:
		if c.config.Committed != nil {
			c.config.Committed(events, receipts)
		}
		c.metrics.count(events, receipts)
		for i, w := range batch {
			w.answer(receipts[i], nil)
		}
	case errors.Is(err, event.ErrRefused) && len(batch) > 1:
		c.commit(ctx, batch[:len(batch)/2])
		c.commit(ctx, batch[len(batch)/2:])
	case errors.Is(err, event.ErrLocked):
		// One of them waits for somebody's open transaction; the others must not.
		for _, w := range batch {
			if len(batch) > 1 {
				c.commit(ctx, []*waiter{w})
			} else {
				c.putOff(w)
			}
		}
	case errors.Is(err, event.ErrRefused) && batch[0].event.Unqueryable == "":
		// The payload is JSON, and still Postgres cannot hold it: keep its bytes.
		e := &batch[0].event
		e.Unqueryable = "Postgres cannot hold it as json"
		e.Hash = sha256.Sum256(e.Payload)
		c.commit(ctx, batch)
	default:
		c.log.Error().Err(err).Int("events", len(batch)).Msg("events could not be stored")
		for _, w := range batch {
			w.answer(event.Receipt{}, ErrUnavailable)
		}
	}
}

// putOff lets an event whose row is locked wait for a while and then try on its
// own, so that nobody waits with it.
func (c *Committer) putOff(w *waiter) {
	if time.Since(w.since)+lockedPause >= c.config.Patience {
		w.answer(event.Receipt{}, ErrUnavailable)
		return
	}
	w.alone = true
	time.AfterFunc(lockedPause, func() {
		c.mu.Lock()
		if c.ended {
			c.mu.Unlock()
			w.answer(event.Receipt{}, ErrUnavailable)
			return
		}
		c.waiting = append(c.waiting, w)
		c.bytes += len(w.event.Payload)
		c.mu.Unlock()
		c.signal()
	})
}

// try stores events, again and again until ctx ends, unless the error lies in
// the data or in a lock. A lost answer to a commit is met by the next try: what was stored
// then comes back as deduplicated.
func (c *Committer) try(ctx context.Context, events []event.Event) ([]event.Receipt, error) {
	for pause := 25 * time.Millisecond; ; pause = min(2*pause, 400*time.Millisecond) {
		start := time.Now()
		receipts, err := c.store.Ingest(ctx, events)
		c.metrics.flushTime.Observe(time.Since(start).Seconds())
		if err == nil {
			c.metrics.batchRows.Observe(float64(len(events)))
			return receipts, nil
		}
		if errors.Is(err, event.ErrRefused) || errors.Is(err, event.ErrLocked) {
			return nil, err
		}
		c.metrics.flushErrors.Inc()
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
			c.log.Warn().Err(err).Int("events", len(events)).Msg("storing events failed, trying again")
		}
	}
}

// answer lets the sender go on. It is called once.
func (w *waiter) answer(r event.Receipt, err error) {
	w.receipt, w.err = r, err
	close(w.done)
}
