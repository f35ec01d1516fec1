package systemtest

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// The psql recipes of README.md run as they stand there.
func TestReadmeRecipes(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	_, recipes, found := strings.Cut(string(readme), "```sql\n")
	require.True(t, found)
	recipes, _, _ = strings.Cut(recipes, "```")

	config, err := pgx.ParseConfig(databases.New(t))
	require.NoError(t, err)
	config.RuntimeParams["search_path"] = "spine, public"
	conn, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(context.Background())) }) //nolint:usetesting // t.Context has ended by then
	_, err = conn.Exec(t.Context(), `select ingest('test-001', 'user.created', '{"user_id": 123}')`)
	require.NoError(t, err)

	run := 0
	for line := range strings.Lines(recipes) {
		_, err := conn.Exec(t.Context(), line) // as psql sends it: several statements a line, comments and all
		require.NoError(t, err, line)
		run++
	}
	require.Greater(t, run, 8)
	var status string
	require.NoError(t, conn.QueryRow(t.Context(), "select status from processing_state where event = id_of('test-001')").Scan(&status))
	require.Equal(t, "dead", status)
}
