package store

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/view"
)

// conflictColumns are the columns of view.OtherPayload.
const conflictColumns = `encode(c.payload_hash, 'hex') as payload_hash, c.event_type, c.occurred_at,
	c.created_at, c.seen_count, c.accepted_as, c.payload, coalesce(c.unqueryable, '') as unqueryable, c.raw_body`

// conflictsList names the list in its cursors.
const conflictsList = "conflicts"

// Conflicts lists other payloads that came under known ids beside the first ones, newest first. It relies on
// conflicts_created_at, or on the event's key where an id is given.
func (s *Store) Conflicts(
	ctx context.Context,
	page view.Page,
	filter view.ConflictFilter,
) (rows []view.ConflictRow, next view.Next, err error) {
	var q query
	if page.Cursor != "" {
		after, err := decodeCursor[conflictsCursor](conflictsList, page.Cursor)
		if err != nil {
			return nil, view.Next{}, err
		}
		q.where("(c.created_at, c.event, c.payload_hash) < (?, ?, ?)", cursorTime(after.At), after.Event, after.Hash)
	}
	if filter.EventID != "" {
		q.where("c.event = any (" + q.eventsNamed(filter.EventID) + ")")
	}
	q.equal("c.source", filter.Source)
	q.within("c.created_at", filter.Span)
	type row struct {
		EventID, Source string
		StoredAt        event.Timestamp
		Payload         json.RawMessage
		Unqueryable     string
		RawBody         []byte
		Differences     json.RawMessage
		Event           int64
		Compared, Shown bool
		Crowded         bool // not compared, though it is not too large
		view.OtherPayload
	}
	const order = "order by c.created_at desc, c.event desc, c.payload_hash desc"
	shown := "w.verdict = 'compared'"
	if filter.EventID != "" {
		shown = "true" // there are ten of an event at most
	}
	// The page is found before anything is compared. spine.weigh_conflicts() limits what is read of its payloads. A row
	// that is too large to compare is not in the sum, so that it hides no others.
	found, err := list[row](ctx, s, "listing conflicts", `
		with page as materialized (
			select c.*, row_number() over (`+order+`) as n
			from (select c.* from spine.conflicts c`+q.conditions()+" "+order+" limit "+q.arg(page.Limit+1)+`) c
		), weighed as materialized (
			select w.n, w.verdict
			from (select array_agg(c.event order by c.n) as events, array_agg(c.payload_hash order by c.n) as hashes
				from page c) p
				cross join lateral spine.weigh_conflicts(p.events, p.hashes, `+q.arg(conflictSize)+", "+
		q.arg(conflictBytes)+", "+q.arg(conflictUnpack)+`) w
		)
		select c.event_id, c.source, c.stored_at,
			case when c.shown then c.first end as payload, c.first_unqueryable as unqueryable,
			case when c.shown then c.first_body end as raw_body,
			case when c.verdict = 'compared' then spine.differences_json(c.first, c.payload) end as differences,
			c.event, c.verdict = 'compared' as compared, c.shown, c.verdict = 'crowded' as crowded,
			encode(c.payload_hash, 'hex') as payload_hash, c.event_type, c.occurred_at, c.created_at, c.seen_count,
			c.accepted_as, case when c.shown then c.payload end as payload,
			coalesce(c.unqueryable, '') as unqueryable, case when c.shown then c.raw_body end as raw_body
		from (
			select c.*, w.verdict, `+shown+` as shown, e.created_at as stored_at, e.payload as first,
				coalesce(e.unqueryable, '') as first_unqueryable, e.raw_body as first_body
			from page c
				join weighed w on w.n = c.n
				join spine.events e on e.id = c.event
		) c
		order by c.n`, q.args...)
	if err != nil {
		return nil, view.Next{}, err
	}
	if n := page.Limit; len(found) > n {
		found = found[:n]
		last := found[n-1]
		hash, err := hex.DecodeString(last.PayloadHash)
		if err != nil {
			return nil, view.Next{}, fmt.Errorf("listing conflicts: %w", err)
		}
		if next.Cursor, err = encodeCursor(
			conflictsList,
			conflictsCursor{last.CreatedAt.UnixMicro(), last.Event, hash},
		); err != nil {
			return nil, view.Next{}, err
		}
	}
	for _, f := range found {
		r := view.ConflictRow{
			EventID:         f.EventID,
			Source:          f.Source,
			StoredAt:        f.StoredAt,
			PayloadsOmitted: !f.Shown,
			OtherPayload:    f.OtherPayload,
			First:           view.Content{Payload: f.Payload, Unqueryable: f.Unqueryable, RawBody: f.RawBody},
		}
		if f.Differences != nil {
			if err := json.Unmarshal(f.Differences, &r.Differences); err != nil {
				return nil, view.Next{}, fmt.Errorf("listing conflicts: %w", err)
			}
		}
		switch {
		case f.Unqueryable != "" || f.OtherPayload.Unqueryable != "":
			r.NotCompared = view.ComparesBytes
		case f.Crowded:
			r.NotCompared = view.ComparesPageFull
		case !f.Compared || isTooLarge(r.Differences):
			r.Differences, r.NotCompared = nil, view.ComparesTooLarge
		}
		rows = append(rows, r)
	}
	return rows, next, nil
}

// conflictBytes is how many bytes of payloads a page of conflicts has, and compares. It takes the database less than a
// second, whatever senders have sent: to compare a member takes as long as 20 bytes, and each ends with a comma.
const conflictBytes = 4 << 20

// conflictSize is how many bytes both sides of one row have that is compared. spine.differences() has this limit too.
const conflictSize = 512 << 10

// conflictUnpack is how many bytes of compressed payloads a page unpacks only to learn that they are too large.
const conflictUnpack = 32 << 20

// isTooLarge reports whether differences are what spine.differences() says of payloads that are too large to compare.
func isTooLarge(found []view.Difference) bool {
	return len(found) == 1 && found[0].Path == "" && found[0].Was == nil && found[0].Is == nil
}

// AcceptConflict makes an event of another payload that came under a known id, and returns its event_id. A second call
// changes nothing. hash is hex, or its beginning, or empty for the newest. The error is a *view.NotStoredError, also
// where there is no such payload, a *view.AmbiguousError, or the database's.
func (s *Store) AcceptConflict(ctx context.Context, eventID, source, hash, caller string) (newID string, err error) {
	err = s.operate(ctx, caller, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "select spine.accept_conflict($1, nullif($2, ''), nullif($3, ''))", eventID, source, hash).
			Scan(&newID)
	})
	if err != nil {
		return "", s.lookupError(ctx, "accepting a conflict", eventID, err)
	}
	return newID, nil
}
