package store

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// maxPageBytes bounds the payload bytes of one page of events, but for the
// last one on it: a page of large events is short rather than large.
const maxPageBytes = 8 << 20

// maxTimeline bounds the steps of one event's history.
const maxTimeline = 1000

// Columns in the order of the fields of view.Stored, trail.Step, ProcessingRow
// and ConflictRow.
const (
	// Without a sort, so that walking leaves nothing to be weighed against it.
	eventStatus = `(array['dead', 'failed', 'processing', 'pending', 'completed'])[(
		select min(array_position(array['dead', 'failed', 'processing', 'pending', 'completed'], p.status)) from spine.processing_state p where p.event = e.id)] as status`

	eventColumns = `e.id, e.event_id, e.source, e.event_type, e.occurred_at, e.created_at, ` + eventStatus + `,
	e.seen_count, encode(e.payload_hash, 'hex') as payload_hash, e.payload, coalesce(e.unqueryable, '') as unqueryable, e.raw_body`

	auditColumns = `a.timestamp, a.id, a.event_id, a.source, a.action, a.success, a.details`

	processingColumns = `p.event, p.event_id, p.source, p.destination, p.status, p.attempt_count, p.next_attempt_at, p.last_attempt_at,
	p.completed_at, p.error_message, p.worker, p.created_at, p.updated_at`

	conflictColumns = `encode(c.payload_hash, 'hex') as payload_hash, c.event_type, c.occurred_at, c.created_at, c.seen_count,
	c.payload, coalesce(c.unqueryable, '') as unqueryable, c.raw_body`
)

// How many rows a page of a filtered list looks at, so that it takes a few tens
// of milliseconds whatever it finds (DESIGN_NOTES, 10. Growth).
const (
	lookAtEvents = 20_000 // of events, or of the queue
	lookAtAudit  = 30_000 // of the audit log, and all others of the time of the last one: its index ends with the time
	lookAtBoth   = 10_000 // of either, where each row is looked up in another table

	// A value that is common fills a page from the first rows. Twenty times as
	// many as fit on the page are looked at before all these are.
	lookAtFirst = 20
)

// How many rows may be unfinished for a page by status to find them all by
// their partial index and sort them.
const (
	shortQueue     = 50_000
	shortQueueBoth = 1_500 // where each row is looked up in another table: they lie anywhere in it, at 20 µs each among ten million
)

// look reads a page in windows: window looks at n rows and reports whether that
// will do.
func look(page view.Page, most int, window func(n int) (done bool, err error)) error {
	if n := lookAtFirst * (page.Limit + 1); n < most {
		if done, err := window(n); done || err != nil {
			return err
		}
	}
	_, err := window(most)
	return err
}

// Events lists events, newest first. A page may have fewer rows than its limit
// and a next one all the same: where payloads are large, and with a filter
// where few of the rows that it looked at match. It relies on events_pkey, and
// for a status as Processing does; other filters have no index.
func (s *Store) Events(ctx context.Context, page view.Page, filter view.Filter) (rows []view.Stored, next view.Next, err error) {
	before := int64(math.MaxInt64)
	if page.Cursor != "" {
		after, err := decodeCursor("events", page.Cursor)
		if err != nil {
			return nil, view.Next{}, err
		}
		before = after.ID
	}
	ids, err := s.storedWithin(ctx, filter.Span, before)
	if err != nil {
		return nil, view.Next{}, err
	}
	few, err := s.few(ctx, filter.Status, filter.Type == "" && filter.Open())
	if err != nil {
		return nil, view.Next{}, err
	}
	var q query
	if few {
		q.equal("p.source", filter.Source)
		q.equal(typeOf("p.event"), filter.Type)
		q.within(storedAt("p.event"), filter.Span)
		q.where(hasStatus(filter.Status)+" and p.event + 0 >= ? and p.event + 0 < ?", ids.from, ids.before)
		with := "select p.event + 0 from spine.processing_state p" + q.conditions() + " group by p.event + 0 order by p.event + 0 desc limit " + q.arg(page.Limit+1)
		return s.eventsPage(ctx, listing, page, query{terms: []string{"e.id = any (array(" + with + "))"}, args: q.args})
	}
	if filter == (view.Filter{}) {
		q.where("e.id < ?", ids.before)
		return s.eventsPage(ctx, walking, page, q)
	}
	most := lookAtEvents
	q.equal("e.event_type", filter.Type)
	q.equal("e.source || ''", filter.Source) // or else the unique key might be read as a whole
	q.within("e.created_at", filter.Span)
	if filter.Status != "" {
		most = lookAtBoth
		q.where("(select true from spine.processing_state p where p.event = e.id and p.status || '' = ? limit 1)", filter.Status)
	}
	err = look(page, most, func(n int) (bool, error) {
		floor, err := s.floor(ctx, `select e.id, e.created_at from spine.events e where e.id = (
			select e.id from spine.events e where e.id >= $1 and e.id < $2 order by e.id desc offset $3 limit 1)`, ids.from, ids.before, n-1)
		if err != nil {
			return false, err
		}
		window := q.and("e.id >= ? and e.id < ?", max(ids.from, floor.key), ids.before)
		if rows, next, err = s.eventsPage(ctx, walking, page, window); err != nil || next.Cursor != "" {
			return true, err
		}
		next, err = floor.next(cursor{List: "events", ID: floor.key})
		return next.Cursor == "", err
	})
	return rows, next, err
}

