package worker

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// row is an event in a modelQueue.
type row struct {
	due      time.Time
	status   event.Disposition // empty while it is pending
	leased   bool
	locked   bool // by somebody else's open transaction
	overdue  bool // deferred for so long that it is given up
	lease    int64
	attempts int
}

// hooks are called, where set, outside the queue's lock, and may block.
type hooks struct {
	beforeClaim  func(ctx context.Context) error // before anything is looked at
	afterClaim   func(claimed event.Claimed)     // after the claim, before its answer
	beforeRenew  func(ctx context.Context) error
	beforeSettle func(ctx context.Context, batch []event.Settlement) error
	giveBack     func() error
}

// claimCall is what a claim was asked for, and when it answered.
type claimCall struct {
	at, now time.Time
	limit   int
	low     time.Time
	jobs    int
}

// modelQueue is a queue that keeps the promises of the database's. It goes by
// the clock of the test.
type modelQueue struct {
	mu sync.Mutex // guards all below
	hooks

	rows     map[int64]*row
	claims   []claimCall
	renewals []time.Time
	settled  [][]event.Settlement
	returned []event.Job
}

// add queues events that fall due at the given time, without a wake-up.
func (q *modelQueue) add(due time.Time, events ...int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.rows == nil {
		q.rows = map[int64]*row{}
	}
	for _, id := range events {
		q.rows[id] = &row{due: due}
	}
}

// hook replaces the hooks of a queue that is in use.
func (q *modelQueue) hook(h hooks) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.hooks = h
}

func (q *modelQueue) hooked() hooks {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.hooks
}

// row returns a copy of a row.
func (q *modelQueue) row(id int64) row {
	q.mu.Lock()
	defer q.mu.Unlock()
	return *q.rows[id]
}

// take voids the lease of an event, as a hand does that changes its status.
func (q *modelQueue) take(id int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.rows[id].lease++
	q.rows[id].leased = false
	q.rows[id].status = event.Dead
}

// count says how many events have a disposition.
func (q *modelQueue) count(d event.Disposition) (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range q.rows {
		if r.status == d {
			n++
		}
	}
	return n
}

func (r *row) open() bool { return r.status != event.Completed && r.status != event.Dead }

func (q *modelQueue) Claim(ctx context.Context, c event.Claim) (event.Claimed, error) {
	call := claimCall{at: time.Now(), limit: c.Limit, low: c.Low}
	if hook := q.hooked().beforeClaim; hook != nil {
		if err := hook(ctx); err != nil {
			return event.Claimed{}, err
		}
	}
	claimed := q.claim(c)
	call.now, call.jobs = claimed.Now, len(claimed.Jobs)
	q.mu.Lock()
	q.claims = append(q.claims, call)
	q.mu.Unlock()
	if hook := q.hooked().afterClaim; hook != nil {
		hook(claimed)
	}
	return claimed, nil
}

func (q *modelQueue) claim(c event.Claim) event.Claimed {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	claimed := event.Claimed{Now: now}
	var due []int64
	for id, r := range q.rows {
		if r.open() && !r.due.After(now) && !r.due.Before(c.Low) {
			due = append(due, id)
		}
	}
	slices.SortFunc(due, func(a, b int64) int { return q.rows[a].due.Compare(q.rows[b].due) })
	for _, id := range due[:min(len(due), c.Limit)] {
		r := q.rows[id]
		job := event.Job{Event: id, Destination: c.Destination, ID: name(id), Source: event.DefaultSource, DueAt: r.due}
		r.lease++
		if r.leased {
			job.Attempt, r.leased = r.attempts, false
			r.status = event.Dead
			if r.attempts <= len(c.Delays) {
				r.status, r.due = event.Failed, now.Add(c.Delays[r.attempts-1])
			}
			claimed.Expired = append(claimed.Expired, job)
			continue
		}
		r.attempts++
		r.leased, r.due = true, now.Add(c.Lease)
		job.Attempt, job.Lease = r.attempts, r.lease
		claimed.Jobs = append(claimed.Jobs, job)
	}
	for _, r := range q.rows {
		if wait := r.due.Sub(now); r.open() && wait > 0 && (claimed.NextDue == 0 || wait < claimed.NextDue) {
			claimed.NextDue = wait
		}
	}
	return claimed
}

func (q *modelQueue) Renew(ctx context.Context, jobs []event.Job, lease time.Duration) ([]event.LeaseState, error) {
	if hook := q.hooked().beforeRenew; hook != nil {
		if err := hook(ctx); err != nil {
			return nil, err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.renewals = append(q.renewals, time.Now())
	holds := make([]event.LeaseState, len(jobs))
	for i, job := range jobs {
		switch r := q.rows[job.Event]; {
		case r.lease != job.Lease:
			holds[i] = event.LeaseLost
		case r.locked:
			holds[i] = event.LeaseLocked
		default:
			r.due = time.Now().Add(lease)
		}
	}
	return holds, nil
}

func (q *modelQueue) Settle(ctx context.Context, settlements []event.Settlement) ([]event.LeaseState, error) {
	if hook := q.hooked().beforeSettle; hook != nil {
		if err := hook(ctx, settlements); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.settled = append(q.settled, slices.Clone(settlements))
	holds := make([]event.LeaseState, len(settlements))
	for i, s := range settlements {
		switch r := q.rows[s.Job.Event]; {
		case r.lease != s.Job.Lease:
			holds[i] = event.LeaseLost
		case r.locked:
			holds[i] = event.LeaseLocked
		default:
			r.lease++
			if r.overdue && s.Disposition == event.Deferred {
				s.Disposition, holds[i] = event.Dead, event.LeaseGivenUp
			}
			r.status, r.due, r.leased = s.Disposition, time.Now().Add(s.Delay), false
		}
	}
	return holds, nil
}

func (q *modelQueue) GiveBack(_ context.Context, jobs []event.Job) error {
	if hook := q.hooked().giveBack; hook != nil {
		if err := hook(); err != nil {
			return err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.returned = append(q.returned, jobs...)
	for _, job := range jobs {
		if r := q.rows[job.Event]; r.lease == job.Lease {
			r.lease++
			r.attempts--
			r.leased, r.due = false, time.Now()
		}
	}
	return nil
}
