package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/view"
)

func rejectedCommand(env environ) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rejected",
		Short: "Look into rejected requests, and replay them",
		Long: `Spine keeps rejected requests for a while, within a budget of rows and bytes for
each source. So a request that was rejected by mistake is not lost: after you
corrected a secret, replay verifies it again. Spine does not keep the values of
headers that hold secrets.`,
		Example: `  spine rejected list --source github
  spine rejected show 12
  spine rejected replay --all --source github --cause signature_wrong`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(rejectedListCommand(env), rejectedShowCommand(env), rejectedReplayCommand(env))
	return cmd
}

func rejectedListCommand(env environ) *cobra.Command {
	var filter view.RejectedFilter
	var since, until timeFlag
	var limit int
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List rejected requests, newest first",
		Example: "  spine rejected list --since 1h\n  spine rejected list --source github --cause signature_wrong --json",
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&filter.Source, "source", "", "only those of this `SOURCE`")
	flags.StringVar(&filter.Cause, "cause", "", "only those with this `CAUSE`, such as signature_wrong")
	flags.StringVar(&filter.State, "state", "", "only those in this `STATE`: kept, requested, taken_in or refused")
	flags.Var(&since, "since", "only those that came at this `TIME` or later: ago, as 2h or 7d, or RFC 3339")
	flags.Var(&until, "until", "only those that came before this `TIME`")
	flags.IntVar(&limit, "limit", 50, "at most this `NUMBER`")
	flags.BoolVar(&asJSON, "json", false, "print one JSON array")
	completeFlag(cmd, "state",
		fixedValues([]string{event.RejectedKept, event.RejectedRequested, event.RejectedTakenIn, event.RejectedAgain}))
	return onDatabase(env, cmd, func(cmd *cobra.Command, s *store.Store, _ []string) error {
		if limit < 1 || limit > 10_000 {
			return misuse("--limit must be 1 to 10000")
		}
		filter.Since, filter.Until = since.Time, until.Time
		rows, _, err := s.RejectedRequests(cmd.Context(), view.Page{Limit: limit}, filter)
		if err != nil {
			return err
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), rows)
		}
		return listRejected(cmd.OutOrStdout(), rows)
	})
}

func listRejected(out io.Writer, rows []event.RejectedRequest) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(out, "no such rejected requests are kept")
		return err
	}
	table := terminal.Table(out)
	fmt.Fprintln(table, "ID\tAT\tSOURCE\tSTATUS\tCAUSE\tFROM\tBYTES\tSTATE")
	for _, r := range rows {
		if r.BodyBytes != nil { // only its beginning is kept
			r.Size = *r.BodyBytes
		}
		fmt.Fprintf(table, "%d\t%s\t%s\t%d\t%s\t%s\t%d\t%s\n", r.ID, r.At, terminal.Printable(r.Source), r.Status,
			terminal.Printable(r.Cause), terminal.Printable(r.Remote), r.Size, r.State)
	}
	return table.Flush()
}

// parseRequestID reads the ID of a rejected request.
func parseRequestID(text string) (int64, error) {
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, misuse("the ID of a rejected request is a number, got %q", text)
	}
	return id, nil
}

func rejectedShowCommand(env environ) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show a rejected request: its headers, its body, and the cause",
		Args:    oneArgument("give the ID of one rejected request, a number from spine rejected list"),
		Example: "  spine rejected show 12",
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return onDatabase(env, cmd, func(cmd *cobra.Command, s *store.Store, args []string) error {
		id, err := parseRequestID(args[0])
		if err != nil {
			return err
		}
		r, err := s.RejectedRequest(cmd.Context(), id)
		if err != nil {
			return err
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), r)
		}
		_, err = io.WriteString(cmd.OutOrStdout(), describeRejected(r))
		return err
	})
}

func describeRejected(r event.RejectedRequest) string {
	var b strings.Builder
	fmt.Fprintf(&b, "request   %d\nsource    %s\ncame      %s from %s\nanswered  %d %s: %s\nstate     %s",
		r.ID, terminal.Printable(r.Source), r.At, terminal.Printable(r.Remote), r.Status, terminal.Printable(r.Cause),
		terminal.Printable(r.Detail), r.State)
	if r.SettledAt != nil {
		fmt.Fprintf(&b, " %s", r.SettledAt)
	}
	if r.Note != nil {
		fmt.Fprintf(&b, ": %s", terminal.Printable(*r.Note))
	}
	if r.EventID != nil {
		fmt.Fprintf(&b, "\nevent     %s", terminal.Printable(*r.EventID))
	}
	fmt.Fprintf(&b, "\n\n%s %s\n", terminal.Printable(r.Method), terminal.Printable(r.Target))
	var headers map[string][]string
	_ = json.Unmarshal(r.Headers, &headers) // Spine wrote it
	names := make([]string, 0, len(headers))
	for name := range headers {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, value := range headers[name] {
			fmt.Fprintf(&b, "%s: %s\n", terminal.Printable(name), terminal.Printable(value))
		}
	}
	if r.BodyBytes != nil {
		fmt.Fprintf(
			&b,
			"\nThe first %d of at least %d bytes of its body are kept, so it cannot be replayed.\n",
			r.Size,
			*r.BodyBytes,
		)
	}
	if r.Text != nil {
		fmt.Fprintf(&b, "\n%s\n", terminal.PrintableLines(*r.Text))
	} else {
		fmt.Fprintf(&b, "\n%q\n", r.Body)
	}
	return b.String()
}

