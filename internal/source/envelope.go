package source

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/webhookspine/spine/internal/event"
)

// Limits of the envelope's strings, in code points.
const (
	maxIDLength   = 255
	maxTypeLength = 100
)

// field is a member of the envelope that Spine reads. Problems are listed in this order.
type field int

const (
	fieldID field = iota
	fieldType
	fieldOccurredAt
	fieldPayload
)

const fieldCount = int(fieldPayload) + 1

func (f field) String() string {
	return [fieldCount]string{"event_id", "event_type", "occurred_at", "payload"}[f]
}

// envelope is a body taken apart. It is JSON, and not yet judged as an event.
type envelope struct {
	values   [fieldCount]jsontext.Value // as sent, parts of the body; nil where missing
	problems [fieldCount]string         // what is wrong with a field, whatever its value
	other    string                     // what is wrong with an ignored member
}

// ReadEnvelope reads Spine's own envelope: an object with event_id, event_type, occurred_at and payload. It ignores
// other members, but the limits on nesting and exponents apply to them too.
//
// OccurredAt is in UTC and cut to microseconds, the precision of PostgreSQL. Payload is a part of body, which must not
// change while the event is in use.
//
// The error is an *event.SyntaxError where body is not JSON, or an *event.InvalidError that lists everything that is
// wrong with it.
func ReadEnvelope(body []byte) (event.Event, error) {
	env, err := parseEnvelope(body)
	if err != nil {
		return event.Event{}, err
	}

	e := event.Event{Source: event.DefaultSource}
	var problems []event.Problem
	for f := range field(fieldCount) {
		value, problem := env.values[f], env.problems[f]
		if value == nil {
			problem = "is required"
		}
		if problem == "" {
			switch f {
			case fieldID:
				e.ID, problem = readString(value, maxIDLength, unicode.IsControl, "control characters")
			case fieldType:
				e.Type, problem = readString(value, maxTypeLength, isNUL, "U+0000")
			case fieldOccurredAt:
				e.OccurredAt, problem = readTime(value)
			case fieldPayload:
				if value.Kind() != jsontext.KindBeginObject {
					problem = "must be an object, found " + describeKind(value)
				}
			}
		}
		if problem != "" {
			problems = append(problems, event.Problem{Field: f.String(), Detail: problem})
		}
	}
	if env.other != "" {
		problems = append(problems, event.Problem{Field: "", Detail: env.other})
	}
	if problems != nil {
		return event.Event{}, &event.InvalidError{Problems: problems}
	}

	e.Payload = env.values[fieldPayload]
	e.Hash, e.Unqueryable = fingerprint(e.Payload)
	return e, nil
}

// parseEnvelope takes body apart. It accepts repeated names and any bytes in strings, since in a payload or an ignored
// member these are no error.
func parseEnvelope(body []byte) (env envelope, err error) {
	dec := jsontext.NewDecoder(bytes.NewBuffer(body), lenientJSON...)

	if dec.PeekKind() != jsontext.KindBeginObject {
		value, err := dec.ReadValue()
		if err == nil {
			err = expectEnd(dec)
		}
		if err != nil {
			return env, readError(body, err)
		}
		return env, &event.InvalidError{Problems: []event.Problem{{
			Detail: "must be an object, found " + describeKind(value),
		}}}
	}

	if _, err := dec.ReadToken(); err != nil {
		return env, readError(body, err)
	}
	for dec.PeekKind() != jsontext.KindEndObject {
		name, err := dec.ReadValue()
		if err != nil {
			return env, readError(body, err)
		}
		f, known := lookupField(name)
		value, err := dec.ReadValue()
		if err != nil {
			return env, readError(body, err)
		}
		problem := checkLimits(value)
		switch {
		case !known:
			if env.other == "" && problem != "" {
				env.other = "holds a member that " + problem
			}
		case env.values[f] != nil:
			env.problems[f] = "must be given only once"
		default:
			env.values[f], env.problems[f] = value, problem
		}
	}
	if _, err := dec.ReadToken(); err != nil {
		return env, readError(body, err)
	}
	if err := expectEnd(dec); err != nil {
		return env, readError(body, err)
	}
	return env, nil
}

// lookupField finds the field of a quoted name. It compares names after unescaping, and case matters.
func lookupField(quoted jsontext.Value) (field, bool) {
	name := []byte(quoted[1 : len(quoted)-1])
	if bytes.IndexByte(name, '\\') >= 0 {
		// Invalid text comes out with U+FFFD in it, which no field has.
		name, _ = jsontext.AppendUnquote(nil, quoted)
	}
	for f := range field(fieldCount) {
		if string(name) == f.String() {
			return f, true
		}
	}
	return 0, false
}

