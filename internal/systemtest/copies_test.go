package systemtest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres"
)

// ownServer starts a server on a cluster of its own, which has its own system identifier. The servers of other tests
// are copies of one cluster.
func ownServer(t *testing.T, settings ...[2]string) *postgres.Server {
	t.Helper()
	all := map[string]string{"fsync": "off", "autovacuum": "off", "jit": "off", "wal_level": "logical"}
	for _, s := range settings {
		all[s[0]] = s[1]
	}
	server, err := postgres.Start(t.Context(), postgres.Options{BinDir: os.Getenv("POSTGRES_BIN"), Settings: all})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Stop(context.WithoutCancel(t.Context()))) })
	return server
}

// asSuperuser is the URL of the database of Spine, for its superuser.
func asSuperuser(t *testing.T, server *postgres.Server) string {
	t.Helper()
	u, err := url.Parse(server.SuperuserURL())
	require.NoError(t, err)
	u.Path = "/" + postgres.Database
	return u.String()
}

// runOn runs statements on a database, each in a transaction of its own.
func runOn(t *testing.T, database string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	for _, statement := range statements {
		_, err := conn.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
}

// spendNumbers uses up numbers of transactions.
func spendNumbers(n int) string {
	return fmt.Sprintf("do $$ begin for i in 1..%d loop perform pg_current_xact_id(); commit; end loop; end $$", n)
}

// dump copies the database of a server to another one.
func dump(t *testing.T, from, to *postgres.Server, flags ...string) {
	t.Helper()
	bin := from.Binaries().Dir
	file := filepath.Join(t.TempDir(), "dump.sql")
	args := append([]string{"--dbname=" + from.URL(), "--schema=spine", "--no-owner", "--file=" + file}, flags...)
	for _, command := range [][]string{
		append([]string{"pg_dump"}, args...),
		{"psql", "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--file=" + file, to.URL()},
	} {
		//nolint:gosec // programs of the server
		out, err := exec.CommandContext(t.Context(), filepath.Join(bin, command[0]), command[1:]...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
}

// original is a database with events that wait.
type original struct {
	server *postgres.Server
	db     string
	events int
}

// newOriginal makes one whose server has given out more numbers of transactions than another has.
func newOriginal(t *testing.T) *original {
	t.Helper()
	o := &original{server: ownServer(t)}
	o.db = o.server.URL()
	runOn(t, o.db, spendNumbers(4000))
	o.stores(t, 20)
	return o
}

// stores stores n more events, and ends the process that did. Some have been sent again, one of them with another
// payload, and one is kept as bytes.
func (o *original) stores(t *testing.T, n int) {
	t.Helper()
	t.Run("the original stores", func(t *testing.T) {
		s := startService(t, both, o.db, "DESTINATION_URL=none")
		for range n {
			o.events++
			id := fmt.Sprintf("old-%d", o.events)
			s.accept(t, id, `{"big":12345678901234567890,"text":"é"}`)
			require.Equal(t, "deduplicated", s.post(t, webhook(id, `{"text":"é","big":12345678901234567890}`)).status())
		}
		require.Equal(t, "conflict", s.post(t, webhook("old-1", `{"other":1}`)).status())
		s.accept(t, fmt.Sprintf("old-bytes-%d", o.events), `{"nul":"\u0000"}`)
	})
}

const asBytes = "select count(*) from spine.events where payload is null"

// tellsOnlyNew starts a copy and follows it, until its transaction numbers have passed those of the original. Both
// spine tail and the stream tell each new step and no old one. moved says that Spine can tell the copy from its
// original. Such a copy delivers nothing until spine resume. Another one starts with DESTINATION_URL=none.
func (o *original) tellsOnlyNew(t *testing.T, copied *postgres.Server, moved bool) {
	t.Helper()
	database := copied.URL()
	db := open(t, database, nil)
	events, bytes := value[int](t, db, "select count(*) from spine.events"), value[int](t, db, asBytes)
	require.Positive(t, bytes)
	newest := value[int64](t, db, "select max(id) from spine.events")
	environment := []string{"DATABASE_URL=" + database}

	tail := startTail(t, database, "--json")
	require.Eventually(t, func() bool { return strings.Contains(tail.stderr.String(), "following") },
		patience, 10*time.Millisecond)
	require.Equal(t, moved, strings.Contains(tail.stderr.String(), "run spine resume"), "%s", tail.stderr)

	destination := newDestination(t)
	to := "DESTINATION_URL=none"
	if moved {
		to = "MOCK_API_URL=" + destination.url
	}
	said := &complaints{}
	s := newTarget(t, runServiceSaying(t, said, both, database, to), database)
	require.Equal(t, moved, strings.Contains(said.String(), "claims are paused until spine resume"), "%s", said)

	streamed := s.stream(t)

	const news = 12
	for n := range news {
		id := fmt.Sprintf("new-%d", n+1)
		s.accept(t, id, `{"big":12345678901234567890,"text":"é"}`)
		for name, lines := range map[string]<-chan string{"tail": tail.lines, "stream": streamed} {
			for action := ""; action != "event_inserted"; {
				select {
				case line, ok := <-lines:
					require.True(t, ok, "%s has ended: %s", name, tail.stderr)
					var step struct {
						EventID string `json:"event_id"`
						Action  string
					}
					require.NoError(t, json.Unmarshal([]byte(line), &step))
					require.Equal(t, id, step.EventID, "%s tells something else: %s", name, line)
					action = step.Action
				case <-time.After(patience):
					require.FailNow(t, name+" does not tell "+id)
				}
			}
		}
		runOn(t, database, spendNumbers(500))
		time.Sleep(50 * time.Millisecond) // so that both look again
	}
	require.Equal(t, "deduplicated", s.post(t, webhook("old-1", `{"text":"é","big":12345678901234567890}`)).status())
	require.Equal(t, events+news, value[int](t, s.db, "select count(*) from spine.events"))
	require.Equal(t, bytes, value[int](t, s.db, asBytes))
	require.Equal(t, news, value[int](t, s.db, "select count(*) from spine.events where id > $1", newest))
	require.True(t, value[bool](t, s.db, "select count(distinct id) = count(*) from spine.audit_trail"))
	verified := func() {
		code, out, errs := spine(t, environment, "verify")
		require.Zero(t, code, "%s%s", out, errs)
	}
	verified()
	require.Equal(
		t,
		events+news,
		value[int](t, s.db, "select count(*) from spine.processing_state where status = 'pending'"),
	)
	require.Zero(t, destination.count("old-1"))
	if !moved {
		return
	}

	code, out, errs := spine(t, environment, "status")
	require.Zero(t, code, errs)
	require.Contains(t, out, "this database is a copy")
	require.Contains(t, said.String(), "this database is a copy")
	require.Contains(t, string(s.request(t, http.MethodGet, "/api/overview", "").body), "this database is a copy")
	code, _, errs = spine(t, environment, "resume")
	require.Zero(t, code, errs)
	await(t, s.db, events+news, "select count(*) from spine.processing_state where status = 'completed'")
	require.Equal(t, 1, destination.count("old-1"))
	verified()
}

// TestDrillCopies copies a database in each way that an administrator has (E17, E29).
func TestDrillCopies(t *testing.T) {
	drills(t)
	t.Run("a dump restored into a younger server", func(t *testing.T) {
		o := newOriginal(t)
		copied := ownServer(t)
		dump(t, o.server, copied)
		o.tellsOnlyNew(t, copied, true)
	})
	t.Run("a base backup promoted", func(t *testing.T) {
		o := newOriginal(t)
		copied, err := o.server.Standby(t.Context(), standbyName, 0)
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, copied.Stop(context.WithoutCancel(t.Context()))) })
		o.stores(t, 5) // and the copy has followed
		runOn(t, asSuperuser(t, copied), "select pg_promote()")
		o.tellsOnlyNew(t, copied, false)
	})
	t.Run("a logical switch-over", func(t *testing.T) {
		o := newOriginal(t)
		copied := ownServer(t)
		dump(t, o.server, copied, "--schema-only")
		runOn(t, asSuperuser(t, o.server),
			"create publication spine for tables in schema spine with (publish_via_partition_root = true)")
		runOn(t, asSuperuser(t, copied), fmt.Sprintf(
			"create subscription spine connection '%s' publication spine", asSuperuser(t, o.server)))
		db := open(t, asSuperuser(t, copied), nil)
		await(t, db, 0, "select count(*) from pg_subscription_rel where srsubstate <> 'r'")
		o.stores(t, 10) // which raises no sequence of the copy
		steps := value[int](t, open(t, o.db, nil), "select count(*) from spine.audit_trail")
		await(t, db, steps, "select count(*) from spine.audit_trail")
		await(t, db, o.events+2, "select count(*) from spine.processing_state")
		runOn(t, asSuperuser(t, copied), "drop subscription spine")
		o.tellsOnlyNew(t, copied, true)
	})
}
