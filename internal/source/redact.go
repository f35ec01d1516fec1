package source

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/webhookspine/spine/internal/secret"
)

// redacted stands for a secret.
const redacted = "[redacted]"

// minSecret is the length in bytes from which on a secret is looked for in texts. A shorter one would be found in too
// many of them.
const minSecret = 8

// minPart is the length in bytes from which on a secret is looked for inside of ids and types. A shorter one may be an
// ordinary word, so that only a text that is the secret counts.
const minPart = 16

// Redactor keeps secrets out of what is stored of requests, and away from the rules of ids, types and times. It goes by
// the names of headers and parameters, by the look of their values, and by the secrets of its source. That of a
// Registry goes by the secrets of all sources. The zero value goes by names and looks alone.
type Redactor struct {
	hidden []string       // headers that hold a credential of the source, canonical
	proofs []string       // headers that hold a signature of the source, canonical
	forms  []secret.Value // the source's secrets, in each form in which a request may hold them, in lower case
	known  *secretSet     // those of all sources of the process, its own among them; nil outside of a Registry
	names  *nameCache     // nil where nothing is remembered
}

// nameCache remembers which headers are hidden. Senders send the same names again and again, and to look at the words
// of a name takes longer than all else that is done with a header.
type nameCache struct {
	hides atomic.Pointer[map[string]bool]
}

// Bounds of a nameCache.
const (
	maxNames      = 1000
	maxNameLength = 64 // bytes
)

// remember adds a name, unless it is long, there are too many, or another one is added at the same time.
func (c *nameCache) remember(name string, hides bool) {
	if len(name) > maxNameLength {
		return
	}
	before := c.hides.Load()
	after := map[string]bool{}
	if before != nil {
		if len(*before) >= maxNames {
			return
		}
		maps.Copy(after, *before)
	}
	after[strings.Clone(name)] = hides
	c.hides.CompareAndSwap(before, &after)
}

// NewRedactor returns a Redactor for settings with those of the preset filled in. It does not know the secrets
// themselves, so it serves where these cannot be read.
func NewRedactor(c Config) Redactor {
	r := Redactor{names: &nameCache{}}
	for _, m := range c.Verify {
		for _, name := range m.Header {
			if m.usesSignature() {
				r.proofs = append(r.proofs, canonicalName(name))
			} else {
				r.hidden = append(r.hidden, canonicalName(name))
			}
		}
	}
	return r
}

// learn adds a secret to those that the Redactor looks for.
func (r *Redactor) learn(text string) {
	if len(text) < minSecret {
		return
	}
	for _, form := range secret.Forms(text) {
		value := secret.New(strings.ToLower(form))
		if !slices.ContainsFunc(r.forms, value.Equal) {
			r.forms = append(r.forms, value)
		}
	}
}

// holdsSecret reports whether a text holds one of the secrets, in letters of whatever case.
func (r *Redactor) holdsSecret(text string) bool { return len(text) >= minSecret && r.has(text, 0) }

// has reports whether a text is one of the secrets, or holds one of so many bytes or more.
func (r *Redactor) has(text string, least int) bool {
	if r.known != nil {
		index := r.known.index.Load()
		return index != nil && index.in(strings.ToLower(text), least)
	}
	if len(r.forms) == 0 {
		return false
	}
	text = strings.ToLower(text)
	return slices.ContainsFunc(r.forms, func(form secret.Value) bool {
		known := form.Reveal()
		return text == known || len(known) >= least && strings.Contains(text, known)
	})
}

// isSecretItself reports whether the name of a header is a credential or holds a secret.
func (r *Redactor) isSecretItself(name string) bool {
	name = strings.ToLower(name)
	for range maxNested {
		if strings.HasPrefix(name, "eyj") && strings.Count(name, ".") >= 2 || // a JSON Web Token
			r.holdsSecret(name) {
			return true
		}
		plain := strings.ToLower(secret.Unescaped(name))
		if plain == name {
			return false
		}
		name = plain
	}
	return true
}

// exposesSecret reports whether an id, a type or a value for one of them gives away one of the secrets.
func (r *Redactor) exposesSecret(text string) bool { return r.has(text, minPart) }

