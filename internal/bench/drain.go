package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Drain is a run that lets a backlog gather and then measures its delivery.
type Drain struct {
	// Load makes the backlog. Count is its size; 0 means 20,000. Duration and WarmUp must be 0.
	Load
	// Patience is how long to wait for the next arrival once the destination answers. What has not
	// arrived by then counts as lost. 0 means 30 s.
	Patience time.Duration
	// Opened, where given, is called once, just before the sink begins to answer.
	Opened func()
}

// defaultBacklog is how many events a drain has by default.
const defaultBacklog = 20_000

// RunDrain measures how fast a backlog is delivered. It puts load on the target while its own sink
// on ln, which it closes, holds back every answer, so events wait behind those under way. Then the
// sink answers. Delivery.PerSecond counts what arrives from then on, and Delivery.Latency runs from
// that moment. The target must deliver to ln, and must be ready to wait for an answer for as long
// as the sending takes.
//
// When ctx is done it stops at once, as RunE2E does. Errors are as there.
func RunDrain(ctx context.Context, ln net.Listener, d Drain) (Report, error) {
	defer func() { _ = ln.Close() }()
	switch {
	case d.Duration != 0 || d.WarmUp != 0:
		return Report{}, errors.New("a drain has a count, and neither a duration nor a warm-up")
	case d.Patience < 0:
		return Report{}, fmt.Errorf("patience must not be negative, not %v", d.Patience)
	case d.Patience == 0:
		d.Patience = 30 * time.Second
	}
	if d.Count == 0 {
		d.Count = defaultBacklog
	}
	g, err := newGenerator(ctx, d.Load)
	if err != nil {
		return Report{}, err
	}
	ledger := newLedger(g.load.RunID)
	ledger.gated = true
	g.ledger = ledger

	sinkCtx, stopSink := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSink()
	running, stop := context.WithCancel(ctx)
	defer stop()
	gate := make(chan struct{})
	sink := make(chan error, 1)
	go func() {
		sink <- serveSink(sinkCtx, ln, func(id []byte, at time.Time) {
			ledger.arrived(id, at)
			select {
			case <-gate:
			case <-sinkCtx.Done():
			}
		}, nil)
		stop() // without the sink there is no point in sending
	}()

	stopProgress := g.showProgress()
	g.run(running)
	all := ledger.finish()
	if d.Opened != nil {
		d.Opened()
	}
	ledger.open(time.Now())
	close(gate)
	awaitArrivals(running, all, ledger, d.Patience)
	stopProgress()
	interrupted := running.Err() != nil
	stopSink()
	err = <-sink

	report := g.report("drain", interrupted)
	report.Delivery = ledger.delivery(g.start)
	if err == nil && !interrupted && report.Acknowledged > 0 && !ledger.anything() {
		err = nothingArrived(ln, d.Patience)
	}
	return report, err
}

// awaitArrivals waits until everything acknowledged has arrived. It gives up when nothing more has
// arrived for patience, or when ctx is done.
func awaitArrivals(ctx context.Context, all <-chan struct{}, ledger *ledger, patience time.Duration) {
	var once sync.Once
	gaveUp := make(chan struct{})
	before, since := ledger.soFar().delivered, time.Now()
	defer every(min(patience, 100*time.Millisecond), func(now time.Time) {
		switch delivered := ledger.soFar().delivered; {
		case delivered != before:
			before, since = delivered, now
		case now.Sub(since) >= patience:
			once.Do(func() { close(gaveUp) })
		}
	})()
	select {
	case <-all:
	case <-gaveUp:
	case <-ctx.Done():
	}
}
