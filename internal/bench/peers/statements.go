package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/jackc/pgx/v5"

	"github.com/webhookspine/spine/internal/postgres"
)

// loadStatements loads pg_stat_statements into the server, and into every database that is made
// from then on, if the server has it. It counts nothing until countStatements says so, because
// counting costs every system something.
func (l *lab) loadStatements(ctx context.Context) error {
	load, err := asSuperuser(ctx, l.server, "postgres", func(conn *pgx.Conn) (has bool, err error) {
		const query = "select exists (select from pg_available_extensions where name = 'pg_stat_statements')"
		err = conn.QueryRow(ctx, query).Scan(&has)
		if err == nil && has {
			_, err = conn.Exec(ctx, "alter system set shared_preload_libraries = 'pg_stat_statements'")
		}
		return has, err
	})
	if err != nil || !load {
		return err
	}
	if err := l.server.Restart(ctx); err != nil {
		return err
	}
	l.statements = true
	_, err = asSuperuser(ctx, l.server, "template1", func(conn *pgx.Conn) (none struct{}, err error) {
		for _, statement := range []string{
			"create extension pg_stat_statements",
			"alter system set pg_stat_statements.track = none",
			"select pg_reload_conf()",
		} {
			if _, err = conn.Exec(ctx, statement); err != nil {
				break
			}
		}
		return none, err
	})
	return err
}

func asSuperuser[T any](
	ctx context.Context, server *postgres.Server, database string, do func(*pgx.Conn) (T, error),
) (result T, err error) {
	address, err := url.Parse(server.SuperuserURL())
	if err != nil {
		return result, fmt.Errorf("reading the server's URL: %w", err)
	}
	address.Path = "/" + database
	conn, err := pgx.Connect(ctx, address.String())
	if err != nil {
		return result, fmt.Errorf("connecting to the server: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if result, err = do(conn); err != nil {
		return result, fmt.Errorf("loading pg_stat_statements: %w", err)
	}
	return result, nil
}

// countStatements makes pg_stat_statements count the statements of clients, or stop counting.
// Sessions notice before their next statement.
func (l *lab) countStatements(ctx context.Context, on bool) error {
	if !l.statements {
		return nil
	}
	track := "none"
	if on {
		track = "top"
	}
	return l.configure(ctx, "alter system set pg_stat_statements.track = "+track)
}
