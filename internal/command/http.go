package command

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/terminal"
)

// maxAnswer limits how many bytes of a server's answer are read.
const maxAnswer = 1 << 20

// sendRequest sends a request on a connection of its own and reads the answer.
func sendRequest(req *http.Request) (code int, body []byte, err error) {
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err // names the method, the URL and what failed
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, nil, fmt.Errorf("reading the answer of %s: %w", req.URL.Redacted(), err)
	}
	return resp.StatusCode, body, nil
}

// writeAnswer writes a server's answer on one line, as JSON if it is JSON.
func writeAnswer(w io.Writer, answer []byte) error {
	switch {
	case len(answer) == 0:
		return nil
	case json.Valid(answer):
		return terminal.WriteJSON(w, json.RawMessage(answer))
	}
	_, err := fmt.Fprintln(w, terminal.OneLine(string(answer)))
	return err
}

// postRequest sends a webhook and prints the server's answer, in words or as it came.
func postRequest(req *http.Request, out io.Writer, asJSON bool) error {
	start := time.Now()
	code, answer, err := sendRequest(req)
	if err != nil {
		return err
	}
	took := time.Since(start).Round(100 * time.Microsecond)

	if asJSON {
		if err := writeAnswer(out, answer); err != nil {
			return fmt.Errorf("printing the answer: %w", err)
		}
	}
	if code != http.StatusOK {
		return rejectionError(code, answer)
	}
	var receipt struct {
		Status  string `json:"status"`
		EventID string `json:"event_id"`
	}
	if err := json.Unmarshal(answer, &receipt); err != nil {
		return fmt.Errorf("the server's answer is not Spine's: %w", err)
	}
	if asJSON {
		return nil
	}
	_, err = fmt.Fprintf(out, "%s %s in %s\n", terminal.Printable(receipt.Status),
		terminal.Printable(receipt.EventID), took)
	return err
}

// rejectionError puts a server's problem details (RFC 9457) on one line.
func rejectionError(code int, answer []byte) error {
	var problem struct {
		Title  string `json:"title"`
		Detail string `json:"detail"`
		Errors []struct {
			Field  string `json:"field"`
			Detail string `json:"detail"`
		} `json:"errors"`
	}
	_ = json.Unmarshal(answer, &problem) // an answer of another kind has no details
	reason := cmp.Or(problem.Title, http.StatusText(code))
	if problem.Detail != "" {
		reason += ": " + problem.Detail
	}
	details := make([]string, len(problem.Errors))
	for i, e := range problem.Errors {
		details[i] = strings.TrimSpace(e.Field + " " + e.Detail)
	}
	text := fmt.Sprintf("the server rejected it: %d %s %s", code, reason, strings.Join(details, "; "))
	return errors.New(strings.TrimSpace(text))
}
