package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// The table of settings in deploy/README.md is made of the same tags as --help.
func TestReadmeListsEverySetting(t *testing.T) {
	readme, err := os.ReadFile("../../deploy/README.md")
	require.NoError(t, err)
	commands := rootCommand(nil).Commands()
	var rows strings.Builder
	for _, group := range groups(&settings{}) {
		for _, f := range fieldsOf(group) {
			fallback := f.fallback
			for _, cmd := range commands {
				if flag := cmd.Flags().Lookup(f.flag); flag != nil && flag.DefValue != f.fallback {
					fallback += ", " + cmd.Name() + " " + flag.DefValue
				}
			}
			if fallback != "" {
				fallback = "`" + fallback + "`"
			}
			fmt.Fprintf(&rows, "| `%s` | %s | %s |\n", f.name, fallback, f.help)
		}
	}
	require.Contains(t, string(readme), rows.String(), "deploy/README.md needs these rows:\n%s", rows.String())
}

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
