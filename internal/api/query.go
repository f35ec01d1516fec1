package api

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gorilla/mux"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/respond"
	"github.com/webhookspine/spine/internal/view"
)

// listQuery is what a client asks of a list.
type listQuery struct {
	page   view.Page
	filter map[string]string
	span   view.Span
}

// readListQuery reads the parameters of a list.
func readListQuery(r *http.Request, defaultLimit int, filters ...string) (q listQuery, faults []respond.Fault) {
	q.filter, faults = parameters(r, append(filters, "limit", "cursor")...)
	q.page = view.Page{Limit: defaultLimit, Cursor: q.filter["cursor"]}
	if text, ok := q.filter["limit"]; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > MaxLimit {
			faults = append(
				faults,
				respond.Fault{Parameter: "limit", Detail: "must be a whole number from 1 to " + strconv.Itoa(MaxLimit)},
			)
		}
		q.page.Limit = n
	}
	if status, ok := q.filter["status"]; ok && !event.ValidStatus(status) {
		faults = append(
			faults,
			respond.Fault{Parameter: "status", Detail: "must be pending, processing, completed, failed or dead"},
		)
	}
	faults = append(faults, checkSuccess(q.filter)...)
	if outcome, ok := q.filter["outcome"]; ok && outcome != "success" && outcome != "failure" {
		faults = append(faults, respond.Fault{Parameter: "outcome", Detail: "must be success or failure"})
	}
	for name, end := range map[string]*time.Time{"since": &q.span.Since, "until": &q.span.Until} {
		// UnmarshalText is stricter than time.Parse, which takes some times that are not of RFC 3339.
		text, ok := q.filter[name]
		switch {
		case !ok:
		case end.UnmarshalText([]byte(text)) != nil:
			faults = append(
				faults,
				respond.Fault{
					Parameter: name,
					Detail:    "must be a time of RFC 3339, as in 2024-01-30T12:00:00Z; a + in it is written %2B",
				},
			)
		case end.IsZero(): // the first moment of the year 1, which is not an open end
			*end = end.Add(time.Microsecond)
		}
	}
	if s := q.span; !s.Since.IsZero() && !s.Until.IsZero() && !s.Since.Before(s.Until) {
		faults = append(faults, respond.Fault{Parameter: "until", Detail: "must be later than since"})
	}
	return q, faults
}

// checkSuccess returns what is wrong with a filter by success.
func checkSuccess(filter map[string]string) []respond.Fault {
	if success, ok := filter["success"]; ok && success != "success" && success != "failure" && success != "pending" {
		return []respond.Fault{{Parameter: "success", Detail: "must be success, failure or pending"}}
	}
	return nil
}

// parameters reads a query, in which each known name may stand once. An unknown name is a fault: if it were passed
// over, the answer would look like one to another question.
func parameters(r *http.Request, known ...string) (values map[string]string, faults []respond.Fault) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		faults = append(faults, respond.Fault{Detail: "the query is not well-formed"})
	}
	slices.Sort(known)
	values = make(map[string]string, len(query))
	for name, given := range query {
		switch {
		case !slices.Contains(known, name):
			faults = append(
				faults,
				respond.Fault{Parameter: name, Detail: "is not known here; known are " + strings.Join(known, ", ")},
			)
		case len(given) > 1:
			faults = append(faults, respond.Fault{Parameter: name, Detail: "came more than once"})
		case given[0] == "":
			faults = append(faults, respond.Fault{Parameter: name, Detail: "must not be empty"})
		case !storable(given[0]):
			faults = append(faults, respond.Fault{Parameter: name, Detail: "is not text that can be stored"})
		default:
			values[name] = given[0]
		}
	}
	slices.SortFunc(faults, func(a, b respond.Fault) int { return strings.Compare(a.Parameter, b.Parameter) })
	return values, faults
}

// storable reports whether Postgres takes s as text.
func storable(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// eventQuery reads a request about one event. The id is in the path, or in the parameter event_id. Browsers and proxies
// resolve the ids . and .. in a path, even percent-encoded ones. It answers 400 to parameters that make no sense. It
// answers 404 to a path with a text that cannot be an id.
func eventQuery(
	w http.ResponseWriter, r *http.Request, known ...string,
) (id string, query map[string]string, ok bool) {
	escaped, inPath := mux.Vars(r)["event_id"]
	if !inPath {
		known = append(known, "event_id")
	}
	query, faults := parameters(r, known...)
	if !inPath && !r.URL.Query().Has("event_id") {
		faults = append(faults, respond.Fault{Parameter: "event_id", Detail: "must name the event"})
	}
	if rejectQuery(w, faults) {
		return "", nil, false
	}
	if !inPath {
		return query["event_id"], query, true
	}
	id, err := url.PathUnescape(escaped)
	if ok = err == nil && storable(id); !ok {
		respond.Reject(
			w,
			respond.Problem{
				Status: http.StatusNotFound,
				Detail: "No event can have this id: it is not text that can be stored.",
			},
		)
	}
	return id, query, ok
}

// rejectQuery answers 400 if there are faults, and reports whether it did.
func rejectQuery(w http.ResponseWriter, faults []respond.Fault) bool {
	if len(faults) == 0 {
		return false
	}
	details := make([]string, len(faults))
	for i, f := range faults {
		details[i] = strings.TrimSpace(f.Parameter + " " + f.Detail)
	}
	respond.Reject(
		w,
		respond.Problem{Status: http.StatusBadRequest, Detail: strings.Join(details, "; ") + ".", Errors: faults},
	)
	return true
}
