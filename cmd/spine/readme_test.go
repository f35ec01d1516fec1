package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The table of settings in README.md is made of the same tags as --help.
func TestReadmeListsEverySetting(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	var rows strings.Builder
	for _, group := range groups(&settings{}) {
		for _, f := range fieldsOf(group) {
			fallback := f.fallback
			if f.name == "LISTEN" {
				fallback = ":8000, worker :8002, mock-api :8001, dev 127.0.0.1:8000"
			}
			if fallback != "" {
				fallback = "`" + fallback + "`"
			}
			fmt.Fprintf(&rows, "| `%s` | %s | %s |\n", f.name, fallback, f.help)
		}
	}
	require.Contains(t, string(readme), rows.String(), "README.md needs these rows:\n%s", rows.String())
}
