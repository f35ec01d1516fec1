package source

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// Source is a source with its secrets, ready to verify requests and to read them. It does not change. It is safe for
// concurrent use.
type Source struct {
	Redactor  // keeps secrets out of what is stored
	name      string
	config    Config
	methods   []*method
	reader    *reader
	handshake *handshake
	single    []string
	unread    []event.Problem // secrets that cannot be read, beside some that can
	until     time.Time       // when the last secret that can be read ends, where others cannot; else zero
	weak      []string        // references of secrets that can be guessed
}

// Compile makes a source of its settings and the secrets that they name. The error is an *event.BadSettingsError. It
// names a missing secret by its reference and never holds a secret. A secret whose time is over may be missing. So may
// any other as long as one can be read that is valid now: see Unread.
func Compile(name string, c Config, resolve SecretResolver) (*Source, error) {
	resolved, err := c.Resolve()
	if err != nil {
		return nil, err
	}
	s := &Source{name: name, Redactor: NewRedactor(resolved)}
	for _, m := range resolved.Verify {
		compiled, err := newMethod(m, resolved.URL)
		if err != nil {
			return nil, fmt.Errorf("making a method of source %s: %w", name, err) // cannot be: it was checked
		}
		s.methods = append(s.methods, compiled)
	}
	if err := s.readSecrets(resolved, resolve); err != nil {
		return nil, err
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
	if s.reader, err = newReader(name, resolved, &s.Redactor); err != nil {
		return nil, err
	}
	s.handshake = s.newHandshake(resolve)
	s.single = singleHeaders(s.methods, resolved)
	return s, nil
}

// readSecrets makes the keys of the source. The error is an *event.BadSettingsError, where no secret serves now because
// one cannot be read.
func (s *Source) readSecrets(c Config, resolve SecretResolver) error {
	now := time.Now()
	serves, endless := false, false
	for i, given := range c.Secrets {
		problem := s.addSecret(i, given, resolve)
		isOver := !given.Until.IsZero() && !now.Before(given.Until)
		switch {
		case problem != "" && !isOver:
			s.warnUnread(fmt.Sprintf("secrets[%d]", i), problem)
		case problem == "" && !isOver && !given.From.After(now):
			serves, endless = true, endless || given.Until.IsZero()
			if given.Until.After(s.until) {
				s.until = given.Until
			}
		}
	}
	if s.unread == nil || endless {
		s.until = time.Time{}
	}
	if s.unread != nil && !serves {
		return &event.BadSettingsError{Problems: s.unread}
	}
	return nil
}

// addSecret makes a key of a secret for each method that takes it, or says what is wrong with the secret. Then it makes
// none.
func (s *Source) addSecret(index int, given Secret, resolve SecretResolver) (problem string) {
	value, err := resolve(given.Ref)
	switch {
	case err != nil:
		return err.Error()
	case value.IsZero():
		return given.Ref + " is empty"
	}
	keys := make([]*key, len(s.methods))
	taken := false
	for i, m := range s.methods {
		rest, ok := m.matchSecret(value.Reveal())
		if !ok || m.Scheme == schemeNone {
			continue
		}
		if keys[i], err = m.newKey(given, rest); err != nil {
			return given.Ref + " " + err.Error()
		}
		keys[i].index = index
		taken = true
		s.learn(rest)
		if _, password, ok := strings.Cut(rest, ":"); ok && m.Scheme == schemeBasic {
			s.learn(password)
			rest = password
		}
		if len(rest) < minPart && !slices.Contains(s.weak, given.Ref) {
			s.weak = append(s.weak, given.Ref)
		}
	}
	if !taken {
		return given.Ref + " begins with nothing that a secret of this source should begin with"
	}
	for i, m := range s.methods {
		if keys[i] != nil {
			m.keys = append(m.keys, keys[i])
		}
	}
	s.learn(value.Reveal())
	return ""
}

// String is the source's name, so that no secret is printed by accident.
func (s *Source) String() string { return "source " + s.name }

// Format writes String, whatever the verb.
func (s *Source) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) } // nobody to tell

// Name is the source's slug.
func (s *Source) Name() string { return s.name }

// Config returns the settings, with those of the preset and the defaults filled in. Nobody may change them.
func (s *Source) Config() Config { return s.config }

// Handshake answers a request by which the provider asks whether it may send. Of any other request ok is false.
func (s *Source) Handshake(r *event.Request) (answer event.Answer, ok bool) {
	return s.handshake.answer(r)
}

