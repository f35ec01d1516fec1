package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/webhookspine/spine/internal/trail"
)

// CurrentCursor returns a cursor after all steps of the audit log that are committed now.
func (s *Store) CurrentCursor(ctx context.Context) (trail.Cursor, error) {
	now, err := s.committedNow(ctx, 0)
	return trail.CursorAt(now), err
}

// ReadSteps returns the page after c of the steps that match f, and the cursor after it, as trail.Reader has it. No
// statement stays open after a page: a slow reader holds back neither vacuum nor the queue. The error is
// trail.ErrCursorAhead, or that of the database.
func (s *Store) ReadSteps(
	ctx context.Context,
	c trail.Cursor,
	f trail.Filter,
) (steps []trail.Step, next trail.Cursor, err error) {
	if c.Until == nil {
		now, err := s.committedNow(ctx, c.Seen.End)
		if err != nil {
			return nil, c, err
		}
		if c = c.ReadingTo(now); c.Settled() {
			return nil, c, nil
		}
	}
	steps, last, err := s.stepsAfter(ctx, c, f)
	if err != nil {
		return nil, c, err
	}
	return steps, c.After(last, len(steps) == trail.PageSteps), nil
}

// statusAfter is the status into which a row of spine.audit_log a brings its event; null where it brings it into none.
const statusAfter = `(case a.action
	when 'event_inserted' then 'pending'
	when 'event_replayed' then 'pending'
	when 'event_queued' then coalesce(a.details->>'status', 'pending')
	when 'lease_returned' then case when a.details->>'attempt' = '1' then 'pending' else 'failed' end
	when 'processing_attempt_started' then 'processing'
	when 'processing_succeeded' then 'completed'
	when 'retry_scheduled' then 'failed'
	when 'processing_failed_permanently' then 'dead'
	when 'status_changed' then a.details->>'to'
end)`

// matching adds what f asks for as conditions on spine.audit_log a.
func (q *query) matching(f trail.Filter) {
	oneOf(q, "a.event_id", f.EventIDs)
	oneOf(q, "a.source", f.Sources)
	oneOf(q, "a.action", f.Actions)
	oneOf(q, statusAfter, f.Statuses)
	oneOf(q, typeOf("a.event"), f.Types)
}

// oneOf adds the condition that an expression is one of values, if there are any.
func oneOf[T ~string](q *query, expression string, values []T) {
	if len(values) > 0 {
		q.where(expression+" = any (?::text[])", values)
	}
}

// snapshotTimeout is how soon committedNow gives up a connection that was lost without a word. Its query takes no time.
const snapshotTimeout = 5 * time.Second

// committedNow returns the transactions whose steps are committed now, with an end of at least least: the newest rows
// may have been dropped. The error is trail.ErrCursorAhead where the database has not got as far as least. It relies on
// audit_trail_xid.
//
// The newest row gives the end, although pg_current_snapshot() knows higher numbers. After a crash Postgres gives out
// those numbers again that had not reached the disk. These are the numbers of transactions that failed, and of those
// that only notified: nobody waits for their commit. The commit of the newest row was waited for, so no number up to it
// comes again.
//
// Numbers are positions in the log: spine.trail_shift() has moved them in a database that was restored from a dump.
// Rows of the future are passed over.
func (s *Store) committedNow(ctx context.Context, least uint64) (t trail.Transactions, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, snapshotTimeout, errors.New("the database does not answer"))
	defer cancel()
	var newest, next string
	var inProgress []string
	err = s.one(ctx, `select coalesce((select a.xid from spine.audit_log a
			where a.xid < t.next order by a.xid desc limit 1)::text, '0'),
		t.next::text,
		array(select (x::text::bigint + t.shift)::text from pg_snapshot_xip(pg_current_snapshot()) x)
		from (select spine.trail_shift() as shift, spine.trail_end() as next offset 0) t`,
		nil, &newest, &next, &inProgress)
	if err != nil {
		return t, fmt.Errorf("reading the audit log: %w", err)
	}
	numbers := make([]uint64, 0, 2+len(inProgress))
	for _, text := range append([]string{newest, next}, inProgress...) {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return t, fmt.Errorf("reading the audit log: %w", err)
		}
		numbers = append(numbers, n)
	}
	if least > numbers[1] {
		return t, fmt.Errorf("reading the audit log: %w", trail.ErrCursorAhead)
	}
	t.End = max(numbers[0]+1, least)
	for _, xid := range numbers[2:] {
		if xid < t.End {
			t.Except = append(t.Except, xid)
		}
	}
	slices.Sort(t.Except)
	return t, nil
}

