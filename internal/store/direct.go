package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrOtherDatabase says that two addresses lead to two databases.
var ErrOtherDatabase = errors.New("leads to another database than DATABASE_URL, or to a standby of it: " +
	"set it to the address of the same database without the pooler, or unset it")

// CheckDirect says whether the two addresses lead to one database. It returns nil, ErrOtherDatabase, or why it could
// not tell. It holds a lock with a random number on one of them, which the other sees where it is the same database.
// Each role may do that, and neither names nor copies of a database mislead it. Nothing waits for that lock.
func CheckDirect(ctx context.Context, url, direct string) error {
	ctx, cancel := context.WithTimeout(ctx, directPatience)
	defer cancel()
	number := rand.Int64() //nolint:gosec // nobody gains by guessing it
	holds, err := execPlain(ctx, url, fmt.Sprintf("begin; "+
		"select pg_catalog.set_config('idle_in_transaction_session_timeout', '0', true); "+
		"select pg_catalog.pg_advisory_xact_lock(%d)", number))
	if err != nil {
		return err
	}
	defer holds.close()
	meets, err := execPlain(ctx, direct, fmt.Sprintf("select pg_catalog.pg_try_advisory_xact_lock(%d)", number))
	if err != nil {
		return err
	}
	defer meets.close()
	if meets.value != "t" {
		return nil
	}
	// The lock was free there. Somebody may have ended the transaction that holds it, a pooler for instance.
	if _, err := holds.conn.PgConn().Exec(ctx, "select 1").ReadAll(); err != nil {
		return fmt.Errorf("comparing two addresses of the database: %w", err)
	}
	return ErrOtherDatabase
}

// directPatience is how long CheckDirect may take.
const directPatience = 10 * time.Second

// execution is a connection of its own, and the last value that its statements returned.
type execution struct {
	conn  *pgx.Conn
	close func()
	value string
}

// execPlain runs statements on a connection of its own. close ends their transaction.
func execPlain(ctx context.Context, url, sql string) (execution, error) {
	connect, err := Connector(url, "spine")
	if err != nil {
		return execution{}, err
	}
	conn, err := connect(ctx)
	if err != nil {
		return execution{}, err
	}
	e := execution{conn: conn, close: func() { _ = conn.Close(context.WithoutCancel(ctx)) }}
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		e.close()
		return execution{}, fmt.Errorf("comparing two addresses of the database: %w", err)
	}
	for _, row := range results[len(results)-1].Rows {
		e.value = string(row[0])
	}
	return e, nil
}
