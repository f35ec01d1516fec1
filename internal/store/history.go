package store

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// maxTimeline is the limit on the steps of one event's history.
const maxTimeline = 1000

// Event returns all that is known of one event. source may be empty where the id exists in one source only. The error
// is a *view.NotStoredError, a *view.AmbiguousError, or the database's.
func (s *Store) Event(ctx context.Context, eventID, source string) (history view.History, err error) {
	err = pgx.BeginTxFunc(
		ctx,
		s.pool,
		pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly},
		func(tx pgx.Tx) error {
			var id int64
			var since pgtype.Timestamptz
			if s.readTimeout > 0 {
				if _, err := tx.Exec(ctx, setTimeout, s.timeoutSetting()); err != nil {
					return err
				}
			}
			const start = "select id, spine.trail_start(id) from spine.id_of($1, nullif($2, '')) id"
			if err := tx.QueryRow(ctx, start, eventID, source).Scan(&id, &since); err != nil {
				return err
			}
			batch := &pgx.Batch{}
			batch.Queue(string(byEvent))
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
				"select "+stepColumns+" from "+trailRows(
					"$1",
					"$3",
				)+" a order by a.timestamp desc, a.id desc limit $2",
				id,
				maxTimeline+1,
				since,
			)
			queue(
				batch,
				pgx.CollectRows[view.OtherPayload],
				&history.Conflicts,
				"select "+conflictColumns+
					" from spine.conflicts c where c.event = $1 order by c.created_at, c.payload_hash",
				id,
			)
			return tx.SendBatch(ctx, batch).Close()
		},
	)
	if err != nil {
		return view.History{}, s.lookupError(ctx, "reading an event", eventID, tooSlow(err))
	}
	if history.TimelineTruncated = len(history.Timeline) > maxTimeline; history.TimelineTruncated {
		history.Timeline = history.Timeline[:maxTimeline]
	}
	slices.Reverse(history.Timeline)
	return history, nil
}
