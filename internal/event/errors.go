package event

import (
	"errors"
	"strings"
)

// ErrHintless says that no notifications are sent now, since Postgres's queue of them is nearly full.
var ErrHintless = errors.New("no notifications are sent: Postgres's queue of them is nearly full")

// SyntaxError says that a body is not one JSON text (RFC 8259): it is empty, cut short, followed by other text, or
// breaks the grammar.
type SyntaxError struct {
	Offset int64  // in bytes; the body stops being JSON there or later
	Detail string // what the body is and where, such as "cut short after byte 6"; safe to show to the sender
}

func (e *SyntaxError) Error() string { return "the body is " + e.Detail }

// InvalidError says that a body is JSON but not a valid event.
type InvalidError struct {
	Problems []Problem // all of them, in the order of the fields; at least one
}

func (e *InvalidError) Error() string { return listProblems("invalid event: ", e.Problems) }

// listProblems lists problems after a few words.
func listProblems(words string, problems []Problem) string {
	var b strings.Builder
	b.WriteString(words)
	for i, p := range problems {
		if i > 0 {
			b.WriteString("; ")
		}
		if p.Field != "" {
			b.WriteString(p.Field)
			b.WriteByte(' ')
		}
		b.WriteString(p.Detail)
	}
	return b.String()
}

// Problem is one thing that is wrong with a body.
type Problem struct {
	Field  string // name of the envelope field, such as "event_id"; empty for the body as a whole
	Detail string // what was expected and what was found; safe to show to the sender
}
