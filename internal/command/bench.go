package command

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/webhookspine/spine/internal/bench"
	"github.com/webhookspine/spine/internal/observe"
	"github.com/webhookspine/spine/internal/terminal"
)

func benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a running spine: throughput, latency, loss",
		Example: `  spine bench ingest --connections 64 --duration 30s
  spine bench e2e --rate 50        # the server needs DESTINATION_URL=http://127.0.0.1:8009/
  spine bench drain --count 20000  # so does this
  spine bench soak --rate 3000 --duration 10m  # and this
  spine bench sink --listen :8009`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(benchIngestCommand(), benchE2ECommand(), benchDrainCommand(), benchSoakCommand(), benchSinkCommand())
	return cmd
}

func benchIngestCommand() *cobra.Command {
	var load bench.Load
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ingest",
		Short: "Post events and measure how fast they are acknowledged",
		Example: `  spine bench ingest
  spine bench ingest --connections 256 --duration 30s --warm-up 5s
  spine bench ingest --rate 1000 --duplicates 0.1 --conflicts 0.01 --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			load.Progress = showLoad(cmd.ErrOrStderr())
			report, err := bench.RunIngest(cmd.Context(), load)
			return errors.Join(printReport(cmd.OutOrStdout(), report, report.Scenario, asJSON), err)
		},
	}
	bindLoad(cmd.Flags(), &load)
	bindSpan(cmd.Flags(), &load)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func benchE2ECommand() *cobra.Command {
	var run bench.E2E
	var listen string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "e2e",
		Short: "Post events, receive their deliveries, and measure the time in between",
		Long: `E2e posts events and is their destination at the same time. So it sees which events
were lost or repeated, and how long each took from POST to arrival.`,
		Example: `  DEFAULT_SOURCE=open DESTINATION_URL=http://127.0.0.1:8009/ spine serve &
  spine bench e2e --rate 50 --duration 1m`,
		Args: cobra.NoArgs,
		RunE: withSink(&listen, func(cmd *cobra.Command, l net.Listener) error {
			run.Progress = showLoad(cmd.ErrOrStderr())
			report, err := bench.RunE2E(cmd.Context(), l, run)
			return errors.Join(printReport(cmd.OutOrStdout(), report, report.Scenario, asJSON), err)
		}),
	}
	bindLoad(cmd.Flags(), &run.Load)
	bindSpan(cmd.Flags(), &run.Load)
	cmd.Flags().StringVar(&listen, "sink", "127.0.0.1:8009", "receive deliveries on `HOST:PORT`")
	cmd.Flags().DurationVar(&run.Drain, "drain", 30*time.Second,
		"wait at most this `DURATION` at the end for missing deliveries")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func benchDrainCommand() *cobra.Command {
	var run bench.Drain
	var listen string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Build up a backlog, then measure how fast it is delivered",
		Long: `Drain posts events and is their destination. It answers no delivery until the
server has acknowledged all events. Then it answers, and counts the rate from that
moment. DELIVERY_TIMEOUT of the server must be longer than the posting takes.`,
		Example: `  DEFAULT_SOURCE=open DESTINATION_URL=http://127.0.0.1:8009/ spine serve &
  spine bench drain --count 50000`,
		Args: cobra.NoArgs,
		RunE: withSink(&listen, func(cmd *cobra.Command, l net.Listener) error {
			run.Progress = showLoad(cmd.ErrOrStderr())
			report, err := bench.RunDrain(cmd.Context(), l, run)
			return errors.Join(printReport(cmd.OutOrStdout(), report, report.Scenario, asJSON), err)
		}),
	}
	bindLoad(cmd.Flags(), &run.Load)
	cmd.Flags().Int64Var(&run.Count, "count", 20_000, "`NUMBER` of events in the backlog")
	cmd.Flags().StringVar(&listen, "sink", "127.0.0.1:8009", "receive deliveries on `HOST:PORT`")
	cmd.Flags().DurationVar(&run.Patience, "patience", 30*time.Second,
		"wait at most this `DURATION` for the next delivery")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func benchSoakCommand() *cobra.Command {
	var run bench.Soak
	var listen string
	var pids []int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "soak",
		Short: "Send at a constant rate for long, and see whether anything grows",
		Long: `Soak is e2e at a constant rate that also takes samples. A sample has the rates of
acknowledged and delivered events, the backlog, the latencies of its interval, and
what the server uses, as its /metrics say.

With --pid it watches other processes of this machine too (Linux). With --database
it reads PostgreSQL's statistics: dead tuples; bytes of WAL, commits and growth for
each event; and statements, if that database has pg_stat_statements. If PostgreSQL
runs on this machine, it watches PostgreSQL's processes too, without their shared
memory.

At the end it compares the medians of the first and the last third of the samples.
A figure is flat if the last is at most 1.2 times the first, or at most 1 ms or
4 MB more, or as many dead tuples more as autovacuum waits for. A figure that is
not flat is marked, and is no failure.

Soak never takes the URL of the database from the environment: you name what you
measure. The password may be in PGPASSWORD or ~/.pgpass.`,
		Example: `  DEFAULT_SOURCE=open DESTINATION_URL=http://127.0.0.1:8009/ spine serve &
  spine bench soak --metrics http://127.0.0.1:8003/metrics --rate 3000 --duration 10m
  spine bench soak --rate 500 --duration 8h --interval 1m --database postgres://spine@db/spine --json > soak.json`,
		Args: cobra.NoArgs,
		RunE: withSink(&listen, func(cmd *cobra.Command, l net.Listener) error {
			for _, pid := range pids {
				run.Processes = append(run.Processes, bench.Process{PID: pid})
			}
			run.Sampled = showSample(cmd.ErrOrStderr())
			report, err := bench.RunSoak(cmd.Context(), l, run)
			return errors.Join(printReport(cmd.OutOrStdout(), report, report.Scenario, asJSON), err)
		}),
	}
	flags := cmd.Flags()
	bindTarget(flags, &run.Load)
	flags.Float64Var(&run.Rate, "rate", 1000, "offer this `NUMBER` of events a second, even if the server is slower")
	flags.DurationVar(&run.Duration, "duration", 10*time.Minute, "send for this `DURATION`")
	flags.DurationVar(&run.WarmUp, "warm-up", 10*time.Second, "send for this `DURATION` before anything is counted")
	flags.DurationVar(&run.Interval, "interval", 0,
		"time between samples, a `DURATION`; 0 is 10 s or, if less, a tenth of --duration")
	flags.StringVar(&run.Database, "database", "",
		"`URL` of the server's database, to read its statistics; any role will do")
	flags.StringVar(&run.Metrics, "metrics", "",
		"`URL` of the server's metrics, if they are not at /metrics of --url, as http://127.0.0.1:8003/metrics")
	flags.IntSliceVar(&pids, "pid", nil, "watch the process with this `NUMBER`; may be given several times")
	bindEvents(flags, &run.Load)
	flags.StringVar(&listen, "sink", "127.0.0.1:8009", "receive deliveries on `HOST:PORT`")
	flags.DurationVar(&run.Drain, "drain", 30*time.Second,
		"wait at most this `DURATION` at the end for missing deliveries")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func benchSinkCommand() *cobra.Command {
	var listen string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "sink",
		Short:   "Receive deliveries and count them, until interrupted",
		Long:    "Sink answers every delivery with 200. GET /stats and /stats/ID count what it has received.",
		Example: "  spine bench sink --listen :8009",
		Args:    cobra.NoArgs,
		RunE: withSink(&listen, func(cmd *cobra.Command, l net.Listener) error {
			fmt.Fprintln(cmd.ErrOrStderr(), "receiving deliveries at", observe.URL(l))
			report, err := bench.RunSink(cmd.Context(), l, bench.SinkOptions{Progress: showSink(cmd.ErrOrStderr())})
			return errors.Join(printReport(cmd.OutOrStdout(), report, "sink", asJSON), err)
		}),
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:8009", "receive deliveries on `HOST:PORT`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// withSink returns the code of a command that takes deliveries at an address, HOST:PORT. run closes the listener.
func withSink(
	address *string, run func(cmd *cobra.Command, l net.Listener) error,
) func(cmd *cobra.Command, args []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		l, err := observe.Listen(cmd.Context(), *address)
		if err != nil {
			return err
		}
		return run(cmd, l)
	}
}

