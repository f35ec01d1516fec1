package source

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/webhookspine/spine/internal/event"
)

// Source is one that requests come to, ready to verify and read them. It does
// not change and may be used by many goroutines.
type Source struct {
	name      string
	config    Config
	methods   []*method
	reader    *reader
	handshake *handshake
	single    []string
	hidden    []string // headers that hold a credential, canonical
	proofs    []string // headers that hold a signature, canonical
	values    []string // the secrets, to be kept out of what is shown
}

// Compile makes a source of its settings and the secrets that they name. The
// error is an *event.BadSettingsError; it names what is missing by its reference
// and never holds a secret. A secret that no longer holds may be gone.
func Compile(name string, c Config, resolve Resolve) (*Source, error) {
	resolved, err := c.Resolve()
	if err != nil {
		return nil, err
	}
	s := &Source{name: name}
	for _, m := range resolved.Verify {
		compiled, err := newMethod(m, resolved.URL)
		if err != nil {
			return nil, fmt.Errorf("making a method of source %s: %w", name, err) // cannot be: it was checked
		}
		s.methods = append(s.methods, compiled)
	}
	p := settingsParser{}
	for i, secret := range resolved.Secrets {
		if problem := s.addSecret(i, secret, resolve); problem != "" {
			p.add(fmt.Sprintf("secrets[%d]", i), problem)
		}
	}
	if p.problems != nil {
		return nil, &event.BadSettingsError{Problems: p.problems}
	}
	if c.IDSigned == nil {
		// Only now it is known which methods there are secrets for.
		var used []Method
		for _, m := range s.methods {
			if m.Scheme == schemeNone || len(m.keys) > 0 {
				used = append(used, m.Method)
			}
		}
		signed := idIsSigned(resolved, used)
		resolved.IDSigned = &signed
	}
	s.config = resolved
	if s.reader, err = newReader(name, resolved); err != nil {
		return nil, err
	}
	if s.handshake, err = newHandshake(resolved, resolve); err != nil {
		return nil, err
	}
	s.single = singleHeaders(s.methods, resolved)
	for _, m := range s.methods {
		if m.signs() {
			s.proofs = append(s.proofs, m.headers...)
		} else {
			s.hidden = append(s.hidden, m.headers...)
		}
	}
	return s, nil
}

// addSecret makes the keys of a secret, or says what is wrong with it.
func (s *Source) addSecret(place int, secret Secret, resolve Resolve) (problem string) {
	value, err := resolve(secret.Ref)
	if err != nil && !secret.Until.IsZero() && time.Now().After(secret.Until) {
		return ""
	}
	if err != nil {
		return err.Error()
	}
	if value == "" {
		return secret.Ref + " is empty"
	}
	taken := false
	for _, m := range s.methods {
		rest, ok := m.takes(value)
		if !ok || m.Scheme == schemeNone {
			continue
		}
		k, err := m.newKey(secret, rest)
		if err != nil {
			return secret.Ref + " " + err.Error()
		}
		k.place = place
		m.keys = append(m.keys, k)
		taken = true
	}
	if !taken {
		return secret.Ref + " begins with nothing that a secret of this source should begin with"
	}
	s.values = append(s.values, value)
	return ""
}

// String is the source's name: a secret is never printed by accident.
func (s *Source) String() string { return "source " + s.name }

// GoString is String.
func (s *Source) GoString() string { return s.String() }

// Name is the source's slug.
func (s *Source) Name() string { return s.name }

// Config returns the settings, with what was left out filled in. They must not
// be changed.
func (s *Source) Config() Config { return s.config }

// Verify checks that a request comes from who may send: by its method's header,
// Wire, URL and At, which is what secrets and timestamps are judged by. The error
// is an *event.UnverifiedError.
func (s *Source) Verify(r *event.Request) error {
	methods := s.methods
	for i, m := range methods {
		if header, _ := m.find(r.Header); m.Final && header != "" {
			methods = methods[i : i+1]
			break
		}
	}
	var worst *event.UnverifiedError
	for _, m := range methods {
		if m.Scheme == schemeNone {
			return nil
		}
		header, values := m.find(r.Header)
		if header == "" || len(m.keys) == 0 && !m.Final {
			continue
		}
		var failed *event.UnverifiedError
		if len(values) > 1 {
			_, wrong := m.causes()
			failed = unverified(wrong, "The header %s came more than once.", header)
		} else if failed = m.verify(r, header, values[0]); failed == nil {
			return nil
		}
		if worst == nil || telling(failed) > telling(worst) {
			worst = failed
		}
	}
	if worst != nil {
		return worst
	}
	return s.missing()
}

// telling orders what went wrong by how near it was to being right.
func telling(e *event.UnverifiedError) int {
	return slices.Index([]string{
		causeSignatureMissing, causeCredentialsMissing, causeCredentialsWrong, causeSignatureWrong, causeTimestampBad, causeTimestampStale,
	}, e.Cause)
}

