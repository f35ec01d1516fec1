package bench

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// afterFailure is how long a connection rests after it broke or could not be opened, so that a
// system that is down is not flooded with attempts.
const afterFailure = 50 * time.Millisecond

// generator sends a Load and counts the answers.
type generator struct {
	load   Load
	start  time.Time
	ledger *ledger // of what was sent; nil if no delivery is expected

	events   atomic.Uint64 // numbers given to new events
	measured atomic.Int64  // requests that a closed loop has started, up to Count

	sent         [3]atomic.Int64 // by kind
	accepted     atomic.Int64
	deduplicated atomic.Int64
	conflicts    atomic.Int64
	unanswered   atomic.Int64
	unsent       atomic.Int64
	lastAnswer   atomic.Int64 // ns after start
	latency      histogram
	lag          histogram

	mu     sync.Mutex
	errors map[string]int64
}

// kind is what a request asks of the system.
type kind int

const (
	fresh kind = iota
	duplicate
	conflict
)

// slot is permission to send one request.
type slot struct {
	due      time.Duration // after start
	measured bool
}

// newGenerator completes load, checks that the target can be reached, and starts the clock.
func newGenerator(ctx context.Context, load Load) (*generator, error) {
	load, err := load.complete()
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: load.Timeout}
	conn, err := dialer.DialContext(ctx, "tcp", load.address())
	if err != nil {
		return nil, fmt.Errorf("reaching the target %s: %w", load.Target, err)
	}
	_ = conn.Close()
	return &generator{load: load, start: time.Now(), errors: map[string]int64{}}, nil
}

// run sends until the load is over or ctx is done. It returns when every request was answered,
// timed out or, with ctx, dropped.
func (g *generator) run(ctx context.Context) {
	next := func() (slot, bool) { return g.takeClosed(ctx) }
	var all sync.WaitGroup
	if g.load.Rate > 0 {
		slots := make(chan slot)
		next = func() (slot, bool) { s, ok := <-slots; return s, ok }
		all.Go(func() { g.pace(ctx, slots) })
	}
	for n := range g.load.Connections {
		all.Go(func() { g.work(ctx, uint64(n), next) }) //nolint:gosec // G115: not negative
	}
	all.Wait()
}

// takeClosed permits the next request at once, as long as the run lasts.
func (g *generator) takeClosed(ctx context.Context) (slot, bool) {
	due := time.Since(g.start)
	if ctx.Err() != nil || g.load.end() > 0 && due >= g.load.end() {
		return slot{}, false
	}
	s := slot{due: due, measured: due >= g.load.WarmUp}
	if s.measured && g.load.Count > 0 && g.measured.Add(1) > g.load.Count {
		return slot{}, false
	}
	return s, true
}

// pace permits requests at the constant rate. While all connections are busy it falls behind, and
// it catches up afterwards. What is still due when the run is over counts as unsent.
func (g *generator) pace(ctx context.Context, slots chan<- slot) {
	defer close(slots)
	first := int64(math.Ceil(g.load.WarmUp.Seconds() * g.load.Rate))
	last := int64(math.MaxInt64)
	if g.load.Count > 0 {
		last = first + g.load.Count
	}
	var over <-chan time.Time
	if end := g.load.end(); end > 0 {
		last = min(last, int64(math.Ceil(end.Seconds()*g.load.Rate)))
		timer := time.NewTimer(time.Until(g.start.Add(end)))
		defer timer.Stop()
		over = timer.C
	}
	lead := min(handOver, time.Duration(float64(time.Second)/g.load.Rate/20))
	for i := range last {
		due := time.Duration(float64(i) / g.load.Rate * float64(time.Second))
		if !sleepUntil(ctx, g.start.Add(due-lead)) {
			return
		}
		select {
		case slots <- slot{due: due, measured: i >= first}:
		case <-ctx.Done():
			return
		case <-over:
			g.unsent.Store(last - i)
			return
		}
	}
}

// handOver is about how long it takes from the end of a sleep until another goroutine runs. The
// system is not to blame for it. So slots are given that much early, and the goroutine spins until
// they are due. That takes at most a twentieth of a core.
const handOver = 120 * time.Microsecond

// spinUntil returns at t, for which no sleep is precise enough.
func spinUntil(t time.Time) {
	for time.Now().Before(t) {
	}
}

// sleepUntil sleeps until t. It returns false if ctx was done before.
func sleepUntil(ctx context.Context, t time.Time) bool {
	const fine = 2 * time.Millisecond
	if coarse := time.Until(t) - fine; coarse > 0 {
		timer := time.NewTimer(coarse)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return false
		}
	}
	fineSleep(time.Until(t))
	return ctx.Err() == nil
}

