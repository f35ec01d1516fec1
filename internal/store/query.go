package store

import (
	"slices"
	"strconv"
	"strings"

	"github.com/webhookspine/spine/internal/view"
)

// query gathers the conditions of a list and their arguments. Only filters that are set become part of the text, so
// that Postgres plans each combination for itself.
type query struct {
	terms []string
	args  []any
}

// arg adds an argument and returns its placeholder.
func (q *query) arg(value any) string {
	q.args = append(q.args, value)
	return "$" + strconv.Itoa(len(q.args))
}

// where adds a condition, in which each ? stands for an argument.
func (q *query) where(term string, args ...any) {
	for _, a := range args {
		term = strings.Replace(term, "?", q.arg(a), 1)
	}
	q.terms = append(q.terms, term)
}

// equal adds a condition where there is a value.
func (q *query) equal(expression, value string) {
	if value != "" {
		q.where(expression+" = ?", value)
	}
}

// within adds the conditions of a span.
func (q *query) within(expression string, span view.Span) {
	if !span.Since.IsZero() {
		q.where(expression+" >= ?", span.Since)
	}
	if !span.Until.IsZero() {
		q.where(expression+" < ?", span.Until)
	}
}

// and returns the query with one more condition.
func (q query) and(term string, args ...any) query {
	more := query{terms: slices.Clone(q.terms), args: slices.Clone(q.args)}
	more.where(term, args...)
	return more
}

// eventsNamed is an array of the events of this id in all sources.
func (q *query) eventsNamed(eventID string) string {
	return "array(select n.id from spine.events n where n.event_id = " + q.arg(eventID) + ")"
}

func (q *query) conditions() string {
	if len(q.terms) == 0 {
		return ""
	}
	return " where " + strings.Join(q.terms, " and ")
}

// typeOf is an expression for the type of an event. It is not a join, which the planner might begin with all events of
// the type. Arrivals that an event's trail leaves out have the negative key.
func typeOf(key string) string {
	return "(select e.event_type from spine.events e where e.id = abs(" + key + "))"
}

// storedAt is an expression for the time at which an event was stored.
func storedAt(key string) string {
	return "(select e.created_at from spine.events e where e.id = " + key + ")"
}
