package command

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/ingest"
	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/source"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/view"
)

func sourceCommand(env environ) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "source",
		Short: "Say who may send: providers, their signatures and secrets",
		Long: `Source lists, adds and changes who may send. POST /webhook/NAME takes what the
source NAME sends, verified as its settings say, and POST /webhook what the
source default does. A preset knows how a provider signs and where it puts ids
and types (spine source presets); settings change that. Changes reach every
running process at once, and each is audited.

Secrets are never stored: a source names them as env:NAME, a variable of the
processes that take webhooks in, or file:/absolute/path, which is read again
when it changes.`,
		Example: `  spine source add github --preset github --secret env:GITHUB_SECRET
  spine source test github                  # with a signed sample, here
  spine send --source github --sign         # the same to a running server
  spine source rotate github --secret file:/run/secrets/github-2 --keep 1h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		sourceListCommand(env), sourceShowCommand(env), sourcePutCommand(env, "add"), sourcePutCommand(env, "set"),
		sourceEnableCommand(env, "disable"), sourceEnableCommand(env, "enable"), sourceRotateCommand(env), sourceRemoveCommand(env),
		sourceTestCommand(env), sourcePresetsCommand(),
	)
	return cmd
}

// onDatabase completes a command that works on the database. named says that its
// one argument is the name of a source; more are groups of settings that it needs
// besides.
func onDatabase(env environ, cmd *cobra.Command, named bool, run func(cmd *cobra.Command, s *store.Store, name string) error, more ...any) *cobra.Command {
	var database service.DatabaseSettings
	cmd.Args = cobra.NoArgs
	if named {
		cmd.Args = func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return misuse("give the NAME of one source")
			}
			return nil
		}
		cmd.ValidArgsFunction = firstArgument(sources(&database))
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := openDatabase(cmd.Context(), database)
		if err != nil {
			return err
		}
		defer s.Close()
		return run(cmd, s, strings.Join(args, ""))
	}
	env.bind(cmd, needs{groups: append([]any{&database}, more...), required: []string{"DATABASE_URL"}})
	if flag := cmd.Flags().Lookup("source"); flag != nil {
		complete(cmd, "source", sources(&database))
	}
	if flag := cmd.Flags().Lookup("cause"); flag != nil {
		complete(cmd, "cause", beginning(&database, rejectedCauses))
	}
	return cmd
}

// rejectedCauses are those of the requests that are kept.
func rejectedCauses(s *store.Store, ctx context.Context) ([]string, error) {
	of, err := s.RejectedCauses(ctx)
	var all []string
	for _, causes := range of {
		all = slices.AppendSeq(all, maps.Keys(causes))
	}
	slices.Sort(all)
	return slices.Compact(all), err
}

// by is who a command acts as, in the audit log.
func by(cmd *cobra.Command) string { return cmd.CommandPath() }

func sourceListCommand(env environ) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "list", Short: "List the sources", Example: "  spine source list\n  spine source list --json | jq -r '.[].source'"}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON array")
	return onDatabase(env, cmd, false, func(cmd *cobra.Command, s *store.Store, _ string) error {
		all, err := s.Sources(cmd.Context())
		if err != nil {
			return err
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), all)
		}
		causes, err := s.RejectedCauses(cmd.Context())
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "SOURCE\tPRESET\tSTATE\tLAST EVENT\tREJECTED (24H)")
		for _, one := range all {
			c, err := source.ParseConfig(one.Settings)
			last := "never"
			if one.LastArrival != nil {
				last = one.LastArrival.String()
			}
			rejected := int64(0)
			for _, n := range causes[one.Source] {
				rejected += n
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\n", one.Source, terminal.Printable(c.Preset), sourceState(one, c, err), last, rejected)
		}
		return w.Flush()
	})
}

// sourceState is how a source is as far as its settings say. Whether its secrets can be read
// only the processes know that take webhooks in.
func sourceState(one event.SourceSettings, c source.Config, err error) string {
	if one.DisabledAt != nil {
		return "disabled"
	}
	if err == nil {
		c, err = c.Resolve()
	}
	switch {
	case err != nil:
		return "broken"
	case slices.ContainsFunc(c.Verify, func(m source.Method) bool { return m.Scheme == "none" }):
		return "open"
	}
	return "verified"
}

func sourceShowCommand(env environ) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show a source: its settings, and what to enter at the provider",
		Example: "  spine source show github",
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return onDatabase(env, cmd, true, func(cmd *cobra.Command, s *store.Store, name string) error {
		one, err := s.Source(cmd.Context(), name)
		if err != nil {
			return err
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), one)
		}
		return describeSource(cmd.OutOrStdout(), one)
	})
}

// describeSource prints what is known of a source.
func describeSource(out io.Writer, one event.SourceSettings) error {
	c, err := source.ParseConfig(one.Settings)
	var b strings.Builder
	fmt.Fprintf(&b, "source    %s\nstate     %s\n", one.Source, sourceState(one, c, err))
	if one.DisabledAt != nil {
		fmt.Fprintf(&b, "disabled  %s\n", one.DisabledAt)
	}
	last := "never"
	if one.LastArrival != nil {
		last = one.LastArrival.String()
	}
	fmt.Fprintf(&b, "last      %s\nchanged   %s", last, one.UpdatedAt)
	if one.UpdatedBy != nil {
		fmt.Fprintf(&b, " by %s", terminal.Printable(*one.UpdatedBy))
	}
	var pretty bytes.Buffer
	if json.Indent(&pretty, one.Settings, "          ", "  ") == nil {
		fmt.Fprintf(&b, "\nsettings  %s\n", terminal.PrintableLines(pretty.String()))
	}
	if err == nil {
		if _, err = c.Resolve(); err == nil {
			if preset, ok := source.PresetOf(c.Preset); ok {
				b.WriteString("\n")
				for i, step := range preset.StepsFor(one.Source, c) {
					fmt.Fprintf(&b, "%d. %s\n", i+1, terminal.Printable(step))
				}
			}
		}
	}
	if err != nil {
		fmt.Fprintf(&b, "\nIt cannot be used: %s\n", terminal.OneLine(err.Error()))
	}
	_, err = io.WriteString(out, b.String())
	return err
}

// sourceFlags are the settings of a source that have a flag of their own.
type sourceFlags struct {
	file                       string
	preset, url, format        string
	conflicts, verifyToken     string
	secrets, ids, types, times []string
	volatile                   []string
	rate, addressRate          float64
	burst, addressBurst        int
}

func (f *sourceFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.preset, "preset", "", "`PRESET` of its provider: see spine source presets")
	flags.StringArrayVar(&f.secrets, "secret", nil, "`REFERENCE` to its secret: env:NAME or file:/absolute/path; several hold at once")
	flags.StringVar(&f.verifyToken, "verify-token", "", "`REFERENCE` to the word that Meta asks for")
	flags.StringVar(&f.url, "public-url", "", "`URL` as the provider knows it, where it signs that (Twilio, Square)")
	flags.StringVar(&f.format, "format", "", "`FORMAT`: envelope, body or cloudevents")
	flags.StringArrayVar(&f.ids, "id", nil, "`TEMPLATE` of ids, such as {header:X-Request-Id} or {body:/data/id}; the first that fits")
	flags.StringArrayVar(&f.types, "type", nil, "`TEMPLATE` of types")
	flags.StringArrayVar(&f.times, "time", nil, "`TEMPLATE` of times")
	flags.StringArrayVar(&f.volatile, "volatile", nil, "JSON `POINTER` to what changes with each attempt of the provider")
	flags.StringVar(&f.conflicts, "conflicts", "", "keep: answer 200 to another payload under a known id; refuse: 409")
	flags.Float64Var(&f.rate, "rate", 0, "verified requests a second at most, `NUMBER`")
	flags.IntVar(&f.burst, "burst", 0, "of them at once, `NUMBER`")
	flags.Float64Var(&f.addressRate, "address-rate", 0, "requests a second of one client address at most, `NUMBER`")
	flags.IntVar(&f.addressBurst, "address-burst", 0, "of them at once, `NUMBER`")
	flags.StringVar(&f.file, "settings", "", "read the settings from `FILE`, a JSON object; - is the standard input; other flags change it")
	complete(cmd, "preset", fixed(source.Presets()))
	complete(cmd, "conflicts", fixed([]string{"keep", "refuse"}))
	complete(cmd, "format", fixed([]string{"envelope", "body", "cloudevents"}))
	completeFiles(cmd, "settings")
}

// over lays the flags that were given over settings.
func (f *sourceFlags) over(cmd *cobra.Command, c source.Config) (source.Config, error) {
	given := cmd.Flags().Changed
	if given("secret") {
		c.Secrets = nil
		for _, ref := range takenBack(f.secrets) {
			if err := checkReference("--secret", ref); err != nil {
				return c, err
			}
			c.Secrets = append(c.Secrets, source.Secret{Ref: ref})
		}
	}
	if given("verify-token") && f.verifyToken != "" {
		if err := checkReference("--verify-token", f.verifyToken); err != nil {
			return c, err
		}
	}
	for name, text := range map[string]struct{ to, from *string }{
		"preset": {&c.Preset, &f.preset}, "public-url": {&c.URL, &f.url}, "format": {&c.Format, &f.format},
		"conflicts": {&c.Conflicts, &f.conflicts}, "verify-token": {&c.VerifyToken, &f.verifyToken},
	} {
		if given(name) {
			*text.to = *text.from
		}
	}
	for name, list := range map[string]struct{ to, from *[]string }{
		"id": {&c.ID, &f.ids}, "type": {&c.Type, &f.types}, "time": {&c.Time, &f.times}, "volatile": {&c.Volatile, &f.volatile},
	} {
		if given(name) {
			*list.to = takenBack(*list.from)
		}
	}
	if given("rate") {
		c.Limits.Rate = f.rate
	}
	if given("burst") {
		c.Limits.Burst = f.burst
	}
	if given("address-rate") {
		c.Limits.AddressRate = f.addressRate
	}
	if given("address-burst") {
		c.Limits.AddressBurst = f.addressBurst
	}
	return c, nil
}

// takenBack is what a flag gives that may come several times: nothing where it was
// given once and empty, which takes the setting back.
func takenBack(values []string) []string {
	if len(values) == 1 && values[0] == "" {
		return nil
	}
	return values
}

// checkReference refuses a secret that is given by value, which it does not
// repeat.
func checkReference(flag, ref string) error {
	if !strings.HasPrefix(ref, "env:") && !strings.HasPrefix(ref, "file:/") {
		return misuse("%s: must be env:NAME or file:/absolute/path: a secret is named and never given", flag)
	}
	return nil
}

func sourcePutCommand(env environ, verb string) *cobra.Command {
	var f sourceFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Add a source",
		Example: `  spine source add github --preset github --secret env:GITHUB_SECRET
  spine source add billing --preset hmac --secret file:/run/secrets/billing --settings billing.json
  spine source add internal --preset bearer --secret env:INTERNAL_TOKEN --id '{body:/id}' --type '{body:/kind}'`,
	}
	if verb == "set" {
		cmd.Use, cmd.Short = "set NAME", "Change the settings of a source"
		cmd.Long = "Set changes the settings that are given and leaves the others as they are; with\n--settings it replaces all of them. A setting that is given empty, as in\n--volatile '', is taken back: the preset's holds again."
		cmd.Example = `  spine source set default --preset standard-webhooks --format envelope --secret env:SENDER_SECRET
  spine source set github --rate 100 --conflicts refuse`
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return onDatabase(env, cmd, true, func(cmd *cobra.Command, s *store.Store, name string) error {
		now, err := s.Source(cmd.Context(), name)
		_, missing := errors.AsType[*event.NoSourceError](err)
		switch {
		case verb == "add" && err == nil:
			return fmt.Errorf("the source %s exists: spine source set changes it", name)
		case err != nil && (verb == "set" || !missing):
			return err
		}
		settings := []byte(now.Settings)
		if f.file != "" {
			if settings, err = readFile(f.file, cmd.InOrStdin()); err != nil {
				return err
			}
		}
		var c source.Config
		if settings != nil {
			if c, err = source.ParseConfig(settings); err != nil {
				return misuseError{err}
			}
		}
		if c, err = f.over(cmd, c); err != nil {
			return err
		}
		if _, err = c.Resolve(); err != nil {
			return misuseError{err}
		}
		text, err := json.Marshal(c)
		if err != nil {
			return fmt.Errorf("writing the settings: %w", err)
		}
		change, err := s.PutSource(cmd.Context(), name, text, by(cmd))
		if err != nil {
			return err
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), change)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n\n", name, change.Change)
		if now, err = s.Source(cmd.Context(), name); err != nil {
			return err
		}
		return describeSource(cmd.OutOrStdout(), now)
	})
}

func sourceEnableCommand(env environ, verb string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: verb + " NAME", Short: "Take nothing more from a source; what it sent is delivered all the same",
		Example: "  spine source disable github",
	}
	if verb == "enable" {
		cmd.Short, cmd.Example = "Take events from a source again", "  spine source enable github"
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object: the source")
	return onDatabase(env, cmd, true, func(cmd *cobra.Command, s *store.Store, name string) error {
		changed, err := s.EnableSource(cmd.Context(), name, verb == "enable", by(cmd))
		if err != nil {
			return err
		}
		if asJSON {
			return writeSource(cmd, s, name)
		}
		note := ""
		if !changed {
			note = " already"
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %sd%s\n", name, verb, note)
		return err
	})
}

// writeSource prints a source as JSON.
func writeSource(cmd *cobra.Command, s *store.Store, name string) error {
	now, err := s.Source(cmd.Context(), name)
	if err != nil {
		return err
	}
	return terminal.WriteJSON(cmd.OutOrStdout(), now)
}

func sourceRotateCommand(env environ) *cobra.Command {
	var secret string
	var asJSON bool
	keep := durationFlag(24 * time.Hour)
	cmd := &cobra.Command{
		Use: "rotate NAME", Short: "Give a source a new secret, and let the one before hold for a while",
		Long: `Rotate has a source take a new secret, and those before only for as long as --keep
