package event

import "strings"

// SyntaxError says that a body is not one JSON text (RFC 8259): it is empty,
// cut short, followed by something else, or breaks the grammar.
type SyntaxError struct {
	Offset int64  // byte offset at or after which the body stops being JSON
	Detail string // what the body is instead and where, as in "cut short after byte 6"; safe to show to the sender
}

func (e *SyntaxError) Error() string { return "the body is " + e.Detail }

// InvalidError says that a body is JSON but not a valid event.
type InvalidError struct {
	Problems []Problem // at least one; all that were found, in the order of the fields
}

func (e *InvalidError) Error() string { return e.text("invalid event: ") }

// text lists the problems after a few words.
func (e *InvalidError) text(words string) string {
	var b strings.Builder
	b.WriteString(words)
	for i, p := range e.Problems {
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
	Detail string // what was expected and what was found, safe to show to the sender
}
