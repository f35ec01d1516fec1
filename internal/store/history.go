package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// maxTimeline is the limit on the steps of one event's history.
const maxTimeline = 1000

// explanationColumns are the columns of view.Sentence.
const explanationColumns = "x.topic, x.destination, x.says, x.facts"

// explained says what is known of an event that is not the only one of its id: a *view.NotStoredError, or a
// *view.AmbiguousError.
func explained(ctx context.Context, tx pgx.Tx, eventID, source string) error {
	rows, err := tx.Query(
		ctx, "select "+explanationColumns+" from spine.explain($1, nullif($2, '')) x", eventID, source)
	if err != nil {
		return err
	}
	sentences, err := pgx.CollectRows(rows, pgx.RowToStructByPos[view.Sentence])
	if err != nil {
		return err
	}
	says := make([]string, len(sentences))
	for i, s := range sentences {
		says[i] = s.Says
		if s.Topic == "ambiguous" {
			ambiguous := &view.AmbiguousError{Detail: s.Says}
			var facts struct{ Sources []string }
			if err := json.Unmarshal(s.Facts, &facts); err != nil {
				return err
			}
			ambiguous.Sources = facts.Sources
			return ambiguous
		}
	}
	return &view.NotStoredError{Detail: strings.Join(says, ". ") + ".", Explanation: sentences}
}

// Event returns all that is known of one event. source may be empty where the id exists in one source only. The error
// is a *view.NotStoredError, a *view.AmbiguousError, or the database's.
func (s *Store) Event(ctx context.Context, eventID, source string) (history view.History, err error) {
	err = s.readAtOnce(
		ctx,
		func(tx pgx.Tx) error {
			var ids []int64
			const named = `select array(
				select e.id from spine.events e where e.event_id = $1 and ($2 = '' or e.source = $2))`
			if err := tx.QueryRow(ctx, named, eventID, source).Scan(&ids); err != nil {
				return err
			}
			if len(ids) != 1 {
				return explained(ctx, tx, eventID, source)
			}
			id := ids[0]
			batch := &pgx.Batch{}
			batch.Queue(string(byOneIndex))
			queue(batch, pgx.CollectExactlyOneRow[view.StoredEvent], &history.StoredEvent,
				"select "+eventColumns+" from spine.events e where e.id = $1", id)
			queue(batch, pgx.CollectExactlyOneRow[view.Origin], &history.Origin, `
				select e.headers, coalesce(e.id_derived, false) as id_derived, e.same_body_as
				from spine.events e
				where e.id = $1`, id)
			queue(
				batch,
				pgx.CollectRows[view.ProcessingRow],
				&history.Processing,
				"select "+processingColumns+" from spine.processing_state p where p.event = $1 order by p.destination",
				id,
			)
			queue(
				batch,
				pgx.CollectRows[trail.Step],
				&history.Timeline,
				"select "+stepColumns+" from spine.trail_of($1) a order by a.timestamp desc, a.id desc limit $2",
				id,
				maxTimeline+1,
			)
			queue(
				batch,
				pgx.CollectRows[view.OtherPayload],
				&history.Conflicts,
				"select "+conflictColumns+
					" from spine.conflicts c where c.event = $1 order by c.created_at, c.payload_hash",
				id,
			)
			queue(
				batch,
				pgx.CollectRows[view.Sentence],
				&history.Explanation,
				"select "+explanationColumns+
					" from spine.events e cross join lateral spine.explain(e.event_id, e.source) x where e.id = $1",
				id,
			)
			return tx.SendBatch(ctx, batch).Close()
		},
	)
	var notStored *view.NotStoredError
	var ambiguous *view.AmbiguousError
	switch {
	case errors.As(err, &notStored) || errors.As(err, &ambiguous):
		return view.History{}, err
	case err != nil:
		return view.History{}, fmt.Errorf("reading an event: %w", err)
	}
	if history.TimelineTruncated = len(history.Timeline) > maxTimeline; history.TimelineTruncated {
		history.Timeline = history.Timeline[:maxTimeline]
	}
	slices.Reverse(history.Timeline)
	return history, nil
}
