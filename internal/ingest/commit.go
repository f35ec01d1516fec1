package ingest

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/webhookspine/spine/internal/event"
)

// Store keeps events. It is safe for concurrent use.
type Store interface {
	// Ingest stores all events in one transaction or none of them. A nil error means that they are committed. Any error
	// means that they may or may not be, so it must be safe to ingest the same events again. An error that wraps
	// event.ErrInvalidData lies in the data. One that wraps event.ErrLocked lies in a row that another transaction has
	// locked.
	Ingest(ctx context.Context, events []event.Event) ([]event.Receipt, error)
}

// ErrFull says that the limit on waiting events is reached: try again soon.
var ErrFull = errors.New("the intake is full")

// ErrUnavailable says that the event could not be stored in time. It may have been stored all the same, if only the
// database's answer was lost.
var ErrUnavailable = errors.New("the event could not be stored")

// CommitterConfig bounds the group commit.
type CommitterConfig struct {
	Flushers   int           // transactions at once, 1 or more
	JoinRows   int           // events that must wait before a transaction starts beside another
	JoinAfter  time.Duration // running time of the others after which it starts with fewer
	BatchRows  int           // limit on the events of one transaction
	BatchBytes int           // limit on the payload bytes of one transaction; a larger event goes alone
	QueueRows  int           // limit on the events that wait; half of it for one source
	QueueBytes int           // limit on the payload bytes that wait; half of it for one source
	Patience   time.Duration // from an event's arrival to the end of its last try

	// Committed, where set, is called after each commit and before its senders are answered. It must not block.
	Committed func(events []event.Event, receipts []event.Receipt)
}

// DefaultCommitterConfig returns bounds that suit most. One large transaction costs less than two small ones. Commits
// that notify also queue behind one lock of the whole database, in other processes too. So a second transaction starts
// only when many events wait, or when the first hangs.
func DefaultCommitterConfig() CommitterConfig {
	return CommitterConfig{
		Flushers:   2,
		JoinRows:   256,
		JoinAfter:  20 * time.Millisecond,
		BatchRows:  500,
		BatchBytes: 4 << 20,
		QueueRows:  20_000,
		QueueBytes: 128 << 20,
		Patience:   4 * time.Second,
	}
}

// lockedPause is how long an event whose row is locked waits for its next try.
const lockedPause = 250 * time.Millisecond

// Committer is a self-clocking group commit. A flusher takes all events that wait, stores them in one transaction and
// answers each sender from the result. No timer delays an event: with little load it goes alone and at once, and under
// load batches grow while the transactions before them run.
type Committer struct {
	store   Store
	config  CommitterConfig
	log     zerolog.Logger
	metrics *Metrics

	mu        sync.Mutex
	waiting   []*waiter
	rows      int              // events that wait
	bytes     int              // that they take up
	loads     map[string]*load // both, by source: as many as there are sources
	cost      int              // of the source whose turn was last
	limit     int              // on the events of one transaction for now, 1 to BatchRows
	ended     bool             // Run has returned: nothing is stored any more
	flights   []flight         // the running transaction of each flusher
	apartLast bool             // the last one that began goes apart
	least     shortest         // transaction of late
	slowAt    time.Time        // when the last of loads became slow
	mixedAt   time.Time        // when two sources last sent, one soon after the other
	last      *load            // of the source of the last request
	lastAt    time.Time        // when that came
	rung      chan struct{}    // room for one ring for each flusher; a bell.Bell wakes one loop only, and here are several
}

// flight is a running transaction. The zero value is none.
type flight struct {
	since time.Time
	apart bool // it has large requests of one source that goes apart
}

// waiter is a request whose sender waits for an answer. Its events are stored in one transaction.
type waiter struct {
	events   []event.Event
	size     int       // bytes
	load     *load     // of its source
	since    time.Time // when it was submitted
	alone    bool      // a row of it is locked: it goes into a transaction of its own
	receipts []event.Receipt
	err      error
	done     chan struct{} // closed once receipts or err are set
}

// sizeOf returns how many bytes events take up while they wait.
func sizeOf(events []event.Event) (size int) {
	for i := range events {
		size += len(events[i].Payload) + len(events[i].Raw) + len(events[i].Headers)
	}
	return size
}

// NewCommitter returns a Committer; Run makes it work.
func NewCommitter(store Store, config CommitterConfig, log zerolog.Logger, metrics *Metrics) *Committer {
	return &Committer{
		store:   store,
		config:  config,
		log:     sampled(log),
		metrics: metrics,
		limit:   config.BatchRows,
		loads:   map[string]*load{},
		flights: make([]flight, config.Flushers),
		rung:    make(chan struct{}, config.Flushers),
	}
}

