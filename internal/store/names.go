package store

import (
	"context"

	"github.com/webhookspine/spine/internal/view"
)

// Limits on the rows that InFlight reads: of the newest events, of those due first, and of those that died last. All
// together take a few milliseconds, however long the queue is.
const (
	inFlightNewest = 2000
	inFlightDue    = 500
	inFlightDead   = 500
)

// InFlight lists up to limit unfinished rows of the queue whose event_id begins with prefix, newest event first. They
// are of one source, or of all where source is empty. InFlight looks only among the newest events, those that fall due
// next, and those that died last. It relies on processing_state_pkey, processing_state_due and
// processing_state_dead.
func (s *Store) InFlight(ctx context.Context, prefix, source string, limit int) ([]view.ProcessingRow, error) {
	return list[view.ProcessingRow](ctx, s, "listing unfinished rows", `
		with newest as materialized (
			select p.event, p.destination, p.status from spine.processing_state p
			order by p.event desc, p.destination desc limit $1
		), due as materialized (
			select d.* from `+queuedDestinations+` n cross join lateral (
				select p.event, p.destination, p.status from spine.processing_state p
				where p.status in ('pending', 'failed', 'processing') and p.destination = n.name
				order by p.next_attempt_at limit $2) d
		), dead as materialized (
			select p.event, p.destination, p.status from spine.processing_state p
			where p.status = 'dead'
			order by p.updated_at desc limit $3
		), found as materialized (
			select event, destination from newest where status <> 'completed'
			union select event, destination from due union select event, destination from dead
		)
		select `+processingColumns+` from found f
		join spine.processing_state p on p.event = f.event and p.destination = f.destination
		where starts_with(p.event_id, $4) and ($5 = '' or p.source = $5) and p.status <> 'completed'
		order by p.event desc, p.destination limit $6`,
		inFlightNewest, inFlightDue, inFlightDead, prefix, source, limit)
}

// SourceNames lists the sources that exist.
func (s *Store) SourceNames(ctx context.Context) ([]string, error) {
	return s.names(ctx, "listing sources", "select name from spine.sources order by name")
}

// DestinationNames lists the destinations that exist.
func (s *Store) DestinationNames(ctx context.Context) ([]string, error) {
	return s.names(ctx, "listing destinations", "select name from spine.destinations order by name")
}

// RecentTypes lists the types of the newest thousand events. It relies on events_pkey.
func (s *Store) RecentTypes(ctx context.Context) ([]string, error) {
	return s.names(ctx, "listing types", `
		select distinct e.event_type
		from (select event_type from spine.events order by id desc limit 1000) e
		order by 1`)
}

// Names are the values that events have: the sources and destinations that exist, and the newest types.
func (s *Store) Names(ctx context.Context) (names view.Names, err error) {
	if names.Sources, err = s.SourceNames(ctx); err != nil {
		return view.Names{}, err
	}
	if names.Destinations, err = s.DestinationNames(ctx); err != nil {
		return view.Names{}, err
	}
	names.Types, err = s.RecentTypes(ctx)
	return names, err
}

func (s *Store) names(ctx context.Context, doing, sql string) ([]string, error) {
	type row struct{ Name string }
	rows, err := list[row](ctx, s, doing, sql)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(rows))
	for i, r := range rows {
		names[i] = r.Name
	}
	return names, nil
}
