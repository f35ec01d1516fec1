package store

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/view"
)

// A filtered page reads a bounded number of rows, its window, whatever it finds. So it takes a few tens of milliseconds
// on tables of any size (DESIGN_NOTES section 10).
const (
	windowOfEvents = 20_000 // rows of events or of the queue
	// rows of the audit log, and all others of the time of the last one: its index ends with the time
	windowOfSteps = 30_000
	windowOfBoth  = 10_000 // rows of either, where each row is looked up in another table
	// Stretches of the audit log: a day, 15 days, and 128 partitions.
	windowOfStretches = 3

	// A common value fills a page from the first rows. So a first window holds this many times the rows of a page.
	firstWindow = 20
)

// Limits on unfinished rows. Up to these, a page by status finds all rows by their partial index, and sorts them.
const (
	shortQueue     = 50_000
	shortQueueBoth = 1_500 // where each row is looked up in another table, at 20 µs each among ten million
)

// readWindows reads a page from a small window. Where that was not enough, it reads one of most rows. The function read
// reads the page from a window of n rows and reports whether it was enough.
func readWindows(page view.Page, most int, read func(n int) (enough bool, err error)) error {
	if n := firstWindow * (page.Limit + 1); n < most {
		if enough, err := read(n); enough || err != nil {
			return err
		}
	}
	_, err := read(most)
	return err
}

// windowEnd is the last row of a window.
type windowEnd struct {
	key int64            // the lowest int64 where the list ends before
	at  *event.Timestamp // nil where the list ends before
}

// windowEnd reads the end of a window: a key and a time.
func (s *Store) windowEnd(ctx context.Context, sql string, args ...any) (windowEnd, error) {
	type row struct {
		Key int64
		At  event.Timestamp
	}
	rows, err := readRows[row](ctx, s, inIndexOrder, "finding the end of a page", sql, args...)
	if err != nil || len(rows) == 0 {
		return windowEnd{key: math.MinInt64}, err
	}
	return windowEnd{key: rows[0].Key, at: &rows[0].At}, nil
}

// next is how a list goes on below its window. cursor is that of the next page.
func (w windowEnd) next(cursor string) view.Next {
	if w.at == nil {
		return view.Next{}
	}
	return view.Next{Cursor: cursor, LookedBackTo: w.at}
}

// isRare reports whether so few rows have a status that a page can read all of them. With alone the status is the only
// filter. It relies on the partial indexes, and asks for their order so that the planner reads no other.
func (s *Store) isRare(ctx context.Context, status string, alone bool) (bool, error) {
	most := shortQueueBoth
	if alone {
		most = shortQueue
	}
	var partial string
	switch status {
	case event.StatusDead:
		partial = "p.status = 'dead' order by p.updated_at"
	case event.StatusPending, event.StatusProcessing, event.StatusFailed:
		partial = "p.status in ('pending', 'failed', 'processing') order by p.destination, p.next_attempt_at"
	default:
		return false, nil
	}
	counts, err := readRows[struct{ Count int }](
		ctx,
		s,
		inIndexOrder,
		"counting unfinished rows",
		"select count(*) from (select from spine.processing_state p where "+partial+" limit "+strconv.Itoa(
			most+1,
		)+") p",
	)
	return err == nil && counts[0].Count <= most, err
}

// idSpan is the ids from one, inclusive, to another, exclusive.
type idSpan struct{ from, before int64 }

// storedWithin returns ids between which all events lie that were stored in a span. Others may lie between them, too.
// before is an upper end, exclusive.
func (s *Store) storedWithin(ctx context.Context, span view.Span, before int64) (idSpan, error) {
	ids := idSpan{math.MinInt64, before}
	if span.Open() {
		return ids, nil
	}
	var since, until *time.Time
	if !span.Since.IsZero() {
		since = &span.Since
	}
	if !span.Until.IsZero() {
		until = &span.Until
	}
	var first, last *int64
	err := s.readOne(
		ctx, "select s.first, s.last from spine.events_within($1, $2) s", []any{since, until}, &first, &last,
	)
	if err != nil {
		return idSpan{}, fmt.Errorf("finding the events of a time: %w", err)
	}
	if first != nil {
		ids.from = *first
	}
	if last != nil && *last < before {
		ids.before = *last + 1
	}
	return ids, nil
}
