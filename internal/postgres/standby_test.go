package postgres

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStandby(t *testing.T) {
	t.Parallel()
	primary := start(t, Options{TempDir: reachableFolder(t)})
	if _, err := os.Stat(filepath.Join(primary.Binaries().Dir, "pg_basebackup")); err != nil {
		t.Skip("these binaries have no pg_basebackup")
	}
	execute(t, primary.URL(), "create table public.t as select 1 as n")
	standby, err := primary.Standby(t.Context(), "other", 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, standby.Stop(context.WithoutCancel(t.Context()))) })
	require.NotEqual(t, primary.Port(), standby.Port())
	require.True(t, query[bool](t, standby.SuperuserURL(), "select pg_is_in_recovery()"))

	execute(t, primary.URL(), "insert into public.t values (2)")
	require.Eventually(t, func() bool {
		return query[int](t, standby.URL(), "select count(*)::int from public.t") == 2
	}, time.Minute, 10*time.Millisecond)
	require.Equal(
		t,
		"other",
		query[string](t, primary.SuperuserURL(), "select application_name from pg_stat_replication"),
	)

	primary.Kill()
	require.True(t, query[bool](t, standby.SuperuserURL(), "select pg_promote()"))
	execute(t, standby.URL(), "insert into public.t values (3)")
	require.NoError(t, standby.Restart(t.Context()))
	require.Equal(t, 3, query[int](t, standby.URL(), "select count(*)::int from public.t"))
}
