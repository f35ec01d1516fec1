package source

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// redacted stands for a secret.
const redacted = "[redacted]"

// minSecret is the length in bytes from which on a secret is looked for in the values of headers. A shorter one would
// be found in too many of them.
const minSecret = 8

// secretParameters are parameters that hold a secret, besides those of isSecret. As parts of other names these words
// mean nothing.
var secretParameters = []string{"key", "auth", "pass", "pwd"}

// isSecret reports whether a header or parameter of this name holds a secret.
func isSecret(name string) bool {
	name = strings.ToLower(name)
	for _, word := range []string{
		"authorization", "cookie", "token", "secret", "passw", "credential", "api-key", "api_key", "apikey",
	} {
		if strings.Contains(name, word) {
			return true
		}
	}
	return false
}

// Redact returns headers as a JSON object of names and lists of values, sorted. It replaces values whose header's name
// says that they are secret, and values that hold a secret of the source. It keeps a signature, whatever its header is
// called, so that a stored request can be verified again. The object is valid UTF-8 without U+0000.
func (s *Source) Redact(h http.Header) []byte {
	b := []byte{'{'}
	written := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		text := storableText(name)
		if written[text] {
			continue // two names that no header can have came to the same text
		}
		written[text] = true
		if len(b) > 1 {
			b = append(b, ',')
		}
		b, _ = jsontext.AppendQuote(b, text) // it is valid
		b = append(b, ':', '[')
		secret := s.hidesHeader(canonicalName(name))
		for i, value := range h[name] {
			if i > 0 {
				b = append(b, ',')
			}
			if secret || s.holdsSecret(value) {
				value = redacted
			}
			b, _ = jsontext.AppendQuote(b, storableText(value))
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

// hidesHeader reports whether the values of a header are replaced.
func (s *Source) hidesHeader(name string) bool {
	if slices.Contains(s.hidden, name) || name == "Authorization" || name == "Proxy-Authorization" {
		return true
	}
	return isSecret(name) && !slices.Contains(s.proofs, name)
}

// holdsSecret reports whether a text holds one of the source's secrets.
func (s *Source) holdsSecret(text string) bool {
	return slices.ContainsFunc(s.values, func(secret string) bool {
		return len(secret) >= minSecret && strings.Contains(text, secret)
	})
}

// storableText makes a text valid UTF-8 without U+0000, which PostgreSQL cannot store.
func storableText(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\ufffd"), "\x00", "\ufffd")
}

// RedactTarget returns the path and query of an address. It replaces the values of parameters whose name says that they
// are secret. The text is valid UTF-8 without U+0000.
func RedactTarget(u *url.URL) string {
	var b strings.Builder
	b.WriteString(u.EscapedPath())
	if u.RawQuery != "" {
		b.WriteByte('?')
	}
	for rest := u.RawQuery; rest != ""; {
		// Some software takes a semicolon for a separator too.
		end := strings.IndexAny(rest, "&;")
		pair, separator := rest, ""
		if end >= 0 {
			pair, separator, rest = rest[:end], rest[end:end+1], rest[end+1:]
		} else {
			rest = ""
		}
		name, _, hasValue := strings.Cut(pair, "=")
		plainName, err := url.QueryUnescape(name)
		if err != nil {
			plainName = name
		}
		if hasValue && (isSecret(plainName) || slices.Contains(secretParameters, strings.ToLower(plainName))) {
			pair = name + "=" + redacted
		}
		b.WriteString(pair)
		b.WriteString(separator)
	}
	return storableText(b.String())
}
