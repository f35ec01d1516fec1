package store_test

import (
	"fmt"
	"net/url"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/store"
)

// E9, E10, E22, E26: everything works behind a PgBouncer that knows no prepared statements and ignores no parameters,
// without another way to the database. Nothing is left behind in its sessions.
func TestBehindAPooler(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"session", "transaction"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			direct := databases.Empty(t)
			admin, err := pgx.Connect(t.Context(), direct)
			require.NoError(t, err)
			defer func() { _ = admin.Close(t.Context()) }()
			u, err := url.Parse(direct)
			require.NoError(t, err)
			name := pgx.Identifier{u.Path[1:]}.Sanitize()
			run(t, admin, "alter database "+name+" set synchronous_commit = off")
			run(t, admin, "alter database "+name+" set default_transaction_isolation = 'serializable'")
			run(t, admin, "alter database "+name+" set default_transaction_read_only = on")
			run(t, admin, "alter database "+name+" set statement_timeout = '200ms'")
			migrated, err := store.Migrate(t.Context(), postgrestest.Pooler(t, direct, mode), nil)
			require.NoError(t, err)
			require.NotEmpty(t, migrated.Applied)
			run(t, admin, "alter database "+name+" reset statement_timeout")
			// Sessions of the first pooler keep the time-out.
			pooled := postgrestest.Pooler(t, direct, mode)
			require.NoError(t, store.CheckDirect(t.Context(), pooled, direct)) // E25
			noteCommits(t, admin)

			d := openDatabase(t, pooled, 8)
			var senders sync.WaitGroup
			for i := range 8 {
				senders.Go(func() {
					for n := range 40 {
						_, err := d.Ingest(t.Context(), []event.Event{webhook(fmt.Sprintf("%d-%d", i, n), payloadA)})
						assert.NoError(t, err)
					}
				})
			}
			senders.Wait()
			require.Equal(t, "320", value(t, admin, "select count(*) from spine.events"))
			require.Equal(t, []string{"on"}, rows(t, admin, "select distinct setting from public.commits"))
			everything(t, d)
			conn, err := pgx.Connect(t.Context(), with(t, pooled, "default_query_exec_mode", "simple_protocol"))
			require.NoError(t, err)
			defer func() { _ = conn.Close(t.Context()) }()
			for range 20 { // whichever session it gets
				require.Equal(t, "|0", value(t, conn, `select string_agg(s.name, ' '),
					(select count(*) from pg_prepared_statements)
					from pg_settings s
					where s.source = 'session' and s.name not in (
						'application_name', 'client_encoding', 'DateStyle', 'standard_conforming_strings', 'TimeZone')`))
			}
		})
	}
}

// A pooler that gives each statement another session breaks transactions. It is told at once.
func TestAStatementPoolerIsRefused(t *testing.T) {
	t.Parallel()
	pooled := postgrestest.Pooler(t, databases.New(t), "statement")
	d := openDatabase(t, pooled, 2)
	_, err := d.Ingest(t.Context(), webhooks("x", 1))
	require.ErrorContains(t, err, "pool_mode = transaction")
	_, err = store.Migrate(t.Context(), pooled, nil)
	require.ErrorContains(t, err, "pool_mode = transaction")
}