// eventsPage reads the newest events for which the conditions of q hold.
func (s *Store) eventsPage(ctx context.Context, how reading, page view.Page, q query) (rows []view.Stored, next view.Next, err error) {
	// found counts the rows on and just beyond the page before the large ones
	// are cut off. Those are read for their size, one by one, and not sent.
	sql := `select ` + eventColumns + `, e.found from (
		select e.*, count(*) over () as found,
			sum(coalesce(octet_length(e.payload::text), octet_length(e.raw_body))) over (order by e.id desc rows between unbounded preceding and 1 preceding) as bytes
		from (select e.* from spine.events e` + q.conditions() + ` order by e.id desc limit ` + q.arg(page.Limit+1) + `) e) e
	where coalesce(e.bytes, 0) < ` + q.arg(maxPageBytes) + ` order by e.id desc`
	type row struct {
		view.Stored
		Found int
	}
	found, err := read[row](ctx, s, how, "listing events", sql, q.args...)
	if err != nil {
		return nil, view.Next{}, err
	}
	rows = []view.Stored{}
	for _, r := range found[:min(len(found), page.Limit)] {
		rows = append(rows, r.Stored)
	}
	if n := len(rows); n > 0 && found[0].Found > n {
		next.Cursor, err = cursor{List: "events", ID: rows[n-1].ID}.encode()
	}
	return rows, next, err
}

// Audit lists audit rows, newest first. With a filter a page may have fewer rows
// than its limit and a next one all the same. It relies on
// audit_trail_timestamp, and for one event on audit_trail_event. Filters have no
// index of their own.
func (s *Store) Audit(ctx context.Context, page view.Page, filter view.AuditFilter) (rows []trail.Step, next view.Next, err error) {
	return s.auditList(ctx, "audit", page, filter, nil)
}

// Attempts lists attempts, last ended first, as Audit does the audit rows that
// record them.
func (s *Store) Attempts(ctx context.Context, page view.Page, filter view.AttemptFilter) (rows []view.AttemptRow, next view.Next, err error) {
	// By action, since the audit log calls it a success that a lease was taken back.
	actions := []trail.Action{trail.ProcessingSucceeded, trail.ProcessingAttemptFailed, trail.LeaseExpired}
	switch filter.Outcome {
	case "success":
		actions = actions[:1]
	case "failure":
		actions = actions[1:]
	}
	audit, next, err := s.auditList(ctx, "attempts", page, view.AuditFilter{
		EventID: filter.EventID, Source: filter.Source, Type: filter.Type, Span: filter.Span,
	}, actions)
	if err != nil {
		return nil, view.Next{}, err
	}
	rows = make([]view.AttemptRow, len(audit))
	for i, a := range audit {
		rows[i] = attempt(a)
	}
	return rows, next, nil
}

