package store

import (
	"context"
	"encoding/json"
	"math"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// stepColumns are the columns of trail.Step.
const stepColumns = `a.timestamp, a.id, a.event_id, a.source, a.action, a.success, a.details`

// Audit lists steps of the audit log, newest first. With a filter a page may have fewer rows than its limit although
// more follow. It relies on audit_trail_timestamp, and for one event on audit_trail_event. Filters have no index of
// their own.
func (s *Store) Audit(
	ctx context.Context,
	page view.Page,
	filter view.StepFilter,
) (rows []trail.Step, next view.Next, err error) {
	return s.stepList(ctx, "audit", page, filter, nil)
}

// Attempts lists attempts, last ended first. It reads the steps that record their ends, as Audit does.
func (s *Store) Attempts(
	ctx context.Context,
	page view.Page,
	filter view.AttemptFilter,
) (rows []view.AttemptRow, next view.Next, err error) {
	// By action: the audit log calls it a success that a lease was taken back.
	actions := []trail.Action{
		trail.ProcessingSucceeded,
		trail.ProcessingAttemptFailed,
		trail.LeaseExpired,
		trail.DeliveryDeferred,
	}
	switch filter.Outcome {
	case "success":
		actions = actions[:1]
	case "failure":
		actions = actions[1:]
	}
	steps, next, err := s.stepList(ctx, "attempts", page, view.StepFilter{
		EventID: filter.EventID, Source: filter.Source, Type: filter.Type, Span: filter.Span,
	}, actions)
	if err != nil {
		return nil, view.Next{}, err
	}
	rows = make([]view.AttemptRow, len(steps))
	for i, step := range steps {
		rows[i] = attemptOf(step)
	}
	return rows, next, nil
}

// attemptOf reads an attempt from the step that records its end. Somebody may have written the details by hand: a
// member of another type than ours is left out.
func attemptOf(a trail.Step) view.AttemptRow {
	var details map[string]json.RawMessage
	_ = json.Unmarshal(a.Details, &details)
	row := view.AttemptRow{
		Timestamp:   a.Timestamp,
		ID:          a.ID,
		Outcome:     "failure",
		Destination: event.DefaultDestination,
		Attempt: member[int64](
			details,
			"attempt",
		),
		Status:     member[int64](details, "status"),
		DurationMS: member[float64](details, "duration_ms"),
		Error:      member[string](details, "error"),
		Answer:     member[string](details, "answer"),
	}
	switch a.Action { //nolint:exhaustive // the other steps that end an attempt say all by themselves
	case trail.ProcessingSucceeded:
		row.Outcome = "success"
	case trail.LeaseExpired: // nobody knows what became of it
		worker := "no worker"
		if name := member[string](details, "worker"); name != nil {
			worker = *name
		}
		lost := "the lease ran out: " + worker + " did not report back" // as processing_state.error_message has it
		row.Error = &lost
	}
	if a.EventID != nil {
		row.EventID = *a.EventID
	}
	if a.Source != nil {
		row.Source = *a.Source
	}
	if destination := member[string](details, "destination"); destination != nil {
		row.Destination = *destination
	}
	return row
}

// member is a member of a JSON object. It is nil where the object lacks it, or where it is null or of another type.
func member[T any](object map[string]json.RawMessage, name string) (value *T) {
	if json.Unmarshal(object[name], &value) != nil {
		return nil
	}
	return value
}

// stepList lists steps of all actions, or of some. name names the list in its cursors.
func (s *Store) stepList(
	ctx context.Context, name string, page view.Page, filter view.StepFilter, actions []trail.Action,
) (rows []trail.Step, next view.Next, err error) {
	var q, place query
	from, hints := "spine.audit_log a", inIndexOrder
	if filter.EventID != "" {
		from, hints = trailsOf(q.eventsNamed(filter.EventID))+" a", withIndex
	}
	after := stepsCursor{At: math.MaxInt64, ID: math.MaxInt64}
	if page.Cursor != "" {
		if after, err = decodeCursor[stepsCursor](name, page.Cursor); err != nil {
			return nil, view.Next{}, err
		}
		// The second term implies the first, by which the planner leaves out partitions.
		q.where(
			"a.timestamp <= ? and (a.timestamp, a.id) < (?, ?)",
			cursorTime(after.At),
			cursorTime(after.At),
			after.ID,
		)
	}
	q.within("a.timestamp", filter.Span)
	narrow := len(q.terms)
	q.equal("a.source", filter.Source)
	q.equal("a.action", string(filter.Action))
	q.equal("a.success", filter.Success)
	q.equal(typeOf("a.event"), filter.Type)
	if len(actions) > 0 {
		q.where("a.action = any (?)", actions)
	}
	if filter.EventID != "" {
		return s.stepPage(ctx, hints, name, from, page, q, allAtOnce)
	}
	end := pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	if !filter.Since.IsZero() {
		end = pgtype.Timestamptz{Time: filter.Since, Valid: true}
	}
	newest := newestTime(after, filter.Span)
	if len(q.terms) == narrow {
		return s.stepPage(ctx, hints, name, from, page, q, func(read func(stretch) (bool, error)) error {
			return s.newestFirst(ctx, newest, end, read)
		})
	}

	// A window is a stretch of time, which the index knows. It holds all rows of its earliest time.
	place.within("a.timestamp", view.Span{Until: filter.Until})
	if after.ID == math.MinInt64 {
		place.where("a.timestamp < ?", cursorTime(after.At))
	} else {
		place.where("a.timestamp <= ?", cursorTime(after.At))
	}
	most := windowOfSteps
	if filter.Type != "" {
		most = windowOfBoth
	}
	err = readWindows(page, most, func(n int) (bool, error) {
		window, err := s.stepWindow(ctx, n, place, newest, end)
		if err != nil {
			return false, err
		}
		rows, next, err = s.stepPage(ctx, hints, name, from, page, q, window.read)
		if err != nil || next.Cursor != "" || window.at == nil {
			return true, err
		}
		text, err := encodeCursor(name, stepsCursor{At: window.at.UnixMicro(), ID: math.MinInt64})
		next = window.next(text)
		return window.long, err
	})
	return rows, next, err
}

// stretches calls read with stretches of time, until it has enough.
type stretches func(read func(stretch) (enough bool, err error)) error

// allAtOnce is for queries that have their own bound in time.
func allAtOnce(read func(stretch) (enough bool, err error)) error {
	_, err := read(stretch{})
	return err
}

// newestTime is a time from which a page reads the steps before after. This clock may be wrong, at the cost of more
// stretches.
func newestTime(after stepsCursor, span view.Span) time.Time {
	newest := time.Now()
	if !span.Until.IsZero() && span.Until.Before(newest) {
		newest = span.Until
	}
	switch at := cursorTime(after.At); {
	case at.InfinityModifier == pgtype.NegativeInfinity:
		return time.Time{}
	case at.InfinityModifier == pgtype.Finite && at.Time.Before(newest):
		return at.Time
	}
	return newest
}

// stepWindow is the part of the audit log that a page with a filter reads.
type stepWindow struct {
	windowEnd

	parts []stretch // newest first
	long  bool      // it has as many stretches as it may, and fewer steps
}

// stepWindow finds the n newest steps for which the conditions of place hold, from newest back to end.
func (s *Store) stepWindow(
	ctx context.Context, n int, place query, newest time.Time, end pgtype.Timestamptz,
) (w stepWindow, err error) {
	err = s.newestFirst(ctx, newest, end, func(t stretch) (bool, error) {
		q := place.in(t)
		sql := "select count(*) as key, coalesce(min(r.timestamp), 'infinity') as at" +
			" from (select a.timestamp from spine.audit_trail a" + q.conditions() +
			" order by a.timestamp desc limit " + q.arg(n) + ") r"
		found, err := s.windowEnd(ctx, sql, q.args...)
		if err != nil {
			return false, err
		}
		n -= int(found.key)
		w.long = n > 0 && len(w.parts)+1 == windowOfStretches && !same(t.since, end)
		switch {
		case n == 0:
			w.windowEnd = found
			t.since = cursorTime(found.at.UnixMicro())
		case w.long:
			w.at = &event.Timestamp{Time: t.since.Time.UTC()}
		}
		w.parts = append(w.parts, t)
		return w.at != nil, nil
	})
	return w, err
}

// read calls read with the stretches of the window, until it has enough.
func (w stepWindow) read(read func(stretch) (enough bool, err error)) error {
	for _, t := range w.parts {
		if enough, err := read(t); enough || err != nil {
			return err
		}
	}
	return nil
}

// stepPage reads the newest steps for which the conditions of q hold.
func (s *Store) stepPage(
	ctx context.Context, hints planHints, name, from string, page view.Page, q query, over stretches,
) (rows []trail.Step, next view.Next, err error) {
	rows = []trail.Step{}
	err = over(func(t stretch) (bool, error) {
		q := q.in(t)
		sql := "select " + stepColumns + " from " + from + q.conditions() +
			" order by a.timestamp desc, a.id desc limit " + q.arg(page.Limit+1-len(rows))
		more, err := readRows[trail.Step](ctx, s, hints, "listing the audit log", sql, q.args...)
		rows = append(rows, more...)
		return len(rows) > page.Limit, err
	})
	if err != nil {
		return nil, view.Next{}, err
	}
	if n := page.Limit; len(rows) > n {
		rows = rows[:n]
		next.Cursor, err = encodeCursor(name, stepsCursor{rows[n-1].Timestamp.UnixMicro(), rows[n-1].ID})
	}
	return rows, next, err
}

// trailsOf are the steps of events, as rows of spine.audit_log. events is an expression for an array of events.id.
func trailsOf(events string) string {
	return "(select t.* from unnest(" + events + ") n cross join lateral spine.trail_of(n) t)"
}
