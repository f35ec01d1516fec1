package notify

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/bell"
	"github.com/webhookspine/spine/internal/trail"
)

// maxActivityIDs limits the event ids in a summary.
const maxActivityIDs = 5

// maxPayload limits a summary, in bytes. NOTIFY rejects payloads of 8000 bytes and more.
const maxPayload = 7900

// Activity sends summaries of this process's work on spine_activity: at most one an interval, and always one after the
// last change. It sends them through the pool, in no transaction of a stage. A summary is a hint: its listeners read
// the audit log.
type Activity struct {
	notifier Notifier
	log      zerolog.Logger
	interval time.Duration

	bell *bell.Bell // there are counts to send

	mu     sync.Mutex
	counts map[trail.Action]int // since the last summary
	ids    []string             // of some of the events
}

// NewActivity returns an Activity that sends at most one summary an interval; the contract says 200 ms. Run makes it
// send.
func NewActivity(notifier Notifier, interval time.Duration, log zerolog.Logger) *Activity {
	return &Activity{notifier: notifier, interval: interval, log: log, counts: map[trail.Action]int{}, bell: bell.New()}
}

// Add notes that action happened to an event. It never blocks.
func (a *Activity) Add(action trail.Action, eventID string) {
	a.mu.Lock()
	a.counts[action]++
	if len(a.ids) < maxActivityIDs && (len(a.ids) == 0 || a.ids[len(a.ids)-1] != eventID) {
		a.ids = append(a.ids, eventID)
	}
	a.mu.Unlock()
	a.bell.Ring()
}

// summary is a message on spine_activity.
type summary struct {
	Version  int                  `json:"v"`
	At       time.Time            `json:"at"`
	Counts   map[trail.Action]int `json:"counts"`
	EventIDs []string             `json:"event_ids"`
}

// Run sends summaries until ctx ends, and then the last one. Counts that cannot be sent go into the next summary.
func (a *Activity) Run(ctx context.Context) error {
	for {
		select {
		case <-a.bell.C():
			a.send(ctx)
		case <-ctx.Done():
			select {
			case <-a.bell.C():
				last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				defer cancel()
				a.send(last)
			default:
			}
			return nil
		}
		select {
		case <-time.After(a.interval):
		case <-ctx.Done():
		}
	}
}

func (a *Activity) send(ctx context.Context) {
	a.mu.Lock()
	s := summary{Version: 1, At: time.Now().UTC(), Counts: a.counts, EventIDs: a.ids}
	a.counts, a.ids = map[trail.Action]int{}, nil
	a.mu.Unlock()
	if len(s.Counts) == 0 {
		return
	}
	payload, err := json.Marshal(s)
	if err == nil && len(payload) > maxPayload {
		s.EventIDs = []string{}
		payload, err = json.Marshal(s)
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err = a.notifier.Notify(ctx, ActivityChannel, string(payload))
	}
	if err != nil {
		a.log.Debug().Err(err).Msg("sending activity failed")
		a.restore(s)
	}
}

// restore puts back a summary that could not be sent.
func (a *Activity) restore(s summary) {
	a.mu.Lock()
	for action, n := range s.Counts {
		a.counts[action] += n
	}
	a.ids = append(s.EventIDs, a.ids...)
	a.ids = a.ids[:min(len(a.ids), maxActivityIDs)]
	a.mu.Unlock()
	a.bell.Ring()
}