says. Enter the new one at the provider meanwhile; nothing is refused.`,
		Example: `  spine source rotate github --secret env:GITHUB_SECRET_2
  spine source rotate github --secret file:/run/secrets/github-2 --keep 1h
  spine source rotate github --secret env:GITHUB_SECRET_3 --keep 0   # the others are known to somebody: at once`,
	}
	cmd.Flags().StringVar(&secret, "secret", "", "`REFERENCE` to the new secret: env:NAME or file:/absolute/path (required)")
	cmd.Flags().Var(&keep, "keep", "how long the secrets before go on to hold")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object: the source")
	if err := cmd.MarkFlagRequired("secret"); err != nil {
		panic(err) // the flag is defined above
	}
	return onDatabase(env, cmd, true, func(cmd *cobra.Command, s *store.Store, name string) error {
		if err := checkReference("--secret", secret); err != nil {
			return err
		}
		now, err := s.RotateSource(cmd.Context(), name, secret, time.Duration(keep), by(cmd))
		if err != nil {
			return err
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), now)
		}
		return describeSource(cmd.OutOrStdout(), now)
	})
}

// durationFlag is a flag that takes what parseDuration reads.
type durationFlag time.Duration

func (d *durationFlag) String() string { return time.Duration(*d).String() }
func (d *durationFlag) Type() string   { return "DURATION" }
func (d *durationFlag) Set(text string) error {
	parsed, err := service.ParseDuration(text)
	if err == nil && parsed < 0 {
		err = errors.New("must not be negative")
	}
	*d = durationFlag(parsed)
	return err
}

