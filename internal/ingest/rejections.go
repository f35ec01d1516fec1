package ingest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
)

// Rejector writes summaries of rejected requests to the audit log.
type Rejector interface {
	// Reject audits summaries. again says that the same ones were handed in before, with an unknown result.
	Reject(ctx context.Context, summaries []event.RejectionSummary, again bool) error
}

// quietPeriod is the shortest time between two summaries of one cause of one source. It bounds the rows that a flood of
// rejections adds to the audit log.
const quietPeriod = 10 * time.Second

// auditPatience bounds one try to audit.
const auditPatience = 5 * time.Second

// Rejections counts rejected requests and audits them as summaries: the first of a kind within a second, then at most
// one summary every ten seconds.
type Rejections struct {
	rejector Rejector
	log      zerolog.Logger
	now      func() time.Time

	doubtful []event.RejectionSummary // handed in with an error, and audited or not
	failed   time.Time                // when they were handed in

	mu    sync.Mutex
	kinds map[rejectionKind]*rejectionCount
}

// rejectionKind is bounded: sources that exist, and the causes that the code names.
type rejectionKind struct {
	source, cause string
	status        int
}

type rejectionCount struct {
	count   int64
	since   time.Time
	audited time.Time
}

// NewRejections returns Rejections; Run makes them work.
func NewRejections(rejector Rejector, now func() time.Time, log zerolog.Logger) *Rejections {
	return &Rejections{rejector: rejector, now: now, log: log, kinds: map[rejectionKind]*rejectionCount{}}
}

// Add counts a rejected request. source is empty where it was for none. Sources and causes must be bounded.
func (r *Rejections) Add(source, cause string, status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kind := rejectionKind{source, cause, status}
	c := r.kinds[kind]
	if c == nil {
		c = &rejectionCount{}
		r.kinds[kind] = c
	}
	if c.count == 0 {
		c.since = r.now()
	}
	c.count++
}

// Run audits rejections until ctx ends, and then those that are left. Summaries that cannot be audited are kept for the
// next try.
func (r *Rejections) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.audit(ctx, false)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			r.audit(last, true)
			return nil
		}
	}
}

// audit hands in the summaries that are due. After an error the same ones go first and unchanged: only then can the
// store recognize summaries that it has already.
func (r *Rejections) audit(ctx context.Context, all bool) {
	ctx, cancel := context.WithTimeout(ctx, auditPatience)
	defer cancel()
	if len(r.doubtful) > 0 {
		if !all && r.now().Sub(r.failed) < quietPeriod || !r.reject(ctx, r.doubtful, true) {
			return
		}
	}
	if due := r.due(all); len(due) > 0 {
		r.reject(ctx, due, false)
	}
}

// due takes the counts of each kind that was not audited within the quiet period, or of all.
func (r *Rejections) due(all bool) (due []event.RejectionSummary) {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for kind, c := range r.kinds {
		if c.count > 0 && (all || now.Sub(c.audited) >= quietPeriod) {
			due = append(
				due,
				event.RejectionSummary{
					Source: kind.source,
					Cause:  kind.cause,
					Status: kind.status,
					Count:  c.count,
					Since:  c.since,
				},
			)
			c.count, c.audited = 0, now
		}
	}
	return due
}

// reject hands in summaries, and remembers them where that fails.
func (r *Rejections) reject(ctx context.Context, summaries []event.RejectionSummary, again bool) (done bool) {
	err := r.rejector.Reject(ctx, summaries, again)
	if errors.Is(err, event.ErrInvalidData) { // every further try would fail too
		r.log.Error().Err(err).Int("summaries", len(summaries)).Msg("rejected requests cannot be audited")
		err = nil
	}
	if err != nil {
		r.log.Warn().Err(err).Msg("auditing rejected requests failed, trying again later")
		r.doubtful, r.failed = summaries, r.now()
		return false
	}
	r.doubtful = nil
	return true
}
