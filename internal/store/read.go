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

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/webhookspine/spine/internal/event"
)

// maxPageBytes bounds the payload bytes of one page of events, but for the
// last one on it: a page of large events is short rather than large.
const maxPageBytes = 8 << 20

// maxTimeline bounds the steps of one event's history.
const maxTimeline = 1000

// completed is the status that nearly all rows have in the end.
const completed = "completed"

// Columns in the order of the fields of event.Stored, AuditRow, ProcessingRow
// and ConflictRow.
const (
	eventColumns = `e.id, e.event_id, e.source, e.event_type, e.occurred_at, e.created_at,
	(select p.status from spine.processing_state p where p.event = e.id
		order by array_position(array['dead', 'failed', 'processing', 'pending', 'completed'], p.status) limit 1) as status,
	e.seen_count, encode(e.payload_hash, 'hex') as payload_hash, e.payload, coalesce(e.unqueryable, '') as unqueryable, e.raw_body`

	auditColumns = `a.timestamp, a.id, a.event_id, a.source, a.action, a.success, a.details`

	processingColumns = `p.event, p.event_id, p.source, p.destination, p.status, p.attempt_count, p.next_attempt_at, p.last_attempt_at,
	p.completed_at, p.error_message, p.worker, p.created_at, p.updated_at`

	conflictColumns = `encode(c.payload_hash, 'hex') as payload_hash, c.event_type, c.occurred_at, c.created_at, c.seen_count,
	c.payload, coalesce(c.unqueryable, '') as unqueryable, c.raw_body`
)

// Events lists events, newest first, and returns with a page the cursor of the
// next one, empty where there is none. A page may have fewer rows than its
// limit and a next one all the same, where payloads are large. It relies on
// events_pkey, and for a status as Processing does; other filters have no
// index.
func (s *Store) Events(ctx context.Context, page event.Page, filter event.Filter) (rows []event.Stored, next string, err error) {
	var q query
	q.equal("e.event_type", filter.Type)
	q.equal("e.source", filter.Source)
	below := int64(math.MaxInt64)
	if page.Cursor != "" {
		after, err := decodeCursor("events", page.Cursor)
		if err != nil {
			return nil, "", err
		}
		below = after.ID
		q.where("e.id < ?", below)
	}
	switch filter.Status {
	case "":
	case completed:
		// Not a join, which the planner might begin with all that is completed.
		q.where("(select true from spine.processing_state p where p.event = e.id and " + hasStatus(filter.Status) + " limit 1)")
	default:
		p := query{args: q.args}
		p.equal("p.source", filter.Source)
		p.equal(typeOf("p.event"), filter.Type)
		with := p.newestUnfinished(unfinished{
			status: filter.Status, columns: "p.event", group: " group by p.event",
			below: "p.event < ?", args: []any{below}, before: below, limit: page.Limit + 1,
		})
		q.args = p.args
		q.where("e.id = any (array(" + with + "))")
	}
	// found counts the rows on and just beyond the page before the large ones
	// are cut off, without reading those.
	sql := `select ` + eventColumns + `, e.found from (
		select e.*, count(*) over () as found,
			sum(coalesce(octet_length(e.payload::text), octet_length(e.raw_body))) over (order by e.id desc rows between unbounded preceding and 1 preceding) as bytes
		from (select e.* from spine.events e` + q.conditions() + ` order by e.id desc limit ` + q.arg(page.Limit+1) + `) e) e
	where coalesce(e.bytes, 0) < ` + q.arg(maxPageBytes) + ` order by e.id desc`
	type row struct {
		event.Stored
		Found int
	}
	found, err := list[row](ctx, s, "listing events", sql, q.args...)
	if err != nil {
		return nil, "", err
	}
	rows = []event.Stored{}
	for _, r := range found[:min(len(found), page.Limit)] {
		rows = append(rows, r.Stored)
	}
	if n := len(rows); n > 0 && found[0].Found > n {
		next, err = cursor{List: "events", ID: rows[n-1].ID}.encode()
	}
	return rows, next, err
}