func sourceRemoveCommand(env environ) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "remove NAME", Short: "Remove a source, and its rejected requests; its events stay",
		Example: "  spine source remove github",
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return onDatabase(env, cmd, true, func(cmd *cobra.Command, s *store.Store, name string) error {
		if err := s.RemoveSource(cmd.Context(), name, by(cmd)); err != nil {
			return err
		}
		if asJSON {
			return terminal.WriteJSON(cmd.OutOrStdout(), view.SourceChange{Source: name, Change: "removed"})
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s removed\n", name)
		return err
	})
}

func sourcePresetsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "presets", Short: "List the presets: providers whose requests are known", Args: cobra.NoArgs,
		Example: "  spine source presets\n  spine source presets --json | jq '.[] | select(.name == \"stripe\")'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []source.Preset
			for _, name := range source.Presets() {
				preset, _ := source.PresetOf(name)
				all = append(all, preset)
			}
			if asJSON {
				return terminal.WriteJSON(cmd.OutOrStdout(), all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, p := range all {
				fmt.Fprintf(w, "%s\t%s\n", p.Name, p.Title)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON array, with settings and steps")
	return cmd
}

func sourceTestCommand(env environ) *cobra.Command {
	var file string
	var at moment
	var asJSON bool
	var intake service.IntakeSettings
	cmd := &cobra.Command{
		Use: "test NAME", Short: "Try a source here: what would become of a request",
		Long: `Test verifies and reads a request as a server would that has the source's settings
and the secrets of this environment, and stores nothing. The request is a signed
sample of the provider's, or one from a file, with its headers and body as they
came over the wire; where these say nothing of the body's length, it is all that
follows, and the last line must not end where the body does not. It is judged as
of now, by which a signature with a time in it grows old; --at says when it came.
Test exits with 1 where the request would be refused.`,
		Example: `  GITHUB_SECRET=… spine source test github
  spine source test stripe --request captured.http --at 2026-01-30T12:00:00Z`,
	}
	cmd.Flags().StringVar(&file, "request", "", "an HTTP request as text, from `FILE`; - is the standard input")
	cmd.Flags().Var(&at, "at", "judge the request as if it came at this `TIME`: ago, as 2h or 7d, or RFC 3339 (default now)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	completeFiles(cmd, "request")
	return onDatabase(env, cmd, true, func(cmd *cobra.Command, s *store.Store, name string) error {
		one, err := s.Source(cmd.Context(), name)
		if err != nil {
			return err
		}
		c, err := source.ParseConfig(one.Settings)
		if err != nil {
			return err
		}
		compiled, err := source.Compile(name, c, source.ResolveSecret)
		if err != nil {
			return err
		}
		if at.IsZero() {
			at.Time = time.Now()
		}
		var r *event.Request
		if file == "" {
			r, err = compiled.Sample(at.Time)
		} else if text, unread := readFile(file, cmd.InOrStdin()); unread != nil {
			err = unread
		} else {
			r, err = readRequest(text)
		}
		if err != nil {
			return err
		}
		r.At = at.Time
		var lookup error
		if one.DisabledAt != nil {
			lookup = event.ErrSourceDisabled
		}
		return printTrial(cmd.OutOrStdout(), service.DryRun(compiled, lookup, r, intake.MaxBodyBytes), asJSON)
	}, &intake)
}

// readRequest reads a request as text, such as a proxy writes it down or a person
// copies it: its lines may end without carriage returns.
func readRequest(text []byte) (*event.Request, error) {
	head, body := text, []byte{}
	for _, end := range []string{"\r\n\r\n", "\n\n"} {
		// The first empty line, of either kind: the body may have the other.
		if before, after, found := bytes.Cut(text, []byte(end)); found && len(before) < len(head) {
			head, body = before, after
		}
	}
	r, err := http.ReadRequest(bufio.NewReader(io.MultiReader(bytes.NewReader(head), strings.NewReader("\r\n\r\n"), bytes.NewReader(body))))
	if err != nil {
		// Which quotes a line of it, and that may be what nobody should read.
		return nil, errors.New("reading the request: it should begin as in POST /webhook/github HTTP/1.1, then headers, an empty line, and the body")
	}
	switch {
	case len(r.TransferEncoding) > 0:
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, fmt.Errorf("reading the request: the body is not in chunks, as its headers say: %w", err)
		}
	case r.Header.Get("Content-Length") == "": // all that follows
	case int64(len(body)) < r.ContentLength:
		return nil, fmt.Errorf("reading the request: the body has %d bytes, where Content-Length says %d", len(body), r.ContentLength)
	case len(bytes.Trim(body[r.ContentLength:], "\r\n")) > 0:
		return nil, fmt.Errorf("reading the request: the body has %d bytes, where Content-Length says %d", len(body), r.ContentLength)
	default: // an editor ends the last line of a file
		body = body[:r.ContentLength]
	}
	return &event.Request{Method: r.Method, URL: r.URL, Header: r.Header, Wire: body}, nil
}

// trial is ingest.Trial as it is printed.
type trial struct {
	Status int          `json:"status"` // HTTP status of the answer
	Cause  string       `json:"cause,omitempty"`
	Detail string       `json:"detail,omitempty"`
	Errors []string     `json:"errors,omitempty"`
	Answer string       `json:"answer,omitempty"` // to a handshake
	Events []trialEvent `json:"events,omitempty"`
}

type trialEvent struct {
	ID         string    `json:"event_id"`
	Derived    bool      `json:"id_derived"` // made from the body
	Type       string    `json:"event_type"`
	OccurredAt time.Time `json:"occurred_at"`
	Reason     string    `json:"payload_unqueryable,omitempty"` // why the payload is kept as bytes
}

// printTrial says what would become of a request.
func printTrial(out io.Writer, tried ingest.Trial, asJSON bool) error {
	t := trial{Status: tried.Status, Cause: tried.Cause, Detail: tried.Detail, Answer: string(tried.Answer)}
	for _, p := range tried.Problems {
		t.Errors = append(t.Errors, strings.TrimSpace(p.Field+" "+p.Detail))
	}
	for i := range tried.Events {
		e := &tried.Events[i]
		t.Events = append(t.Events, trialEvent{e.ID, e.IDDerived, e.Type, e.OccurredAt, e.Unqueryable})
	}
	var err error
	if asJSON {
		err = terminal.WriteJSON(out, t)
	} else {
		_, err = io.WriteString(out, describeTrial(t))
	}
	if err == nil && t.Cause != "" {
		err = errors.New(strings.TrimSpace(fmt.Sprintf("it would be refused with %d (%s): %s %s", t.Status, t.Cause, t.Detail, strings.Join(t.Errors, "; "))))
	}
	return err
}

func describeTrial(t trial) string {
	var b strings.Builder
	switch {
	case t.Cause != "": // the error says it
	case t.Answer != "" || len(t.Events) == 0:
		fmt.Fprintf(&b, "It holds no event: the answer is %d %s\n", t.Status, terminal.Printable(t.Answer))
	}
	for _, e := range t.Events {
		derived := ""
		if e.Derived {
			derived = " (made from the body: the sender gives none)"
		}
		fmt.Fprintf(&b, "verified\nid        %s%s\ntype      %s\noccurred  %s\n", terminal.Printable(e.ID), derived, terminal.Printable(e.Type), e.OccurredAt.Format(time.RFC3339Nano))
		if e.Reason != "" {
			fmt.Fprintf(&b, "payload   kept as bytes: %s\n", terminal.Printable(e.Reason))
		}
	}
	return b.String()
}

// compiledSource is a source of the database where there is one, or else one
// that a preset makes, with the secrets of this environment, or without where
// nothing is to be signed.
func compiledSource(ctx context.Context, database service.DatabaseSettings, name, preset string, secrets []string, sign bool) (*source.Source, error) {
	c := source.Config{Preset: preset}
	if database.URL != "" && preset == "" {
		s, err := openDatabase(ctx, database)
		if err != nil {
			return nil, err
		}
		defer s.Close()
		one, err := s.Source(ctx, name)
		if err != nil {
			return nil, err
		}
		if c, err = source.ParseConfig(one.Settings); err != nil {
			return nil, err
		}
	} else if preset == "" {
		c.Preset = name
	}
	if len(secrets) > 0 {
		c.Secrets = nil
		for _, ref := range secrets {
			if err := checkReference("--secret", ref); err != nil {
				return nil, err
			}
			c.Secrets = append(c.Secrets, source.Secret{Ref: ref})
		}
	}
	if !sign { // which needs no secret
		c.Secrets, c.VerifyToken, c.Handshake, c.Verify = nil, "", "none", []source.Method{{Scheme: "none"}}
	}
	return source.Compile(name, c, source.ResolveSecret)
}
