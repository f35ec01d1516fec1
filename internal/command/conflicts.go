package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/view"
)

func conflictsCommand(env environ) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "conflicts",
		Short: "Compare payloads that came under one id, and accept a newer one",
		Long: `A conflict is another payload under an id that is stored already. The first payload
stays and is delivered; the other one is kept as evidence. List shows where they
differ. Show prints both in full. Accept makes an event of the other payload and
delivers it. The id of that event is the first id, a tilde, and the beginning of
the other payload's hash.`,
		Example: `  spine conflicts list --since 1d
  spine conflicts list --event test-001 --json
  spine conflicts show test-001
  spine conflicts accept test-001`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return misuse("list, show or accept? As in: spine conflicts show %s", terminal.Word(args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(conflictsListCommand(env), conflictsShowCommand(env), conflictsAcceptCommand(env))
	return cmd
}

func conflictsListCommand(env environ) *cobra.Command {
	var filter view.ConflictFilter
	var since, until timeFlag
	var limit int
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List conflicts, newest first, with their differences",
		Example: "  spine conflicts list --source stripe",
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&filter.EventID, "event", "", "only those of the event with this `ID`")
	flags.StringVar(&filter.Source, "source", "", "only those of this `SOURCE`")
	flags.Var(&since, "since", "only those that came at this `TIME` or later: ago, as 2h or 7d, or RFC 3339")
	flags.Var(&until, "until", "only those that came before this `TIME`")
	flags.IntVar(&limit, "limit", 20, "at most this `NUMBER`")
	flags.BoolVar(&asJSON, "json", false, "print one JSON array, with both payloads")
	return onDatabase(env, cmd, func(cmd *cobra.Command, s *store.Store, _ []string) error {
		if limit < 1 || limit > 1000 {
			return misuse("--limit must be 1 to 1000")
		}
		filter.Since, filter.Until = since.Time, until.Time
		rows, _, err := s.Conflicts(cmd.Context(), view.Page{Limit: limit}, filter)
		if err != nil {
			return err
		}
		if len(rows) == 0 && filter.EventID != "" { // an event that is not stored may have had some
			_, err := s.Event(cmd.Context(), filter.EventID, filter.Source)
			if _, missing := errors.AsType[*view.NotStoredError](err); missing {
				return err
			}
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), rows)
		}
		_, err = io.WriteString(cmd.OutOrStdout(), describeConflicts(rows))
		return err
	})
}

func describeConflicts(rows []view.ConflictRow) string {
	if len(rows) == 0 {
		return "no conflicts\n"
	}
	var b strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&b, "%s  source %s, hash %.8s, came %s",
			terminal.Printable(r.EventID), r.Source, r.PayloadHash, r.CreatedAt)
		if r.SeenCount > 1 {
			fmt.Fprintf(&b, ", %d times", r.SeenCount)
		}
		if r.AcceptedAs != nil {
			fmt.Fprintf(&b, ", accepted as %s", terminal.Printable(*r.AcceptedAs))
		}
		b.WriteByte('\n')
		switch {
		case r.NotCompared == view.ComparesBytes:
			b.WriteString("    one of the two cannot be compared: it is kept as bytes\n")
		case r.NotCompared != "":
			fmt.Fprintf(&b, "    %s: see spine conflicts show\n", r.NotCompared)
		case r.Differences == nil:
			b.WriteString("    they differ only in how they write numbers\n")
		}
		for _, d := range r.Differences {
			path := d.Path
			if path == "" {
				path = "/"
			}
			fmt.Fprintf(&b, "    %s: %s → %s\n", terminal.Printable(path), sideText(d.Was), sideText(d.Is))
		}
	}
	return b.String()
}

func conflictsShowCommand(env environ) *cobra.Command {
	var from string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show ID",
		Short:   "Show the payloads that came under an id, and their differences",
		Args:    oneArgument("give the ID of one event, as in: spine conflicts show test-001"),
		Example: "  spine conflicts show test-001\n  spine conflicts show evt_1 --source stripe --json | jq '.[].payload'",
	}
	cmd.Flags().StringVar(&from, "source", "", "`SOURCE` that sent the event, if several have an event with this id")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON array")
	return onDatabase(env, cmd, func(cmd *cobra.Command, s *store.Store, args []string) error {
		h, err := s.Event(cmd.Context(), args[0], from) // its error says what is wrong with an id
		if err != nil {
			return nameSource(err)
		}
		filter := view.ConflictFilter{EventID: h.EventID, Source: h.Source}
		rows, _, err := s.Conflicts(cmd.Context(), view.Page{Limit: mostConflicts}, filter)
		if err != nil {
			return err
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), rows)
		}
		var b strings.Builder
		for i, r := range rows {
			if i == 0 {
				fmt.Fprintf(&b, "first, came %s\n%s\n\n", r.StoredAt, payloadText(r.First))
			}
			fmt.Fprintf(&b, "%s%s\n\n", describeConflicts(rows[i:i+1]), payloadText(r.Content))
		}
		if len(rows) == 0 {
			b.WriteString(describeConflicts(nil))
		}
		_, err = io.WriteString(cmd.OutOrStdout(), b.String())
		return err
	})
}

// Limits on indenting: two spaces a level make a payload with many levels hundreds of times as long.
const (
	mostIndented = 16 << 10 // bytes of a payload
	mostBlanks   = 8        // times as long as the payload
)

// payloadText is a payload on lines of its own. One that is large, or would be, stands there as it came.
func payloadText(c view.Content) string {
	if c.RawBody != nil {
		return fmt.Sprintf("%q", c.RawBody)
	}
	var indented bytes.Buffer
	if len(c.Payload) > mostIndented || json.Indent(&indented, c.Payload, "", "  ") != nil ||
		indented.Len() > mostBlanks*len(c.Payload) {
		return terminal.PrintableLines(string(c.Payload))
	}
	return terminal.PrintableLines(indented.String())
}

// mostConflicts is more than the payloads that are kept of one event.
const mostConflicts = 100

// sideText is one side of a difference.
func sideText(value []byte) string {
	if value == nil {
		return "absent"
	}
	return terminal.Shorten(terminal.Printable(string(value)))
}

func conflictsAcceptCommand(env environ) *cobra.Command {
	var from, hash string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "accept ID", Short: "Deliver the other payload that came under an id, as an event of its own",
		Args:    oneArgument("give the ID of one event, as in: spine conflicts accept test-001"),
		Example: "  spine conflicts accept test-001\n  spine conflicts accept evt_1 --source stripe --hash 3f9a11c0",
	}
	cmd.Flags().StringVar(&from, "source", "", "`SOURCE` that sent the event, if several have an event with this id")
	cmd.Flags().StringVar(&hash, "hash", "",
		"accept the payload whose hash begins with this `HEX` (default the newest)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object: the id of the new event")
	return onDatabase(env, cmd, func(cmd *cobra.Command, s *store.Store, args []string) error {
		id, err := s.AcceptConflict(cmd.Context(), args[0], from, hash, auditCaller(cmd))
		if err != nil {
			return nameSource(err)
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), map[string]string{"event_id": id})
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "accepted as %s\n", terminal.Printable(id))
		return err
	})
}
