package store

import (
	"context"
	"math"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/view"
)

// processingColumns are the columns of view.ProcessingRow.
const processingColumns = `p.event, p.event_id, p.source, p.destination, p.status, p.attempt_count,
	p.next_attempt_at, p.last_attempt_at, p.completed_at, p.error_message, p.worker, p.created_at, p.updated_at`

// processingList names the list in its cursors.
const processingList = "processing"

// Processing lists the rows of the queue, newest event first. With a filter a page may have fewer rows than its limit
// although more follow. It relies on processing_state_pkey, and for a status other than completed on the partial index
// that holds it, as long as that is short. Other filters have no index.
func (s *Store) Processing(
	ctx context.Context,
	page view.Page,
	filter view.ProcessingFilter,
) (rows []view.ProcessingRow, next view.Next, err error) {
	after := processingCursor{Event: math.MaxInt64}
	if page.Cursor != "" {
		if after, err = decodeCursor[processingCursor](processingList, page.Cursor); err != nil {
			return nil, view.Next{}, err
		}
	}
	ids, err := s.storedWithin(ctx, filter.Span, math.MaxInt64)
	if err != nil {
		return nil, view.Next{}, err
	}
	rare := false
	if filter.EventID == "" {
		if rare, err = s.isRare(ctx, filter.Status, filter.Type == "" && filter.Open()); err != nil {
			return nil, view.Next{}, err
		}
	}
	var q query
	key, hints, most := "p.event", inIndexOrder, windowOfEvents
	switch {
	case filter.EventID != "":
		hints = withIndex
		q.where("p.event = any (" + q.eventsNamed(filter.EventID) + ")")
	case rare:
		key, hints = noIndexNumber("p.event"), withIndex // so that the partial index is read and not the primary key
	}
	if rare {
		q.where(hasStatus(filter.Status))
	} else {
		q.equal(noIndexText("p.status"), filter.Status)
	}
	q.equal("p.source", filter.Source)
	q.equal("p.destination", filter.Destination)
	if filter.Type != "" || !filter.Open() {
		most = windowOfBoth
		q.equal(typeOf("p.event"), filter.Type)
		q.within(storedAt("p.event"), filter.Span)
	}
	if ids.before <= after.Event {
		after = processingCursor{Event: ids.before} // with two upper ends the index might begin at the wrong one
	}
	place := "(" + key + ", p.destination) < (?, ?) and " + key + " >= ?"
	if filter.EventID != "" || rare || len(q.terms) == 0 {
		return s.processingPage(ctx, hints, key, page, q.and(place, after.Event, after.Destination, ids.from))
	}
	err = readWindows(page, most, func(n int) (bool, error) {
		end, err := s.windowEnd(ctx, `select p.event, coalesce(`+storedAt("p.event")+`, p.created_at)
			from spine.processing_state p where (p.event, p.destination) = (
			select p.event, p.destination from spine.processing_state p
			where (p.event, p.destination) < ($1, $2) and p.event >= $3
			order by p.event desc, p.destination desc offset $4 limit 1)`,
			after.Event, after.Destination, ids.from, n-1)
		if err != nil {
			return false, err
		}
		// A window has all rows of its last event.
		window := q.and(place, after.Event, after.Destination, max(ids.from, end.key))
		if rows, next, err = s.processingPage(ctx, hints, key, page, window); err != nil || next.Cursor != "" {
			return true, err
		}
		below, err := encodeCursor(processingList, processingCursor{Event: end.key})
		next = end.next(below)
		return next.Cursor == "", err
	})
	return rows, next, err
}

// processingPage reads the rows of the newest events for which the conditions of q hold.
func (s *Store) processingPage(
	ctx context.Context, hints planHints, key string, page view.Page, q query,
) (rows []view.ProcessingRow, next view.Next, err error) {
	sql := "select " + processingColumns + " from spine.processing_state p" + q.conditions() +
		" order by " + key + " desc, p.destination desc limit " + q.arg(page.Limit+1)
	if rows, err = readRows[view.ProcessingRow](ctx, s, hints, "listing processing", sql, q.args...); err != nil {
		return nil, view.Next{}, err
	}
	if n := page.Limit; len(rows) > n {
		rows = rows[:n]
		next.Cursor, err = encodeCursor(processingList, processingCursor{rows[n-1].Event, rows[n-1].Destination})
	}
	return rows, next, err
}

// Backlog counts the rows of the queue that are not completed, by destination and status. It reads a whole partial
// index: on a long queue that takes seconds.
func (s *Store) Backlog(ctx context.Context) ([]view.BacklogRow, error) {
	return collect[view.BacklogRow](ctx, s, "counting the backlog", `
		select destination, status, count, next_attempt_at, oldest_created_at, paused_at
		from spine.depth
		order by destination, status`)
}

// Dead lists at most limit dead letters, last died first. It relies on processing_state_dead.
func (s *Store) Dead(ctx context.Context, limit int) ([]view.ProcessingRow, error) {
	return collect[view.ProcessingRow](
		ctx,
		s,
		"listing dead letters",
		"select "+processingColumns+
			" from spine.processing_state p where p.status = 'dead' order by p.updated_at desc limit $1",
		limit,
	)
}

// hasStatus is a condition on processing_state p. The status is part of its text, or else a generic plan could not use
// an index that is partial by it.
func hasStatus(status string) string {
	if !event.ValidStatus(status) {
		return "false"
	}
	return "p.status = '" + status + "'"
}