// byteOrderMark is what some senders write before UTF-8. It is no JSON and no part of a form.
var byteOrderMark = []byte("\ufeff")

// keepMark gives the exact bytes of marked back to events that were read from plain, which is the same request without
// its byte order mark. The hash of a payload that can be queried stays: the mark makes no other payload of it.
func keepMark(events []event.Event, plain, marked *event.Request) {
	for i := range events {
		e := &events[i]
		switch {
		case e.Raw != nil: // a form, or a CloudEvent in binary mode
			e.Raw = marked.Body
		case !bytes.Equal(e.Payload, plain.Body): // a part of the body
		case e.Unqueryable != "":
			e.Payload, e.Hash = marked.Body, sha256.Sum256(marked.Body)
		default:
			e.Raw = marked.Body
		}
	}
}

// Challenge is the header WWW-Authenticate of a request that was not verified: some clients send their password only
// when they are asked for it. It is empty where the source wants none.
func (s *Source) Challenge() string {
	var challenges []string
	for _, m := range s.config.Verify {
		switch m.Scheme {
		case "basic":
			challenges = append(challenges, `Basic realm="spine", charset="UTF-8"`)
		case "bearer":
			challenges = append(challenges, `Bearer realm="spine"`)
		}
	}
	return strings.Join(slices.Compact(challenges), ", ")
}

// maxBatchHeaders is how many bytes of headers the events of one batch keep. Beyond it, the first event alone keeps
// them: a request of 50 kB would otherwise write 7 MB.
const maxBatchHeaders = 256 << 10

// Read makes events of a request that was verified. There is one, or there are those of a batch, which may be empty and
// whose answer is a list. The error is an *event.SyntaxError or an *event.InvalidError. The events share memory with
// the request, which must not change while they are in use.
func (s *Source) Read(r *event.Request) (events []event.Event, batch bool, err error) {
	plain := *r
	plain.Body = bytes.TrimPrefix(r.Body, byteOrderMark)
	events, batch, err = s.reader.read(&plain)
	if err != nil {
		return nil, false, err
	}
	if len(plain.Body) != len(r.Body) {
		keepMark(events, &plain, r)
	}
	for i := range events {
		// An id and a type are shown everywhere, and the payload where it is asked for.
		if s.exposesSecret(events[i].ID) || s.exposesSecret(events[i].Type) {
			return nil, false, &event.InvalidError{Problems: []event.Problem{{
				Detail: "must not hold the secret of a source in its id or type",
			}}}
		}
	}
	if !s.InsistsOnJSON() {
		headers := s.Redact(r.Header)
		for i := range events {
			if i == 1 && len(events)*len(headers) > maxBatchHeaders {
				headers = []byte("{}")
			}
			events[i].Headers = headers
		}
	}
	return events, batch, err
}

// InsistsOnJSON reports whether the source rejects content types other than JSON. That of an envelope does.
func (s *Source) InsistsOnJSON() bool { return s.config.Format == "envelope" }

// SignsBody reports whether a signature covers the body. Headers that it does not cover must not change what the body
// means.
func (s *Source) SignsBody() bool { return s.reader.signed }

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
		t, _ := parseTemplate(rule) // one that cannot be read reads nothing
		for _, part := range t {
			if part.kind == ruleHeader {
				names[part.name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// isOpen reports whether the source takes requests from anyone.
func (s *Source) isOpen() bool { return s.methods[0].Scheme == schemeNone }

// warnings say what is wrong with a source that works.
func (s *Source) warnings(now time.Time) []string {
	var lines []string
	for _, p := range s.unread {
		lines = append(lines, p.Field+" "+p.Detail)
	}
	for _, ref := range s.weak {
		lines = append(lines, fmt.Sprintf("%s has fewer than %d bytes: it can be guessed", ref, minPart))
	}
	if s.isOpen() {
		return lines
	}
	for _, m := range s.methods {
		if slices.ContainsFunc(m.keys, func(k *key) bool { return k.validAt(now) }) {
			return lines
		}
	}
	return append(lines, "none of its secrets is valid now: every request is rejected")
}

// expired reports whether the secrets of a source have ended while others of it, which may be valid, cannot be read.
func (s *Source) expired(now time.Time) bool { return !s.until.IsZero() && !now.Before(s.until) }