// replayPoll is how often replay asks what became of a request.
const replayPoll = 100 * time.Millisecond

func rejectedReplayCommand(env environ) *cobra.Command {
	var filter view.RejectedFilter
	var since, until timeFlag
	var trust, all, asJSON bool
	wait := durationFlag{Duration: 10 * time.Second}
	cmd := &cobra.Command{
		Use: "replay (ID | --all)", Short: "Verify rejected requests again, and store them",
		Args: cobra.ArbitraryArgs,
		Long: `Replay verifies a rejected request again and stores its events. With --all it does
so for all requests that the flags choose. A process that receives webhooks does
the work, with its settings and secrets of now, and judges signatures by the time
at which the request came. For one request, replay waits for the outcome and exits
with 1 if it is rejected again. With --all it does not wait: spine rejected list
shows what became of them.

Spine keeps no bearer tokens or passwords, so requests that had one cannot be
verified again. --trust stores them without verifying: be sure who sent them.`,
		Example: `  spine rejected replay 12
  spine rejected replay --all --source github --cause signature_wrong --since 2h
  spine rejected replay 13 --trust`,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&all, "all", false, "all that the flags choose, except those whose replay stored an event")
	flags.StringVar(&filter.Source, "source", "", "only those of this `SOURCE`")
	flags.StringVar(&filter.Cause, "cause", "", "only those with this `CAUSE`")
	flags.Var(&since, "since", "only those that came at this `TIME` or later: ago, as 2h or 7d, or RFC 3339")
	flags.Var(&until, "until", "only those that came before this `TIME`")
	flags.BoolVar(&trust, "trust", false, "store without verifying")
	flags.Var(&wait, "wait", "how long to wait for the outcome of one; 0 does not wait")
	flags.BoolVar(&asJSON, "json", false, "print one JSON object: the request, or with --all how many")
	return onDatabase(env, cmd, func(cmd *cobra.Command, s *store.Store, args []string) error {
		filter.Since, filter.Until = since.Time, until.Time
		if all != (len(args) == 0) {
			return misuse("give either the ID of a rejected request or --all")
		}
		for _, name := range []string{"source", "cause", "since", "until"} {
			if !all && cmd.Flags().Changed(name) {
				return misuse("--%s goes with --all, and not with the ID of one request", name)
			}
		}
		if all {
			n, err := s.ReplayAllRejected(cmd.Context(), filter, trust, auditCaller(cmd))
			if err != nil {
				return err
			}
			if asJSON {
				return terminal.WriteJSON(cmd.OutOrStdout(), map[string]int64{"requested": n})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s to be replayed: spine rejected list says what became of each\n",
				terminal.Plural(n, "request"))
			return err
		}
		if len(args) != 1 {
			return misuse("give the ID of one rejected request, a number from spine rejected list")
		}
		id, err := parseRequestID(args[0])
		if err != nil {
			return err
		}
		if err := s.ReplayRejected(cmd.Context(), id, trust, auditCaller(cmd)); err != nil {
			return err
		}
		r, err := awaitReplayed(cmd.Context(), s, id, wait.Duration)
		if err == nil && asJSON {
			err = terminal.WriteJSON(cmd.OutOrStdout(), r)
		} else if err == nil && wait.Duration > 0 {
			err = describeReplayed(cmd.OutOrStdout(), r)
		}
		if err == nil && r.State == event.RejectedAgain {
			err = fmt.Errorf("it was rejected again: %s", textOrEmpty(r.Note))
		}
		return err
	})
}

// awaitReplayed waits until a request is settled: stored, or rejected again.
func awaitReplayed(
	ctx context.Context,
	s *store.Store,
	id int64,
	patience time.Duration,
) (event.RejectedRequest, error) {
	for deadline := time.Now().Add(patience); ; {
		r, err := s.RejectedRequest(ctx, id)
		if err != nil || patience == 0 || r.State == event.RejectedTakenIn || r.State == event.RejectedAgain {
			return r, err
		}
		if time.Now().After(deadline) {
			return r, errors.New("no process has replayed it yet: is a spine api or serve running?")
		}
		select {
		case <-ctx.Done():
			return r, context.Cause(ctx)
		case <-time.After(replayPoll):
		}
	}
}

// describeReplayed prints what became of a request, unless an error tells it.
func describeReplayed(out io.Writer, r event.RejectedRequest) error {
	if r.State != event.RejectedTakenIn {
		return nil
	}
	as := ""
	if r.EventID != nil {
		as = " as " + terminal.Printable(*r.EventID)
	}
	_, err := fmt.Fprintf(out, "stored%s: %s\n", as, terminal.Printable(textOrEmpty(r.Note)))
	return err
}

// textOrEmpty is the text, or nothing if it is nil.
func textOrEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