// stepsAfter reads the page after c: of the past, of transactions that ended late, or of new ones, in this order. Going
// by xid it reads each backlog once, however long it is, and nothing again because a transaction stays open.
//
// It relies on audit_trail_xid. In the past it relies on audit_trail_timestamp, or on audit_trail_event where events
// are named. No step of an event commits before the event does, so the index finds its past. Commits since c.Until was
// taken do not change that.
func (s *Store) stepsAfter(
	ctx context.Context,
	c trail.Cursor,
	f trail.Filter,
) (steps []trail.Step, last trail.Key, err error) {
	var q query
	q.where(
		"a.xid < ?::text::xid8 and a.xid <> all (?::text[]::xid8[])",
		strconv.FormatUint(c.Until.End, 10),
		xidTexts(c.Until.Except),
	)
	q.matching(f)
	from, order, how := "spine.audit_log", "a.timestamp, a.id", withIndex
	after := c.Last.Timestamp.String() // as text, since it may be infinite
	if !c.Live {
		// The first term is implied by the second; partitions are pruned by it.
		q.where(
			"a.timestamp >= ?::text::timestamptz and (a.timestamp, a.id) > (?::text::timestamptz, ?::bigint)",
			after,
			after,
			c.Last.ID,
		)
		if len(f.EventIDs) > 0 {
			since, err := s.trailStart(ctx, f.EventIDs...)
			if err != nil {
				return nil, trail.Key{}, err
			}
			how = byEvent
			from = trailRows(
				"any (array(select n.id from spine.events n where n.event_id = any ("+q.arg(f.EventIDs)+"::text[])))",
				q.arg(since),
			)
		}
	} else {
		if c.Late {
			q.where("a.xid = any (?::text[]::xid8[])", xidTexts(c.EndedLate()))
		} else {
			q.where("a.xid >= ?::text::xid8", strconv.FormatUint(c.Seen.End, 10))
		}
		q.where("(a.xid, a.timestamp, a.id) > (?::text::xid8, ?::text::timestamptz, ?::bigint)",
			strconv.FormatUint(c.Last.XID, 10), after, c.Last.ID)
		order = "a.xid, " + order
	}
	sql := "select " + stepColumns + ", a.xid::text from " + from + " a" + q.conditions() +
		" order by " + order + " limit " + q.arg(
		trail.PageSteps,
	)

	type row struct {
		trail.Step
		XID string
	}
	rows, err := readRows[row](ctx, s, how, "reading the audit log", sql, q.args...)
	if err != nil {
		return nil, trail.Key{}, err
	}
	for _, r := range rows {
		steps = append(steps, r.Step)
	}
	if n := len(rows); n > 0 {
		last = trail.Key{Timestamp: rows[n-1].Timestamp, ID: rows[n-1].ID}
		if last.XID, err = strconv.ParseUint(rows[n-1].XID, 10, 64); err != nil {
			return nil, trail.Key{}, fmt.Errorf("reading the audit log: %w", err)
		}
	}
	slices.SortFunc(steps, func(a, b trail.Step) int {
		return cmp.Or(cmp.Compare(a.Timestamp.UnixMicro(), b.Timestamp.UnixMicro()), cmp.Compare(a.ID, b.ID))
	})
	return steps, last, nil
}

// xidTexts are the numbers of transactions as texts, from which Postgres makes xid8.
func xidTexts(numbers []uint64) []string {
	texts := make([]string, len(numbers))
	for i, n := range numbers {
		texts[i] = strconv.FormatUint(n, 10)
	}
	return texts
}
