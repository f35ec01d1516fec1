package source

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// timestampKind is the kind of place where a signed time is.
type timestampKind int

const (
	timestampHeader timestampKind = iota
	timestampKey                  // in the header of the signature
	timestampBody
)

// timestampPlace is where a signed time is.
type timestampPlace struct {
	kind timestampKind
	name string // of the header, canonical; of the key; or the JSON pointer
}

// parsePlace reads a place: header:Name, key:name or body:/json/pointer.
func parsePlace(text string) (timestampPlace, error) {
	kind, name, _ := strings.Cut(text, ":")
	switch {
	case kind == "header" && isHeaderName(name):
		return timestampPlace{kind: timestampHeader, name: canonicalName(name)}, nil
	case kind == "key" && name != "":
		return timestampPlace{kind: timestampKey, name: name}, nil
	case kind == "body" && strings.HasPrefix(name, "/"):
		return timestampPlace{kind: timestampBody, name: name}, nil
	}
	return timestampPlace{}, errors.New("must be header:Name, key:name, or body:/json/pointer")
}

// sentTimestamp finds the signed time outside of the body, and its text as it was sent. If the method looks in the body
// alone, both are empty.
func (m *method) sentTimestamp(r *event.Request, header, value string) (
	t time.Time, text string, failed *event.UnverifiedError,
) {
	where, outside := "", false
	for _, p := range m.places {
		switch p.kind {
		case timestampHeader:
			outside = true
			values := r.Header[p.name]
			if len(values) > 1 {
				return t, "", unverified(causeTimestampBad, "The header %s came more than once.", p.name)
			}
			if len(values) == 0 {
				continue
			}
			text, where = values[0], p.name
		case timestampKey:
			outside = true
			n := 0
			m.eachPart(value, func(key, v string) {
				if key == p.name {
					n++
					text = v
				}
			})
			if n > 1 {
				return t, "", unverified(causeTimestampBad, "The header %s holds %s more than once.", header, p.name)
			}
			if n == 0 {
				continue
			}
			where = header
		case timestampBody:
			continue
		}
		t, ok := parseTimestamp(m.Unit, text)
		if !ok {
			return t, "", unverified(causeTimestampBad, "The header %s does not hold a time in %s.", where, m.Unit)
		}
		return t, text, nil
	}
	if outside {
		return t, "", unverified(causeTimestampBad, "The time at which the request was signed is missing.")
	}
	return t, "", nil
}

// bodyTimestamp finds the time in a body. The body's signature must have been checked before.
func (m *method) bodyTimestamp(r *event.Request) (time.Time, *event.UnverifiedError) {
	body := r.Body
	if body == nil {
		body = r.Wire
	}
	for _, p := range m.places {
		if p.kind != timestampBody {
			continue
		}
		text, ok := textAtPointer(body, p.name)
		if !ok {
			continue
		}
		if t, ok := parseTimestamp(m.Unit, text); ok {
			return t, nil
		}
		return time.Time{}, unverified(causeTimestampBad, "The body does not hold a time in %s at %s.", m.Unit, p.name)
	}
	return time.Time{}, unverified(causeTimestampBad, "The body does not hold the time at which it was sent.")
}

// checkTolerance compares the signed time with the arrival of the request.
func (m *method) checkTolerance(signed, arrived time.Time) *event.UnverifiedError {
	// The times are not subtracted here: a sender can choose one whose distance overflows a Duration.
	switch {
	case signed.Before(arrived.Add(-m.Tolerance)):
		return unverified(causeTimestampStale, "The request was signed %s before it arrived, and the tolerance is %s.",
			spanInWords(arrived, signed), spanInWords(arrived.Add(m.Tolerance), arrived))
	case signed.After(arrived.Add(m.Tolerance)) && !m.PastOnly:
		return unverified(causeTimestampStale,
			"The request was signed %s ahead of the server's clock, and the tolerance is %s.",
			spanInWords(signed, arrived), spanInWords(arrived.Add(m.Tolerance), arrived))
	}
	return nil
}

// spanInWords is the time from one moment to a later one, in its two largest units. It counts in Unix seconds, which
// overflow for no time that can be signed.
func spanInWords(later, earlier time.Time) string {
	n := later.Unix() - earlier.Unix()
	switch {
	case n < 60:
		return fmt.Sprintf("%d s", n)
	case n < 3600 && n%60 == 0:
		return fmt.Sprintf("%d min", n/60)
	case n < 3600:
		return fmt.Sprintf("%d min %d s", n/60, n%60)
	case n < 86400:
		return fmt.Sprintf("%d h %d min", n/3600, n%3600/60)
	default:
		return fmt.Sprintf("%d d %d h", n/86400, n%86400/3600)
	}
}

// parseTimestamp reads a signed time strictly: RFC 3339 with a zone, or a number in decimal digits, from 0 to the year
// 9999 and a little beyond.
func parseTimestamp(unit, text string) (time.Time, bool) {
	if unit == "rfc3339" {
		t, err := time.Parse(time.RFC3339Nano, text)
		if err != nil || !isStrictRFC3339([]byte(text)) {
			return time.Time{}, false
		}
		return t, true
	}
	// 9999-12-31 has 12 digits in seconds and 15 in milliseconds.
	maxDigits := 12
	if unit == "milliseconds" {
		maxDigits = 15
	}
	if text == "" || len(text) > maxDigits {
		return time.Time{}, false
	}
	for i := range len(text) {
		if !isDigit(text[i]) {
			return time.Time{}, false
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	if unit == "milliseconds" {
		return time.UnixMilli(n), true
	}
	return time.Unix(n, 0), true
}

// formatTimestamp is the text that parseTimestamp reads.
func formatTimestamp(unit string, t time.Time) string {
	switch unit {
	case "milliseconds":
		return strconv.FormatInt(t.UnixMilli(), 10)
	case "rfc3339":
		return t.UTC().Format(time.RFC3339)
	}
	return strconv.FormatInt(t.Unix(), 10)
}
