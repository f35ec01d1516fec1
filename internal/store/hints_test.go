package store_test

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/store"
)

// E14: a transaction that is to send no notifications sends none, whatever it does to the queue and to the sources.
func TestTransactionsWithoutHints(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	l := listen(d)
	run(t, l.conn, "listen spine_sources")
	psql := d.psql()
	run(t, psql, "begin")
	run(t, psql, "set local spine.hints = off")
	for _, statement := range []string{
		`select spine.ingest('x', 'a', '{}')`,
		`update spine.processing_state set status = 'dead'`,
		`select spine.replay('x')`,
		`select spine.put_source('shop', '{"preset":"none","id":["{body:/id}"]}')`,
	} {
		run(t, psql, statement)
	}
	run(t, psql, "commit")
	run(t, psql, `select spine.ingest('y', 'a', '{}')`)
	require.Equal(t, one("y"), undated(l.heard()), "the first that is sent")
}

// E14: anybody may fill the queue of notifications, which all databases share. Spine then stores without waking
// anybody, and begins again by itself once the queue has room.
func TestTheNotifyQueueMayBeFull(t *testing.T) {
	t.Parallel()
	server := postgrestest.Server(t)
	_, err := store.Migrate(t.Context(), server.URL(), nil)
	require.NoError(t, err)
	admin, err := pgx.Connect(t.Context(), server.SuperuserURL())
	require.NoError(t, err)
	defer func() { _ = admin.Close(context.WithoutCancel(t.Context())) }()
	if value(t, admin, "select current_setting('max_notify_queue_pages', true) is not null") != "t" {
		t.Skip("before PostgreSQL 17 the queue has 8 GB")
	}
	run(t, admin, "alter system set max_notify_queue_pages = 64")
	require.NoError(t, server.Restart(t.Context()))

	d := openDatabase(t, server.URL(), 2)
	other, err := url.Parse(server.SuperuserURL())
	require.NoError(t, err)
	connect := func() *pgx.Conn {
		conn, err := pgx.Connect(t.Context(), other.String())
		require.NoError(t, err)
		return conn
	}
	holder, filler := connect(), connect()
	run(t, holder, "listen x")
	run(t, holder, "begin")
	run(t, holder, "select 1")
	q, err := d.NotifyQueue(t.Context())
	require.NoError(t, err)
	require.False(t, q.Hintless)
	for err == nil {
		_, err = filler.Exec(t.Context(), "select pg_notify('x', repeat('a', 7000) || n) from generate_series(1, 20) n")
	}
	require.ErrorContains(t, err, "NOTIFY queue")

	require.Equal(t, []event.Outcome{event.Accepted}, d.ingest(webhook("full", payloadA)))
	receipts, claimed, err := d.IngestAndClaim(t.Context(), webhooks("y", 1), ask(2))
	require.NoError(t, err)
	require.Equal(t, []event.Receipt{{Outcome: event.Accepted}}, receipts)
	require.Len(t, claimed.Jobs, 2, "who looks finds it")
	d.settle(event.Settlement{Job: claimed.Jobs[0], Disposition: event.Completed})
	_, err = d.PutSource(t.Context(), "shop", []byte(githubSettings), "me")
	require.NoError(t, err)
	require.ErrorIs(t, d.Notify(t.Context(), "x", "y"), event.ErrHintless)
	fresh := openDatabase(t, server.URL(), 1)
	_, err = fresh.PutSource(t.Context(), "other", []byte(githubSettings), "me")
	require.NoError(t, err, "also where nobody has looked at the queue before")

	time.Sleep(2 * time.Second)
	q, err = d.NotifyQueue(t.Context())
	require.NoError(t, err)
	require.True(t, q.Hintless)
	require.Greater(t, q.Usage, 0.5)
	require.NotEmpty(t, q.Holders)
	t.Log(q.Holders)

	require.NoError(t, holder.Close(t.Context()))
	require.Eventually(t, func() bool {
		q, err := d.NotifyQueue(t.Context())
		return err == nil && !q.Hintless && q.Holders == ""
	}, patience, 100*time.Millisecond)
	require.NoError(t, d.Notify(t.Context(), "x", "y"))
}

// A role that may connect to any database can hold up all commits of the cluster that notify. It sends messages by the
// hundred thousand, again and again. Here it stops in the middle of such a commit.
func TestCommitsThatNotifyMayBeHeldUp(t *testing.T) {
	t.Parallel()
	server := postgrestest.Server(t)
	_, err := store.Migrate(t.Context(), server.URL(), nil)
	require.NoError(t, err)
	d := openDatabase(t, server.URL(), 3)
	d.ingest(webhook("before", payloadA))

	stranger, err := pgx.Connect(t.Context(), server.SuperuserURL()) // to another database
	require.NoError(t, err)
	watcher, err := pgx.Connect(t.Context(), server.SuperuserURL())
	require.NoError(t, err)
	pid := int(stranger.PgConn().PID())
	run(t, stranger, "begin")
	run(t, stranger, "select count(pg_notify('x', n || repeat('x', 1000))) from generate_series(1, 100000) n")
	committed := make(chan error, 1)
	go func() {
		_, err := stranger.Exec(context.WithoutCancel(t.Context()), "commit")
		committed <- err
	}()
	const holds = `select count(*) from pg_locks
		where pid = $1 and granted and locktype = 'object' and database = 0 and objid = 0`
	for value(t, watcher, holds, pid) == "0" {
	}
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	resumed := sync.OnceFunc(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	defer resumed()
	require.Equal(t, "1", value(t, watcher, holds, pid), "it was stopped in time")

	began := time.Now()
	require.Equal(t, []event.Outcome{event.Accepted}, d.ingest(webhook("held up", payloadA)))
	t.Logf("the first one took %v", time.Since(began))
	require.Equal(t, []event.Outcome{event.Accepted}, d.ingest(webhook("next", payloadA)))
	_, err = d.PutSource(t.Context(), "shop", []byte(githubSettings), "me")
	require.NoError(t, err)
	jobs := d.claim(3)
	d.settle(event.Settlement{Job: jobs[0], Disposition: event.Completed})
	require.ErrorIs(t, d.Notify(t.Context(), "x", "y"), event.ErrHintless)

	resumed()
	require.NoError(t, <-committed)
	q, err := d.NotifyQueue(t.Context())
	require.NoError(t, err)
	require.True(t, q.Hintless, "for a minute")
	require.True(t, q.Jammed)
	require.Contains(t, q.Holders, fmt.Sprintf("pid %d of role ", pid))
	require.Equal(t, "3", d.value("select count(*) from spine.events"))
}
