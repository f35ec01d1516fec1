// Command spine takes webhooks in, stores each exactly once in PostgreSQL and
// delivers it at least once. Package command has its subcommands.
package main

import (
	"context"
	"os"

	"github.com/webhookspine/spine/internal/command"
)

// version is set by the linker (see the Makefile). It is empty in a binary
// made by go install or go run, which know their version by themselves.
var version string

func main() {
	os.Exit(command.Main(context.Background(), version))
}
