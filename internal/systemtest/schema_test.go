//go:build schema

package systemtest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/postgres"
	"github.com/webhookspine/spine/internal/store"
)

// TestSchemaDump holds sql/schema.sql equal to what pg_dump 15 makes of a migrated database. It leaves out what
// changes by itself: pg_dump's own version and tokens, and the daily partitions. With UPDATE_SCHEMA set it writes the
// file.
func TestSchemaDump(t *testing.T) {
	const file = "../../sql/schema.sql"
	server, err := postgres.Start(t.Context(), postgres.Options{BinDir: os.Getenv("POSTGRES_BIN")})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop(context.WithoutCancel(t.Context()))) })
	require.Equal(
		t,
		15,
		server.Binaries().Major,
		"the schema is dumped from PostgreSQL 15; install it or set POSTGRES_BIN",
	)
	_, err = store.Migrate(t.Context(), server.URL(), nil)
	require.NoError(t, err)

	//nolint:gosec // beside the server that runs
	dump := exec.CommandContext(
		t.Context(),
		filepath.Join(server.Binaries().Dir, "pg_dump"),
		"--schema-only",
		"--schema=spine",
		"--no-owner",
		"--no-privileges",
		"--no-toast-compression", // servers differ in what they have
		"--exclude-table=spine.audit_trail_2*",
		server.URL(),
	)
	dump.Stderr = t.Output()
	text, err := dump.Output()
	require.NoError(t, err)
	text = regexp.MustCompile(`(?m)^(-- Dumped .*|\\(un)?restrict .*)\n+`).ReplaceAll(text, nil)

	if os.Getenv("UPDATE_SCHEMA") != "" {
		require.NoError(t, os.WriteFile(file, text, 0o644)) //nolint:gosec // a source file
		return
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), string(text), "sql/schema.sql is stale: run make schema")
}
