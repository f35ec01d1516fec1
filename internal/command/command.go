// Package command has the subcommands of spine, one file each. It parses their
// flags and arguments, drives a service or asks the database, and puts in words
// what came of it. It wires no stages: package service does.
package command

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

	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/terminal"
)

// gcPercent lets the heap grow to five times what is in use before garbage is
// collected, where GOGC does not say otherwise. Little is in use at any time
// and much of it is short-lived: at Go's default a sixth of the CPU time of
// ingest was collecting.
const gcPercent = 400

// Main runs the command line of this process and returns its exit code. ctx is
// cut short by the first SIGINT or SIGTERM.
func Main(ctx context.Context, version string) int {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, restore := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	// The first signal stops gently. From then on signals act as they do by
	// default, so that a second one ends the process at once.
	context.AfterFunc(ctx, restore)
	return Run(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr, version)
}

// Run runs one command line and returns its exit code: 0, 1 where the command
// failed, 2 where it was called wrongly.
func Run(ctx context.Context, args, environment []string, stdin io.Reader, stdout, stderr io.Writer, version string) int {
	root := rootCommand(newEnviron(environment), thisBuild(version))
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
	fmt.Fprintln(stderr, "spine:", terminal.OneLine(err.Error()))
	_, called := errors.AsType[misuseError](err)
	_, set := errors.AsType[service.SettingError](err)
	if called || set || !ran {
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

// misuseError is a fault of the call, not of what was done.
type misuseError struct{ error }

func (e misuseError) Unwrap() error { return e.error }

func misuse(format string, args ...any) error {
	return misuseError{fmt.Errorf(format, args...)}
}

func rootCommand(env environ, b build) *cobra.Command {
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
		Version:       b.String(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(
		devCommand(env, b),
		serveCommand(env, b),
		apiCommand(env, b),
		workerCommand(env, b),
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
		versionCommand(b),
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
