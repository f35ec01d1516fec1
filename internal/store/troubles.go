package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/webhookspine/spine/internal/event"
)

const (
	// storingPatience is how long a commit may take before CheckWritable asks whether it waits for a standby. It leaves
	// time to answer, within the two seconds of /readyz. spine.commits_waiting() counts a wait of a second.
	storingPatience = 1200 * time.Millisecond
	// reasonPatience limits the question.
	reasonPatience = 500 * time.Millisecond
)

// CheckWritable says why no event can be stored now, or nil. It tries all but the row: it locks as an insert does, and
// commits. It ends with ctx, and earlier where the commit waits for a synchronous standby that does not confirm. On a
// server that takes no writes it gives up connections, since new ones may reach its successor.
func (s *Store) CheckWritable(ctx context.Context) error {
	trying, cancel := context.WithCancel(ctx)
	defer cancel()
	tried := make(chan error, 1)
	go func() { tried <- s.call(trying, nil, "select spine.try_storing()") }()
	patience := time.NewTimer(storingPatience)
	defer patience.Stop()
	var err error
	select {
	case err = <-tried:
	case <-patience.C:
		reason := s.commitsWaiting(ctx) // while the commit still waits
		if reason != "" {
			cancel()
		}
		if err = <-tried; err != nil && reason != "" {
			return errors.New(reason)
		}
	}
	switch sqlState(err) {
	case "25006":
		s.pool.Reset()
		return ErrReadOnly
	case "42883", "3F000":
		return nil // it is not migrated, which CheckSchema says
	case "55P03":
		return fmt.Errorf("somebody has locked a table of Spine: spine status says who: %w", err)
	}
	if err != nil {
		return fmt.Errorf("trying to store: %w", err)
	}
	return nil
}

// commitsWaiting says for which standby commits wait. It is empty where they do not, or where that cannot be told.
func (s *Store) commitsWaiting(ctx context.Context) (standby string) {
	ctx, cancel := context.WithTimeout(ctx, reasonPatience)
	defer cancel()
	_ = s.apart(ctx, func(conn *pgx.Conn) error {
		results, err := conn.PgConn().Exec(ctx, "select spine.commits_waiting()").ReadAll()
		if err == nil && len(results[0].Rows) > 0 {
			standby = string(results[0].Rows[0][0])
		}
		return err
	})
	return standby
}

// apart runs do on a connection of its own. Those of the pool may all wait.
func (s *Store) apart(ctx context.Context, do func(conn *pgx.Conn) error) error {
	conn, err := pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return do(conn)
}

// Troubles are what hinders Spine as a whole now: what spine.troubles() says, and rights that a role lacks which works
// here. A role that only reads is no trouble. It asks no more than reading allows.
func (s *Store) Troubles(ctx context.Context) (troubles []event.Trouble, err error) {
	names := slices.Sorted(maps.Keys(neededRights))
	rights := rightsOf(names)
	var lacking []RightsError
	batch := &pgx.Batch{}
	queue(batch, pgx.CollectRows[event.Trouble], &troubles, "select topic, says from spine.troubles()")
	queue(batch, pgx.CollectRows[RightsError], &lacking, `
		with working as (
			select a.usename as name from pg_stat_activity a
			where a.datname = current_database() and a.application_name in ('spine', 'spine api')
				and has_schema_privilege(a.usesysid, 'spine', 'USAGE')
			union
			select current_user
			where exists (
				select from unnest($1::text[]) t where has_table_privilege(to_regclass('spine.' || t), 'INSERT'))
		)`+missingRights, names, rights)
	if err := s.read(ctx, batch); err != nil {
		return nil, fmt.Errorf("looking for troubles: %w", err)
	}
	for _, e := range lacking {
		troubles = append(troubles, event.Trouble{Topic: "rights", Says: e.Error()})
	}
	return troubles, nil
}
