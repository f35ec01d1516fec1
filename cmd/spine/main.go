// Command spine takes webhooks in, stores each exactly once in PostgreSQL and
// delivers it at least once. This package parses the command line and wires
// the stages together; it is the only one that knows them all.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// gcPercent lets the heap grow to five times what is in use before garbage is
// collected, where GOGC does not say otherwise. Little is in use at any time
// and much of it is short-lived: at Go's default a sixth of the CPU time of
// ingest was collecting.
const gcPercent = 400

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal stops gently. From then on signals act as they do by
	// default, so that a second one ends the process at once.
	context.AfterFunc(ctx, restore)
	os.Exit(run(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr))
}

// run runs one command line and returns its exit code: 0, 1 where the command
// failed, 2 where it was called wrongly.
func run(ctx context.Context, args, environment []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := rootCommand(newEnviron(environment))
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	addCompletion(root)
	ran := false
	noteRun(root, &ran)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "spine:", oneLine(err.Error()))
	if _, ok := errors.AsType[misuseError](err); ok || !ran {
		return 2
	}
	return 1
}

// noteRun has every command below cmd set ran when its own code begins: what
// is found wrong before that is wrong with the call.
func noteRun(cmd *cobra.Command, ran *bool) {
	for _, sub := range cmd.Commands() {
		noteRun(sub, ran)
	}
	if work := cmd.RunE; work != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			*ran = true
			return work(cmd, args)
		}
	}
}

// misuseError is a fault of the call or its settings, not of what was done.
type misuseError struct{ error }

func (e misuseError) Unwrap() error { return e.error }

func misuse(format string, args ...any) error {
	return misuseError{fmt.Errorf(format, args...)}
}

func rootCommand(env environ) *cobra.Command {
	root := &cobra.Command{
		Use:   "spine",
		Short: "Webhooks in, stored once, delivered; Postgres is all it needs",
		Long: `Spine takes webhooks in, stores each exactly once in PostgreSQL, delivers it
with retries until the destination has it, and keeps a trail of every step.

Every setting is an environment variable and a flag: DATABASE_URL, --database-url.
Flags win. Durations are seconds (30, 0.5) or have a unit (500ms, 2m).

The shell completes commands, flags, and from the database the ids of events in
flight, sources, types and destinations: source <(spine completion bash), and
spine completion --help for zsh, fish and PowerShell.`,
		Version:       thisBuild().String(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(
		devCommand(env),
		serveCommand(env),
		apiCommand(env),
		workerCommand(env),
		mockAPICommand(env),
		migrateCommand(env),
		healthCommand(env),
		sourceCommand(env),
		applyCommand(env),
		sendCommand(env),
		tailCommand(env),
		traceCommand(env),
		statusCommand(env),
		replayCommand(env),
		rejectedCommand(env),
		conflictsCommand(env),
		verifyCommand(env),
		pauseCommand(env),
		resumeCommand(env),
		benchCommand(),
		versionCommand(),
	)
	checkHelp(root)
	return root
}

// checkHelp has the help command refuse what is no command.
func checkHelp(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	for _, help := range root.Commands() {
		if help.Name() != "help" {
			continue
		}
		help.Args = func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err == nil && len(rest) > 0 {
				err = fmt.Errorf("unknown command %q for %q", rest[0], cmd.CommandPath())
			}
			return err
		}
	}
}
