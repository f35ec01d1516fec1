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
// event.ErrInvalidData lies in the data; one that wraps event.ErrLocked, in a row
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
	rows    int           // events that wait
	bytes   int           // that they take up
	limit   int           // events in one transaction at most for now, 1 to BatchRows
	ended   bool          // Run has returned: nothing is stored any more
	flights []time.Time   // for each flusher, since when its transaction runs; zero when none does
	wake    chan struct{} // has room for one signal for each flusher
}

// waiter is a request whose sender waits for an answer: its events are stored in
// one transaction.
type waiter struct {
	events   []event.Event
	size     int // bytes
	since    time.Time
	alone    bool // a row of it is locked: it goes into a transaction of its own
	receipts []event.Receipt
	err      error
	done     chan struct{} // closed once receipts or err are set
}

// sizeOf is how many bytes events take up while they wait.
func sizeOf(events []event.Event) (size int) {
	for i := range events {
		size += len(events[i].Payload) + len(events[i].Raw) + len(events[i].Headers)
	}
	return size
}

// NewCommitter returns a Committer; Run makes it work.
func NewCommitter(store Store, config CommitterConfig, log zerolog.Logger, metrics *Metrics) *Committer {
	return &Committer{
		store: store, config: config, log: log, metrics: metrics, limit: config.BatchRows,
		flights: make([]time.Time, config.Flushers), wake: make(chan struct{}, config.Flushers),
	}
}

// Submit hands in the events of one request, one or more, and waits until all of
// them are committed, in one transaction, or cannot be. It returns a receipt for
// each. The error is ErrFull at once when too much waits, ErrUnavailable when
// they could not be stored in time or Run has ended, or the cause of ctx's end:
// they may then be stored or not. The events are the committer's from then on.
func (c *Committer) Submit(ctx context.Context, events ...event.Event) ([]event.Receipt, error) {
	w := &waiter{events: events, size: sizeOf(events), since: time.Now(), done: make(chan struct{})}
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return nil, ErrUnavailable
	}
	if c.rows >= c.config.QueueRows || (c.bytes+w.size > c.config.QueueBytes && len(c.waiting) > 0) {
		c.mu.Unlock()
		return nil, ErrFull
	}
	c.enqueue(w)
	start := c.mayStart(w.since)
	c.mu.Unlock()
	if start {
		c.signal()
	}

	select {
	case <-w.done:
		return w.receipts, w.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// enqueue adds a request to those that wait. The caller holds mu.
func (c *Committer) enqueue(w *waiter) {
	c.waiting = append(c.waiting, w)
	c.rows += len(w.events)
	c.bytes += w.size
}

// mayStart reports whether what waits is worth a transaction beside those that
// run: otherwise it is left to the flusher whose transaction ends next. The
// caller holds mu.
func (c *Committer) mayStart(now time.Time) bool {
	for _, since := range c.flights {
		if c.rows < c.config.JoinRows && now.Sub(since) < c.config.JoinAfter {
			return false
		}
	}
	return true
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
	c.waiting, c.rows, c.bytes, c.ended = nil, 0, 0, true
	c.mu.Unlock()
	for _, w := range late {
		w.answer(nil, ErrUnavailable)
	}
	return err
}

// take removes the next batch from what waits, if it may start: all of it,
// within the bounds.
func (c *Committer) take(flusher int) []*waiter {
	c.mu.Lock()
	c.flights[flusher] = time.Time{}
	now := time.Now()
	if !c.mayStart(now) {
		c.mu.Unlock()
		return nil
	}
	n, rows, size := 0, 0, 0
	for ; n < len(c.waiting); n++ {
		w := c.waiting[n]
		// One goes in any case, however large it is.
		if n > 0 && (w.alone || c.waiting[0].alone || rows+len(w.events) > c.limit || size+w.size > c.config.BatchBytes) {
			break
		}
		rows += len(w.events)
		size += w.size
	}
	batch := c.waiting[:n:n]
	if n == len(c.waiting) {
		c.waiting = nil
	} else {
		c.waiting = c.waiting[n:]
	}
	c.rows -= rows
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
		batch[0].answer(nil, ErrUnavailable)
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
	events := make([]event.Event, 0, len(batch))
	for _, w := range batch {
		events = append(events, w.events...)
	}
	receipts, err := c.try(ctx, events)
	switch {
	case err == nil:
		if c.config.Committed != nil {
			c.config.Committed(events, receipts)
		}
		c.metrics.count(events, receipts)
		for _, w := range batch {
			n := len(w.events)
			w.answer(receipts[:n:n], nil)
			receipts = receipts[n:]
		}
	case errors.Is(err, event.ErrInvalidData) && len(batch) > 1:
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
	case errors.Is(err, event.ErrInvalidData) && keepBytes(batch[0].events):
		c.commit(ctx, batch)
	default:
		c.log.Error().Err(err).Int("events", len(events)).Msg("events could not be stored")
		for _, w := range batch {
			w.answer(nil, ErrUnavailable)
		}
	}
}

// keepBytes has events of a request keep their payloads as bytes: they are JSON,
// and still Postgres cannot hold one of them. Which one it does not say. It
// reports whether that changes anything.
func keepBytes(events []event.Event) (changed bool) {
	for i := range events {
		e := &events[i]
		if e.Unqueryable != "" {
			continue
		}
		if e.Raw != nil {
			e.Payload, e.Raw = e.Raw, nil
		}
		e.Unqueryable = "Postgres cannot hold it as json"
		e.Hash = sha256.Sum256(e.Payload)
		changed = true
	}
	return changed
}

// putOff lets an event whose row is locked wait for a while and then try on its
// own, so that nobody waits with it.
func (c *Committer) putOff(w *waiter) {
	if time.Since(w.since)+lockedPause >= c.config.Patience {
		w.answer(nil, ErrUnavailable)
		return
	}
	w.alone = true
	time.AfterFunc(lockedPause, func() {
		c.mu.Lock()
		if c.ended {
			c.mu.Unlock()
			w.answer(nil, ErrUnavailable)
			return
		}
		c.enqueue(w)
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
		took := time.Since(start)
		c.adapt(len(events), took, err)
		c.metrics.flushTime.Observe(took.Seconds())
		if err == nil {
			c.metrics.batchRows.Observe(float64(len(events)))
			return receipts, nil
		}
		if errors.Is(err, event.ErrInvalidData) || errors.Is(err, event.ErrLocked) {
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

// adapt has transactions last no longer than their senders can wait: a database
// that is slow for each event would otherwise be given batches that are always cut
// short, and store next to nothing. A transaction that was cut, or that took a
// quarter of the patience, halves the number of events in the next ones; one that
// was quick doubles it.
func (c *Committer) adapt(rows int, took time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case errors.Is(err, context.DeadlineExceeded), err == nil && took > c.config.Patience/4:
		c.limit = min(c.limit, max(1, rows/2))
	case err == nil && took < c.config.Patience/16:
		c.limit = min(c.config.BatchRows, 2*c.limit)
	}
}

// answer lets the sender go on. It is called once.
func (w *waiter) answer(receipts []event.Receipt, err error) {
	w.receipts, w.err = receipts, err
	close(w.done)
}
