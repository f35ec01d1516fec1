package source

import (
	"errors"
	"fmt"
	"strings"

	"github.com/webhookspine/spine/internal/event"
)

// partKind is what a part of a signed message is.
type partKind int

const (
	partText      partKind = iota // as it stands
	partBody                      // the body, as it came
	partTimestamp                 // the time, as it was sent
	partURL                       // the address, as the settings have it
	partHeader                    // the value of a header
)

// signedPart is a part of a signed message.
type signedPart struct {
	kind    partKind
	text    string   // of a partText
	headers []string // of a partHeader: canonical names, of which the first that is there counts
}

// parseSigned reads a template of what is signed. Its error reads on from the name of the setting.
func parseSigned(text string) ([]signedPart, error) {
	var parts []signedPart
	for text != "" {
		before, rest, hasBrace := strings.Cut(text, "{")
		if before != "" {
			parts = append(parts, signedPart{kind: partText, text: before})
		}
		if !hasBrace {
			break
		}
		inside, after, closed := strings.Cut(rest, "}")
		if !closed {
			return nil, errors.New("has a { without its }")
		}
		text = after
		kind, names, named := strings.Cut(inside, ":")
		switch {
		case inside == "body":
			parts = append(parts, signedPart{kind: partBody})
		case inside == "timestamp":
			parts = append(parts, signedPart{kind: partTimestamp})
		case inside == "url":
			parts = append(parts, signedPart{kind: partURL})
		case kind == "header" && named:
			part := signedPart{kind: partHeader}
			for name := range strings.SplitSeq(names, "|") {
				if !isHeaderName(name) {
					return nil, errors.New("names a header that cannot be one")
				}
				part.headers = append(part.headers, canonicalName(name))
			}
			parts = append(parts, part)
		default:
			return nil, errors.New("may hold {body}, {timestamp}, {url} and {header:Name} in braces")
		}
	}
	return parts, nil
}

// touchingParts says which parts of a signed message nothing separates. One signature would then be right for two
// requests, of which one has some bytes in the one part and the other has them in the other. A time before the body
// cannot move so: with one more digit or one less it is far from now, unless times in the future are always right. The
// address is that of the settings and does not move either.
func touchingParts(parts []signedPart, pastOnly bool) (problem string) {
	for i := 1; i < len(parts); i++ {
		a, b := parts[i-1], parts[i]
		switch {
		case a.kind == partText, b.kind == partText, a.kind == partURL, b.kind == partURL:
		case a.kind == partTimestamp && b.kind == partBody && !pastOnly:
		default:
			return fmt.Sprintf(
				"must have text between %s and %s, or one signature is right for two requests", a, b)
		}
	}
	return ""
}

// String is a part as it is written in settings.
func (p signedPart) String() string {
	switch p.kind {
	case partBody:
		return "{body}"
	case partTimestamp:
		return "{timestamp}"
	case partURL:
		return "{url}"
	case partHeader:
		return "{header:" + strings.Join(p.headers, "|") + "}"
	case partText:
	}
	return p.text
}

// signedHeaders are the headers that a method signs. Each list is one of alternatives.
func signedHeaders(m Method) [][]string {
	if m.Signed == "" {
		return nil
	}
	parts, _ := parseSigned(m.Signed) // a template that cannot be read signs nothing
	var groups [][]string
	for _, part := range parts {
		if part.kind == partHeader {
			groups = append(groups, part.headers)
		}
	}
	return groups
}

// checkSignedHeaders checks that each header the signature covers came exactly once, and that its value cannot be told
// apart from its neighbors in another way: then one signature would be right for two requests.
func (m *method) checkSignedHeaders(r *event.Request) *event.UnverifiedError {
	for i, part := range m.parts {
		if part.kind != partHeader {
			continue
		}
		name, values := firstHeader(r.Header, part.headers)
		if name == "" {
			return unverified(
				causeSignatureMissing,
				"The header %s is missing: the signature covers it.",
				part.headers[0],
			)
		}
		if len(values) > 1 {
			return unverified(causeSignatureWrong, "The header %s came more than once.", name)
		}
		after, before := m.separator(i, 1), m.separator(i, -1)
		if after != "" && strings.Index(values[0]+after, after) < len(values[0]) ||
			before != "" && strings.LastIndex(before+values[0], before) > 0 {
			return unverified(
				causeSignatureWrong,
				"The header %s holds the text that separates it from what is signed beside it.",
				name,
			)
		}
	}
	return nil
}

// separator is the text between a part and the next one in a direction that could give bytes to it or take some. A time
// cannot: it is then far from now. Neither can the address, which is that of the settings.
func (m *method) separator(i, direction int) string {
	text, other := i+direction, i+2*direction
	if other < 0 || other >= len(m.parts) || m.parts[text].kind != partText {
		return ""
	}
	if kind := m.parts[other].kind; kind == partBody || kind == partHeader {
		return m.parts[text].text
	}
	return ""
}

// hmacSum makes the HMAC of a request. It belongs to h and is valid until h is used again.
func (m *method) hmacSum(h *hmacState, r *event.Request, timestamp string) []byte {
	h.mac.Reset()
	for i := range m.parts {
		if m.parts[i].kind == partBody {
			h.mac.Write(r.Wire)
			continue
		}
		h.in = m.appendPart(h.in[:0], i, r, timestamp)
		h.mac.Write(h.in)
	}
	h.out = h.mac.Sum(h.out[:0])
	return h.out
}

// signedMessage is the message that is signed.
func (m *method) signedMessage(r *event.Request, timestamp string) []byte {
	var b []byte
	for i := range m.parts {
		b = m.appendPart(b, i, r, timestamp)
	}
	return b
}

// appendPart appends one part of the message that is signed.
func (m *method) appendPart(b []byte, i int, r *event.Request, timestamp string) []byte {
	part := &m.parts[i]
	switch part.kind {
	case partText:
		b = append(b, part.text...)
	case partBody:
		b = append(b, r.Wire...)
	case partTimestamp:
		b = append(b, timestamp...)
	case partURL:
		b = append(b, m.url...)
	case partHeader:
		if _, values := firstHeader(r.Header, part.headers); len(values) > 0 {
			b = append(b, values[0]...)
		}
	}
	return b
}
