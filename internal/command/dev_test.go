package command

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
)

// The commands in the greeting can be pasted into a shell.
func TestGreeting(t *testing.T) {
	var out strings.Builder
	printGreeting(&out, greeting{
		api: "http://127.0.0.1:1", admin: "http://127.0.0.1:3", mock: "http://127.0.0.1:2",
		database: "postgres:///x?user=o'neil", secrets: "/a b/secrets",
	})
	// README sends the same event first.
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	body := regexp.MustCompile(`(?s)-d '(\{.*?\})'`)
	greeted, told := body.FindStringSubmatch(out.String()), body.FindStringSubmatch(string(readme))
	require.NotNil(t, greeted)
	require.NotNil(t, told)
	require.JSONEq(t, told[1], greeted[1])

	_, lines, found := strings.Cut(out.String(), "  export ")
	require.True(t, found, out.String())
	require.Equal(t, `DATABASE_URL='postgres:///x?user=o'\''neil' SECRET_DIR='/a b/secrets'
  `+os.Args[0]+` trace test-001
  `+os.Args[0]+" tail\n\n", lines)
}

// G1: outside of a clone dev makes the folder for secrets beside its data, and no other.
func TestSecretFolderOfDev(t *testing.T) {
	here := t.TempDir()
	dir := filepath.Join(here, ".spine")
	elsewhere := filepath.Join(here, "run", "secrets")
	for _, other := range []struct{ secrets, dir string }{
		{elsewhere, dir}, {filepath.Join(dir, "secrets"), ""}, {filepath.Join(dir, "secrets"), elsewhere}, {dir, dir},
	} {
		makeSecretFolder(other.secrets, other.dir, zerolog.Nop())
	}
	require.NoDirExists(t, dir)
	require.NoDirExists(t, elsewhere)
	for range 2 {
		makeSecretFolder(filepath.Join(dir, "secrets"), dir+"/", zerolog.Nop())
		require.DirExists(t, filepath.Join(dir, "secrets"))
	}
}