// hidesHeader reports whether the values of a header are replaced. The name is canonical.
func (r *Redactor) hidesHeader(name string) bool {
	if r.names != nil {
		if known := r.names.hides.Load(); known != nil {
			if hides, isKnown := (*known)[name]; isKnown {
				return hides
			}
		}
	}
	if r.isSecretItself(name) {
		return true // and not remembered
	}
	hides := slices.Contains(r.hidden, name) || name == "Authorization" || name == "Proxy-Authorization" ||
		isSecret(name) && !slices.Contains(r.proofs, name)
	if r.names != nil {
		r.names.remember(name, hides)
	}
	return hides
}

// hidesFromRules reports whether a header is one that no rule may name and no reader sees: it holds a credential or a
// signature. The name is canonical.
func (r *Redactor) hidesFromRules(name string) bool {
	return slices.Contains(r.proofs, name) || isSignature(name) || r.hidesHeader(name)
}

// hidesValue reports whether a value of a header that is not hidden looks like a credential, or is a secret.
func (r *Redactor) hidesValue(value string) bool {
	return isCredential(value) || r.exposesSecret(value)
}

// Redact returns headers as a JSON object of names and lists of values, sorted. It replaces values whose header's name
// says that they are secret, values that look like a credential, and those that hold a secret of the source. In other
// values it replaces what redactText finds. It keeps a signature of the source, whatever its header is called, so that
// a stored request can be verified again. The object is valid UTF-8 without U+0000.
func (r *Redactor) Redact(h http.Header) []byte {
	b := []byte{'{'}
	written := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		canonical := canonicalName(name)
		hides, isProof := r.hidesHeader(canonical), slices.Contains(r.proofs, canonical)
		text := storableText(name)
		if hides && r.isSecretItself(canonical) {
			text = redacted
		}
		if written[text] {
			continue // names that are secrets, or that no header can have, came to the same text
		}
		written[text] = true
		if len(b) > 1 {
			b = append(b, ',')
		}
		hides = hides || len(h[name]) > 1 && r.spreadsOverLines(h[name])
		b, _ = jsontext.AppendQuote(b, text) // it is valid
		b = append(b, ':', '[')
		for i, value := range h[name] {
			if i > 0 {
				b = append(b, ',')
			}
			switch {
			case hides || r.holdsSecret(value) || !isProof && isCredential(value):
				value = redacted
			case !isProof:
				value = r.redactText(value, canonical, maxNested)
			}
			b, _ = jsontext.AppendQuote(b, storableText(value))
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

// spreadsOverLines reports whether the lines of a header hold a secret together that none of them holds alone. They are
// one list (RFC 9110, section 5.2).
func (r *Redactor) spreadsOverLines(lines []string) bool {
	lines = slices.DeleteFunc(slices.Clone(lines), r.holdsSecret)
	return slices.ContainsFunc([]string{"", ",", ", "}, func(separator string) bool {
		return r.holdsSecret(strings.Join(lines, separator))
	})
}

// storableText makes a text valid UTF-8 without U+0000, which PostgreSQL cannot store.
func storableText(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\ufffd"), "\x00", "\ufffd")
}

// RedactTarget returns the path and query of an address without what redactText finds there. The text is valid UTF-8
// without U+0000.
func (r *Redactor) RedactTarget(u *url.URL) string {
	path := strings.Split(r.redactPairs(u.EscapedPath(), ""), "/")
	for i, segment := range path {
		if r.hides(segment, "", maxNested) {
			path[i] = redacted
		}
	}
	text := strings.Join(path, "/")
	if r.holdsSecret(secret.Unescaped(text)) {
		text = "/" + redacted // the secret has slashes
	}
	if u.RawQuery != "" {
		text += "?" + r.redactText(u.RawQuery, "", maxNested)
	}
	return storableText(text)
}

// RedactMethod returns the method of a request, which a sender may choose freely too.
func (r *Redactor) RedactMethod(method string) string {
	if r.isSecretItself(method) {
		return redacted
	}
	return method
}
