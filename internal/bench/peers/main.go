// Command peers measures Spine beside what a user would pick instead, and beside the limits of the
// machine. All systems get the same scenarios, from the same load generator and sink (package
// bench). Each runs in processes of its own, on one private PostgreSQL, with a fresh database for
// every scenario.
//
// It promises that everything it reports was stored and delivered. A scenario fails when the rows
// in the database are not the acknowledged events, or when the sink missed one of them. It must not
// know the inside of Spine, only the names of its commands, settings, tables and SQL functions. S8
// alone also writes Spine's tables.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// peer runs a system that is not Spine until ctx is done. Each has a subcommand.
type peer func(ctx context.Context, s settings) error

func peers() map[string]peer {
	return map[string]peer{"river": runRiver, "plain": runPlain, "http": runHTTP}
}

// settings are the settings of a peer, from the environment variables that Spine uses too.
type settings struct {
	database string // DATABASE_URL
	sink     string // DESTINATION_URL; empty means to store only
	listen   string // LISTEN
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run returns the exit code: 0, 1 if something failed, 2 for misuse.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		if peer, ok := peers()[args[0]]; ok {
			s := settings{
				database: os.Getenv("DATABASE_URL"),
				sink:     os.Getenv("DESTINATION_URL"),
				listen:   os.Getenv("LISTEN"),
			}
			if s.sink == storeOnly {
				s.sink = ""
			}
			if err := peer(ctx, s); err != nil {
				_, _ = fmt.Fprintln(stderr, "peers:", err)
				return 1
			}
			return 0
		}
	}
	o, err := parseOptions(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "peers:", err)
		return 2
	}
	measure := compare
	if o.base != "" {
		measure = compareBase
	}
	if err := measure(ctx, o, stdout, stderr); err != nil {
		_, _ = fmt.Fprintln(stderr, "peers:", err)
		return 1
	}
	return 0
}

// options of a comparison.
type options struct {
	rounds   int
	duration time.Duration // of one load
	soak     time.Duration // of the long run
	short    bool
	stored   int64    // events that S8 stores first
	only     []string // scenarios; empty means all
	systems  []string // empty means all
	json     string   // file for the figures; may be empty
	spine    string   // path of the binary
	base     string   // path of an earlier binary to measure beside it; empty: none
	pairs    int      // how often both are measured
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	var only, systems string
	flags := flag.NewFlagSet("peers", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.rounds, "rounds", 3, "measure this `NUMBER` of times and report medians")
	flags.DurationVar(&o.duration, "duration", 4*time.Second, "put each load on for this `DURATION`")
	flags.DurationVar(&o.soak, "soak", 10*time.Minute, "put the load of SK on for this `DURATION`")
	flags.BoolVar(
		&o.short,
		"short",
		false,
		"run one round with small counts, whatever the other flags say; it shows that everything works, "+
			"and measures little",
	)
	flags.Int64Var(&o.stored, "stored", 10_000_000,
		"store this `NUMBER` of events before S8 measures; ten million take 30 GB of disk")
	flags.StringVar(&only, "only", "", "run these `SCENARIOS` alone, such as S1,S3")
	flags.StringVar(&systems, "systems", "", "measure these `SYSTEMS` alone, such as spine,river")
	flags.StringVar(&o.json, "json", "", "write all figures to this `FILE` as well")
	flags.StringVar(&o.spine, "spine", "bin/spine", "`PATH` of Spine's binary")
	flags.StringVar(&o.base, "base", "",
		"measure only the processor time of an event, beside this `PATH` of an earlier binary of Spine")
	flags.IntVar(&o.pairs, "pairs", 10, "with -base: measure both binaries this `NUMBER` of times, in turns")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf(
			"%q is no subcommand: use river, plain or http to run a peer, or none to compare",
			flags.Arg(0),
		)
	}
	if o.pairs < 1 {
		return o, errors.New("-pairs must be at least 1")
	}
	if o.rounds < 1 || o.duration < time.Second || o.soak < time.Second || o.stored < 1000 {
		return o, errors.New("-rounds must be at least 1, -duration and -soak at least 1s, and -stored at least 1000")
	}
	if o.short {
		o.rounds, o.duration, o.soak, o.stored, o.pairs = 1, time.Second, 5*time.Second, 20_000, 1
	}
	var err error
	all := namesOf(scenarios(), func(s scenario) string { return s.name })
	if o.only, err = chooseNames("-only", only, all); err != nil {
		return o, err
	}
	all = namesOf(systemsUnderTest(), func(s system) string { return s.name })
	o.systems, err = chooseNames("-systems", systems, all)
	return o, err
}

// chooseNames reads a list of names. All of them must be known.
func chooseNames(name, text string, known []string) ([]string, error) {
	if text == "" {
		return known, nil
	}
	chosen := strings.Split(text, ",")
	for _, c := range chosen {
		if !slices.Contains(known, c) {
			return nil, fmt.Errorf("%s: there is no %q, only %s", name, c, strings.Join(known, ", "))
		}
	}
	return chosen, nil
}

func namesOf[T any](all []T, name func(T) string) []string {
	names := make([]string, len(all))
	for i := range all {
		names[i] = name(all[i])
	}
	return names
}
