package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/webhookspine/spine/internal/event"
)

// maxPageBytes bounds the payload bytes of one page of events, but for the
// last one on it: a page of large events is short rather than large.
const maxPageBytes = 8 << 20

// maxTimeline bounds the steps of one event's history.
const maxTimeline = 1000

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
// next one, empty where there is none. A page may have less rows than its
// limit and a next one all the same, where payloads are large. It relies on
// events_pkey; filters have no index of their own but for the statuses that
// are not completed.
func (s *Store) Events(ctx context.Context, page event.Page, filter event.EventFilter) (rows []event.Stored, next string, err error) {
	var q query
	q.equal("e.event_type", filter.Type)
	q.equal("e.source", filter.Source)
	if filter.Status != "" {
		q.where("exists (select from spine.processing_state p where p.event = e.id and p.status = " + literal(filter.Status) + ")")
	}
	if page.Cursor != "" {
		keys, err := parseCursor("events", page.Cursor, 1)
		if err != nil {
			return nil, "", err
		}
		q.where("e.id < ?", keys[0])
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
	found, err := collect[row](ctx, s, sql, q.args)
	if err != nil {
		return nil, "", fmt.Errorf("listing events: %w", err)
	}
	rows = []event.Stored{}
	for _, r := range found[:min(len(found), page.Limit)] {
		rows = append(rows, r.Stored)
	}
	if n := len(rows); n > 0 && found[0].Found > n {
		next = cursor("events", rows[n-1].ID)
	}
	return rows, next, nil
}

// Audit lists audit rows, newest first, with the cursor of the next page. It
// relies on audit_log_timestamp, and for one event on audit_log_event. Filters
// have no index of their own.
func (s *Store) Audit(ctx context.Context, page event.Page, filter event.AuditFilter) (rows []event.AuditRow, next string, err error) {
	var q query
	from := "spine.audit_log a"
	if filter.EventID != "" {
		// Materialized, so that the trail is found by the event and sorted: for
		// the sake of its limit the planner might else walk the whole log.
		from = "(with trail as materialized (select * from spine.audit_log where event = any (" + q.eventsNamed(filter.EventID) + ")) select * from trail) a"
	}
	q.equal("a.source", filter.Source)
	q.equal("a.action", filter.Action)
	q.equal("a.success", filter.Success)
	q.equal("(select e.event_type from spine.events e where e.id = a.event)", filter.Type)
	if page.Cursor != "" {
		keys, err := parseCursor("audit", page.Cursor, 2)
		if err != nil {
			return nil, "", err
		}
		at := timestamptz(keys[0])
		// The first term is implied by the second; partitions are pruned by it.
		q.where("a.timestamp <= ? and (a.timestamp, a.id) < (?, ?)", at, at, keys[1])
	}
	rows, err = collect[event.AuditRow](ctx, s,
		"select "+auditColumns+" from "+from+q.conditions()+" order by a.timestamp desc, a.id desc limit "+q.arg(page.Limit+1), q.args)
	if err != nil {
		return nil, "", fmt.Errorf("listing the audit log: %w", err)
	}
	if n := page.Limit; len(rows) > n {
		rows, next = rows[:n], cursor("audit", rows[n-1].Timestamp.UnixMicro(), rows[n-1].ID)
	}
	return rows, next, nil
}

// Processing lists where events stand, newest event first, with the cursor of
// the next page. It relies on processing_state_pkey, and for the statuses that
// are not completed on the partial indexes that hold them. Other filters have
// no index.
func (s *Store) Processing(ctx context.Context, page event.Page, filter event.ProcessingFilter) (rows []event.ProcessingRow, next string, err error) {
	var q query
	if filter.EventID != "" {
		q.where("p.event = any (" + q.eventsNamed(filter.EventID) + ")")
	}
	q.equal("p.source", filter.Source)
	q.equal("p.destination", filter.Destination)
	q.equal("(select e.event_type from spine.events e where e.id = p.event)", filter.Type)
	if filter.Status != "" {
		q.where("p.status = " + literal(filter.Status))
	}
	if page.Cursor != "" {
		keys, err := parseCursor("processing", page.Cursor, 1)
		if err != nil {
			return nil, "", err
		}
		q.where("(p.event, p.destination) < (?, ?)", keys[0], keys[1])
	}
	rows, err = collect[event.ProcessingRow](ctx, s,
		"select "+processingColumns+" from spine.processing_state p"+q.conditions()+" order by p.event desc, p.destination desc limit "+q.arg(page.Limit+1), q.args)
	if err != nil {
		return nil, "", fmt.Errorf("listing processing: %w", err)
	}
	if n := page.Limit; len(rows) > n {
		rows, next = rows[:n], cursor("processing", rows[n-1].Event, rows[n-1].Destination)
	}
	return rows, next, nil
}
