package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// ErrNothingArrived says that events were acknowledged and none was delivered
// to the sink.
var ErrNothingArrived = errors.New("nothing arrived")

// E2E is a run from POST to arrival.
type E2E struct {
	Load
	// Drain is how long to wait, after the last answer, for what has not
	// arrived yet; it then counts as lost. 0 stands for 30 s.
	Drain time.Duration
}

// RunE2E puts load on the target and takes its deliveries on ln, which it
// closes. The target must have been started so that it delivers there
// (DESTINATION_URL=http://ADDRESS/). Latencies run from the moment an event was
// due to be sent to its first arrival. The run is over once everything that was
// acknowledged has arrived, or after Drain; a repetition that comes later is
// not seen.
//
// When ctx is done it stops at once; the report, marked as interrupted, holds
// what was measured until then. With ErrNothingArrived, and when the sink
// failed, the report holds the sending; with any other error it is empty.
func RunE2E(ctx context.Context, ln net.Listener, e2e E2E) (Report, error) {
	return runE2E(ctx, ln, e2e, "e2e", func(context.Context, *generator) {})
}

// runE2E also calls beside when the sending begins, and goes on when both are
// over.
func runE2E(ctx context.Context, ln net.Listener, e2e E2E, scenario string, beside func(context.Context, *generator)) (Report, error) {
	defer func() { _ = ln.Close() }()
	if e2e.Drain < 0 {
		return Report{}, fmt.Errorf("drain must not be negative, not %v", e2e.Drain)
	}
	if e2e.Drain == 0 {
		e2e.Drain = 30 * time.Second
	}
	g, err := newGenerator(ctx, e2e.Load)
	if err != nil {
		return Report{}, err
	}
	ledger := newLedger(g.load.RunID)
	g.ledger = ledger

	sinkCtx, stopSink := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSink()
	sending, stopSending := context.WithCancel(ctx)
	defer stopSending()
	sink := make(chan error, 1)
	go func() {
		sink <- serveSink(sinkCtx, ln, ledger.arrived, nil)
		stopSending() // there is no point in going on without the sink
	}()

	stopProgress := g.showProgress()
	var besides sync.WaitGroup
	besides.Go(func() { beside(sending, g) })
	g.run(sending)
	besides.Wait()
	drained := time.NewTimer(e2e.Drain)
	defer drained.Stop()
	select {
	case <-ledger.finish():
	case <-drained.C:
	case <-sending.Done():
	}
	stopProgress()
	interrupted := sending.Err() != nil
	stopSink()
	err = <-sink

	report := g.report(scenario, interrupted)
	report.Delivery = ledger.delivery(g.start.Add(g.load.WarmUp))
	if err == nil && !interrupted && report.Acknowledged > 0 && !ledger.anything() {
		err = nothingArrived(ln, e2e.Drain)
	}
	return report, err
}

func nothingArrived(ln net.Listener, patience time.Duration) error {
	return fmt.Errorf("%w at %s within %v: the system under test must be started with DESTINATION_URL=http://%s/",
		ErrNothingArrived, ln.Addr(), patience, ln.Addr())
}
