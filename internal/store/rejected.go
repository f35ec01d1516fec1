package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/view"
)

// rejectedColumns are those of a list, in the order of rejectedRow's fields.
const rejectedColumns = `r.id, r.source, r.at, r.cause, r.status, r.detail, r.remote, r.method, r.target,
	octet_length(r.body)::bigint as size, r.state, r.note, r.event_id, r.settled_at, r.trust, r.body_bytes`

// rejectedRow is a rejected request in a list.
type rejectedRow struct {
	ID                             int64
	Source                         string
	At                             event.Timestamp
	Cause                          string
	Status                         int
	Detail, Remote, Method, Target string
	Size                           int64
	State                          string
	Note, EventID                  *string
	SettledAt                      *event.Timestamp
	Trust                          bool
	BodyBytes                      *int64
}

func (r rejectedRow) request() event.RejectedRequest {
	return event.RejectedRequest{
		ID:        r.ID,
		Source:    r.Source,
		At:        r.At,
		Cause:     r.Cause,
		Status:    r.Status,
		Detail:    r.Detail,
		Remote:    r.Remote,
		Method:    r.Method,
		Target:    r.Target,
		Size:      r.Size,
		State:     r.State,
		Note:      r.Note,
		EventID:   r.EventID,
		SettledAt: r.SettledAt,
		Trust:     r.Trust,
		BodyBytes: r.BodyBytes,
	}
}

// wholeRejectedColumns are those of one request as a whole, in the order of wholeRejectedRow's fields.
const wholeRejectedColumns = rejectedColumns + ", r.headers, r.body"

// wholeRejectedRow is a rejected request with its headers and its body.
type wholeRejectedRow struct {
	rejectedRow
	Headers json.RawMessage
	Body    []byte
}

func (r wholeRejectedRow) request() event.RejectedRequest {
	request := r.rejectedRow.request()
	request.Headers, request.Body = r.Headers, r.Body
	return request
}

// rejectedRequests returns the requests of rows, whole or not.
func rejectedRequests[R interface{ request() event.RejectedRequest }](rows []R) []event.RejectedRequest {
	requests := make([]event.RejectedRequest, len(rows))
	for i, r := range rows {
		requests[i] = r.request()
	}
	return requests
}

// KeepRejected keeps rejected requests and holds their sources to budgets. It keeps none of a source that is gone.
// again says that a call with some of them ended with an error before. An error that wraps event.ErrInvalidData lies in
// the data.
func (s *Store) KeepRejected(
	ctx context.Context,
	requests []event.RejectedRequest,
	budgets map[string]event.Budget,
	again bool,
) error {
	n := len(requests)
	var (
		sources, causes, details = make([]string, n), make([]string, n), make([]string, n)
		remotes, methods         = make([]string, n), make([]string, n)
		targets, headers         = make([]string, n), make([]string, n)
		times                    = make([]time.Time, n)
		statuses                 = make([]int32, n)
		bodies                   = make([][]byte, n)
		sizes                    = make([]*int64, n)
		verified                 = make([]*bool, n)
	)
	for i, r := range requests {
		sources[i], times[i], causes[i] = r.Source, r.At.Time, r.Cause
		statuses[i] = int32(r.Status) //nolint:gosec // an HTTP status is below 1000
		details[i], remotes[i] = storable(r.Detail), storable(r.Remote)
		methods[i], targets[i] = storable(r.Method), storable(r.Target)
		headers[i], sizes[i], verified[i] = string(r.Headers), r.BodyBytes, r.Verified
		if bodies[i] = r.Body; r.Body == nil {
			bodies[i] = []byte{}
		}
	}
	names := slices.Sorted(maps.Keys(budgets))
	rows, bytes, ages := make([]int32, len(names)), make([]int64, len(names)), make([]time.Duration, len(names))
	for i, name := range names {
		rows[i] = int32(min(budgets[name].Rows, 1<<30)) //nolint:gosec // bounded
		bytes[i], ages[i] = budgets[name].Bytes, budgets[name].Age
	}
	err := s.call(
		ctx,
		nil,
		"select spine.keep_rejected($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
		sources,
		times,
		causes,
		statuses,
		details,
		remotes,
		methods,
		targets,
		headers,
		bodies,
		sizes,
		verified,
		names,
		rows,
		bytes,
		ages,
		again,
	)
	if err != nil {
		return fmt.Errorf("keeping rejected requests: %w", classify(err))
	}
	return nil
}

// rejectedList names the list in its cursors.
const rejectedList = "rejected"

