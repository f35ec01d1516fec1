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
		view.OtherPayload
	}
	// The page is found before anything is compared.
	found, err := list[row](ctx, s, "listing conflicts", `select c.event_id, c.source, e.created_at as stored_at,
			e.payload, coalesce(e.unqueryable, '') as unqueryable, e.raw_body,
			case when e.payload is not null and c.payload is not null then (
				select json_agg(case
					when d.was is null then json_build_object('path', d.path, 'is', d."is")
					when d."is" is null then json_build_object('path', d.path, 'was', d.was)
					else json_build_object('path', d.path, 'was', d.was, 'is', d."is")
				end)
				from spine.differences(e.payload, c.payload) d) end as differences,
			c.event, `+conflictColumns+`
		from (select c.* from spine.conflicts c`+q.conditions()+
		` order by c.created_at desc, c.event desc, c.payload_hash desc limit `+q.arg(page.Limit+1)+`) c
		join spine.events e on e.id = c.event
		order by c.created_at desc, c.event desc, c.payload_hash desc`, q.args...)
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
			EventID:      f.EventID,
			Source:       f.Source,
			StoredAt:     f.StoredAt,
			OtherPayload: f.OtherPayload,
			First:        view.Content{Payload: f.Payload, Unqueryable: f.Unqueryable, RawBody: f.RawBody},
		}
		if f.Differences != nil {
			if err := json.Unmarshal(f.Differences, &r.Differences); err != nil {
				return nil, view.Next{}, fmt.Errorf("listing conflicts: %w", err)
			}
		}
		rows = append(rows, r)
	}
	return rows, next, nil
}

// AcceptConflict makes an event of another payload that came under a known id, and returns its event_id. A second call
// changes nothing. hash is hex, or its beginning, or empty for the newest. The error is a *view.NotStoredError, also
// where there is no such payload, a *view.AmbiguousError, or the database's.
func (s *Store) AcceptConflict(ctx context.Context, eventID, source, hash, caller string) (newID string, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := callFor(ctx, tx, caller); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "select spine.accept_conflict($1, nullif($2, ''), nullif($3, ''))", eventID, source, hash).
			Scan(&newID)
	})
	if err != nil {
		return "", s.lookupError(ctx, "accepting a conflict", eventID, err)
	}
	return newID, nil
}
