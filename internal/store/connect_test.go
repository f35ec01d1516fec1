package store_test

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/view"
)

// with is a URL with one more parameter.
func with(t *testing.T, address, name, value string) string {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	values := u.Query()
	values.Set(name, value)
	u.RawQuery = strings.ReplaceAll(values.Encode(), "+", "%20")
	return u.String()
}

// E1, E5, E6: what a role sets changes neither what is stored nor how it is read.
func TestRolesMaySetWhatTheyLike(t *testing.T) {
	t.Parallel()
	for i, setting := range []string{
		"client_encoding = 'latin1'",
		"standard_conforming_strings = off",
		"search_path = evil, pg_catalog", // E28
		"idle_session_timeout = 50",      // E19: connections of a pool are idle too
		"datestyle = 'SQL, YMD'",
		"bytea_output = 'escape'",
		"intervalstyle = 'iso_8601'",
		"timezone = 'Pacific/Kiritimati'",
		"default_transaction_isolation = 'serializable'",
		"default_transaction_isolation = 'repeatable read'",
		"default_transaction_read_only = on",
		"synchronous_commit = off",
		"client_min_messages = error",
		"xmloption = document",
		"extra_float_digits = 0",
	} {
		if testing.Short() && i > 3 {
			break // the matrix of settings has them all
		}
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			address := databases.Empty(t)
			u, err := url.Parse(address)
			require.NoError(t, err)
			admin, err := pgx.Connect(t.Context(), address)
			require.NoError(t, err)
			for _, statement := range []string{
				"create schema evil",
				"create view evil.pg_tables as select * from pg_catalog.pg_tables where 1 / 0 = 1",
				"create function evil.now() returns timestamptz language sql as 'select null::timestamptz'",
				"create function evil.max(bigint) returns bigint language sql as 'select 1 / 0'",
				"create domain evil.timestamptz as pg_catalog.timestamptz check (false)",
				"create domain evil.text as pg_catalog.text check (false)",
				"alter database " + pgx.Identifier{u.Path[1:]}.Sanitize() + " set " + setting,
			} {
				run(t, admin, statement)
			}
			require.NoError(t, admin.Close(t.Context()))
			_, err = store.Migrate(t.Context(), address, nil)
			require.NoError(t, err)

			d := openDatabase(t, address, 2)
			text := webhook("é € Ж", `{"a":"é € Ж \\ \u0041","b":1}`)
			require.Equal(t, event.Accepted, d.ingest(text)[0])
			require.Equal(t, event.Deduplicated, d.ingest(text)[0])
			require.Equal(t, event.Accepted, d.ingest(webhook("new", payloadA))[0])
			everything(t, d)
			time.Sleep(100 * time.Millisecond)
			require.Equal(t, event.Accepted, d.ingest(webhook("later", payloadA))[0])
			_, err = d.EnsurePartitions(t.Context())
			require.NoError(t, err)

			plain, err := pgx.Connect(t.Context(), with(t, address, "client_encoding", "utf8"))
			require.NoError(t, err)
			defer func() { _ = plain.Close(t.Context()) }()
			run(t, plain, "reset all; set client_encoding = 'utf8'; set default_transaction_read_only = off")
			require.Equal(
				t,
				"é € Ж",
				value(t, plain, "select event_id from spine.events where payload ->> 'a' like 'é € Ж%'"),
			)
		})
	}
}

// E2: a database that cannot hold every text is refused in one sentence.
func TestADatabaseMustBeUTF8(t *testing.T) {
	t.Parallel()
	server := postgrestest.Server(t)
	admin, err := pgx.Connect(t.Context(), server.SuperuserURL())
	require.NoError(t, err)
	defer func() { _ = admin.Close(t.Context()) }()
	for _, encoding := range []string{"SQL_ASCII", "LATIN1"} {
		run(
			t,
			admin,
			"create database d"+encoding+" encoding '"+encoding+"' lc_collate 'C' lc_ctype 'C' template template0",
		)
		u, err := url.Parse(server.SuperuserURL())
		require.NoError(t, err)
		u.Path = "/d" + strings.ToLower(encoding)
		_, err = store.Migrate(t.Context(), u.String(), nil)
		require.ErrorIs(t, err, store.ErrEncoding)
		require.ErrorContains(t, err, "this one is in "+encoding)
		d := openDatabase(t, u.String(), 1)
		require.ErrorIs(t, d.CheckSchema(t.Context()), store.ErrEncoding)
	}
}

