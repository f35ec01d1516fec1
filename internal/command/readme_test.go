package command

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/service"
)

// The table of settings in deploy/README.md is made of the same tags as --help.
func TestReadmeListsEverySetting(t *testing.T) {
	readme, err := os.ReadFile("../../deploy/README.md")
	require.NoError(t, err)
	commands := rootCommand(nil, build{}).Commands()
	var rows strings.Builder
	for _, group := range service.Groups(&service.Settings{}) {
		for _, f := range service.Fields(group) {
			fallback := f.Default
			for _, cmd := range commands {
				if flag := cmd.Flags().Lookup(f.Flag); flag != nil && flag.DefValue != f.Default {
					fallback += ", " + cmd.Name() + " " + flag.DefValue
				}
			}
			if fallback != "" {
				fallback = "`" + fallback + "`"
			}
			fmt.Fprintf(&rows, "| `%s` | %s | %s |\n", f.Name, fallback, f.Help)
		}
	}
	require.Contains(t, string(readme), rows.String(), "deploy/README.md needs these rows:\n%s", rows.String())
}