// attempt reads an attempt from its audit row. Details may be written by a hand,
// and have anything in them: what is of another type than ours is left out.
func attempt(a trail.Step) view.AttemptRow {
	var details map[string]json.RawMessage
	_ = json.Unmarshal(a.Details, &details)
	row := view.AttemptRow{
		Timestamp: a.Timestamp, ID: a.ID, Outcome: "failure", Destination: event.DefaultDestination,
		Attempt: member[int64](details, "attempt"), Status: member[int64](details, "status"), DurationMS: member[float64](details, "duration_ms"),
		Error: member[string](details, "error"), Answer: member[string](details, "answer"),
	}
	switch a.Action {
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

// member is a member of a JSON object; nil where it is not there, is null, or is
// of another type.
func member[T any](object map[string]json.RawMessage, name string) (value *T) {
	if json.Unmarshal(object[name], &value) != nil {
		return nil
	}
	return value
}

// auditList is a list of audit rows, of all actions or of some.
func (s *Store) auditList(ctx context.Context, name string, page view.Page, filter view.AuditFilter, actions []trail.Action) (rows []trail.Step, next view.Next, err error) {
	var q, place query
	from, how := "spine.audit_log a", walking
	if filter.EventID != "" {
		since, err := s.trailStart(ctx, filter.EventID)
		if err != nil {
			return nil, view.Next{}, err
		}
		from, how = trailRows("any ("+q.eventsNamed(filter.EventID)+")", q.arg(since))+" a", tracing
	}
	after := cursor{At: math.MaxInt64, ID: math.MaxInt64}
	if page.Cursor != "" {
		if after, err = decodeCursor(name, page.Cursor); err != nil {
			return nil, view.Next{}, err
		}
		// The first term is implied by the second; partitions are pruned by it.
		q.where("a.timestamp <= ? and (a.timestamp, a.id) < (?, ?)", after.time(), after.time(), after.ID)
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
		return s.auditPageOf(ctx, how, name, from, page, q)
	}
	back := stepsBack(after, filter.Span)
	if len(q.terms) == narrow {
		return s.auditPageOf(ctx, how, name, from, page, q, back...)
	}

	// By time alone, which the index knows. Of rows of one time a window has all,
	// and goes on below them.
	place.within("a.timestamp", view.Span{Until: filter.Until})
	if after.ID == math.MinInt64 {
		place.where("a.timestamp < ?", after.time())
	} else {
		place.where("a.timestamp <= ?", after.time())
	}
	most := lookAtAudit
	if filter.Type != "" {
		most = lookAtBoth
	}
	err = look(page, most, func(n int) (bool, error) {
		var floor floor
		for _, since := range back {
			some := place.and("a.timestamp >= ?", since)
			floor, err = s.floor(ctx, "select 0, a.timestamp from spine.audit_trail a"+some.conditions()+" order by a.timestamp desc limit 1 offset "+strconv.Itoa(n-1), some.args...)
			if err != nil {
				return false, err
			}
			if floor.at != nil {
				break
			}
		}
		window, below := q, cursor{List: name, ID: math.MinInt64}
		if floor.at != nil {
			below.At = floor.at.UnixMicro()
			window = q.and("a.timestamp >= ?", below.time())
		}
		if rows, next, err = s.auditPageOf(ctx, how, name, from, page, window); err != nil || next.Cursor != "" {
			return true, err
		}
		next, err = floor.next(below)
		return next.Cursor == "", err
	})
	return rows, next, err
}

// stepsBack are the times down to which to look for audit rows before after, one
// after the other until there are enough; the last one is the end. Since any row
// might be in the default partition, rows in order come from all partitions at
// once. With hundreds of them, one a day, that takes 50 ms for a page, most of it
// for the plan, and 300 ms in a new session; with those of a day 1 ms. That holds
// as long as the time is an argument, or else the plan has all partitions.
func stepsBack(after cursor, span view.Span) []pgtype.Timestamptz {
	newest := time.Now() // of a clock that may be wrong, at the cost of more steps
	if !span.Until.IsZero() && span.Until.Before(newest) {
		newest = span.Until
	}
	if at := after.time(); at.InfinityModifier == pgtype.NegativeInfinity {
		newest = time.Time{}
	} else if at.InfinityModifier == pgtype.Finite && at.Time.Before(newest) {
		newest = at.Time
	}
	var steps []pgtype.Timestamptz
	for _, days := range []int{1, 16} {
		if since := newest.AddDate(0, 0, -days); since.Year() > 0 && since.After(span.Since) {
			steps = append(steps, pgtype.Timestamptz{Time: since, Valid: true})
		}
	}
	end := pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	if !span.Since.IsZero() {
		end = pgtype.Timestamptz{Time: span.Since, Valid: true}
	}
	return append(steps, end)
}

// auditPageOf reads the newest audit rows for which the conditions of q hold. It
// goes back by the steps, if there are any, until the page is full.
func (s *Store) auditPageOf(ctx context.Context, how reading, name, from string, page view.Page, q query, back ...pgtype.Timestamptz) (rows []trail.Step, next view.Next, err error) {
	windows := []query{q}
	if len(back) > 0 {
		windows = nil
		for _, since := range back {
			windows = append(windows, q.and("a.timestamp >= ?", since))
		}
	}
	for _, w := range windows {
		sql := "select " + auditColumns + " from " + from + w.conditions() + " order by a.timestamp desc, a.id desc limit " + w.arg(page.Limit+1)
		if rows, err = read[trail.Step](ctx, s, how, "listing the audit log", sql, w.args...); err != nil {
			return nil, view.Next{}, err
		}
		if len(rows) > page.Limit {
			break
		}
	}
	if n := page.Limit; len(rows) > n {
		rows = rows[:n]
		next.Cursor, err = cursor{List: name, At: rows[n-1].Timestamp.UnixMicro(), ID: rows[n-1].ID}.encode()
	}
	return rows, next, err
}

// Processing lists where events stand, newest event first. With a filter a page
// may have fewer rows than its limit and a next one all the same. It relies on
// processing_state_pkey, and for a status that is not completed on the partial
// index that holds it, as long as that is short. Other filters have no index.
func (s *Store) Processing(ctx context.Context, page view.Page, filter view.ProcessingFilter) (rows []view.ProcessingRow, next view.Next, err error) {
	after := cursor{ID: math.MaxInt64}
	if page.Cursor != "" {
		if after, err = decodeCursor("processing", page.Cursor); err != nil {
			return nil, view.Next{}, err
		}
	}
	ids, err := s.storedWithin(ctx, filter.Span, math.MaxInt64)
	if err != nil {
		return nil, view.Next{}, err
	}
	few := false
	if filter.EventID == "" {
		if few, err = s.few(ctx, filter.Status, filter.Type == "" && filter.Open()); err != nil {
			return nil, view.Next{}, err
		}
	}
	var q query
	key, how, most := "p.event", walking, lookAtEvents
	switch {
	case filter.EventID != "":
		how = listing
		q.where("p.event = any (" + q.eventsNamed(filter.EventID) + ")")
	case few:
		key, how = "p.event + 0", listing // not the order of the primary key, so that the partial index is read
	}
	if few {
		q.where(hasStatus(filter.Status))
	} else {
		q.equal("p.status || ''", filter.Status) // no partial index, of which all would be read and sorted
	}
	q.equal("p.source", filter.Source)
	q.equal("p.destination", filter.Destination)
	if filter.Type != "" || !filter.Open() {
		most = lookAtBoth
		q.equal(typeOf("p.event"), filter.Type)
		q.within(storedAt("p.event"), filter.Span)
	}
	if ids.before <= after.ID {
		after.ID, after.Destination = ids.before, "" // of two upper ends the index would begin at either
	}
	place := "(" + key + ", p.destination) < (?, ?) and " + key + " >= ?"
	if filter.EventID != "" || few || len(q.terms) == 0 {
		return s.processingPage(ctx, how, key, page, q.and(place, after.ID, after.Destination, ids.from))
	}
	err = look(page, most, func(n int) (bool, error) {
		floor, err := s.floor(ctx, `select p.event, coalesce(`+storedAt("p.event")+`, p.created_at) from spine.processing_state p where (p.event, p.destination) = (
			select p.event, p.destination from spine.processing_state p where (p.event, p.destination) < ($1, $2) and p.event >= $3
			order by p.event desc, p.destination desc offset $4 limit 1)`,
			after.ID, after.Destination, ids.from, n-1)
		if err != nil {
			return false, err
		}
		// Of the rows of one event a window has all.
		window := q.and(place, after.ID, after.Destination, max(ids.from, floor.key))
		if rows, next, err = s.processingPage(ctx, how, key, page, window); err != nil || next.Cursor != "" {
			return true, err
		}
		next, err = floor.next(cursor{List: "processing", ID: floor.key})
		return next.Cursor == "", err
	})
	return rows, next, err
}

// processingPage reads the rows of the newest events for which the conditions
// of q hold.
func (s *Store) processingPage(ctx context.Context, how reading, key string, page view.Page, q query) (rows []view.ProcessingRow, next view.Next, err error) {
	sql := "select " + processingColumns + " from spine.processing_state p" + q.conditions() +
		" order by " + key + " desc, p.destination desc limit " + q.arg(page.Limit+1)
	if rows, err = read[view.ProcessingRow](ctx, s, how, "listing processing", sql, q.args...); err != nil {
		return nil, view.Next{}, err
	}
	if n := page.Limit; len(rows) > n {
		rows = rows[:n]
		next.Cursor, err = cursor{List: "processing", ID: rows[n-1].Event, Destination: rows[n-1].Destination}.encode()
	}
	return rows, next, err
}

// maxFound bounds what a search returns.
const maxFound = 20

// Search finds the events whose event_id is text or begins with it, in its
// order, so that the exact ones come first: at most 20. It relies on
// events_event_id_source_key.
func (s *Store) Search(ctx context.Context, text string) ([]view.Found, error) {
	var q query
	q.where("e.event_id >= ?", text)
	if beyond := beyondPrefix(text); beyond != "" {
		q.where("e.event_id < ?", beyond)
	}
	return read[view.Found](ctx, s, walking, "searching for an event", "select e.event_id, e.source, e.event_type, e.created_at, "+eventStatus+
		" from spine.events e"+q.conditions()+" order by e.event_id, e.source limit "+strconv.Itoa(maxFound), q.args...)
}

// beyondPrefix is the first text, by code points, after all those that begin
// with prefix; empty where there is none.
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

// Event returns all that is known of one event. source may be empty where the
// id exists in one source only. The error is an *view.NotStoredError, an
// *view.AmbiguousError, or why it cannot be told.
func (s *Store) Event(ctx context.Context, eventID, source string) (history view.History, err error) {
	err = pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		var id int64
		var since pgtype.Timestamptz
		if err := tx.QueryRow(ctx, "select id, spine.trail_start(id) from spine.id_of($1, nullif($2, '')) id", eventID, source).Scan(&id, &since); err != nil {
			return err
		}
		batch := &pgx.Batch{}
		batch.Queue(string(tracing))
		queue(batch, pgx.CollectExactlyOneRow[view.Stored], &history.Stored,
			"select "+eventColumns+" from spine.events e where e.id = $1", id)
		queue(batch, pgx.CollectExactlyOneRow[view.Origin], &history.Origin,
			"select e.headers, coalesce(e.id_derived, false) as id_derived, e.same_body_as from spine.events e where e.id = $1", id)
		queue(batch, pgx.CollectRows[view.ProcessingRow], &history.Processing,
			"select "+processingColumns+" from spine.processing_state p where p.event = $1 order by p.destination", id)
		queue(batch, pgx.CollectRows[trail.Step], &history.Timeline,
			"select "+auditColumns+" from "+trailRows("$1", "$3")+" a order by a.timestamp desc, a.id desc limit $2", id, maxTimeline+1, since)
		queue(batch, pgx.CollectRows[view.ConflictRow], &history.Conflicts,
			"select "+conflictColumns+" from spine.conflicts c where c.event = $1 order by c.created_at, c.payload_hash", id)
		return tx.SendBatch(ctx, batch).Close()
	})
	if err != nil {
		return view.History{}, s.lookupError(ctx, "reading an event", eventID, err)
	}
	if history.TimelineTruncated = len(history.Timeline) > maxTimeline; history.TimelineTruncated {
		history.Timeline = history.Timeline[:maxTimeline]
	}
	slices.Reverse(history.Timeline)
	return history, nil
}

