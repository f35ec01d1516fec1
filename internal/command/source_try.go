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
	var at timeFlag
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
		return printDryRun(cmd.OutOrStdout(), service.DryRun(compiled, lookup, r, intake.MaxBodyBytes), asJSON)
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

// dryRun is ingest.Trial as it is printed.
type dryRun struct {
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

// printDryRun says what would become of a request.
func printDryRun(out io.Writer, tried ingest.Trial, asJSON bool) error {
	t := dryRun{Status: tried.Status, Cause: tried.Cause, Detail: tried.Detail, Answer: string(tried.Answer)}
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
		err = errors.New(strings.TrimSpace(fmt.Sprintf("it would be refused with %d (%s): %s %s", t.Status, t.Cause, t.Detail, strings.Join(t.Errors, "; "))))
	}
	return err
}

func describeDryRun(t dryRun) string {
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