func bindLoad(flags *pflag.FlagSet, load *bench.Load) {
	bindTarget(flags, load)
	flags.Float64Var(&load.Rate, "rate", 0,
		"offer this `NUMBER` of events a second, even if the server is slower; 0 waits for each answer")
	bindEvents(flags, load)
}

func bindTarget(flags *pflag.FlagSet, load *bench.Load) {
	flags.SortFlags = false
	flags.StringVar(&load.Target, "url", "http://127.0.0.1:8000", "base `URL` of the server")
	flags.IntVar(&load.Connections, "connections", 64, "send at most this `NUMBER` of requests at once")
}

// bindEvents binds the flags that say what is sent.
func bindEvents(flags *pflag.FlagSet, load *bench.Load) {
	flags.IntVar(&load.BodySize, "body", 1024, "`NUMBER` of bytes in a request's body")
	flags.Float64Var(&load.DuplicateRatio, "duplicates", 0,
		"share of requests that repeat an event, a `NUMBER` from 0 to 1")
	flags.Float64Var(&load.ConflictRatio, "conflicts", 0,
		"share of requests that repeat an event with another payload, a `NUMBER` from 0 to 1")
	flags.Uint64Var(&load.Seed, "seed", 0, "`NUMBER` that makes the choice of duplicates and conflicts repeatable")
}

