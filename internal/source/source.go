package source

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// Source is a source with its secrets, ready to verify requests and to read them. It does not change. It is safe for
// concurrent use.
type Source struct {
	name      string
	config    Config
	methods   []*method
	reader    *reader
	handshake *handshake
	single    []string
	hidden    []string // headers that hold a credential, canonical
	proofs    []string // headers that hold a signature, canonical
	values    []string // the secrets, to be kept out of headers that are stored
}

// Compile makes a source of its settings and the secrets that they name. The error is an *event.BadSettingsError. It
// names a missing secret by its reference and never holds a secret. A secret whose time is over may be missing.
func Compile(name string, c Config, resolve SecretResolver) (*Source, error) {
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
		// Only the methods that have a secret count, and they are known only now.
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
		if m.usesSignature() {
			s.proofs = append(s.proofs, m.headers...)
		} else {
			s.hidden = append(s.hidden, m.headers...)
		}
	}
	return s, nil
}

// addSecret makes a key of a secret for each method that takes it, or says what is wrong with the secret.
func (s *Source) addSecret(index int, secret Secret, resolve SecretResolver) (problem string) {
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
		rest, ok := m.matchSecret(value)
		if !ok || m.Scheme == schemeNone {
			continue
		}
		k, err := m.newKey(secret, rest)
		if err != nil {
			return secret.Ref + " " + err.Error()
		}
		k.index = index
		m.keys = append(m.keys, k)
		taken = true
	}
	if !taken {
		return secret.Ref + " begins with nothing that a secret of this source should begin with"
	}
	s.values = append(s.values, value)
	return ""
}

// String is the source's name, so that no secret is printed by accident.
func (s *Source) String() string { return "source " + s.name }

// GoString is String.
func (s *Source) GoString() string { return s.String() }

// Name is the source's slug.
func (s *Source) Name() string { return s.name }

// Config returns the settings, with those of the preset and the defaults filled in. Nobody may change them.
func (s *Source) Config() Config { return s.config }

// Handshake answers a request by which the provider asks whether it may send. Of any other request ok is false.
func (s *Source) Handshake(r *event.Request) (answer event.Answer, ok bool) {
	return s.handshake.answer(r)
}

// Read makes events of a request that was verified. There is one, or there are those of a batch, which may be empty and
// whose answer is a list. The error is an *event.SyntaxError or an *event.InvalidError. The events share memory with
// the request, which must not change while they are in use.
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

// InsistsOnJSON reports whether the source rejects content types other than JSON. That of an envelope does.
func (s *Source) InsistsOnJSON() bool { return s.config.Format == "envelope" }

// Allowed returns the HTTP methods that the source takes besides POST.
func (s *Source) Allowed() []string { return s.handshake.methods() }

// SingleHeaders returns the headers that must not come twice, canonical and sorted. They are those that prove where a
// request comes from, and those that make its id, type and time.
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
			if p.kind == timestampHeader {
				names[p.name] = true
			}
		}
	}
	for _, rule := range slices.Concat(c.ID, c.Type, c.Time) {
		for _, placeholder := range placeholdersOf(rule) {
			if name, ok := strings.CutPrefix(placeholder, "header:"); ok {
				names[canonicalName(name)] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// isOpen reports whether the source takes requests from anyone.
func (s *Source) isOpen() bool { return s.methods[0].Scheme == schemeNone }

// warnings say what is wrong with a source that works.
func (s *Source) warnings(now time.Time) []string {
	if s.isOpen() {
		return nil
	}
	for _, m := range s.methods {
		if slices.ContainsFunc(m.keys, func(k *key) bool { return k.validAt(now) }) {
			return nil
		}
	}
	return []string{"none of its secrets is valid now: every request is rejected"}
}