// Submit hands in the events of one request, one or more. It waits until one transaction has committed all of them, or
// they cannot be stored. It returns a receipt for each.
//
// The error is ErrFull at once when too many events or bytes wait, or half as many of its source. It is ErrUnavailable
// when they could not be stored in time or Run has ended. When ctx ends first, it is the cause of that, and the events
// may be stored or not. The caller must not change the events any more.
func (c *Committer) Submit(ctx context.Context, events ...event.Event) ([]event.Receipt, error) {
	w := &waiter{events: events, size: sizeOf(events), since: time.Now(), done: make(chan struct{})}
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return nil, ErrUnavailable
	}
	w.load = c.loadOf(w.source())
	if c.rows >= c.config.QueueRows || (c.bytes+w.size > c.config.QueueBytes && len(c.waiting) > 0) ||
		w.load.fills(w, c.config) {
		c.mu.Unlock()
		return nil, ErrFull
	}
	c.enqueue(w)
	start := c.mayStart(w.since)
	c.mu.Unlock()
	if start {
		c.ring()
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
	if w.load.rows == 0 {
		w.load.cost = max(w.load.cost, c.cost) // it has saved up no turns
	}
	w.load.add(w, 1)
	if c.last != w.load && w.since.Sub(c.lastAt) < apartFor {
		c.mixedAt = w.since
	}
	c.last, c.lastAt = w.load, w.since
}

// loadOf returns what waits of a source. The caller holds mu.
func (c *Committer) loadOf(source string) *load {
	l := c.loads[source]
	if l == nil {
		l = &load{}
		c.loads[source] = l
	}
	return l
}

// mayStart reports whether the waiting events are worth a transaction beside those that run. If not, the flusher whose
// transaction ends next takes them. The caller holds mu.
func (c *Committer) mayStart(now time.Time) bool {
	for _, f := range c.flights {
		if c.rows < c.config.JoinRows && now.Sub(f.since) < c.config.JoinAfter {
			return false
		}
	}
	return true
}

// ring wakes a flusher, if one sleeps. It never blocks.
func (c *Committer) ring() {
	select {
	case c.rung <- struct{}{}:
	default: // a ring for each flusher was not heard yet
	}
}

