package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// beginPatiently begins each transaction of a migration. It writes, sees what others commit, and may take long,
// whatever the role, the database or a pooler's session has as defaults. Nothing of it stays in the session.
// transaction_timeout is there from PostgreSQL 17 on.
const beginPatiently = `begin isolation level read committed read write;
	select ` + pinPath + `,
		pg_catalog.set_config('statement_timeout', '0', true),
		pg_catalog.set_config('lock_timeout', '0', true),
		pg_catalog.set_config('idle_in_transaction_session_timeout', '0', true),
		case when pg_catalog.current_setting('transaction_timeout', true) is not null
			then pg_catalog.set_config('transaction_timeout', '0', true) end`

// openMigrator opens the database at url for migrations. All that they write is written in transactions.
func openMigrator(url string) (*sql.DB, error) {
	config, _, err := parseURL(url, "spine migrate")
	if err != nil {
		return nil, err
	}
	setMode(config.ConnConfig, pgx.QueryExecModeCacheDescribe) // a pooler may know no prepared statements
	return sql.OpenDB(patientConnector{stdlib.GetConnector(*config.ConnConfig,
		stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
			_, err := prepare(ctx, conn, patient...)
			return err
		}))}), nil
}

// patientConnector makes connections whose transactions begin with beginPatiently.
type patientConnector struct{ driver.Connector }

func (c patientConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return patientConn{conn.(*stdlib.Conn)}, nil //nolint:forcetypeassert // stdlib makes no others
}

type patientConn struct{ *stdlib.Conn }

func (c patientConn) BeginTx(ctx context.Context, _ driver.TxOptions) (driver.Tx, error) {
	if c.Conn.Conn().IsClosed() {
		return nil, driver.ErrBadConn
	}
	tx, err := c.Conn.Conn().BeginTx(ctx, pgx.TxOptions{BeginQuery: beginPatiently})
	if sqlState(err) == "0A000" { // a standby knows no transaction that writes
		return nil, fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	if err != nil {
		return nil, err
	}
	return patientTx{ctx, tx}, nil
}

// patientTx is a transaction as database/sql knows it, which gives Commit no context.
type patientTx struct {
	ctx context.Context //nolint:containedctx // it is that of the transaction
	tx  pgx.Tx
}

func (t patientTx) Commit() error   { return t.tx.Commit(t.ctx) }
func (t patientTx) Rollback() error { return t.tx.Rollback(t.ctx) }

// inTransaction runs do in a transaction.
func inTransaction(ctx context.Context, db *sql.DB, do func(tx *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := do(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// holderOf describes the session a, which somebody waits for, as far as this role may know.
const holderOf = `format('pid %s (%s%s)', a.pid, a.usename,
	coalesce(nullif(', ' || a.application_name, ', '), '') || coalesce(', since ' || a.xact_start::text, ''))`

// watchInterval is the time between two looks at what a migration waits for.
const watchInterval = time.Second

// watchWaits tells what the migration waits for, whenever that changes: a lock, or a synchronous standby. It goes by
// the sessions of this role and name, since a pooler hides which of them works for whom. Waiting for other migrations
// is not its matter: see lockMigrations. It ends with stop.
func watchWaits(ctx context.Context, db *sql.DB, waits func(what string)) (stop func()) {
	if waits == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		said := ""
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(watchInterval):
			}
			// The next look may succeed, and the migration itself says what fails.
			if what, err := whatWaits(ctx, db); err == nil && what != "" && what != said {
				said = what
				waits(what)
			}
		}
	})
	return func() { cancel(); watch.Wait() }
}

// whatWaits says what the migration waits for. It is empty where it waits for nothing.
func whatWaits(ctx context.Context, db *sql.DB) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*watchInterval)
	defer cancel()
	var what sql.NullString
	err := inTransaction(ctx, db, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, `
			select case
				when w.wait_event = 'SyncRep' then format('a synchronous standby (synchronous_standby_names = %L): '
					'bring it back, or change that setting and reload', current_setting('synchronous_standby_names'))
				else 'a lock, held by ' || (
					select string_agg(`+holderOf+`, ', ' order by a.pid)
					from pg_stat_activity a where a.pid = any (pg_blocking_pids(w.pid)))
				end
			from pg_stat_activity w
			where w.datname = current_database() and w.usename = current_user and w.pid <> pg_backend_pid()
				and w.application_name = current_setting('application_name')
				and (w.wait_event = 'SyncRep' or w.wait_event_type = 'Lock')
				and not exists (
					select from pg_locks l
					where l.pid = w.pid and not l.granted and l.relation = to_regclass('spine.locks'))
			order by w.wait_event = 'SyncRep' desc, w.pid limit 1`).Scan(&what)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("looking at what the migration waits for: %w", err)
	}
	return what.String, nil
}
