// Command spine receives webhooks, stores each exactly once in PostgreSQL, and delivers it at least once. Package
// command has its subcommands.
package main

import (
	"context"
	"os"

	"github.com/webhookspine/spine/internal/command"
)

// version is set by the linker (see the Makefile). It is empty after go install and go run, whose binaries know their
// version from Go itself.
var version string

func main() {
	os.Exit(command.Main(context.Background(), version))
}
