package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// ErrNothingArrived says that events were acknowledged and none reached the sink.
var ErrNothingArrived = errors.New("nothing arrived")

// E2E is a run from POST to arrival.
type E2E struct {
	Load
	// Drain is how long to wait, after the last answer, for events that have not arrived yet. They
	// then count as lost. 0 means 30 s.
	Drain time.Duration
}

// RunE2E puts load on the target and takes its deliveries on ln, which it closes. The target must
// deliver there (DESTINATION_URL=http://ADDRESS/). Latencies run from the moment an event was due
// to be sent to its first arrival. The run is over once everything acknowledged has arrived, or
// after Drain. It misses a repetition that comes later.
//
// When ctx is done it stops at once. The report is then marked as interrupted and holds what was
// answerMetrics until then. With ErrNothingArrived, and when the sink failed, the report holds the
// sending. With any other error it is empty.
func RunE2E(ctx context.Context, ln net.Listener, e2e E2E) (Report, error) {
	return runE2E(ctx, ln, e2e, "e2e", func(context.Context, *generator) {})
}

// runE2E also calls beside when the sending begins, and returns when both are over.
func runE2E(
	ctx context.Context, ln net.Listener, e2e E2E, scenario string, beside func(context.Context, *generator),
) (Report, error) {
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
		stopSending() // without the sink there is no point in sending
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
	return fmt.Errorf("%w at %s within %v: start the system under test with DESTINATION_URL=http://%s/",
		ErrNothingArrived, ln.Addr(), patience, ln.Addr())
}
