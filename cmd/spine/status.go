package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
)

// statusRows is how many stuck rows and dead letters status lists.
const statusRows = 5

func statusCommand(env environ) *cobra.Command {
	var database databaseSettings
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what waits, what is stuck and what is dead",
		Long: `Status shows the queue as it is in the database: how much waits, for how long,
what should have been delivered and is not, what was given up, and who last sent
something. It works also where no other part of Spine does. It exits with 1
where the database cannot be read or lacks the schema.`,
		Example: `  spine status
  spine status --json | jq '[.backlog[] | select(.status == "dead") | .count] | add'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := database.open(cmd.Context())
			if err != nil {
				return err
			}
			defer s.Close()
			o, err := readOverview(cmd.Context(), s)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), o)
			}
			return o.write(cmd.OutOrStdout(), time.Now())
		},
	}
	env.bind(cmd, needs{groups: []any{&database}, required: []string{"DATABASE_URL"}})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// overview is what status shows.
type overview struct {
	Schema      string                `json:"schema"` // current, or newer than this binary
	OldestReady float64               `json:"oldest_ready_seconds"`
	Backlog     []event.BacklogRow    `json:"backlog"`
	Paused      []store.PauseRow      `json:"paused"`
	Stuck       []store.StuckRow      `json:"stuck"`        // the first few
	DeadLetters []event.ProcessingRow `json:"dead_letters"` // the last few
	LastArrival map[string]time.Time  `json:"last_arrival"` // by source
}

func readOverview(ctx context.Context, s *store.Store) (o overview, err error) {
	o.Schema = "current"
	if err := s.CheckSchema(ctx); errors.Is(err, store.ErrTooNew) {
		o.Schema = "newer"
	} else if err != nil {
		return o, err
	}
	sample, err := s.Sample(ctx)
	if err != nil {
		return o, err
	}
	o.OldestReady, o.LastArrival = sample.OldestReady.Seconds(), sample.LastArrivals
	if o.Backlog, err = s.Backlog(ctx); err != nil {
		return o, err
	}
	if o.Paused, err = s.Paused(ctx); err != nil {
		return o, err
	}
	if o.Stuck, err = s.Stuck(ctx, statusRows); err != nil {
		return o, err
	}
	o.DeadLetters, err = s.Dead(ctx, statusRows)
	return o, err
}

func (o overview) write(w io.Writer, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "schema\t%s\n", o.Schema)
	for _, source := range slices.Sorted(maps.Keys(o.LastArrival)) {
		last := event.Timestamp{Time: o.LastArrival[source]}
		fmt.Fprintf(table, "last arrival\t%s\t(%s)\tfrom %s\n", clock(last), fromNow(last, now), printable(source))
	}
	if o.OldestReady > 0 {
		fmt.Fprintf(table, "oldest waiting\tdue for %s\n", span(time.Duration(o.OldestReady*float64(time.Second))))
	}
	for _, p := range o.Paused {
		by := ""
		if p.PausedBy != nil {
			by = " by " + printable(*p.PausedBy)
		}
		fmt.Fprintf(table, "paused\t%s\tsince %s%s\n", printable(p.Destination), clock(p.PausedAt), by)
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
			next = fromNow(*r.NextAttemptAt, now)
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\n", printable(r.Destination), printable(r.Status), r.Count, fromNow(r.OldestCreatedAt, now), next)
	}
	if len(o.Stuck) > 0 {
		fmt.Fprintf(table, "\nSTUCK\tDUE\tWHY\n")
	}
	for _, r := range o.Stuck {
		fmt.Fprintf(table, "%s\t%s\t%s\n", printable(r.EventID)+at(r.Destination), fromNow(r.DueAt, now), printable(r.Reason))
	}
	if len(o.DeadLetters) > 0 {
		fmt.Fprintf(table, "\nLAST DIED\tWHEN\tWHY\n")
	}
	for _, r := range o.DeadLetters {
		why := "-"
		if r.ErrorMessage != nil {
			why = printable(cut(*r.ErrorMessage))
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", printable(r.EventID)+at(r.Destination), fromNow(r.UpdatedAt, now), why)
	}
	return table.Flush()
}