// Backlog counts what the queue holds that is not completed, by destination
// and status. On a long queue it takes its time: it reads all of a partial
// index.
func (s *Store) Backlog(ctx context.Context) ([]view.BacklogRow, error) {
	return collect[view.BacklogRow](ctx, s, "counting the backlog",
		"select destination, status, count, next_attempt_at, oldest_created_at, paused_at from spine.depth order by destination, status")
}

// Dead lists what will not be tried again by itself, last died first. It
// relies on processing_state_dead.
func (s *Store) Dead(ctx context.Context, limit int) ([]view.ProcessingRow, error) {
	return collect[view.ProcessingRow](ctx, s, "listing what is dead",
		"select "+processingColumns+" from spine.processing_state p where p.status = 'dead' order by p.updated_at desc limit $1", limit)
}

// reading is the statement before a query that keeps the planner from what it
// would at times take for quick without statistics, or with old ones.
type reading string

const (
	// No table is read as a whole as long as there is another way.
	listing reading = "select set_config('enable_seqscan', 'off', true)"
	// Rows are read in the order of an index, until there are enough. That holds
	// for queries that can do without any sort: where one cannot be helped, all
	// plans look equally bad.
	walking reading = `select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
		set_config('enable_sort', 'off', true), set_config('max_parallel_workers_per_gather', '0', true), ` + customPlan
	// Trails are found by the event.
	tracing reading = `select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), ` + customPlan

	// Each time a plan for the partitions of the time that is asked for. To find
	// out at the sixth call that one for any time is no better takes 0.3 s with
	// 400 partitions.
	customPlan = "set_config('plan_cache_mode', 'force_custom_plan', true)"
)