// Run commits submitted events until ctx ends, and then those that still wait. Stop submitting before ctx ends: later
// events are not stored.
func (c *Committer) Run(ctx context.Context) error {
	var g errgroup.Group
	for flusher := range c.config.Flushers {
		g.Go(func() error {
			// Events that wait for a transaction that hangs are taken by another flusher.
			hangs := time.AfterFunc(time.Hour, c.ring)
			defer hangs.Stop()
			for {
				select {
				case <-c.rung:
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

// take removes the next batch from the waiting requests, if it may start: as many as the bounds allow.
func (c *Committer) take(flusher int) []*waiter {
	c.mu.Lock()
	c.flights[flusher] = flight{}
	now := time.Now()
	if !c.mayStart(now) {
		c.mu.Unlock()
		return nil
	}
	c.dropLate(now)
	waiting, apart, bytes := c.waiting, false, c.config.BatchBytes
	if now.Sub(c.slowAt) < apartFor && now.Sub(c.mixedAt) < apartFor {
		mayGoApart := !slices.ContainsFunc(c.flights, func(f flight) bool { return f.apart })
		waiting, apart = sift(c.waiting, now, mayGoApart, c.apartLast)
	}
	if apart {
		bytes /= mixedPart
	}
	batch, left, cost := choose(waiting, c.limit, bytes)
	if len(waiting) < len(c.waiting) {
		left = without(c.waiting, batch)
	}
	c.waiting, c.cost = left, max(c.cost, cost)
	for _, w := range batch {
		c.leave(w)
	}
	more := len(batch) > 0 && len(c.waiting) > 0
	if len(batch) > 0 {
		c.flights[flusher], c.apartLast = flight{now, apart}, apart
	}
	c.mu.Unlock()
	if more {
		c.ring()
	}
	return batch
}

// dropLate answers the requests that have waited for half of their patience: they are not tried at all, and their
// senders are told to come again. The others have the second half for their transaction, so that overload cuts none
// short. The caller holds mu.
func (c *Committer) dropLate(now time.Time) {
	for len(c.waiting) > 0 && now.Sub(c.waiting[0].since) >= c.config.Patience/2 && !c.waiting[0].alone {
		w := c.waiting[0]
		c.waiting = c.waiting[1:]
		c.leave(w)
		w.answer(nil, ErrUnavailable)
	}
}

// leave notes that a request does not wait any more. The caller holds mu.
func (c *Committer) leave(w *waiter) {
	c.rows -= len(w.events)
	c.bytes -= w.size
	w.load.add(w, -1)
}

// flush stores a batch and answers its senders.
func (c *Committer) flush(ctx context.Context, batch []*waiter) {
	c.metrics.queueWait.Observe(time.Since(batch[0].since).Seconds())
	ctx, cancel := context.WithDeadline(ctx, batch[0].since.Add(c.config.Patience))
	defer cancel()
	c.commit(ctx, batch)
}

// landed notes the sources of the large requests in a transaction that took much longer than others.
func (c *Committer) landed(batch []*waiter, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if took <= slowFlight+4*c.least.of(took, now) {
		return
	}
	for _, w := range batch {
		if w.cost() > largeCost {
			c.slowAt, w.load.slowAt = now, now
		}
	}
}

// commit stores a batch. It splits it when the database rejects some of the data, so that one bad event does not fail
// its neighbours.
func (c *Committer) commit(ctx context.Context, batch []*waiter) {
	events := make([]event.Event, 0, len(batch))
	for _, w := range batch {
		events = append(events, w.events...)
	}
	receipts, took, err := c.try(ctx, events)
	switch {
	case err == nil:
		c.landed(batch, took)
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
		// One of them waits for another open transaction; the others must not.
		for _, w := range batch {
			if len(batch) > 1 {
				c.commit(ctx, []*waiter{w})
			} else {
				c.putOff(w)
			}
		}
	case errors.Is(err, event.ErrInvalidData) && !errors.Is(err, event.ErrForeignRule) && keepBytes(batch[0].events):
		c.commit(ctx, batch)
	default:
		c.log.Error().Err(err).Int("events", len(events)).Msg("events could not be stored")
		for _, w := range batch {
			w.answer(nil, ErrUnavailable)
		}
	}
}

// keepBytes turns the payloads of a request into bytes. They are JSON, and still Postgres cannot hold one of them; it
// does not say which. The others then have another hash than in a request without it. keepBytes reports whether it
// changed any.
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

// putOff lets a request with a locked row wait for a while and then go alone, so that no other request waits with it.
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
		c.ring()
	})
}

// try stores events, and tries again until ctx ends unless the error lies in the data or in a lock. If the answer to a
// commit was lost, the next try gets those events back as deduplicated. took is the time of the one that stored them.
func (c *Committer) try(
	ctx context.Context, events []event.Event,
) (receipts []event.Receipt, took time.Duration, err error) {
	for pause := 25 * time.Millisecond; ; pause = min(2*pause, 400*time.Millisecond) {
		start := time.Now()
		receipts, err = c.store.Ingest(ctx, events)
		took = time.Since(start)
		c.adapt(len(events), took, err)
		c.metrics.flushTime.Observe(took.Seconds())
		if err == nil {
			c.metrics.batchRows.Observe(float64(len(events)))
			return receipts, took, nil
		}
		if errors.Is(err, event.ErrInvalidData) || errors.Is(err, event.ErrLocked) {
			return nil, took, err
		}
		c.metrics.flushErrors.Inc()
		select {
		case <-ctx.Done():
			return nil, took, err
		case <-time.After(pause):
			c.log.Warn().Err(err).Int("events", len(events)).Msg("storing events failed, trying again")
		}
	}
}

// adapt keeps transactions shorter than their senders can wait. Otherwise a database that is slow for each event would
// get batches that are always cut short, and store next to nothing. A transaction that was cut short, or took more than
// a quarter of the patience, halves the size of the next ones. A small one that is slow, and not cut, says nothing
// about large ones. Where twice the limit would take less than a quarter at its pace, one below a sixteenth doubles it.
// Where that would take less than three quarters, it raises it slowly: on a far database each may take that long,
// whatever its size.
func (c *Committer) adapt(rows int, took time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	patience := c.config.Patience
	doubled := took * time.Duration(2*c.limit) / time.Duration(rows)
	switch {
	case errors.Is(err, context.DeadlineExceeded), err == nil && took > patience/4 && rows >= c.limit/2:
		c.limit = min(c.limit, max(1, rows/2))
	case err == nil && took < patience/16 && doubled < patience/4:
		c.limit = min(c.config.BatchRows, 2*c.limit)
	case err == nil && doubled < patience/4*3:
		c.limit = min(c.config.BatchRows, c.limit+1+c.limit/8)
	}
}

// answer lets the sender go on. It must be called once only.
func (w *waiter) answer(receipts []event.Receipt, err error) {
	w.receipts, w.err = receipts, err
	close(w.done)
}