// errTrailing reports a second value after the first.
var errTrailing = errors.New("more data after the end of the JSON value")

// expectEnd reports what stands after a JSON value.
func expectEnd(dec *jsontext.Decoder) error {
	switch _, err := dec.ReadToken(); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	default:
		return errTrailing
	}
}

// readError says why reading body ended early. Either body is nested too deeply to be read on, or it is not JSON.
func readError(body []byte, err error) error {
	offset, detail := int64(len(body)), err.Error()
	var syntax *jsontext.SyntacticError
	if errors.As(err, &syntax) {
		// The decoder gives up at a nesting of 10,000. Up to there body is JSON, whose nesting can be measured.
		offset = min(max(syntax.ByteOffset, 0), offset)
		if depth, _ := measureJSON(body[:offset]); depth > maxNesting+1 {
			return &event.InvalidError{Problems: []event.Problem{{Field: "", Detail: tooDeep}}}
		}
		// The position of the error is left out, since it repeats the names of the members around it.
		detail = syntax.Err.Error()
	}
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		detail = fmt.Sprintf("cut short after byte %d", offset)
	case errors.Is(err, io.EOF):
		detail = "empty"
	default:
		detail = fmt.Sprintf("not JSON: %s at byte %d", detail, offset)
	}
	return &event.SyntaxError{Offset: offset, Detail: detail}
}

func isNUL(r rune) bool { return r == 0 }

// readString reads a string of 1 to limit code points without forbidden characters. A problem calls these
// forbiddenName.
func readString(
	v jsontext.Value, limit int, forbidden func(rune) bool, forbiddenName string,
) (s, problem string) {
	if v.Kind() != jsontext.KindString {
		return "", fmt.Sprintf("must be a string of 1 to %d characters, found %s", limit, describeKind(v))
	}
	text, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return "", "must be valid Unicode, found invalid UTF-8 or a lone surrogate"
	}
	if n := utf8.RuneCount(text); n < 1 || n > limit {
		return "", fmt.Sprintf("must have 1 to %d characters, found %d", limit, n)
	}
	if bytes.ContainsFunc(text, forbidden) {
		return "", "must not contain " + forbiddenName
	}
	return string(text), ""
}

const timeWanted = "must be an RFC 3339 time between the years 0001 and 9999 such as 2024-01-30T12:00:00Z, found "

// readTime reads an RFC 3339 time. It takes one without a zone as UTC.
func readTime(v jsontext.Value) (t time.Time, problem string) {
	if v.Kind() != jsontext.KindString {
		return time.Time{}, timeWanted + describeKind(v)
	}
	text, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return time.Time{}, timeWanted + "another string"
	}
	text = bytes.ToUpper(text) // RFC 3339, section 5.6: t and z may be lower case
	if !bytes.ContainsAny(text[min(len(text), len("2006-01-02T15:04:05")):], "Z+-") {
		text = append(text, 'Z')
	}
	if err := t.UnmarshalText(text); err != nil || !isStrictRFC3339(text) {
		return time.Time{}, timeWanted + "another string"
	}
	// An offset can carry a time over either end of the range.
	utc := t.UTC().Truncate(time.Microsecond)
	if min(t.Year(), utc.Year()) < 1 || utc.Year() > 9999 {
		return time.Time{}, timeWanted + "another year"
	}
	return utc, ""
}

// isStrictRFC3339 rejects texts that package time parses although RFC 3339 forbids them: an hour of one digit, a comma
// before the fraction, an offset out of range. See https://go.dev/issue/54580.
func isStrictRFC3339(parsed []byte) bool {
	if parsed[len("2006-01-02T15")] != ':' || bytes.IndexByte(parsed, ',') >= 0 {
		return false
	}
	offset := parsed[len(parsed)-len("07:00"):]
	return parsed[len(parsed)-1] == 'Z' || string(offset[:2]) < "24" && string(offset[3:]) < "60"
}

// describeKind names the kind of a value, to stand after "found".
func describeKind(v jsontext.Value) string {
	switch v.Kind() {
	case jsontext.KindNull:
		return "null"
	case jsontext.KindTrue, jsontext.KindFalse:
		return "a boolean"
	case jsontext.KindNumber:
		return "a number"
	case jsontext.KindString:
		return "a string"
	case jsontext.KindBeginArray:
		return "an array"
	case jsontext.KindBeginObject:
		return "an object"
	default:
		return "something else"
	}
}
