package bench

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestADatabaseThatCannotBeWatched(t *testing.T) {
	for url, says := range map[string]string{
		"nonsense": "reading the database's URL", "postgres://nobody@127.0.0.1:1/nothing": "connecting to the database",
	} {
		_, err := watchDatabase(t.Context(), url)
		require.ErrorContains(t, err, says)
	}
}

// runSession executes statements on one connection, and flushes their statistics at the end.
func runSession(t *testing.T, url string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	for _, statement := range append(statements, "select pg_stat_force_next_flush()") {
		_, err = conn.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
	require.NoError(t, conn.Close(t.Context()))
}

// newTables makes a system's queue with live and dead rows, and analyzes it.
func newTables(t *testing.T, live, dead int) (url string) {
	t.Helper()
	url = databases.New(t)
	runSession(t, url, fmt.Sprintf(`
		create schema spine;
		create table spine.events (n int);
		create table spine.processing_state (n int)
			with (autovacuum_enabled = off, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.5);
		create table public.other (n int) with (autovacuum_enabled = off);
		insert into public.other select generate_series(1, 10);
		delete from public.other;
		insert into spine.processing_state select generate_series(1, %d);
		delete from spine.processing_state where n > %d`, live+dead, live))
	runSession(t, url, "analyze spine.processing_state")
	return url
}

func TestStatistics(t *testing.T) {
	url := newTables(t, 100, 30)
	w, err := watchDatabase(t.Context(), url)
	require.NoError(t, err)
	defer func() { require.NoError(t, w.close(t.Context())) }()
	require.ErrorContains(t, w.noStatements, "pg_stat_statements is not installed")

	before, err := w.read(t.Context())
	require.NoError(t, err)
	assert.True(t, before.hasTables)
	assert.Equal(t, tuples{live: 100, dead: 30, threshold: 1050}, before.queue)
	assert.Equal(t, before.queue, before.tables, "there is nothing in the others")
	assert.Positive(t, before.size)
	assert.InDelta(t, 60, before.naptime, 1e-9)

	const rows = 1000
	insert := fmt.Sprintf("insert into spine.events select generate_series(1, %d)", rows)
	runSession(t, url, insert, insert, insert)
	after, err := w.read(t.Context())
	require.NoError(t, err)
	assert.GreaterOrEqual(t, after.commits, before.commits+3)
	assert.Greater(t, after.wal, before.wal+3*rows*30)
	assert.Equal(t, int64(100+3*rows), after.tables.live)
	assert.Equal(t, before.queue, after.queue)
}

func TestADatabaseWithoutTheTables(t *testing.T) {
	w, err := watchDatabase(t.Context(), databases.Empty(t))
	require.NoError(t, err)
	s, err := w.read(t.Context())
	require.NoError(t, err)
	assert.False(t, s.hasTables)
	assert.Zero(t, s.tables)
	require.NoError(t, w.close(t.Context()))
	_, err = w.read(t.Context())
	require.ErrorContains(t, err, "reading the database's statistics")
}

func TestStatementsAreOfTheExtensionsSchema(t *testing.T) {
	assert.Contains(t, statisticsQuery(`"My Stats"`), `from "My Stats".pg_stat_statements(false)`)
	assert.NotContains(t, statisticsQuery(""), "pg_stat_statements")
}