// RejectedRequests lists kept requests, newest first, without their headers and bodies. It relies on
// rejected_requests_pkey; the budgets limit what it reads.
func (s *Store) RejectedRequests(
	ctx context.Context,
	page view.Page,
	filter view.RejectedFilter,
) (requests []event.RejectedRequest, next view.Next, err error) {
	var q query
	if page.Cursor != "" {
		after, err := decodeCursor[rejectedCursor](rejectedList, page.Cursor)
		if err != nil {
			return nil, view.Next{}, err
		}
		q.where("r.id < ?", after.ID)
	}
	q.equal("r.source", filter.Source)
	q.equal("r.cause", filter.Cause)
	q.equal("r.state", filter.State)
	q.within("r.at", filter.Span)
	rows, err := list[rejectedRow](
		ctx,
		s,
		"listing rejected requests",
		"select "+rejectedColumns+" from spine.rejected_requests r"+q.conditions()+" order by r.id desc limit "+q.arg(
			page.Limit+1,
		),
		q.args...)
	if err != nil {
		return nil, view.Next{}, err
	}
	if n := page.Limit; len(rows) > n {
		rows = rows[:n]
		next.Cursor, err = encodeCursor(rejectedList, rejectedCursor{rows[n-1].ID})
	}
	return rejectedRequests(rows), next, err
}

// RejectedRequest returns one kept request as a whole, or event.ErrNotKept.
func (s *Store) RejectedRequest(ctx context.Context, id int64) (event.RejectedRequest, error) {
	rows, err := collect[wholeRejectedRow](ctx, s, "reading a rejected request",
		"select "+wholeRejectedColumns+" from spine.rejected_requests r where r.id = $1", id)
	if err != nil {
		return event.RejectedRequest{}, err
	}
	if len(rows) == 0 {
		return event.RejectedRequest{}, event.ErrNotKept
	}
	r := rows[0].request()
	if utf8.Valid(r.Body) {
		text := string(r.Body)
		r.Text = &text
	}
	return r, nil
}

// RejectedCauses counts the kept requests of the last day by source and cause.
func (s *Store) RejectedCauses(ctx context.Context) (map[string]map[string]int64, error) {
	type row struct {
		Source, Cause string
		Count         int64
	}
	rows, err := list[row](ctx, s, "counting rejected requests", `
		select r.source, r.cause, count(*)
		from spine.rejected_requests r
		where r.at > now() - interval '24 hours'
		group by r.source, r.cause`)
	if err != nil {
		return nil, err
	}
	counts := map[string]map[string]int64{}
	for _, r := range rows {
		if counts[r.Source] == nil {
			counts[r.Source] = map[string]int64{}
		}
		counts[r.Source][r.Cause] = r.Count
	}
	return counts, nil
}

// ReplayRejected asks an API process to replay a kept request, without verifying it where trust is set. The error is
// event.ErrNotKept, event.ErrBeginning or the database's.
func (s *Store) ReplayRejected(ctx context.Context, id int64, trust bool, caller string) error {
	err := s.operate(ctx, caller, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "select spine.replay_rejected($1::bigint, $2::boolean)", id, trust)
		return err
	})
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case "P0002":
			return event.ErrNotKept
		case "55000":
			return event.ErrBeginning
		}
	}
	if err != nil {
		return fmt.Errorf("replaying a rejected request: %w", err)
	}
	return nil
}

// ReplayAllRejected asks for a replay of all kept requests that filter chooses, except those that were accepted since
// and those of which only the beginning is kept. It returns how many.
func (s *Store) ReplayAllRejected(
	ctx context.Context,
	filter view.RejectedFilter,
	trust bool,
	caller string,
) (count int64, err error) {
	since, until := event.Timestamp{Infinity: -1}, event.Timestamp{Infinity: 1}
	if !filter.Since.IsZero() {
		since = event.Timestamp{Time: filter.Since.UTC()}
	}
	if !filter.Until.IsZero() {
		until = event.Timestamp{Time: filter.Until.UTC()}
	}
	err = s.operate(ctx, caller, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `
			select spine.replay_rejected(
				nullif($1::text, ''), nullif($2, ''), $3::text::timestamptz, $4::text::timestamptz, $5
			)`, filter.Source, filter.Cause, since.String(), until.String(), trust).Scan(&count)
	})
	if err != nil {
		return 0, fmt.Errorf("replaying rejected requests: %w", err)
	}
	return count, nil
}

// TakeRequested returns up to limit requests that somebody asked to replay. Another call returns a request again after
// 30 seconds, unless it was settled by then.
func (s *Store) TakeRequested(ctx context.Context, limit int) ([]event.RejectedRequest, error) {
	rows, err := collect[wholeRejectedRow](ctx, s, "taking requests to replay",
		"select "+wholeRejectedColumns+" from spine.take_requested($1) r order by r.id", limit)
	if err != nil {
		return nil, err
	}
	return rejectedRequests(rows), nil
}

// SettleRejected notes what came of a replay. trust says whether the request was replayed without verifying it. note
// and eventID may be empty.
func (s *Store) SettleRejected(ctx context.Context, id int64, trust bool, state, note, eventID string) error {
	batch := &pgx.Batch{}
	batch.Queue(
		"select spine.settle_rejected($1, $2, nullif($3, ''), nullif($4, ''), $5)",
		id,
		state,
		storable(note),
		eventID,
		trust,
	)
	if err := s.send(ctx, batch); err != nil {
		return fmt.Errorf("settling a rejected request: %w", err)
	}
	return nil
}