// list reads all rows of a query.
func list[T any](ctx context.Context, s *Store, doing, sql string, args ...any) ([]T, error) {
	return read[T](ctx, s, listing, doing, sql, args...)
}

// read reads all rows of a query in one way.
func read[T any](ctx context.Context, s *Store, how reading, doing, sql string, args ...any) (all []T, err error) {
	batch := &pgx.Batch{} // one transaction
	batch.Queue(string(how))
	queue(batch, pgx.CollectRows[T], &all, sql, args...)
	if err := s.pool.SendBatch(ctx, batch).Close(); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return all, nil
}

// floor is the last row that a page looks at.
type floor struct {
	key int64
	at  *event.Timestamp // nil where the list ends before
}

// next is how a list goes on that was looked at down to here.
func (f floor) next(below cursor) (view.Next, error) {
	if f.at == nil {
		return view.Next{}, nil
	}
	text, err := below.encode()
	return view.Next{Cursor: text, LookedBackTo: f.at}, err
}

// floor reads a floor. Without one its key is the lowest there is.
func (s *Store) floor(ctx context.Context, sql string, args ...any) (floor, error) {
	type row struct {
		Key int64
		At  event.Timestamp
	}
	rows, err := read[row](ctx, s, walking, "looking for the end of a page", sql, args...)
	if err != nil || len(rows) == 0 {
		return floor{key: math.MinInt64}, err
	}
	return floor{key: rows[0].Key, at: &rows[0].At}, nil
}

