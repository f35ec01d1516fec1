package ingest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
)

// Rejector audits summaries of refused requests. again says that the same ones
// were handed in before, and nobody knows what came of it.
type Rejector interface {
	Reject(ctx context.Context, rejections []event.Rejection, again bool) error
}

// quietPeriod is how often one cause of one source is audited at most: however
// many requests are refused, the audit log grows by a bounded number of rows.
const quietPeriod = 10 * time.Second

// auditPatience bounds one try to audit.
const auditPatience = 5 * time.Second

// Rejections gathers refused requests and audits them as summaries: the first
// of a kind within a second, then at most one summary every ten seconds.
type Rejections struct {
	rejector Rejector
	log      zerolog.Logger
	now      func() time.Time

	doubtful []event.Rejection // may have been audited: handed in, and an error came back
	failed   time.Time         // when that was

	mu    sync.Mutex
	kinds map[rejectionKind]*rejectionCount
}

// rejectionKind is bounded: sources that exist, and the causes of this package.
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

func (r *Rejections) add(source, cause string, status int) {
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

// Run audits what is refused until ctx ends, and then what is left. Summaries
// that cannot be audited are kept for the next try.
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

// audit hands in what is due. What ended with an error is handed in again as it
// was, before anything else: its counts must not be mixed with others.
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

// due takes what has not been audited, or not for a while.
func (r *Rejections) due(all bool) (due []event.Rejection) {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for kind, c := range r.kinds {
		if c.count > 0 && (all || now.Sub(c.audited) >= quietPeriod) {
			due = append(due, event.Rejection{Source: kind.source, Cause: kind.cause, Status: kind.status, Count: c.count, Since: c.since})
			c.count, c.audited = 0, now
		}
	}
	return due
}

// reject remembers what has to be handed in again.
func (r *Rejections) reject(ctx context.Context, rejections []event.Rejection, again bool) (done bool) {
	err := r.rejector.Reject(ctx, rejections, again)
	if errors.Is(err, event.ErrInvalidData) { // it would be for ever
		r.log.Error().Err(err).Int("summaries", len(rejections)).Msg("refused requests cannot be audited")
		err = nil
	}
	if err != nil {
		r.log.Warn().Err(err).Msg("auditing refused requests failed, trying again later")
		r.doubtful, r.failed = rejections, r.now()
		return false
	}
	r.doubtful = nil
	return true
}
