package command

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The commands in the greeting can be pasted into a shell.
func TestGreeting(t *testing.T) {
	var out strings.Builder
	printGreeting(&out, greeting{
		api: "http://127.0.0.1:1", admin: "http://127.0.0.1:3", mock: "http://127.0.0.1:2",
		database: "postgres:///x?user=o'neil", secrets: "/a b/secrets",
	})
	_, lines, found := strings.Cut(out.String(), "  export ")
	require.True(t, found, out.String())
	require.Equal(t, `DATABASE_URL='postgres:///x?user=o'\''neil' SECRET_DIR='/a b/secrets'
  `+os.Args[0]+` trace hello-001
  `+os.Args[0]+" tail\n\n", lines)
}
