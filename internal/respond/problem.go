package respond

import (
	"net/http"
	"strings"

	"github.com/gorilla/mux"
)

// RetryAfter is how many seconds a client should wait after a 503.
const RetryAfter = "2"

// Problem says why a request is rejected (RFC 9457). Errors, Sources and Explanation are extension
// members.
type Problem struct {
	Type    string   `json:"type"`              // set by Reject: about:blank, since the status says it all
	Title   string   `json:"title"`             // set by Reject: the status in words
	Status  int      `json:"status"`            // the HTTP status
	Detail  string   `json:"detail"`            // what is wrong, in sentences for the client
	Errors  []Fault  `json:"errors,omitempty"`  // each fault on its own
	Sources []string `json:"sources,omitempty"` // sources that the request must choose from
	// Explanation is the sentences of Detail one by one, with their facts.
	Explanation any `json:"explanation,omitempty"`
}

// Fault says what is wrong with one part of a request: with a field of its body, or with a
// parameter of its query. If neither is set, it is about the whole request.
type Fault struct {
	Field     string `json:"field,omitempty"`
	Parameter string `json:"parameter,omitempty"`
	Detail    string `json:"detail"`
}

// Reject answers with p as application/problem+json. A 503 carries RetryAfter.
func Reject(w http.ResponseWriter, p Problem) {
	if p.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", RetryAfter)
	}
	Write(w, p.Status, "application/problem+json", p.Text())
}

// Text returns the body of an answer with p.
func (p Problem) Text() []byte {
	p.Type, p.Title = "about:blank", http.StatusText(p.Status)
	text, _ := encode(p) // a problem can always be encoded
	return text
}

// NotFound answers 404 with a problem. It is for a router's NotFoundHandler.
func NotFound() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		Reject(w, Problem{Status: http.StatusNotFound, Detail: "There is nothing at this path."})
	})
}

// MethodNotAllowed answers 405 with a problem and with Allow. It is for the MethodNotAllowedHandler
// of router. Every route must name its path before its methods: mux 1.8.1 forgets that a path was
// found under another method as soon as the first condition of a later route holds.
func MethodNotAllowed(router *mux.Router) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var allowed []string
		for _, method := range []string{
			http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodOptions,
			http.MethodPatch, http.MethodPost, http.MethodPut,
		} {
			other := r.WithContext(r.Context()) // a copy
			other.Method = method
			var match mux.RouteMatch
			if router.Match(other, &match) && match.MatchErr == nil {
				allowed = append(allowed, method)
			}
		}
		allow := strings.Join(allowed, ", ")
		w.Header().Set("Allow", allow)
		Reject(w, Problem{Status: http.StatusMethodNotAllowed, Detail: "This path takes " + allow + "."})
	})
}
