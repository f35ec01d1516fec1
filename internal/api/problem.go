package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/gorilla/mux"
)

// retryAfter is how many seconds a client is asked to wait while the database
// is away.
const retryAfter = "2"

// problem is the body of a refusal (RFC 9457).
type problem struct {
	Type    string   `json:"type"`
	Title   string   `json:"title"`
	Status  int      `json:"status"`
	Detail  string   `json:"detail"`
	Errors  []fault  `json:"errors,omitempty"`
	Sources []string `json:"sources,omitempty"` // that have the event asked for
}

// fault is what is wrong with one parameter of a query.
type fault struct {
	Parameter string `json:"parameter,omitempty"`
	Detail    string `json:"detail"`
}

// refuse answers with p, of which Status and Detail must be set.
func refuse(w http.ResponseWriter, p problem) {
	p.Type, p.Title = "about:blank", http.StatusText(p.Status)
	if p.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", retryAfter)
	}
	_ = write(w, p.Status, "application/problem+json", p) // a problem can always be encoded
}

// refuseQuery answers 400 if there are faults, and reports whether it did.
func refuseQuery(w http.ResponseWriter, faults []fault) bool {
	if len(faults) == 0 {
		return false
	}
	details := make([]string, len(faults))
	for i, f := range faults {
		details[i] = strings.TrimSpace(f.Parameter + " " + f.Detail)
	}
	refuse(w, problem{Status: http.StatusBadRequest, Detail: strings.Join(details, "; ") + ".", Errors: faults})
	return true
}

// write answers with body as JSON, or with 500 and the error that body cannot
// be encoded. Payloads come out as they were stored but for the white space
// between their tokens.
func write(w http.ResponseWriter, status int, contentType string, body any) error {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	secure(w.Header())
	if err := encoder.Encode(body); err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return fmt.Errorf("encoding an answer: %w", err)
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(text.Len()))
	w.WriteHeader(status)
	_, _ = w.Write(text.Bytes()) // the client may be gone
	return nil
}

// secure keeps browsers and caches from doing with an answer what it is not
// for.
func secure(header http.Header) {
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Referrer-Policy", "no-referrer")
}

// NotFound answers 404 with a problem, for a router's NotFoundHandler.
func NotFound() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, problem{Status: http.StatusNotFound, Detail: "There is nothing at this path."})
	})
}

// MethodNotAllowed answers 405 with a problem and with Allow, for the
// MethodNotAllowedHandler of root. Every route must name its path before its
// methods: mux 1.8.1 forgets that a path was found under another method as soon
// as the first condition of a later route holds.
func MethodNotAllowed(root *mux.Router) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var allowed []string
		for _, method := range []string{
			http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPatch, http.MethodPost, http.MethodPut,
		} {
			other := r.WithContext(r.Context()) // a copy
			other.Method = method
			var match mux.RouteMatch
			if root.Match(other, &match) && match.MatchErr == nil {
				allowed = append(allowed, method)
			}
		}
		allow := strings.Join(allowed, ", ")
		w.Header().Set("Allow", allow)
		refuse(w, problem{Status: http.StatusMethodNotAllowed, Detail: "This path takes " + allow + "."})
	})
}