// work sends on one connection, one request after another.
func (g *generator) work(ctx context.Context, n uint64, next func() (slot, bool)) {
	client := client{address: g.load.address(), timeout: g.load.Timeout}
	defer client.close()
	random := rand.New(rand.NewPCG(g.load.Seed, n+1)) //nolint:gosec // G404: repeatable, guards nothing
	request := newRequest(g.load)
	var known []uint64 // events acknowledged on this connection

	for {
		slot, ok := next()
		if !ok {
			return
		}
		kind := g.choose(random)
		var event, variant uint64
		if kind == fresh || len(known) == 0 {
			kind = fresh
			event = g.events.Add(1) - 1
			g.ledger.issued(event, g.start.Add(slot.due), slot.measured)
		} else {
			event = known[random.IntN(len(known))]
		}
		if kind == conflict {
			variant = 1 + random.Uint64N(1e10-1)
		}
		request.set(event, variant)
		spinUntil(g.start.Add(slot.due))

		if slot.measured {
			g.sent[kind].Add(1)
			g.lag.record(time.Since(g.start) - slot.due)
		}
		status, body, err := client.post(ctx, request.wire)
		answered := time.Since(g.start)
		if err != nil && ctx.Err() != nil {
			if slot.measured {
				g.unanswered.Add(1)
			}
			return
		}
		counter := g.outcome(status, body)
		if counter != nil && kind == fresh {
			g.ledger.acknowledged(event)
			if g.load.DuplicateRatio+g.load.ConflictRatio > 0 {
				known = append(known, event)
			}
		}
		if slot.measured {
			g.count(counter, answered, answered-slot.due, status, err)
		}
		if err != nil && !pause(ctx, afterFailure) {
			return
		}
	}
}

func (g *generator) choose(random *rand.Rand) kind {
	switch r := random.Float64(); {
	case r < g.load.DuplicateRatio:
		return duplicate
	case r < g.load.DuplicateRatio+g.load.ConflictRatio:
		return conflict
	}
	return fresh
}

// outcome returns the counter of an acknowledgement, or nil for any other answer. A conflict may be
// acknowledged with 200 or 409.
func (g *generator) outcome(status int, body []byte) *atomic.Int64 {
	if (status < 200 || status > 299) && status != 409 {
		return nil
	}
	switch string(field(body, "status")) {
	case "accepted":
		return &g.accepted
	case "deduplicated":
		return &g.deduplicated
	case "conflict":
		return &g.conflicts
	}
	return nil
}

func (g *generator) count(acknowledged *atomic.Int64, answered, latency time.Duration, status int, err error) {
	if acknowledged == nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.errors[kindOf(status, err)]++
		return
	}
	acknowledged.Add(1)
	g.latency.record(latency)
	for {
		last := g.lastAnswer.Load()
		if int64(answered) <= last || g.lastAnswer.CompareAndSwap(last, int64(answered)) {
			return
		}
	}
}

// pause waits for d. It returns false if ctx was done before.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (g *generator) acknowledged() int64 {
	return g.accepted.Load() + g.deduplicated.Load() + g.conflicts.Load()
}

// failed returns how many requests had another answer, or none.
func (g *generator) failed() (n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, kind := range g.errors {
		n += kind
	}
	return n
}

// showProgress calls Progress once a second until the returned stop, which waits for a call under
// way.
func (g *generator) showProgress() (stop func()) {
	if g.load.Progress == nil {
		return func() {}
	}
	var before int64
	beforeAt := g.start
	return every(time.Second, func(now time.Time) {
		s := Snapshot{
			Elapsed:      now.Sub(g.start),
			WarmingUp:    now.Sub(g.start) < g.load.WarmUp,
			Sent:         g.sent[fresh].Load() + g.sent[duplicate].Load() + g.sent[conflict].Load(),
			Acknowledged: g.acknowledged(),
			Errors:       g.failed(),
			Delivered:    g.ledger.soFar().delivered,
		}
		s.PerSecond = perSecond(s.Acknowledged-before, now.Sub(beforeAt))
		before, beforeAt = s.Acknowledged, now
		g.load.Progress(s)
	})
}

// every calls f at each tick until the returned stop.
func every(tick time.Duration, f func(now time.Time)) (stop func()) {
	ticker := time.NewTicker(tick)
	stopped := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case now := <-ticker.C:
				f(now)
			case <-stopped:
				return
			}
		}
	})
	return func() {
		ticker.Stop()
		close(stopped)
		done.Wait()
	}
}

// RunIngest puts load on the target and reports how its events were acknowledged. When ctx is done
// it stops at once. The report is then marked as interrupted and holds what was measured until
// then. An error means that nothing was measured: the load makes no sense or the target cannot be
// reached.
func RunIngest(ctx context.Context, load Load) (Report, error) {
	g, err := newGenerator(ctx, load)
	if err != nil {
		return Report{}, err
	}
	stop := g.showProgress()
	g.run(ctx)
	stop()
	return g.report("ingest", ctx.Err() != nil), nil
}