// E3, E11: one parser reads every URL. It honours a parameter, says that it has no effect, or names it.
func TestURLs(t *testing.T) {
	t.Parallel()
	address := databases.New(t)
	for name, c := range map[string]struct{ value, remark, wrong string }{
		"pool_max_conns":          {"10", "pool_max_conns has no effect: set DB_MAX_CONNS", ""},
		"pgbouncer":               {"true", "pgbouncer has no effect: Spine finds out by itself", ""},
		"keepalives_idle":         {"30", "", ""},
		"keepalives_count":        {"many", "", `keepalives_count must be a whole number, got "many"`},
		"gssencmode":              {"disable", "gssencmode has no effect: Spine encrypts with TLS alone", ""},
		"pool_max_conn_lifetime":  {"1h", "", ""},
		"client_encoding":         {"latin1", "client_encoding has no effect: it is UTF8 for Spine", ""},
		"pool_min_conns":          {"3", "pool_min_conns has no effect: set DB_MAX_CONNS", ""},
		"tcp_user_timeout":        {"5000", "tcp_user_timeout has no effect: keepalives notice a lost host sooner", ""},
		"schema":                  {"public", "schema has no effect: Spine's schema is spine", ""},
		"application_name":        {"mine", "", ""},
		"default_query_exec_mode": {"simple_protocol", "", "default_query_exec_mode may be cache_statement"},
		"statement_timeout":       {"30s", "", ""},
		"options":                 {"-c datestyle=SQL", "", ""},
	} {
		target := with(t, address, name, c.value)
		if c.wrong != "" {
			require.ErrorContains(t, store.CheckURL(target), c.wrong)
			continue
		}
		require.NoError(t, store.CheckURL(target), name)
		if c.remark == "" {
			require.Empty(t, store.Remarks(target), name)
		} else {
			require.Equal(t, []string{c.remark}, store.Remarks(target))
		}
		d := openDatabase(t, target, 1)
		require.NoError(t, d.CheckSchema(t.Context()), name)
		connect, err := store.Connector(target, "listener")
		require.NoError(t, err)
		conn, err := connect(t.Context())
		require.NoError(t, err, name)
		require.NoError(t, conn.Close(t.Context()))
		_, err = store.Migrate(t.Context(), target, nil)
		require.NoError(t, err, name)
	}
	for _, mode := range []string{"exec", "simple_protocol"} {
		require.Error(t, store.CheckURL(with(t, address, "default_query_exec_mode", mode)))
	}
	for _, c := range []struct{ parameter, value string }{
		{"default_query_exec_mode", "cache_describe"},
		{"default_query_exec_mode", "describe_exec"},
		{"statement_cache_capacity", "0"},
		{"description_cache_capacity", "0"},
	} {
		target := with(t, address, c.parameter, c.value)
		_, err := store.Migrate(t.Context(), target, nil)
		require.NoError(t, err)
		d := openDatabase(t, target, 1)
		d.ingest(webhook(c.value, `{"a":"b"}`), webhook(c.parameter, `{}`))
		require.JSONEq(t, `{"a":"b"}`, d.value("select payload from spine.events where event_id = $1", c.value))
	}
	_, err := store.Migrate(t.Context(), with(t, address, "no_such_thing", "1"), nil)
	require.ErrorContains(t, err, `"no_such_thing"`, "the database names it")
}

// E20: a constraint that somebody adds is no fault of the data's. Its name is told.
func TestAConstraintOfSomebodyElseIsNamed(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	d.run("alter table spine.processing_state add constraint no_fridays check (event_id <> 'x')")
	_, err := d.Ingest(t.Context(), []event.Event{webhook("x", payloadA)})
	require.ErrorContains(t, err, "no_fridays")
	require.ErrorIs(t, err, event.ErrForeignRule)
	require.Equal(t, []event.Outcome{event.Accepted}, d.ingest(webhook("y", payloadA)))
}

// E4: after a logical switch-over sequences lag behind the rows. That is no fault of the data's, and mended at once.
func TestSequencesThatLagBehind(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	for range 3 {
		d.ingest(webhooks("a", 100)...)
	}
	d.run("select setval(pg_get_serial_sequence('spine.events', 'id'), 40, false)")
	d.run("select setval(pg_get_serial_sequence('spine.audit_trail', 'id'), 40, false)")
	require.Equal(t, []event.Outcome{event.Accepted}, d.ingest(webhook("new", payloadA)))
	require.Equal(t, payloadA, d.value("select payload from spine.events where event_id = 'new'"))
	d.ingest(webhook("newer", payloadA), webhook("new", payloadA))
	require.Equal(t, []string{"0"}, d.rows("select distinct violations::text from spine.verify('-infinity')"))
	require.Equal(t, "t", d.value("select min(id) > 600 from spine.audit_trail where event_id = 'newer'"))
}