// few reports whether a status is one that few rows have, so that all of them
// can be found: fewer where they are not enough by themselves and each is looked
// up in another table. It relies on the partial indexes, whose order it asks for
// so that no other is read.
func (s *Store) few(ctx context.Context, status string, alone bool) (bool, error) {
	most := shortQueueBoth
	if alone {
		most = shortQueue
	}
	var partial string
	switch status {
	case "dead":
		partial = "p.status = 'dead' order by p.updated_at"
	case "pending", "processing", "failed":
		partial = "p.status in ('pending', 'failed', 'processing') order by p.destination, p.next_attempt_at"
	default:
		return false, nil
	}
	counts, err := read[struct{ Count int }](ctx, s, walking, "counting what is unfinished",
		"select count(*) from (select from spine.processing_state p where "+partial+" limit "+strconv.Itoa(most+1)+") p")
	return err == nil && counts[0].Count <= most, err
}

// idSpan is the ids from one, inclusive, to another, exclusive.
type idSpan struct{ from, before int64 }

// storedWithin returns ids between which lie all events that were stored in a
// span, and below before, which may have others among them.
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
	err := s.pool.QueryRow(ctx, "select s.first, s.last from spine.events_within($1, $2) s", since, until).Scan(&first, &last)
	if err != nil {
		return idSpan{}, fmt.Errorf("looking for the events of a time: %w", err)
	}
	if first != nil {
		ids.from = *first
	}
	if last != nil && *last < before {
		ids.before = *last + 1
	}
	return ids, nil
}

// queue adds a query to a batch, whose rows are read into target by position.
func queue[Row, Target any](batch *pgx.Batch, collect func(pgx.Rows, pgx.RowToFunc[Row]) (Target, error), target *Target, sql string, args ...any) {
	batch.Queue(sql, args...).Query(func(rows pgx.Rows) (err error) {
		*target, err = collect(rows, pgx.RowToStructByPos[Row])
		return err
	})
}

// query gathers the conditions of a list and their arguments. Only what is
// asked for becomes part of the text, so that each combination is planned for
// itself.
type query struct {
	terms []string
	args  []any
}

