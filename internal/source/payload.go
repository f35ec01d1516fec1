package source

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"sync"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/webhookspine/spine/internal/event"
)

// Limits of a JSON value, and the problems of one that exceeds them. PostgreSQL runs out of stack on deep nesting. A
// few bytes with a large exponent become megabytes as numeric.
const (
	maxNesting  = 512  // levels; an object or array with neither inside has a nesting of 1
	maxExponent = 1000 // in either direction, as written

	tooDeep  = "is nested more than 512 levels deep"
	tooLarge = "has a number whose exponent is beyond ±1000"
)

// checkLimits says which limit a JSON value exceeds. It is empty if there is none.
func checkLimits(v jsontext.Value) (problem string) {
	depth, exponent := measureJSON(v)
	switch {
	case depth > maxNesting:
		return tooDeep
	case exponent > maxExponent:
		return tooLarge
	}
	return ""
}

// measureJSON finds the nesting of JSON text and its largest exponent, without the sign. An exponent is at most
// maxExponent+1. The text may stop anywhere, but must be JSON up to there.
func measureJSON(text []byte) (depth, exponent int) {
	open := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			i = endOfString(text, i)
		case '{', '[':
			open++
			depth = max(depth, open)
		case '}', ']':
			open--
		case 'e', 'E':
			// Outside of strings an e after a digit begins an exponent. The others are those of true and false.
			if i == 0 || !isDigit(text[i-1]) {
				continue
			}
			if i+1 < len(text) && (text[i+1] == '+' || text[i+1] == '-') {
				i++
			}
			n := 0
			for i+1 < len(text) && isDigit(text[i+1]) {
				i++
				n = min(10*n+int(text[i]-'0'), maxExponent+1)
			}
			exponent = max(exponent, n)
		}
	}
	return depth, exponent
}

// endOfString returns where the string ends that begins at start: its closing quote, or the end of text.
func endOfString(text []byte, start int) int {
	for from := start + 1; ; {
		i := bytes.IndexByte(text[from:], '"')
		if i < 0 {
			return len(text)
		}
		end := from + i
		if countBackslashes(text[start+1:end])%2 == 0 {
			return end
		}
		from = end + 1
	}
}

// countBackslashes counts the backslashes at the end of text. After an odd number the next character is escaped.
func countBackslashes(text []byte) int { return len(text) - len(bytes.TrimRight(text, `\`)) }

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// canonicalForms is room for canonical forms, which live only until they are hashed.
var canonicalForms = sync.Pool{New: func() any { return new([]byte) }}

// maxForm is the largest room that goes back to the pool, in bytes. That of a large payload is freed.
const maxForm = 64 << 10

// fingerprint hashes a payload. Payloads with equal hashes are the same payload. The hash is over the canonical form:
// RFC 8785, but numbers stay as written. So 1 and 1.0 differ, and no large integer is rounded. If PostgreSQL cannot
// store the payload as json, unqueryable says why, and the hash is over the exact bytes.
func fingerprint(payload jsontext.Value) (hash [event.HashSize]byte, unqueryable string) {
	room := canonicalForms.Get().(*[]byte)
	defer canonicalForms.Put(room)
	form, err := jsontext.AppendFormat((*room)[:0], payload, jsontext.ReorderRawObjects(true))
	if cap(form) <= maxForm {
		*room = form
	}
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		unqueryable = "duplicate names in an object"
	case err != nil && !utf8.Valid(payload):
		unqueryable = "invalid UTF-8 in a string"
	case err != nil:
		unqueryable = "a lone surrogate in a string"
	case containsNUL(form):
		unqueryable = `\u0000 in a string`
	}
	if unqueryable != "" {
		return sha256.Sum256(payload), unqueryable
	}
	return sha256.Sum256(form), ""
}

// containsNUL reports whether a string in JSON text holds U+0000, which can only be written as an escape. After an odd
// number of backslashes it is not an escape.
func containsNUL(text []byte) bool {
	escape := []byte(`\u0000`)
	for from := 0; ; {
		i := bytes.Index(text[from:], escape)
		if i < 0 {
			return false
		}
		i += from
		if countBackslashes(text[:i])%2 == 0 {
			return true
		}
		from = i + len(escape)
	}
}