// E21: each violation is counted once.
func TestAnOrphanIsCountedOnce(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	for i := range 24 {
		d.run("insert into spine.events (event_id, event_type, occurred_at, payload, payload_hash, created_at) "+
			"values ($1, 'a', now(), '{}', '', now() - $2 * interval '1 hour')", "e"+strings.Repeat("x", i), i)
	}
	d.ingest(webhooks("a", 10)...)
	d.run("alter table spine.processing_state disable trigger user")
	d.run("delete from spine.events where event_id = 'a-5'")
	for _, found := range [][]string{
		d.rows("select violations from spine.verify('-infinity') where invariant = 'row_has_event'"),
	} {
		require.Equal(t, []string{"1"}, found)
	}
	invariants, err := d.Verify(t.Context(), time.Time{}, time.Time{}, 10)
	require.NoError(t, err)
	for _, i := range invariants {
		if i.Name == "row_has_event" {
			require.EqualValues(t, 1, i.Violations)
		}
	}
}

// E27: a time may be written as a text.
func TestIngestByHandTakesATimeAsText(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	require.Equal(t, "accepted", d.value("select spine.ingest('x', 't', '{}', '2024-01-30')"))
	require.Equal(t, "accepted", d.value("select spine.ingest('y', 't', '{}', '2024-01-30', 'default')"))
	require.Equal(t, "accepted", d.value("select spine.ingest('z', 't', '{}', _source => 'default')"))
}

// E8, E23: who asks whether events can be stored learns that the server takes no writes. Reading goes on.
func TestAStandbyIsToldAndRead(t *testing.T) {
	t.Parallel()
	server := postgrestest.Server(t)
	if _, err := os.Stat(filepath.Join(server.Binaries().Dir, "pg_basebackup")); err != nil {
		t.Skip("these binaries have no pg_basebackup")
	}
	_, err := store.Migrate(t.Context(), server.URL(), nil)
	require.NoError(t, err)
	primary := openDatabase(t, server.URL(), 1)
	require.NoError(t, primary.CheckWritable(t.Context()))
	primary.ingest(webhook("x", payloadA))
	standby, err := server.Standby(t.Context(), "standby", 0)
	require.NoError(t, err)
	defer func() { require.NoError(t, standby.Stop(context.WithoutCancel(t.Context()))) }()
	d := openDatabase(t, standby.URL(), 1)
	require.ErrorIs(t, d.CheckWritable(t.Context()), store.ErrReadOnly)
	troubles, err := d.Troubles(t.Context())
	require.NoError(t, err)
	require.Len(t, troubles, 1)
	require.Contains(t, troubles[0].Says, "it is a standby: set DATABASE_URL to the primary")
	_, err = store.Migrate(t.Context(), standby.URL(), nil)
	require.ErrorIs(t, err, store.ErrReadOnly)
	require.NoError(t, d.CheckSchema(t.Context()))

	// E25: neither another database nor a copy is taken for the database.
	require.NoError(t, store.CheckDirect(t.Context(), primary.url, primary.url))
	require.ErrorIs(t, store.CheckDirect(t.Context(), primary.url, standby.URL()), store.ErrOtherDatabase)
	require.ErrorIs(t, store.CheckDirect(t.Context(), primary.url, databases.Empty(t)), store.ErrOtherDatabase)
	_, err = d.Stuck(t.Context(), 5)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		rows, _, err := d.Events(t.Context(), view.Page{Limit: 5}, view.EventFilter{})
		return err == nil && len(rows) == 1
	}, patience, 20*time.Millisecond)
	_, err = d.Ingest(t.Context(), webhooks("y", 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, event.ErrInvalidData)
}

// E14: a commit that failed because the queue of notifications is full is tried once more, without them.
func TestACommitIsTriedWithoutHints(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	full := &pgconn.PgError{
		Code:    "54000",
		Routine: "PreCommit_Notify",
		Message: "too many notifications in the NOTIFY queue",
	}
	calls := 0
	require.NoError(t, store.Commit(d.Store, t.Context(), func() error {
		if calls++; calls == 1 {
			return full
		}
		return nil
	}))
	require.Equal(t, 2, calls)
	l := listen(d)
	require.Equal(t, []event.Outcome{event.Accepted}, d.ingest(webhook("x", payloadA)))
	require.Empty(t, l.heard())
	require.ErrorIs(t, d.Notify(t.Context(), "x", "y"), event.ErrHintless)
	q, err := d.NotifyQueue(t.Context())
	require.NoError(t, err)
	require.False(t, q.Hintless, "the queue has room")
	d.ingest(webhook("y", payloadA))
	require.Len(t, l.heard(), 1)
	calls = 0
	other := &pgconn.PgError{Code: "54000", Routine: "_bt_check_third_page"}
	require.ErrorIs(t, store.Commit(d.Store, t.Context(), func() error { calls++; return other }), other)
	require.Equal(t, 1, calls, "another limit of that kind is no reason")
}
