package command

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/view"
)

// statusRows is how many stuck rows and dead letters status lists.
const statusRows = 5

// The least and the usual time between two readings of status --watch.
const (
	watchLeast = 100 * time.Millisecond
	watchUsual = time.Second
)

func statusCommand(env environ) *cobra.Command {
	var database service.DatabaseSettings
	var asJSON, watch bool
	interval := durationFlag{Duration: watchUsual, least: watchLeast}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what waits, what is stuck and what is dead",
		Long: `Status shows the queue as it is in the database: how many events wait and how long,
which are late, which are dead letters, when each source last sent something, and
how much comes in and goes out. It works even if no other part of Spine runs. It
exits with 1 if it cannot read the database, or if the database lacks the schema.

With --watch it shows this over and over until q or Ctrl-C: in place on a terminal,
as a line of figures in a pipe, as an object a line with --json. It then reads the
depth that Spine itself samples, so that a long queue makes it no slower. If the
database goes away, it says so and goes on.

Rates are a second: now (about the last ten seconds), and over the last 1, 5 and
15 minutes. A figure that is not known is ? and, in JSON, null; it is never 0.
Latency is from stored to delivered, retries included.`,
		Example: `  spine status
  spine status --watch
  spine status --watch --interval 5 --json >> figures.jsonl
  spine status --json | jq '[.backlog[] | select(.status == "dead") | .count] | add'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("interval") && !watch {
				return misuse("--interval goes with --watch")
			}
			s, err := openDatabase(cmd.Context(), database)
			if err != nil {
				return err
			}
			defer s.Close()
			out := cmd.OutOrStdout()
			if watch {
				w := watcher{
					read:     func(ctx context.Context) (overview, error) { return readSampled(ctx, s) },
					interval: interval.Duration, now: time.Now, stderr: cmd.ErrOrStderr(),
				}
				return w.run(cmd.Context(), cmd.InOrStdin(), out, asJSON, env)
			}
			o, err := readOverview(cmd.Context(), s)
			if err != nil {
				return err
			}
			if asJSON {
				return terminal.WriteJSON(out, o)
			}
			room := 0
			if terminal.IsTerminal(out) {
				room = terminal.Width(out)
			}
			return o.write(out, time.Now(), room)
		},
	}
	env.bind(cmd, needs{groups: []any{&database}, required: []string{"DATABASE_URL"}})
	cmd.Flags().BoolVar(&watch, "watch", false, "show it over and over")
	cmd.Flags().Var(&interval, "interval", "read again after each such `DURATION`, with --watch")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object, or with --watch one a line")
	return cmd
}

// brokenSource is a source that a process cannot use, and why.
type brokenSource struct {
	Source   string   `json:"source"`
	Process  string   `json:"process"`
	Problems []string `json:"problems"`
}

// overview is what status shows. A figure that is nil, or null in JSON, is not known.
type overview struct {
	At          event.Timestamp      `json:"at"`       // by the database's clock
	Schema      string               `json:"schema"`   // current, or newer than this binary
	Troubles    []event.Trouble      `json:"troubles"` // what hinders Spine as a whole
	OldestReady *float64             `json:"oldest_ready_seconds"`
	DepthAt     *event.Timestamp     `json:"backlog_at"` // when the queue was counted
	Backlog     []view.BacklogRow    `json:"backlog"`
	Paused      []view.PauseRow      `json:"paused"`
	Worker      string               `json:"worker,omitempty"` // whether one is connected, while something is due
	Broken      []brokenSource       `json:"broken_sources"`
	Stuck       []store.StuckRow     `json:"stuck"`        // the first few
	DeadLetters []view.ProcessingRow `json:"dead_letters"` // the last few
	LastArrival map[string]time.Time `json:"last_arrival"` // by source
	Rates       map[string]flowRate  `json:"rates"`        // a second
	Latency     latency              `json:"latency_ms"`

	series view.Series
}

// count is how many rows of the queue are in a status, for one destination, or for all if it is empty.
func (o *overview) count(destination, status string) (n int64) {
	for _, r := range o.Backlog {
		if r.Status == status && (destination == "" || r.Destination == destination) {
			n += r.Count
		}
	}
	return n
}

// countStuck holds the oldest waiting row to what is stuck. That is read now, and the sample is a little older: both
// figures stand on one screen.
func (o *overview) countStuck() {
	for _, r := range o.Stuck {
		if r.DueAt.Infinity != 0 {
			continue
		}
		due := o.At.Time.Sub(r.DueAt.Time).Seconds()
		if o.OldestReady == nil || *o.OldestReady < due {
			o.OldestReady = &due
		}
	}
}

// readOverview reads the state of things. It counts the queue itself, and so is right even if nothing of Spine runs.
func readOverview(ctx context.Context, s *store.Store) (overview, error) {
	o, err := readSampled(ctx, s)
	if err != nil {
		return o, err
	}
	sample, err := s.Sample(ctx)
	if err != nil {
		return o, err
	}
	oldest := sample.OldestReady.Seconds()
	o.OldestReady, o.LastArrival, o.DepthAt = &oldest, sample.LastArrivals, &o.At
	o.Backlog, err = s.Backlog(ctx)
	o.countStuck()
	return o, err
}

// readSampled reads the state of things as Spine last sampled it. A long queue makes it no slower.
func readSampled(ctx context.Context, s *store.Store) (o overview, err error) {
	version := "current"
	if err := s.CheckSchema(ctx); isNewer(err) {
		version = "newer"
	} else if err != nil {
		return o, err
	}
	sampled, err := s.Overview(ctx, flowRange)
	if err != nil {
		return o, err
	}
	o = overview{
		At:          sampled.At,
		Schema:      version,
		OldestReady: sampled.OldestReady,
		DepthAt:     sampled.Depth.At,
		Paused:      sampled.Paused,
		LastArrival: map[string]time.Time{},
		Rates:       ratesOf(&sampled),
		Latency:     latencyOf(&sampled),
		series:      sampled.Series,
	}
	if sampled.Depth.At != nil {
		o.Backlog = []view.BacklogRow{}
		for _, r := range sampled.Depth.Rows {
			row := view.BacklogRow{
				Destination: r.Destination, Status: r.Status, Count: r.Count,
				NextAttemptAt: r.NextAttemptAt, OldestCreatedAt: r.OldestCreatedAt,
			}
			for _, p := range sampled.Paused {
				if p.Destination == r.Destination {
					row.PausedAt = &p.PausedAt
				}
			}
			o.Backlog = append(o.Backlog, row)
		}
	}
	for _, a := range sampled.Sources {
		if a.LastArrivalAt != nil {
			o.LastArrival[a.Source] = a.LastArrivalAt.Time
		}
	}
	if o.Troubles, err = s.Troubles(ctx); err != nil {
		return o, err
	}
	reports, err := s.SourceReports(ctx, nil)
	if err != nil {
		return o, err
	}
	for _, r := range reports.Reports {
		if r.State == "broken" {
			o.Broken = append(o.Broken, brokenSource{r.Source, r.Process, r.Problems})
		}
	}
	if o.Stuck, err = s.Stuck(ctx, statusRows); err != nil {
		return o, err
	}
	o.countStuck()
	if o.OldestReady != nil && *o.OldestReady > 0 {
		if o.Worker, err = s.ConnectedWorkers(ctx); err != nil {
			return o, err
		}
	}
	o.DeadLetters, err = s.Dead(ctx, statusRows)
	return o, err
}

// write prints all of it on a terminal that is room cells wide, or for a pipe if room is 0.
func (o *overview) write(w io.Writer, now time.Time, room int) error {
	table := terminal.Table(w)
	fmt.Fprintf(table, "schema\t%s\n", o.Schema)
	for _, t := range o.Troubles {
		fmt.Fprintf(table, "trouble\t%s\n", terminal.Printable(t.Says))
	}
	for _, source := range slices.Sorted(maps.Keys(o.LastArrival)) {
		last := event.Timestamp{Time: o.LastArrival[source]}
		fmt.Fprintf(table, "last arrival\t%s\t(%s)\tfrom %s\n",
			exactTime(last), relativeTime(last, now), terminal.Printable(source))
	}
	if o.OldestReady != nil && *o.OldestReady > 0 { // as status --watch has it
		fmt.Fprintf(table, "oldest waiting\tdue for %s\n", terminal.ShortDuration(secondsToDuration(*o.OldestReady)))
	}
	if o.Worker != "" {
		fmt.Fprintf(table, "worker\t%s\n", o.Worker)
	}
	for _, p := range o.Paused {
		fmt.Fprintf(table, "paused\t%s\t%s\n", terminal.Printable(p.Destination), pausedSince(p))
	}
	for _, b := range o.Broken {
		fmt.Fprintf(
			table,
			"broken\tsource %s\tat %s: %s\n",
			terminal.Printable(b.Source),
			terminal.Printable(b.Process),
			terminal.Printable(strings.Join(b.Problems, "; ")),
		)
	}

	fmt.Fprintf(table, "\n")
	if len(o.Backlog) == 0 {
		fmt.Fprintf(table, "Nothing waits and nothing is dead.\n")
	} else {
		fmt.Fprintf(table, "DESTINATION\tSTATUS\tCOUNT\tOLDEST QUEUED\tNEXT DUE\n")
	}
	for _, r := range o.Backlog {
		next := "-"
		if r.NextAttemptAt != nil {
			next = relativeTime(*r.NextAttemptAt, now)
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\n", terminal.Printable(r.Destination), terminal.Printable(r.Status),
			r.Count, relativeTime(r.OldestCreatedAt, now), next)
	}
	if len(o.Stuck) > 0 {
		fmt.Fprintf(table, "\nSTUCK\tDUE\tWHY\n")
	}
	for _, r := range o.Stuck {
		fmt.Fprintf(table, "%s\t%s\t%s\n", terminal.Printable(r.EventID)+destinationSuffix(r.Destination),
			relativeTime(r.DueAt, now), terminal.Printable(r.Reason))
	}
	if len(o.Stuck) == statusRows {
		fmt.Fprintf(table, "…\t\tthere may be more: select * from spine.stuck order by due_at\n")
	}
	if len(o.DeadLetters) > 0 {
		fmt.Fprintf(table, "\nLAST DIED\tWHEN\tWHY\n")
	}
	for _, r := range o.DeadLetters {
		fmt.Fprintf(table, "%s\t%s\t%s\n", terminal.Printable(r.EventID)+destinationSuffix(r.Destination),
			relativeTime(r.UpdatedAt, now), whyDead(r))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n"+terminal.JoinLines(o.rateLines(room, false), room, false))
	return err
}

// pausedSince says since when a destination is paused, by whom, and why.
func pausedSince(p view.PauseRow) string {
	text := "since " + exactTime(p.PausedAt)
	if p.PausedBy != nil {
		text += " by " + terminal.Printable(*p.PausedBy)
	}
	if p.Reason != nil {
		text += ", because: " + terminal.Printable(*p.Reason)
	}
	return text
}

// whyDead is the error of a dead letter.
func whyDead(r view.ProcessingRow) string {
	if r.ErrorMessage == nil {
		return "-"
	}
	return terminal.Printable(terminal.Shorten(*r.ErrorMessage))
}
