package store

import (
	"context"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/webhookspine/spine/internal/view"
)

// Columns of view.StoredEvent.
const (
	eventStatus = `(array['dead', 'failed', 'processing', 'pending', 'completed'])[(
		select min(array_position(array['dead', 'failed', 'processing', 'pending', 'completed'], p.status))
		from spine.processing_state p where p.event = e.id)] as status` // without a sort, as inIndexOrder needs it

	eventColumns = `e.id, e.event_id, e.source, e.event_type, e.occurred_at, e.created_at, ` + eventStatus + `,
	e.seen_count, encode(e.payload_hash, 'hex') as payload_hash, e.payload,
	coalesce(e.unqueryable, '') as unqueryable, e.raw_body`
)

// maxPageBytes is the limit on the payload bytes of one page of events, except for the last event on it. So a page of
// large events is short, not large.
const maxPageBytes = 8 << 20

// Events lists events, newest first. A page may have fewer rows than its limit although more follow. That is so where
// payloads are large, and with a filter that few rows of its window match. It relies on events_pkey, and for a status
// on the partial indexes of the queue. Other filters have no index.
func (s *Store) Events(
	ctx context.Context,
	page view.Page,
	filter view.EventFilter,
) (rows []view.StoredEvent, next view.Next, err error) {
	before := int64(math.MaxInt64)
	if page.Cursor != "" {
		after, err := decodeCursor[eventsCursor](eventsList, page.Cursor)
		if err != nil {
			return nil, view.Next{}, err
		}
		before = after.ID
	}
	ids, err := s.storedWithin(ctx, filter.Span, before)
	if err != nil {
		return nil, view.Next{}, err
	}
	rare, err := s.isRare(ctx, filter.Status, filter.Type == "" && filter.Open())
	if err != nil {
		return nil, view.Next{}, err
	}
	var q query
	if rare {
		q.equal("p.source", filter.Source)
		q.equal(typeOf("p.event"), filter.Type)
		q.within(storedAt("p.event"), filter.Span)
		key := noIndexNumber("p.event") // so that the partial index is read and not the primary key
		q.where(hasStatus(filter.Status)+" and "+key+" >= ? and "+key+" < ?", ids.from, ids.before)
		newest := "select " + key + " from spine.processing_state p" + q.conditions() +
			" group by " + key + " order by " + key + " desc limit " + q.arg(page.Limit+1)
		return s.eventsPage(
			ctx,
			withIndex,
			page,
			query{terms: []string{"e.id = any (array(" + newest + "))"}, args: q.args},
		)
	}
	if filter == (view.EventFilter{}) {
		q.where("e.id < ?", ids.before)
		return s.eventsPage(ctx, inIndexOrder, page, q)
	}
	most := windowOfEvents
	q.equal("e.event_type", filter.Type)
	q.equal(noIndexText("e.source"), filter.Source)
	q.within("e.created_at", filter.Span)
	if filter.Status != "" {
		most = windowOfBoth
		q.where(
			"(select true from spine.processing_state p where p.event = e.id and "+noIndexText(
				"p.status",
			)+" = ? limit 1)",
			filter.Status,
		)
	}
	err = readWindows(page, most, func(n int) (bool, error) {
		end, err := s.windowEnd(ctx, `select e.id, e.created_at from spine.events e where e.id = (
			select e.id
			from spine.events e
			where e.id >= $1 and e.id < $2
			order by e.id desc offset $3
			limit 1)`, ids.from, ids.before, n-1)
		if err != nil {
			return false, err
		}
		window := q.and("e.id >= ? and e.id < ?", max(ids.from, end.key), ids.before)
		if rows, next, err = s.eventsPage(ctx, inIndexOrder, page, window); err != nil || next.Cursor != "" {
			return true, err
		}
		below, err := encodeCursor(eventsList, eventsCursor{end.key})
		next = end.next(below)
		return next.Cursor == "", err
	})
	return rows, next, err
}

// eventsList names the list in its cursors.
const eventsList = "events"

// eventsPage reads the newest events for which the conditions of q hold.
func (s *Store) eventsPage(
	ctx context.Context,
	hints planHints,
	page view.Page,
	q query,
) (rows []view.StoredEvent, next view.Next, err error) {
	// found counts the rows on the page and the one after it, before large ones are cut off. The server reads those for
	// their size, one by one, and does not send them.
	sql := `select ` + eventColumns + `, e.found from (
		select e.*, count(*) over () as found,
			sum(coalesce(octet_length(e.payload::text), octet_length(e.raw_body)))
				over (order by e.id desc rows between unbounded preceding and 1 preceding) as bytes
		from (
			select e.* from spine.events e` + q.conditions() + `
			order by e.id desc limit ` + q.arg(page.Limit+1) + `) e) e
	where coalesce(e.bytes, 0) < ` + q.arg(maxPageBytes) + ` order by e.id desc`
	type row struct {
		view.StoredEvent
		Found int
	}
	found, err := readRows[row](ctx, s, hints, "listing events", sql, q.args...)
	if err != nil {
		return nil, view.Next{}, err
	}
	rows = []view.StoredEvent{}
	for _, r := range found[:min(len(found), page.Limit)] {
		rows = append(rows, r.StoredEvent)
	}
	if n := len(rows); n > 0 && found[0].Found > n {
		next.Cursor, err = encodeCursor(eventsList, eventsCursor{rows[n-1].ID})
	}
	return rows, next, err
}

// maxFound is the limit on the events that a search returns.
const maxFound = 20

// Search returns up to maxFound events whose event_id begins with text. They come in the order of event_id, so exact
// matches come first. It relies on events_event_id_source_key.
func (s *Store) Search(ctx context.Context, text string) ([]view.SearchHit, error) {
	var q query
	q.where("e.event_id >= ?", text)
	if beyond := beyondPrefix(text); beyond != "" {
		q.where("e.event_id < ?", beyond)
	}
	return readRows[view.SearchHit](
		ctx,
		s,
		inIndexOrder,
		"searching for an event",
		"select e.event_id, e.source, e.event_type, e.created_at, "+eventStatus+
			" from spine.events e"+q.conditions()+" order by e.event_id, e.source limit "+strconv.Itoa(maxFound),
		q.args...)
}

// beyondPrefix is the first text, by code points, after all those that begin with prefix. It is empty where there is
// none.
func beyondPrefix(prefix string) string {
	runes := []rune(prefix)
	for i := len(runes) - 1; i >= 0; i-- {
		switch runes[i] {
		case utf8.MaxRune:
			continue
		case 0xD7FF: // surrogates are no characters
			runes[i] = 0xE000
		default:
			runes[i]++
		}
		return string(runes[:i+1])
	}
	return ""
}