// missing names the headers that a request could prove itself by.
func (s *Source) missing() *event.UnverifiedError {
	cause := ""
	var names []string
	for _, m := range s.methods {
		if len(m.keys) == 0 {
			continue
		}
		if cause == "" {
			cause, _ = m.causes()
		}
		for _, name := range m.headers {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	switch cause {
	case "":
		_, wrong := s.methods[0].causes()
		return unverified(wrong, "The source has no secret any more that a request could be verified by.")
	case causeSignatureMissing:
		return unverified(cause, "The request is not signed: it has no header %s.", strings.Join(names, " or "))
	}
	return unverified(cause, "The request has no credentials: it has no header %s.", strings.Join(names, " or "))
}

// Handshake answers a request by which the provider asks whether it may send;
// ok is false where the request is none.
func (s *Source) Handshake(r *event.Request) (answer event.Answer, ok bool) {
	return s.handshake.answer(r)
}

// Read makes events of a request that was verified: one, or those of a batch,
// which may have none and is answered with a list. The error is an
// *event.SyntaxError or an *event.InvalidError. Parts of the request become
// parts of the events: it must not be changed while those are in use.
func (s *Source) Read(r *event.Request) (events []event.Event, batch bool, err error) {
	events, batch, err = s.reader.read(r)
	if err == nil && !s.InsistsOnJSON() {
		headers := s.Redact(r.Header)
		for i := range events {
			events[i].Headers = headers
		}
	}
	return events, batch, err
}

// InsistsOnJSON reports whether other content types than JSON are refused: those
// of an envelope, which has a place for everything.
func (s *Source) InsistsOnJSON() bool { return s.config.Format == "envelope" }

// Allowed returns the methods that the source takes besides POST.
func (s *Source) Allowed() []string { return s.handshake.methods() }

// SingleHeaders returns the headers that must not come twice, canonical and
// sorted: those that prove where a request comes from, and those that its id,
// type and time are made of.
func (s *Source) SingleHeaders() []string { return s.single }

func singleHeaders(methods []*method, c Config) []string {
	names := map[string]bool{}
	for _, m := range methods {
		for _, name := range m.headers {
			names[name] = true
		}
		for _, part := range m.parts {
			for _, name := range part.headers {
				names[name] = true
			}
		}
		for _, p := range m.places {
			if p.kind == placeHeader {
				names[p.name] = true
			}
		}
	}
	for _, rule := range slices.Concat(c.ID, c.Type, c.Time) {
		for _, placeholder := range placeholders(rule) {
			if name, ok := strings.CutPrefix(placeholder, "header:"); ok {
				names[canonical(name)] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// redacted stands for what is a secret.
const redacted = "[redacted]"

// isSecret reports whether what has this name is a secret.
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

// Redact returns headers as a JSON object of names and lists of values, sorted.
// Values that are secrets by their name or hold one of the source's are left out.
// A signature is no secret, whatever its header is called: a request that is kept
// can be verified again. It is valid UTF-8 without U+0000, whatever the headers hold.
func (s *Source) Redact(h http.Header) []byte {
	b := []byte{'{'}
	shown := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		text := showable(name)
		if shown[text] {
			continue // only a name that no header can have is not shown as it is
		}
		shown[text] = true
		if len(b) > 1 {
			b = append(b, ',')
		}
		b, _ = jsontext.AppendQuote(b, text) // it is valid
		b = append(b, ':', '[')
		secret := s.hides(canonical(name))
		for i, value := range h[name] {
			if i > 0 {
				b = append(b, ',')
			}
			if secret || s.holdsSecret(value) {
				value = redacted
			}
			b, _ = jsontext.AppendQuote(b, showable(value))
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

// hides reports whether the values of a header are left out.
func (s *Source) hides(name string) bool {
	if slices.Contains(s.hidden, name) || name == "Authorization" || name == "Proxy-Authorization" {
		return true
	}
	return isSecret(name) && !slices.Contains(s.proofs, name)
}

// holdsSecret reports whether a text holds one of the source's secrets, under
// whatever name. Short ones are found in too much to be looked for.
func (s *Source) holdsSecret(text string) bool {
	return slices.ContainsFunc(s.values, func(secret string) bool {
		return len(secret) >= 8 && strings.Contains(text, secret)
	})
}

// showable makes a text valid UTF-8 without U+0000.
func showable(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\ufffd"), "\x00", "\ufffd")
}

// RedactTarget returns the path and query of an address, without the values that
// are secrets by the name of their parameter. It is valid UTF-8 without U+0000.
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
		name, _, valued := strings.Cut(pair, "=")
		plain, err := url.QueryUnescape(name)
		if err != nil {
			plain = name
		}
		if valued && (isSecret(plain) || slices.Contains([]string{"key", "auth", "pass", "pwd"}, strings.ToLower(plain))) {
			pair = name + "=" + redacted
		}
		b.WriteString(pair)
		b.WriteString(separator)
	}
	return showable(b.String())
}

// open reports whether the source takes requests from anyone.
func (s *Source) open() bool { return s.methods[0].Scheme == schemeNone }

// warnings say what is wrong with the source though it works.
func (s *Source) warnings(now time.Time) []string {
	if s.open() {
		return nil
	}
	holds := false
	for _, m := range s.methods {
		for _, k := range m.keys {
			holds = holds || k.holds(now)
		}
	}
	if !holds {
		return []string{"none of its secrets holds now: every request is refused"}
	}
	return nil
}
