package service

import (
	"context"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/bell"
	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/notify"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/worker"
)

// heardReady gets every notification that work has arrived, and wakes the worker and the stream.
func (s *Service) heardReady(n notify.Notification) {
	if s.stream != nil {
		s.stream.Ring()
	}
	if s.worker == nil {
		return
	}
	if since, ok := n.Due(); ok {
		s.worker.Due(since)
	}
	switch {
	case n.Missed:
		s.worker.Wake(worker.Reconnected)
	case s.committer != nil && s.store.Owns(n.PID): // intake and operator have woken the worker already
	default:
		s.worker.Wake(worker.Notified)
	}
}

// noteCommitted gets every batch that was stored, and tells the viewers of the stream.
func (s *Service) noteCommitted(events []event.Event, receipts []event.Receipt) {
	for i := range events {
		s.activity.Add(trail.EventReceived, events[i].ID)
		switch receipts[i].Outcome {
		case event.Accepted:
			s.activity.Add(trail.EventInserted, events[i].ID)
		case event.Deduplicated:
			s.activity.Add(trail.EventDeduped, events[i].ID)
		case event.Conflict:
			s.activity.Add(trail.ConflictDetected, events[i].ID)
		}
	}
}

// ListenForSteps rings a bell whenever the database notifies that something happened, until ctx ends. It is for a
// process that only follows the audit log. It listens at the URL direct, and gives the connection this name. wait
// returns when the listener has ended. A listener that fails leaves the follower to poll.
func ListenForSteps(
	ctx context.Context, s *store.Store, direct, name string,
) (ring *bell.Bell, wait func(), err error) {
	connect, err := store.Connector(direct, name)
	if err != nil {
		return nil, nil, err
	}
	ring = bell.New()
	config := notify.DefaultListenerConfig(connect)
	listener := notify.NewListener(config, s, zerolog.Nop(), prometheus.NewRegistry())
	for _, channel := range []string{notify.ActivityChannel, notify.ReadyChannel} {
		listener.Handle(channel, func(notify.Notification) { ring.Ring() })
	}
	var listening sync.WaitGroup
	listening.Go(func() { _ = listener.Run(ctx) })
	return ring, listening.Wait, nil
}
