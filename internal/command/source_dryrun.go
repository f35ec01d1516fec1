package command

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/ingest"
	"github.com/webhookspine/spine/internal/service"
	"github.com/webhookspine/spine/internal/source"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
)

func sourceTestCommand(env environ) *cobra.Command {
	var file string
	var arrival timeFlag
	var asJSON bool
	var intake service.IntakeSettings
	var allowed service.SecretSettings
	cmd := &cobra.Command{
		Use: "test NAME", Short: "Try a source here: what a server would do with a request",
		Long: `Test verifies and reads a request as a server would, with the source's settings and
the secrets of its own environment. It stores nothing. It exits with 1 if a server
with these secrets would reject the request. What the servers themselves make of the
source is the line that begins with servers.

The request is a signed sample of the provider, or one from a file: its headers and
its body as they came over the wire. Without a Content-Length the body is all that
follows the headers, a line end at the end of the file included. A signature that
holds a time grows old: --at says when the request came.`,
		Example: `  GITHUB_WEBHOOK_SECRET=… spine source test github
  spine source test stripe --request captured.http --at 2026-01-30T12:00:00Z`,
	}
	cmd.Flags().StringVar(&file, "request", "", "read an HTTP request as text from `FILE`; - is the standard input")
	cmd.Flags().Var(&arrival, "at",
		"judge the request as if it came at this `TIME`: ago, as 2h or 7d, or RFC 3339 (default now)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	completeFiles(cmd, "request")
	return onSource(env, cmd, func(cmd *cobra.Command, s *store.Store, name string) error {
		settings, err := s.Source(cmd.Context(), name)
		if err != nil {
			return err
		}
		c, err := source.ParseConfig(settings.Settings)
		if err != nil {
			return err
		}
		views := readServers(cmd, s, []string{name})
		servers := strings.Join(views.lines(settings), "; ")
		compiled, err := source.Compile(name, c, allowed.Resolver(env.lookup).Resolve)
		if err != nil {
			return fmt.Errorf("with the secrets of this command's own environment: %w%s (the servers: %s)", err,
				folderHint(env, c), servers)
		}
		for _, p := range compiled.Unread() {
			fmt.Fprintf(cmd.ErrOrStderr(), "spine: not tried: %s %s\n", p.Field, terminal.Printable(p.Detail))
		}
		if arrival.IsZero() {
			arrival.Time = time.Now()
		}
		var r *event.Request
		if file == "" {
			r, err = compiled.Sample(arrival.Time)
		} else if text, readErr := readFile(file, cmd.InOrStdin()); readErr != nil {
			err = readErr
		} else {
			r, err = readRequest(text)
		}
		if err != nil {
			return err
		}
		r.At = arrival.Time
		var lookup error
		if settings.DisabledAt != nil {
			lookup = event.ErrSourceDisabled
		}
		tried := service.DryRun(compiled, lookup, r, intake.MaxBodyBytes)
		if asJSON && tried.Cause == "" && views.isBroken(settings) {
			fmt.Fprintf(cmd.ErrOrStderr(), "spine: the servers: %s\n", servers)
		}
		if err := printDryRun(cmd.OutOrStdout(), tried, asJSON); err != nil || asJSON {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "servers   %s\n", servers)
		return err
	}, &intake, &allowed)
}

// errNoRequest says what a request looks like. The error of net/http would quote a line, which may hold a secret.
var errNoRequest = errors.New("reading the request: it must begin as in POST /webhook/github HTTP/1.1, " +
	"then headers, an empty line, and the body")

// readRequest reads a request as text, as a proxy writes it down or a person copies it. Its lines may end without
// carriage returns.
func readRequest(text []byte) (*event.Request, error) {
	head, body := text, []byte{}
	// The head ends at the first empty line, of either kind. The body may hold the other kind.
	for _, end := range []string{"\r\n\r\n", "\n\n"} {
		if before, after, found := bytes.Cut(text, []byte(end)); found && len(before) < len(head) {
			head, body = before, after
		}
	}
	whole := io.MultiReader(bytes.NewReader(head), strings.NewReader("\r\n\r\n"), bytes.NewReader(body))
	r, err := http.ReadRequest(bufio.NewReader(whole))
	if err != nil {
		return nil, errNoRequest
	}
	switch {
	case len(r.TransferEncoding) > 0:
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, fmt.Errorf("reading the request: its headers say that the body is in chunks: %w", err)
		}
	case r.Header.Get("Content-Length") == "": // all that follows
	case int64(len(body)) < r.ContentLength, len(bytes.Trim(body[r.ContentLength:], "\r\n")) > 0:
		return nil, fmt.Errorf("reading the request: the body has %d bytes, but Content-Length says %d", len(body),
			r.ContentLength)
	default: // an editor has ended the last line of the file
		body = body[:r.ContentLength]
	}
	return &event.Request{Method: r.Method, URL: r.URL, Header: r.Header, Wire: body}, nil
}

