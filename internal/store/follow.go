package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

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

// committedNow returns the transactions whose steps are committed now, as spine.audited_now() has them. Its end is
// least or more, since the newest rows may have been dropped. The error is trail.ErrCursorAhead where the database has
// not got as far as least.
func (s *Store) committedNow(ctx context.Context, least uint64) (t trail.Transactions, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, snapshotTimeout, errors.New("the database does not answer"))
	defer cancel()
	var end, next string
	var inProgress []string
	err = s.one(ctx, `select n.next_xid::text, spine.trail_end()::text, n.in_progress::text[]
		from spine.audited_now() n`, nil, &end, &next, &inProgress)
	if err != nil {
		return t, fmt.Errorf("reading the audit log: %w", err)
	}
	numbers := make([]uint64, 0, 2+len(inProgress))
	for _, text := range append([]string{end, next}, inProgress...) {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return t, fmt.Errorf("reading the audit log: %w", err)
		}
		numbers = append(numbers, n)
	}
	if least > numbers[1] {
		return t, fmt.Errorf("reading the audit log: %w", trail.ErrCursorAhead)
	}
	t.End = max(numbers[0], least)
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
	from, order, how, over := "spine.audit_log", "a.timestamp, a.id", withIndex, stretches(allAtOnce)
	after := c.Last.Timestamp.String() // as text, since it may be infinite
	switch {
	case c.Live:
		least := c.Seen.End
		if c.Late {
			late := c.EndedLate()
			q.where("a.xid = any (?::text[]::xid8[])", xidTexts(late))
			least = slices.Min(append(late, least))
		} else {
			q.where("a.xid >= ?::text::xid8", strconv.FormatUint(c.Seen.End, 10))
		}
		q.where("(a.xid, a.timestamp, a.id) > (?::text::xid8, ?::text::timestamptz, ?::bigint)",
			strconv.FormatUint(c.Last.XID, 10), after, c.Last.ID)
		since, err := s.auditSince(ctx, least)
		if err != nil {
			return nil, trail.Key{}, err
		}
		// The function trail_start says why it has an "or".
		q.where("(a.timestamp >= ? or a.timestamp = 'infinity')", since)
		order, how = "a.xid, "+order, byOneIndex
	case len(f.EventIDs) > 0:
		from = trailsOf(
			"array(select n.id from spine.events n where n.event_id = any (" + q.arg(f.EventIDs) + "::text[]))",
		)
	default:
		over = func(read func(stretch) (bool, error)) error {
			return s.oldestFirst(ctx, cursorTime(c.Last.Timestamp.UnixMicro()), read)
		}
	}
	if !c.Live {
		q.where("(a.timestamp, a.id) > (?::text::timestamptz, ?::bigint)", after, c.Last.ID)
	}

	type row struct {
		trail.Step
		XID string
	}
	var rows []row
	err = over(func(t stretch) (bool, error) {
		q := q.in(t)
		sql := "select " + stepColumns + ", a.xid::text from " + from + " a" + q.conditions() +
			" order by " + order + " limit " + q.arg(trail.PageSteps-len(rows))
		more, err := readRows[row](ctx, s, how, "reading the audit log", sql, q.args...)
		rows = append(rows, more...)
		return len(rows) == trail.PageSteps, err
	})
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

// auditSince is a time before which there are no steps of a position or later ones.
func (s *Store) auditSince(ctx context.Context, position uint64) (since pgtype.Timestamptz, err error) {
	err = s.one(ctx, "select spine.audit_since($1::text::xid8)", []any{strconv.FormatUint(position, 10)}, &since)
	if err != nil {
		return since, fmt.Errorf("reading the audit log: %w", err)
	}
	return since, nil
}

// xidTexts are the numbers of transactions as texts, from which Postgres makes xid8.
func xidTexts(numbers []uint64) []string {
	texts := make([]string, len(numbers))
	for i, n := range numbers {
		texts[i] = strconv.FormatUint(n, 10)
	}
	return texts
}
