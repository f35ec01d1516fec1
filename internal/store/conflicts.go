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
	budget, most := q.arg(conflictBytes)+"::bigint", q.arg(conflictSize)+"::bigint"
	const order = "order by c.created_at desc, c.event desc, c.payload_hash desc"
	shown := "c.compared"
	if filter.EventID != "" {
		shown = "true" // there are ten of an event at most
	}
	// The page is found before anything is compared, and sums of sizes limit what is read of it. A row that is too large
	// to compare is not in the sums, so that it hides no others. What is stored is summed up first, for to know the size
	// of a text takes reading it.
	found, err := list[row](ctx, s, "listing conflicts", `
		select c.event_id, c.source, c.stored_at,
			case when c.shown then c.first end as payload, c.first_unqueryable as unqueryable,
			case when c.shown then c.first_body end as raw_body,
			case when c.compared then spine.differences_json(c.first, c.payload) end as differences,
			c.event, c.compared, c.shown, c.crowded,
			encode(c.payload_hash, 'hex') as payload_hash, c.event_type, c.occurred_at, c.created_at, c.seen_count,
			c.accepted_as, case when c.shown then c.payload end as payload,
			coalesce(c.unqueryable, '') as unqueryable, case when c.shown then c.raw_body end as raw_body
		from (
			select c.*, `+shown+` as shown
			from (
				select c.*, coalesce(c.size <= `+most+` and c.summed <= `+budget+`, false) as compared,
					c.stored <= `+most+` and coalesce(c.size <= `+most+` and c.summed > `+budget+`, true) as crowded
				from (
					select c.*, sum(c.size) filter (where c.size <= `+most+`) over (`+order+`) as summed
					from (
						select c.*, case when c.stored <= `+most+` and c.stored_before <= `+budget+` then
							coalesce(
								spine.comparing(c.first, c.payload),
								octet_length(c.first::text),
								octet_length(c.payload::text),
								0)
							+ coalesce(octet_length(c.first_body), 0) + coalesce(octet_length(c.raw_body), 0)
						end as size
						from (
							select c.*, sum(c.stored) filter (where c.stored <= `+most+`) over (`+order+`) as stored_before
							from (
								select c.*, e.created_at as stored_at, e.payload as first,
									coalesce(e.unqueryable, '') as first_unqueryable, e.raw_body as first_body,
									coalesce(pg_column_size(e.payload), 0) + coalesce(pg_column_size(e.raw_body), 0)
									+ coalesce(pg_column_size(c.payload), 0) + coalesce(pg_column_size(c.raw_body), 0)
										as stored
								from (select c.* from spine.conflicts c`+q.conditions()+" "+order+
		` limit `+q.arg(page.Limit+1)+`) c
								join spine.events e on e.id = c.event
							) c
						) c
					) c
				) c
			) c
		) c
		`+order, q.args...)
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