// dryRunResult is an ingest.Trial as it is printed.
type dryRunResult struct {
	Status int           `json:"status"` // HTTP status of the answer
	Cause  string        `json:"cause,omitempty"`
	Detail string        `json:"detail,omitempty"`
	Errors []string      `json:"errors,omitempty"`
	Answer string        `json:"answer,omitempty"` // to a handshake
	Events []dryRunEvent `json:"events,omitempty"`
}

type dryRunEvent struct {
	ID         string    `json:"event_id"`
	Derived    bool      `json:"id_derived"` // made from the body
	Type       string    `json:"event_type"`
	OccurredAt time.Time `json:"occurred_at"`
	Reason     string    `json:"payload_unqueryable,omitempty"` // why the payload is kept as bytes
}

// printDryRun says what a server would do with a request. Its error says that the server would reject it.
func printDryRun(out io.Writer, tried ingest.Trial, asJSON bool) error {
	t := dryRunResult{Status: tried.Status, Cause: tried.Cause, Detail: tried.Detail, Answer: string(tried.Answer)}
	for _, p := range tried.Problems {
		t.Errors = append(t.Errors, strings.TrimSpace(p.Field+" "+p.Detail))
	}
	for i := range tried.Events {
		e := &tried.Events[i]
		t.Events = append(t.Events, dryRunEvent{e.ID, e.IDDerived, e.Type, e.OccurredAt, e.Unqueryable})
	}
	var err error
	if asJSON {
		err = terminal.WriteJSON(out, t)
	} else {
		_, err = io.WriteString(out, describeDryRun(t))
	}
	if err == nil && t.Cause != "" {
		err = errors.New(
			strings.TrimSpace(fmt.Sprintf("a server with these secrets would reject it with %d (%s): %s %s",
				t.Status, t.Cause, t.Detail, strings.Join(t.Errors, "; "))),
		)
	}
	return err
}

func describeDryRun(t dryRunResult) string {
	var b strings.Builder
	switch {
	case t.Cause != "": // the error says it
	case t.Answer != "" || len(t.Events) == 0:
		fmt.Fprintf(&b, "The request holds no event. The answer is %d %s\n", t.Status, terminal.Printable(t.Answer))
	}
	for _, e := range t.Events {
		derived := ""
		if e.Derived {
			derived = " (made from the body: the request has none)"
		}
		fmt.Fprintf(
			&b,
			"verified  here, with the secrets of this command's own environment\nid        %s%s\ntype      %s\noccurred  %s\n",
			terminal.Printable(e.ID),
			derived,
			terminal.Printable(e.Type),
			e.OccurredAt.Format(time.RFC3339Nano),
		)
		if e.Reason != "" {
			fmt.Fprintf(&b, "payload   kept as bytes: %s\n", terminal.Printable(e.Reason))
		}
	}
	return b.String()
}
