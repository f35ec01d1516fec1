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
		Short: "Check that nothing is lost: what is stored against its audit trail",
		Long: `Verify checks the promises in the database itself, for the events that were stored
in a span of time: each has its rows in the queue, each row is due or done with,
the audit trail of each is a legal path that ends where the row stands, no lease
counted twice, and what was received, known and conflicting adds up. It reads
only, locks no row, and goes by the hour or 200,000 events, so that it may run on
a database at work; an event costs some 60 µs. It exits with 1 where something
does not hold.

Trails are checked of events whose first steps the audit log still has. In psql:
select invariant, violations, examples from spine.verify(now() - interval '1 hour');`,
		Example: `  spine verify
  spine verify --since 30d --json | jq '.[] | select(.violations > 0)'
  spine verify --since 2026-01-30T12:00:00Z --until 2026-01-30T13:00:00Z`,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.Var(&since, "since", "of events stored at this `TIME` or later: ago, as 2h or 7d, or RFC 3339 (default 24h)")
	flags.Var(&until, "until", "of events stored before this `TIME` (default now)")
	flags.IntVar(&examples, "examples", 5, "tell at most this `NUMBER` of violations of each invariant")
	flags.BoolVar(&asJSON, "json", false, "print one JSON array of the invariants")
	return onDatabase(env, cmd, false, func(cmd *cobra.Command, s *store.Store, _ string) error {
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

func listInvariants(out io.Writer, invariants []view.Invariant) error {
	var b strings.Builder
	w := terminal.Table(&b)
	for _, i := range invariants {
		outcome := "holds"
		if i.Violations > 0 {
			outcome = fmt.Sprintf("BROKEN %d", i.Violations)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", i.Name, outcome, i.Meaning)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, i := range invariants {
		for _, v := range i.Examples {
			fmt.Fprintf(&b, "%s: %s of %s: %s\n", i.Name, terminal.Printable(v.EventID), terminal.Printable(v.Source), terminal.Printable(v.Detail))
		}
	}
	if len(invariants) > 0 {
		fmt.Fprintf(&b, "%s looked at\n", terminal.Plural(invariants[0].Checked, "event"))
	}
	_, err := io.WriteString(out, b.String())
	return err
}
