package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/webhookspine/spine/internal/view"
)

// Whoever may create functions or operators in a schema of the search path may put one there that fits an argument
// better than Postgres's own: array_position(text[], text) is preferred to array_position(anyarray, anyelement). It
// would run with Spine's rights. A setting of the session does not help, since a transaction pooler gives each
// transaction another session. So there are two kinds of statements:
//
//   - A plain one calls one function of the schema spine or pg_catalog by its full name, with parameters alone. The
//     functions of spine have a search path of their own. It casts nothing, since a type has a name too. The hot path
//     consists of these.
//   - Every other statement runs in a transaction that begins with pinPath.
//
// TestStatementsArePinned reads all statements of this package, and TestNobodyElsesFunctionsRun runs them.

// pinPath makes a transaction find only Postgres's own functions and operators.
const pinPath = "pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true)"

// limitTime goes on from pinPath with the time limit of reads, where there is one.
func (s *Store) limitTime() string {
	if s.readTimeout <= 0 {
		return ""
	}
	return ", pg_catalog.set_config('statement_timeout', '" +
		strconv.FormatInt(s.readTimeout.Milliseconds(), 10) + "', true)"
}

// transaction begins with pinPath. It costs no round trip of its own.
func (s *Store) transaction() pgx.TxOptions {
	return pgx.TxOptions{BeginQuery: s.begin() + ", " + pinPath}
}

// send runs a batch in a transaction. pgx prepares the statements of a batch before it runs the first, so that pinPath
// cannot be one of them.
func (s *Store) send(ctx context.Context, batch *pgx.Batch) error {
	return s.commit(ctx, func() error {
		return pgx.BeginTxFunc(ctx, s.pool, s.transaction(), func(tx pgx.Tx) error {
			return tx.SendBatch(ctx, batch).Close()
		})
	})
}

// read is send for what an operator reads, each statement within the time limit of reads. The error wraps
// view.ErrTooSlow where a statement reached it.
func (s *Store) read(ctx context.Context, batch *pgx.Batch) error {
	options := s.transaction()
	options.BeginQuery += s.limitTime()
	return tooSlow(pgx.BeginTxFunc(ctx, s.pool, options, func(tx pgx.Tx) error {
		return tx.SendBatch(ctx, batch).Close()
	}))
}

// tooSlow adds view.ErrTooSlow to the error of a statement that reached its time limit.
func tooSlow(err error) error {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "57014" {
		return fmt.Errorf("%w: %w", view.ErrTooSlow, err)
	}
	return err
}

// one runs a statement that returns one row.
func (s *Store) one(ctx context.Context, sql string, args []any, into ...any) error {
	batch := &pgx.Batch{}
	batch.Queue(sql, args...).QueryRow(func(row pgx.Row) error { return row.Scan(into...) })
	return s.send(ctx, batch)
}

// readOne is one for what an operator reads.
func (s *Store) readOne(ctx context.Context, sql string, args []any, into ...any) error {
	batch := &pgx.Batch{}
	batch.Queue(sql, args...).QueryRow(func(row pgx.Row) error { return row.Scan(into...) })
	return s.read(ctx, batch)
}

// operate runs a transaction that the audit log ascribes to caller, of which it keeps the first 300 characters.
// Characters that Postgres rejects in a text are replaced.
func (s *Store) operate(ctx context.Context, caller string, do func(tx pgx.Tx) error) error {
	return s.commit(ctx, func() error {
		return pgx.BeginTxFunc(ctx, s.pool, s.transaction(), func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "select set_config('spine.caller', $1, true)", storable(caller)); err != nil {
				return err
			}
			return do(tx)
		})
	})
}

// readAtOnce runs a transaction that reads as of one moment, each statement within the time limit of reads.
func (s *Store) readAtOnce(ctx context.Context, do func(tx pgx.Tx) error) error {
	options := pgx.TxOptions{
		BeginQuery: "begin isolation level repeatable read read only; select " + pinPath + s.limitTime(),
	}
	return tooSlow(pgx.BeginTxFunc(ctx, s.pool, options, do))
}