// Audit lists audit rows, newest first, with the cursor of the next page. It
// relies on audit_trail_timestamp, and for one event on audit_trail_event. Filters
// have no index of their own.
func (s *Store) Audit(ctx context.Context, page event.Page, filter event.AuditFilter) (rows []event.AuditRow, next string, err error) {
	var q query
	from := "spine.audit_log a"
	if filter.EventID != "" {
		from = trail("any ("+q.eventsNamed(filter.EventID)+")") + " a"
	}
	q.equal("a.source", filter.Source)
	q.equal("a.action", filter.Action)
	q.equal("a.success", filter.Success)
	q.ofType("a.event", filter.Type)
	if page.Cursor != "" {
		after, err := decodeCursor("audit", page.Cursor)
		if err != nil {
			return nil, "", err
		}
		// The first term is implied by the second; partitions are pruned by it.
		q.where("a.timestamp <= ? and (a.timestamp, a.id) < (?, ?)", after.time(), after.time(), after.ID)
	}
	sql := "select " + auditColumns + " from " + from + q.conditions() + " order by a.timestamp desc, a.id desc limit " + q.arg(page.Limit+1)
	if rows, err = list[event.AuditRow](ctx, s, "listing the audit log", sql, q.args...); err != nil {
		return nil, "", err
	}
	if n := page.Limit; len(rows) > n {
		rows = rows[:n]
		next, err = cursor{List: "audit", At: rows[n-1].Timestamp.UnixMicro(), ID: rows[n-1].ID}.encode()
	}
	return rows, next, err
}

// Processing lists where events stand, newest event first, with the cursor of
// the next page. It relies on processing_state_pkey, and for a status that is
// not completed on the partial index that holds it, where the newest events do
// not fill the page. Other filters have no index.
func (s *Store) Processing(ctx context.Context, page event.Page, filter event.ProcessingFilter) (rows []event.ProcessingRow, next string, err error) {
	var q query
	if filter.EventID != "" {
		q.where("p.event = any (" + q.eventsNamed(filter.EventID) + ")")
	}
	q.equal("p.source", filter.Source)
	q.equal("p.destination", filter.Destination)
	after := cursor{ID: math.MaxInt64}
	if page.Cursor != "" {
		if after, err = decodeCursor("processing", page.Cursor); err != nil {
			return nil, "", err
		}
	}
	const below = "(p.event, p.destination) < (?, ?)"
	var sql string
	if filter.EventID == "" && filter.Status != "" && filter.Status != completed {
		q.equal(typeOf("p.event"), filter.Type)
		sql = q.newestUnfinished(unfinished{
			status: filter.Status, columns: processingColumns, order: ", p.destination desc",
			below: below, args: []any{after.ID, after.Destination}, before: after.ID, limit: page.Limit + 1,
		}) + " order by event desc, destination desc"
	} else {
		q.ofType("p.event", filter.Type)
		if page.Cursor != "" {
			q.where(below, after.ID, after.Destination)
		}
		if filter.Status != "" {
			q.where(hasStatus(filter.Status))
		}
		sql = "select " + processingColumns + " from spine.processing_state p" + q.conditions() +
			" order by p.event desc, p.destination desc limit " + q.arg(page.Limit+1)
	}
	if rows, err = list[event.ProcessingRow](ctx, s, "listing processing", sql, q.args...); err != nil {
		return nil, "", err
	}
	if n := page.Limit; len(rows) > n {
		rows = rows[:n]
		next, err = cursor{List: "processing", ID: rows[n-1].Event, Destination: rows[n-1].Destination}.encode()
	}
	return rows, next, err
}

