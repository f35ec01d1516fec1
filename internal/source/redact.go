package source

import (
	"encoding/base64"
	"encoding/hex"
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
// the names of headers and parameters, by the look of their values, and by the secrets of its source. The zero value
// goes by names and looks alone.
type Redactor struct {
	hidden []string       // headers that hold a credential of the source, canonical
	proofs []string       // headers that hold a signature of the source, canonical
	forms  []secret.Value // the source's secrets, in each form in which a request may hold them
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
	for _, form := range []string{
		text,
		url.QueryEscape(text),
		url.PathEscape(text),
		hex.EncodeToString([]byte(text)),
		base64.RawStdEncoding.EncodeToString([]byte(text)),
		base64.RawURLEncoding.EncodeToString([]byte(text)),
	} {
		value := secret.New(form)
		if !slices.ContainsFunc(r.forms, value.Equal) {
			r.forms = append(r.forms, value)
		}
	}
}

// holdsSecret reports whether a text holds one of the source's secrets.
func (r *Redactor) holdsSecret(text string) bool {
	return slices.ContainsFunc(r.forms, func(form secret.Value) bool { return strings.Contains(text, form.Reveal()) })
}

// exposesSecret reports whether an id, a type or a value for one of them gives away one of the source's secrets.
func (r *Redactor) exposesSecret(text string) bool {
	return slices.ContainsFunc(r.forms, func(form secret.Value) bool {
		known := form.Reveal()
		return text == known || len(known) >= minPart && strings.Contains(text, known)
	})
}

// hidesHeader reports whether the values of a header are replaced. The name is canonical.
func (r *Redactor) hidesHeader(name string) bool {
	if r.names != nil {
		if known := r.names.hides.Load(); known != nil {
			if hides, isKnown := (*known)[name]; isKnown {
				return hides
			}
		}
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
// says that they are secret, values that look like a credential, and those that hold a secret of the source. It keeps a
// signature of the source, whatever its header is called, so that a stored request can be verified again. The object is
// valid UTF-8 without U+0000.
func (r *Redactor) Redact(h http.Header) []byte {
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
		canonical := canonicalName(name)
		hides, isProof := r.hidesHeader(canonical), slices.Contains(r.proofs, canonical)
		for i, value := range h[name] {
			if i > 0 {
				b = append(b, ',')
			}
			switch {
			case hides || r.holdsSecret(value) || !isProof && isCredential(value):
				value = redacted
			case !isProof: // it may be an address, as in Referer
				value = r.redactAddress(value, maxNested)
			}
			b, _ = jsontext.AppendQuote(b, storableText(value))
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

// storableText makes a text valid UTF-8 without U+0000, which PostgreSQL cannot store.
func storableText(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\ufffd"), "\x00", "\ufffd")
}

// RedactTarget returns the path and query of an address. It replaces the values of parameters as Redact replaces those
// of headers. The text is valid UTF-8 without U+0000.
func (r *Redactor) RedactTarget(u *url.URL) string {
	text := u.EscapedPath()
	if u.RawQuery != "" {
		text += "?" + r.redactQuery(u.RawQuery, maxNested)
	}
	return storableText(text)
}

// maxNested is how many addresses may stand one in another, as in ?next=https%3A%2F%2Fh%2F%3Ftoken%3D. What is nested
// deeper is replaced as a whole.
const maxNested = 3

// redactAddress replaces the secrets in an address: the user and password, and those in its query and its fragment.
func (r *Redactor) redactAddress(text string, nested int) string {
	if !strings.ContainsAny(text, "?#@") {
		return text
	}
	var b strings.Builder
	for {
		before, after, found := strings.Cut(text, "://")
		b.WriteString(before)
		if !found {
			break
		}
		b.WriteString("://")
		host := after
		if end := strings.IndexAny(after, "/?#\\ "); end >= 0 {
			host = after[:end]
		}
		if at := strings.LastIndexByte(host, '@'); at >= 0 {
			b.WriteString(redacted)
			after = after[at:]
		}
		text = after
	}
	text = b.String()
	if start := strings.IndexAny(text, "?#"); start >= 0 {
		return text[:start+1] + r.redactQuery(text[start+1:], nested)
	}
	return text
}

// hidesNested reports whether the value of a parameter is an address in which there is a secret.
func (r *Redactor) hidesNested(value string, nested int) bool {
	if !strings.ContainsAny(value, "?#@%") {
		return false
	}
	return nested == 0 || r.redactAddress(value, nested-1) != value
}

// redactQuery replaces the secrets in a query and in a fragment behind it.
func (r *Redactor) redactQuery(query string, nested int) string {
	var b strings.Builder
	for rest := query; rest != ""; {
		// Some software takes a semicolon for a separator too. A fragment may hold parameters, as OAuth's does.
		end := strings.IndexAny(rest, "&;?#")
		pair, separator := rest, ""
		if end >= 0 {
			pair, separator, rest = rest[:end], rest[end:end+1], rest[end+1:]
		} else {
			rest = ""
		}
		name, value, hasValue := strings.Cut(pair, "=")
		switch {
		case hasValue && (isSecretParameter(unescaped(name)) || isCredential(unescaped(value)) ||
			r.holdsSecret(unescaped(value)) || r.holdsSecret(value) || r.hidesNested(unescaped(value), nested)):
			pair = name + "=" + redacted
		case !hasValue && r.holdsSecret(unescaped(name)):
			pair = redacted
		}
		b.WriteString(pair)
		b.WriteString(separator)
	}
	return b.String()
}

// unescaped is a part of a query as it is meant, or as it stands where that cannot be told.
func unescaped(text string) string {
	if plain, err := url.QueryUnescape(text); err == nil {
		return plain
	}
	return text
}
