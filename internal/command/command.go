// Package command is the command line of spine, a file for each subcommand.
//
// A subcommand parses its flags and arguments, drives a service or asks the database, and tells in words or as JSON
// what came of it. Run promises an exit code for every call: 0, 1 if the command failed, 2 if the call was wrong. An
// error is one line on the standard error, and more for an event that is not stored. Text from outside cannot drive the
// terminal, because package terminal prints it.
//
// This package wires no stages; package service does. It must not know how a stage works.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/view"
)

// gcPercent lets the heap grow to five times what is in use before garbage is collected, unless GOGC says otherwise.
// Little is in use at any time, and most of it is short-lived. At Go's default, ingest spent a sixth of its processor
// time on collecting.
const gcPercent = 400

// Main runs the command line of this process and returns its exit code. version is what the linker knows of it, or
// empty. The first SIGINT or SIGTERM stops the command gently.
func Main(ctx context.Context, version string) int {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, restore := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, restore) // so that a second signal ends the process at once
	return Run(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr, version)
}

// Run runs one command line and returns its exit code: 0, 1 if the command failed, 2 if the call was wrong.
func Run(
	ctx context.Context, args, environment []string, stdin io.Reader, stdout, stderr io.Writer, version string,
) int {
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
	fmt.Fprintln(stderr, "spine:", errorLines(err))
	_, badCall := errors.AsType[misuseError](err)
	_, badSetting := errors.AsType[service.SettingError](err)
	if badCall || badSetting || !ran {
		return 2
	}
	return 1
}

// noteRun makes every subcommand set ran as it starts. An error from before that is one of the call.
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

// misuseError says that the call is wrong, and not that the command failed.
type misuseError struct{ error }

func (e misuseError) Unwrap() error { return e.error }

// misuse makes a misuseError as fmt.Errorf does.
func misuse(format string, args ...any) error {
	return misuseError{fmt.Errorf(format, args...)}
}

func rootCommand(env environ, b build) *cobra.Command {
	root := &cobra.Command{
		Use:   "spine",
		Short: "Receive webhooks, store each once in Postgres, deliver them with retries",
		Long: `Spine receives webhooks, checks their signatures, stores each exactly once in
your PostgreSQL, and delivers it to your app with retries. It keeps a trail of
every step.

Every setting is an environment variable and a flag: DATABASE_URL, --database-url.
Flags win. Durations are seconds (30, 0.5) or have a unit (500ms, 2m).

Your shell can complete commands, flags, sources, types, destinations and the ids
of events that are not completed yet: source <(spine completion bash). For zsh,
fish and PowerShell see spine completion --help.`,
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

// checkHelp makes the help command reject a word that is no command.
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

// errorLines is an error on one line. What is known of an event that is not stored has a line for each sentence.
func errorLines(err error) string {
	missing, ok := errors.AsType[*view.NotStoredError](err)
	if !ok || len(missing.Explanation) == 0 {
		return terminal.OneLine(err.Error())
	}
	lines := make([]string, len(missing.Explanation))
	for i, sentence := range missing.Explanation {
		lines[i] = terminal.OneLine(sentence.Says) + "."
	}
	return strings.Join(lines, "\n  ")
}