// arg adds an argument and returns its placeholder.
func (q *query) arg(value any) string {
	q.args = append(q.args, value)
	return "$" + strconv.Itoa(len(q.args))
}

// where adds a condition, in which each ? stands for an argument.
func (q *query) where(term string, args ...any) {
	for _, a := range args {
		term = strings.Replace(term, "?", q.arg(a), 1)
	}
	q.terms = append(q.terms, term)
}

// equal adds a condition where there is a value.
func (q *query) equal(expression, value string) {
	if value != "" {
		q.where(expression+" = ?", value)
	}
}

// within adds the conditions of a span.
func (q *query) within(expression string, span view.Span) {
	if !span.Since.IsZero() {
		q.where(expression+" >= ?", span.Since)
	}
	if !span.Until.IsZero() {
		q.where(expression+" < ?", span.Until)
	}
}

// and returns the query with one more condition.
func (q query) and(term string, args ...any) query {
	more := query{terms: slices.Clone(q.terms), args: slices.Clone(q.args)}
	more.where(term, args...)
	return more
}

// eventsNamed is an array of the events of this id in all sources.
func (q *query) eventsNamed(eventID string) string {
	return "array(select n.id from spine.events n where n.event_id = " + q.arg(eventID) + ")"
}

// typeOf is an expression for the type of an event. It is no join, which the
// planner might begin with all events of the type.
func typeOf(key string) string {
	return "(select e.event_type from spine.events e where e.id = " + key + ")"
}

// storedAt is an expression for the time an event was stored.
func storedAt(key string) string {
	return "(select e.created_at from spine.events e where e.id = " + key + ")"
}

// trailRows is the audit rows of an event since a time. Materialized, so that they
// are found by the event and sorted: for the sake of a limit the planner might
// else walk the whole log. The time, a day's beginning, is there for the
// partitions before it, as spine.trail_start() says.
func trailRows(event, since string) string {
	return "(with trail as materialized (select * from spine.audit_log where event = " + event + " and (timestamp >= " + since + " or timestamp = 'infinity')) select * from trail)"
}

// trailStart is a time before the trails of the events of these ids in all
// sources. It is read beforehand since partitions are left out of a plan only by
// a value that is known.
func (s *Store) trailStart(ctx context.Context, eventIDs ...string) (pgtype.Timestamptz, error) {
	found, err := list[struct{ Start pgtype.Timestamptz }](ctx, s, "looking for the beginning of a trail",
		"select coalesce(min(spine.trail_start(e.id)), '-infinity') from spine.events e where e.event_id = any ($1::text[])", eventIDs)
	if err != nil {
		return pgtype.Timestamptz{}, err
	}
	return found[0].Start, nil
}

func (q *query) conditions() string {
	if len(q.terms) == 0 {
		return ""
	}
	return " where " + strings.Join(q.terms, " and ")
}

// hasStatus is a condition on processing_state p. The status is part of the
// text: no generic plan could use an index that is partial by it.
func hasStatus(status string) string {
	if !event.ValidStatus(status) {
		return "false"
	}
	return "p.status = '" + status + "'"
}

// cursor holds the keys of the last row of a page. Clients take it for an
// opaque text.
type cursor struct {
	List        string `json:"list"`
	ID          int64  `json:"id"`
	At          int64  `json:"at,omitempty"` // as event.Timestamp.UnixMicro counts
	Destination string `json:"destination,omitempty"`
}

func (c cursor) encode() (string, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("making a cursor: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(text), nil
}

// decodeCursor reads a cursor of list, or returns view.ErrBadCursor.
func decodeCursor(list, text string) (c cursor, err error) {
	decoded, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return cursor{}, view.ErrBadCursor
	}
	if json.Unmarshal(decoded, &c) != nil || c.List != list || strings.Contains(c.Destination, "\x00") {
		return cursor{}, view.ErrBadCursor
	}
	return c, nil
}

// time undoes event.Timestamp.UnixMicro. What lies before the years that
// Postgres knows is infinitely far away.
func (c cursor) time() pgtype.Timestamptz {
	t := time.UnixMicro(c.At).UTC()
	switch {
	case c.At == math.MaxInt64:
		return pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}
	case t.Year() < -4713:
		return pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	}
	return pgtype.Timestamptz{Time: t, Valid: true}
}
