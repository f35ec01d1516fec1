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

// Limits of a JSON value, and what is said of one that exceeds them. Postgres
// runs out of stack on deep nesting, and a few bytes with a large exponent
// become megabytes once rendered as numeric.
const (
	maxNesting  = 512  // an object or array that holds none has a nesting of 1
	maxExponent = 1000 // in either direction, as written

	tooDeep  = "is nested more than 512 levels deep"
	tooLarge = "has a number whose exponent is beyond ±1000"
)

// checkLimits says which limit a JSON value exceeds, or nothing.
func checkLimits(v jsontext.Value) (problem string) {
	depth, exponent := measure(v)
	switch {
	case depth > maxNesting:
		return tooDeep
	case exponent > maxExponent:
		return tooLarge
	}
	return ""
}

// measure finds the nesting of JSON text and its largest exponent, without its
// sign and no further than just beyond maxExponent. The text may stop anywhere
// but must be JSON up to there.
func measure(text []byte) (depth, exponent int) {
	open := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			open++
			depth = max(depth, open)
		case '}', ']':
			open--
		case 'e', 'E':
			// Outside of strings an e that follows a digit begins an exponent;
			// the others are those of true and false.
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

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// forms is room for canonical forms, which are needed for no longer than it
// takes to hash them. What one large payload needed is not kept.
var forms = sync.Pool{New: func() any { return new([]byte) }}

const maxForm = 64 << 10 // bytes

// fingerprint hashes a payload and says why Postgres cannot hold it as json, if
// it cannot. Payloads with equal hashes are the same payload: the hash is over
// the canonical form (RFC 8785 but for numbers, which stay as written, so that
// 1 and 1.0 differ and no large integer is rounded), or over the exact bytes
// where there is no such form.
func fingerprint(payload jsontext.Value) (hash [event.HashSize]byte, unqueryable string) {
	room := forms.Get().(*[]byte)
	defer forms.Put(room)
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

// containsNUL reports whether a string in JSON text holds U+0000, which can
// only be written as an escape. An escape that follows an odd number of
// backslashes is none.
func containsNUL(text []byte) bool {
	escape := []byte(`\u0000`)
	for from := 0; ; {
		i := bytes.Index(text[from:], escape)
		if i < 0 {
			return false
		}
		i += from
		backslashes := 0
		for i-backslashes > 0 && text[i-backslashes-1] == '\\' {
			backslashes++
		}
		if backslashes%2 == 0 {
			return true
		}
		from = i + len(escape)
	}
}