// bindSpan binds the flags that say how long a load lasts.
func bindSpan(flags *pflag.FlagSet, load *bench.Load) {
	flags.DurationVar(&load.Duration, "duration", 10*time.Second, "send for this `DURATION`; 0 sends --count")
	flags.Int64Var(&load.Count, "count", 0, "send this `NUMBER` of events; 0 sends for --duration")
	flags.DurationVar(&load.WarmUp, "warm-up", time.Second, "send for this `DURATION` before anything is counted")
}

// showLoad shows on a terminal how far a run has come, and writes nothing elsewhere.
func showLoad(w io.Writer) func(bench.Snapshot) {
	if !terminal.IsTerminal(w) {
		return nil
	}
	return func(s bench.Snapshot) {
		delivered := ""
		if s.Delivered > 0 {
			delivered = fmt.Sprintf(", %d delivered", s.Delivered)
		}
		fmt.Fprintf(w, "%4.0f s  %d acknowledged, %.0f/s, %d errors%s\n",
			s.Elapsed.Seconds(), s.Acknowledged, s.PerSecond, s.Errors, delivered)
	}
}

// showSink is showLoad for a sink.
func showSink(w io.Writer) func(bench.SinkReport) {
	if !terminal.IsTerminal(w) {
		return nil
	}
	return func(r bench.SinkReport) {
		fmt.Fprintf(w, "%d deliveries of %d ids, %d repeated\n", r.Deliveries, r.DistinctIDs, r.RepeatedIDs)
	}
}

// showSample is showLoad for the samples of a soak.
func showSample(w io.Writer) func(bench.Sample) {
	if !terminal.IsTerminal(w) {
		return nil
	}
	return func(s bench.Sample) {
		fmt.Fprintf(w, "%5.0f s  %.0f acknowledged/s, %.0f delivered/s, backlog %d, %d errors, "+
			"p50 and p99 %.1f and %.1f ms, to arrival %.1f and %.1f ms",
			s.Seconds, s.AcknowledgedPerSecond, s.DeliveredPerSecond, s.Backlog, s.Errors,
			s.Acknowledge.P50, s.Acknowledge.P99, s.Arrive.P50, s.Arrive.P99)
		for _, p := range s.Processes {
			fmt.Fprintf(w, ", %s %.2f cores %.0f MB", p.Name, p.CPU, p.MemoryMB)
		}
		if d := s.Database; d != nil {
			fmt.Fprintf(w, ", %d dead tuples", d.DeadTuples)
		}
		fmt.Fprintln(w)
	}
}

// printReport prints what was measured. A run that never began has no scenario.
func printReport(w io.Writer, r interface{ WriteTable(w io.Writer) error }, scenario string, asJSON bool) error {
	switch {
	case scenario == "":
		return nil
	case asJSON:
		return terminal.WriteJSON(w, r)
	}
	return r.WriteTable(w)
}
