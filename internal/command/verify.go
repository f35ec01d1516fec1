package command

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/view"
)

func verifyCommand(env environ) *cobra.Command {
	since, until := timeFlag{time.Now().Add(-24 * time.Hour)}, timeFlag{}
	var examples int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that nothing is lost: the stored events against their trails",
		Long: `Verify checks Spine's promises in the database itself, for the events that were
stored in a span of time. Each event has its rows in the queue. Each row is due or
finished. The trail of each event is a legal path that ends at the row's status. No
lease counts twice. The counts of received, known and conflicting requests add up.
It exits with 1 if one of these does not hold.

You can run it on a database at work: it only reads, locks no row, and goes on in
spans of an hour to a month, with 200,000 events at most. An event takes some 60 µs.
It checks only trails whose first steps the audit log still has. In psql:
select invariant, violations, examples from spine.verify(now() - interval '1 hour');`,
		Example: `  spine verify
  spine verify --since 30d --json | jq '.[] | select(.violations > 0)'
  spine verify --since 2026-01-30T12:00:00Z --until 2026-01-30T13:00:00Z`,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.Var(&since, "since",
		"check events stored at this `TIME` or later: ago, as 2h or 7d, or RFC 3339 (default 24h)")
	flags.Var(&until, "until", "check events stored before this `TIME` (default now)")
	flags.IntVar(&examples, "examples", 5, "print at most this `NUMBER` of violations of each invariant")
	flags.BoolVar(&asJSON, "json", false, "print one JSON array of the invariants")
	return onDatabase(env, cmd, func(cmd *cobra.Command, s *store.Store, _ []string) error {
		if examples < 0 || examples > 10_000 {
			return misuse("--examples must be 0 to 10000")
		}
		if !until.IsZero() && until.Before(since.Time) {
			return misuse("--until must not lie before --since")
		}
		invariants, err := s.Verify(cmd.Context(), since.Time, until.Time, examples)
		if err != nil {
			return err
		}
		if asJSON {
			err = terminal.WriteJSON(cmd.OutOrStdout(), invariants)
		} else {
			err = listInvariants(cmd.OutOrStdout(), invariants)
		}
		broken := 0
		for _, i := range invariants {
			if i.Violations > 0 {
				broken++
			}
		}
		if err == nil && broken > 0 {
			err = fmt.Errorf("%d of %d invariants do not hold", broken, len(invariants))
		}
		return err
	})
}

// listInvariants prints each invariant with its outcome, and then the violations.
func listInvariants(out io.Writer, invariants []view.Invariant) error {
	var b strings.Builder
	table := terminal.Table(&b)
	for _, i := range invariants {
		outcome := "holds"
		if i.Violations > 0 {
			outcome = fmt.Sprintf("BROKEN %d", i.Violations)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", i.Name, outcome, i.Meaning)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, i := range invariants {
		for _, v := range i.Examples {
			fmt.Fprintf(&b, "%s: %s of %s: %s\n",
				i.Name, terminal.Printable(v.EventID), terminal.Printable(v.Source), terminal.Printable(v.Detail))
		}
	}
	if len(invariants) > 0 {
		fmt.Fprintf(&b, "%s checked\n", terminal.Plural(invariants[0].Checked, "event"))
	}
	_, err := io.WriteString(out, b.String())
	return err
}