// Event returns all that is known of one event. source may be empty where the
// id exists in one source only. The error is an *event.NotStoredError, an
// *event.AmbiguousError, or why it cannot be told.
func (s *Store) Event(ctx context.Context, eventID, source string) (history event.History, err error) {
	err = pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		var id int64
		if err := tx.QueryRow(ctx, "select spine.id_of($1, nullif($2, ''))", eventID, source).Scan(&id); err != nil {
			return err
		}
		batch := &pgx.Batch{}
		queue(batch, pgx.CollectExactlyOneRow[event.Stored], &history.Stored,
			"select "+eventColumns+" from spine.events e where e.id = $1", id)
		queue(batch, pgx.CollectRows[event.ProcessingRow], &history.Processing,
			"select "+processingColumns+" from spine.processing_state p where p.event = $1 order by p.destination", id)
		queue(batch, pgx.CollectRows[event.AuditRow], &history.Timeline,
			"select "+auditColumns+" from "+trail("$1")+" a order by a.timestamp desc, a.id desc limit $2", id, maxTimeline+1)
		queue(batch, pgx.CollectRows[event.ConflictRow], &history.Conflicts,
			"select "+conflictColumns+" from spine.conflicts c where c.event = $1 order by c.created_at, c.payload_hash", id)
		return tx.SendBatch(ctx, batch).Close()
	})
	if err != nil {
		return event.History{}, s.lookupError(ctx, "reading an event", eventID, err)
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
func (s *Store) Backlog(ctx context.Context) ([]event.BacklogRow, error) {
	return collect[event.BacklogRow](ctx, s, "counting the backlog",
		"select destination, status, count, next_attempt_at, oldest_created_at, paused_at from spine.depth order by destination, status")
}

// Dead lists what will not be tried again by itself, last died first. It
// relies on processing_state_dead.
func (s *Store) Dead(ctx context.Context, limit int) ([]event.ProcessingRow, error) {
	return collect[event.ProcessingRow](ctx, s, "listing what is dead",
		"select "+processingColumns+" from spine.processing_state p where p.status = 'dead' order by p.updated_at desc limit $1", limit)
}

// list reads all rows of a query, for which no table is read as a whole as long
// as there is another way: without statistics, or with old ones, the planner
// would at times.
func list[T any](ctx context.Context, s *Store, doing, sql string, args ...any) (all []T, err error) {
	batch := &pgx.Batch{} // one transaction
	batch.Queue("select set_config('enable_seqscan', 'off', true)")
	queue(batch, pgx.CollectRows[T], &all, sql, args...)
	if err := s.pool.SendBatch(ctx, batch).Close(); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return all, nil
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

// ofType adds a condition on the type of an event, where there is one. It is a
// semi-join: for a rare type the planner begins with the events.
func (q *query) ofType(key, eventType string) {
	if eventType != "" {
		q.where("exists (select from spine.events e where e.id = "+key+" and e.event_type = ?)", eventType)
	}
}

// eventsNamed is an array of the events of this id in all sources.
func (q *query) eventsNamed(eventID string) string {
	return "array(select n.id from spine.events n where n.event_id = " + q.arg(eventID) + ")"
}

// typeOf is an expression for the type of an event.
func typeOf(key string) string {
	return "(select e.event_type from spine.events e where e.id = " + key + ")"
}

// trail is the audit rows of an event. Materialized, so that they are found by
// the event and sorted: for the sake of a limit the planner might else walk the
// whole log.
func trail(event string) string {
	return "(with trail as materialized (select * from spine.audit_log where event = " + event + ") select * from trail)"
}

// newestEvents is how many events newestUnfinished looks at before it turns to
// the partial index: a few milliseconds' worth.
const newestEvents = 5000

// unfinished is a page of processing_state p: of the rows for which the
// conditions of a query hold and whose status is the given one, which is not
// completed, those below a place, newest event first.
type unfinished struct {
	status  string
	columns string // p.event among them
	group   string // what makes one row of several; may be empty
	order   string // of the rows of one event; may be empty
	below   string // condition on the place, whose event is before
	args    []any  // of below
	before  int64
	limit   int
}

// newestUnfinished returns the query of a page.
//
// Of a long queue a page is among the newest events. Else what has the status
// is found in its partial index and sorted. Which way is taken must not depend on
// statistics, which are old just after a queue has grown or drained: the first
// condition on the status matches no partial index, and the second one on the
// event, as its order, not the primary key.
func (q *query) newestUnfinished(u unfinished) string {
	older := query{terms: slices.Clone(q.terms)} // without the place, which lies above
	older.where(hasStatus(u.status) + " and p.event + 0 <= (select f.event from floor f)")
	q.where("p.status || '' = ? and p.event > (select f.event from floor f)", u.status)
	q.where(u.below, u.args...)
	limit := q.arg(u.limit)
	from := "select " + u.columns + " from spine.processing_state p"
	return "with floor as materialized (select least(max(m.event), " + q.arg(u.before) + ") - " + strconv.Itoa(newestEvents) + ` as event from spine.processing_state m),
	newest as materialized (` + from + q.conditions() + u.group + " order by p.event desc" + u.order + " limit " + limit + `),
	older as materialized (` + from + older.conditions() + u.group + " order by p.event + 0 desc" + u.order + " limit " + limit + ` - (select count(*) from newest))
	select * from newest union all select * from older`
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

// decodeCursor reads a cursor of list, or returns event.ErrBadCursor.
func decodeCursor(list, text string) (c cursor, err error) {
	decoded, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return cursor{}, event.ErrBadCursor
	}
	if json.Unmarshal(decoded, &c) != nil || c.List != list || strings.Contains(c.Destination, "\x00") {
		return cursor{}, event.ErrBadCursor
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
