package source

import (
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// Bounds of the settings that are lists: what a request can cost is known.
const (
	maxSecrets = 10
	maxMethods = 10
	maxList    = 20

	maxTolerance     = 365 * day
	defaultTolerance = 5 * time.Minute // what the libraries of most providers allow
)

// Defaults of what is kept of refused requests.
const (
	defaultRows  = 1000
	defaultBytes = 16 << 20
	defaultAge   = 7 * day
)

// What the settings that are a choice may be.
var (
	formats    = []string{"envelope", "body", "cloudevents"}
	handshakes = []string{"none", "slack", "meta", "discord", "cloudevents"}
	policies   = []string{"keep", "refuse"}
	schemes    = []string{schemeHMAC, schemeEd25519, schemeToken, schemeBearer, schemeBasic, schemeTwilio, schemeNone}
	hashes     = []string{"sha256", "sha1", "sha512"}
	encodings  = []string{"hex", "base64"}
	secretKind = []string{"text", "base64", "hex"}
	units      = []string{"seconds", "milliseconds", "rfc3339"}
)

// The schemes of a Method.
const (
	schemeHMAC    = "hmac"
	schemeEd25519 = "ed25519"
	schemeToken   = "token"
	schemeBearer  = "bearer"
	schemeBasic   = "basic"
	schemeTwilio  = "twilio"
	schemeNone    = "none"
)

// Resolve returns the settings with what is left out taken from the preset, so
// that nothing is left to know but the secrets themselves. Resolving what is
// resolved changes nothing. The error is an *event.BadSettingsError that lists
// everything that makes no sense.
func (c Config) Resolve() (Config, error) {
	preset, known := PresetOf(c.Preset)
	if !known {
		detail := "must be one of " + strings.Join(Presets(), ", ")
		if c.Preset == "" {
			detail = "is required: one of " + strings.Join(Presets(), ", ")
		}
		return Config{}, &event.BadSettingsError{Problems: []event.Problem{{Field: "preset", Detail: detail}}}
	}
	r := c.over(preset.Config)
	p := settingsParser{}
	p.check(r)
	if p.problems == nil {
		p.problems = checkRules(r)
	}
	if p.problems != nil {
		return Config{}, &event.BadSettingsError{Problems: p.problems}
	}
	if r.IDSigned == nil {
		signed := idIsSigned(r, r.Verify)
		r.IDSigned = &signed
	}
	return r, nil
}

// over lays the settings over those of a preset and fills in the defaults.
func (c Config) over(preset Config) Config {
	r := preset
	r.Secrets, r.IDSigned, r.VerifyToken, r.URL = c.Secrets, c.IDSigned, c.VerifyToken, c.URL
	r.Limits, r.Rejected = c.Limits, c.Rejected
	if c.Verify != nil {
		r.Verify = make([]Method, len(c.Verify))
		for i, m := range c.Verify {
			if m.Scheme == "" && i < len(preset.Verify) {
				m = m.over(preset.Verify[i])
			}
			r.Verify[i] = m
		}
	}
	for i := range r.Verify {
		r.Verify[i].complete()
	}
	setText(&r.Format, c.Format)
	setList(&r.ID, c.ID)
	setList(&r.Type, c.Type)
	setList(&r.Time, c.Time)
	setList(&r.Volatile, c.Volatile)
	setText(&r.Conflicts, c.Conflicts)
	setText(&r.Conflicts, r.Conflicts, "keep")
	setText(&r.Handshake, c.Handshake)
	setText(&r.Handshake, r.Handshake, "none")
	setNumber(&r.Rejected.Rows, r.Rejected.Rows, defaultRows)
	setNumber(&r.Rejected.Bytes, r.Rejected.Bytes, defaultBytes)
	setNumber(&r.Rejected.Age, r.Rejected.Age, defaultAge)
	return r
}

// over lays what a method gives over that of a preset.
func (m Method) over(preset Method) Method {
	r := preset
	setList(&r.Header, m.Header)
	setText(&r.Separator, m.Separator)
	setText(&r.Assign, m.Assign)
	setText(&r.Key, m.Key)
	setText(&r.Signed, m.Signed)
	setText(&r.Hash, m.Hash)
	setText(&r.Encoding, m.Encoding)
	setList(&r.SecretPrefix, m.SecretPrefix)
	setList(&r.SecretNot, m.SecretNot)
	setText(&r.Secret, m.Secret)
	setList(&r.Timestamp, m.Timestamp)
	setText(&r.Unit, m.Unit)
	setNumber(&r.Tolerance, m.Tolerance)
	r.Final = r.Final || m.Final
	r.PastOnly = r.PastOnly || m.PastOnly
	return r
}

// complete fills in what a scheme usually has.
func (m *Method) complete() {
	switch m.Scheme {
	case schemeHMAC, schemeEd25519:
		setText(&m.Signed, m.Signed, "{body}")
		setText(&m.Encoding, m.Encoding, "hex")
		if m.Scheme == schemeHMAC {
			setText(&m.Hash, m.Hash, "sha256")
			setText(&m.Secret, m.Secret, "text")
		} else {
			setText(&m.Secret, m.Secret, "hex")
		}
		if len(m.Timestamp) > 0 {
			setText(&m.Unit, m.Unit, "seconds")
			setNumber(&m.Tolerance, m.Tolerance, defaultTolerance)
		}
	case schemeBearer, schemeBasic:
		if m.Header == nil {
			m.Header = []string{"Authorization"}
		}
	case schemeTwilio:
		if m.Header == nil {
			m.Header = []string{"X-Twilio-Signature"}
		}
	}
}

// setText sets a text to the first that is not empty, if there is one.
func setText(to *string, from ...string) { setNumber(to, from...) }

// setNumber sets a value to the first that is not zero, if there is one.
func setNumber[T comparable](to *T, from ...T) {
	var zero T
	for _, v := range from {
		if v != zero {
			*to = v
			return
		}
	}
}

// setList sets a list to one that is given, which it does not share.
func setList(to *[]string, from []string) {
	if from != nil {
		*to = append([]string{}, from...)
	}
}

// check collects what makes no sense in settings that are complete. Rules of
// ids, types and times are for checkRules.
func (p *settingsParser) check(c Config) {
	p.checkSecrets(c)
	if len(c.Verify) == 0 {
		p.add("verify", `must have at least one method; {"scheme":"none"} takes requests from anyone`)
	}
	p.atMost("verify", len(c.Verify), maxMethods)
	for i, m := range c.Verify {
		p.checkMethod(fmt.Sprintf("verify[%d]", i), m, c)
	}
	p.oneOf("format", c.Format, formats)
	p.atMost("id", len(c.ID), maxList)
	p.atMost("type", len(c.Type), maxList)
	p.atMost("time", len(c.Time), maxList)
	p.atMost("volatile", len(c.Volatile), maxList)
	p.oneOf("conflicts", c.Conflicts, policies)
	p.oneOf("handshake", c.Handshake, handshakes)
	switch {
	case c.VerifyToken != "":
		p.checkRef("verify_token", c.VerifyToken)
		if c.Handshake != "meta" {
			p.add("verify_token", "is only for the handshake meta")
		}
	case c.Handshake == "meta":
		p.add("verify_token", "is required: a reference to the word that Meta asks for when the webhook is set up, such as env:NAME")
	}
	p.checkURL(c)
	p.checkLimits(c)
}

func (p *settingsParser) oneOf(path, value string, choices []string) {
	if !slices.Contains(choices, value) {
		p.add(path, "must be one of "+strings.Join(choices, ", "))
	}
}

func (p *settingsParser) atMost(path string, n, most int) {
	if n > most {
		p.add(path, fmt.Sprintf("must have at most %d, found %d", most, n))
	}
}

func (p *settingsParser) checkSecrets(c Config) {
	needed := slices.ContainsFunc(c.Verify, func(m Method) bool { return m.Scheme != schemeNone })
	switch {
	case needed && len(c.Secrets) == 0:
		p.add("secrets", "must have at least one reference such as env:NAME or file:/absolute/path")
	case !needed && len(c.Secrets) > 0 && len(c.Verify) > 0:
		p.add("secrets", "are given, but nothing is verified: choose another preset, or say in verify how")
	}
	p.atMost("secrets", len(c.Secrets), maxSecrets)
	for i, s := range c.Secrets {
		path := fmt.Sprintf("secrets[%d]", i)
		p.checkRef(path+".ref", s.Ref)
		if !s.From.IsZero() && !s.Until.IsZero() && !s.From.Before(s.Until) {
			p.add(path+".until", "must be later than from")
		}
	}
}

// checkRef does not repeat what is no reference: it may be the secret itself.
func (p *settingsParser) checkRef(path, ref string) {
	if _, _, ok := splitRef(ref); !ok {
		p.add(path, "must be a reference: env:NAME or file:/absolute/path, never the secret itself")
	}
}

func (p *settingsParser) checkMethod(path string, m Method, c Config) {
	if !slices.Contains(schemes, m.Scheme) {
		p.add(path+".scheme", "must be one of "+strings.Join(schemes, ", "))
		return
	}
	p.atMost(path+".header", len(m.Header), maxList)
	for i, name := range m.Header {
		if !isHeaderName(name) {
			p.add(fmt.Sprintf("%s.header[%d]", path, i), "must be the name of a header")
		}
	}
	switch {
	case m.Scheme == schemeNone && len(c.Verify) > 1:
		p.add(path, "takes requests from anyone and must be the only method")
	case m.Scheme == schemeNone && len(m.Header) > 0:
		p.add(path+".header", "is not for the scheme none")
	case m.Scheme != schemeNone && len(m.Header) == 0:
		p.add(path+".header", "is required: the name of the header that holds the signature or the token")
	}
	p.atMost(path+".secret_prefix", len(m.SecretPrefix), maxList)
	p.atMost(path+".secret_not", len(m.SecretNot), maxList)
	if m.Scheme == schemeTwilio && c.URL == "" {
		p.add("url", "is required: Twilio signs the address as it is entered there, such as https://example.com"+pathOf("twilio"))
	}
	if m.Scheme != schemeHMAC && m.Scheme != schemeEd25519 {
		p.checkUnsigned(path, m)
		return
	}

	if m.Scheme == schemeHMAC {
		p.oneOf(path+".hash", m.Hash, hashes)
	} else if m.Hash != "" {
		p.add(path+".hash", "is not for the scheme "+m.Scheme)
	}
	p.oneOf(path+".encoding", m.Encoding, encodings)
	p.oneOf(path+".secret", m.Secret, secretKind)
	if m.Scheme == schemeEd25519 && m.Secret == "text" {
		p.add(path+".secret", "must be base64 or hex for the scheme "+m.Scheme)
	}
	if (m.Assign == "") != (m.Key == "") {
		p.add(path+".key", "and assign go together")
	}
	p.checkSigned(path, m, c)
}

// checkUnsigned says which settings only signatures have.
func (p *settingsParser) checkUnsigned(path string, m Method) {
	for _, given := range []struct {
		name string
		is   bool
	}{
		{"separator", m.Separator != ""},
		{"assign", m.Assign != ""},
		{"key", m.Key != ""},
		{"signed", m.Signed != ""},
		{"hash", m.Hash != ""},
		{"encoding", m.Encoding != ""},
		{"secret", m.Secret != "" && m.Secret != "text"},
		{"timestamp", len(m.Timestamp) > 0},
		{"unit", m.Unit != ""},
		{"tolerance", m.Tolerance != 0},
		{"past_only", m.PastOnly},
	} {
		if given.is {
			p.add(path+"."+given.name, "is not for the scheme "+m.Scheme)
		}
	}
}

// checkSigned looks at what is signed and at the time within.
func (p *settingsParser) checkSigned(path string, m Method, c Config) {
	parts, err := parseSigned(m.Signed)
	if err != nil {
		p.add(path+".signed", err.Error())
		return
	}
	has := func(kind partKind) bool {
		return slices.ContainsFunc(parts, func(part signedPart) bool { return part.kind == kind })
	}
	if !has(partBody) {
		p.add(path+".signed", "must hold {body}, or anybody could change it")
	}
	if has(partURL) && c.URL == "" {
		p.add("url", "is required: the address is signed as it is entered at the provider")
	}
	outside := false
	p.atMost(path+".timestamp", len(m.Timestamp), maxList)
	for i, text := range m.Timestamp {
		at := fmt.Sprintf("%s.timestamp[%d]", path, i)
		place, err := parsePlace(text)
		switch {
		case err != nil:
			p.add(at, err.Error())
			continue
		case place.kind == placeKey && (m.Assign == "" || m.Separator == ""):
			p.add(at, "is for a header that lists names and values: say separator, assign and key")
		}
		outside = outside || place.kind != placeBody
	}
	switch {
	case has(partTimestamp) && !outside:
		p.add(path+".timestamp", "is required: where {timestamp} is, as header:Name or key:name")
	case outside && !has(partTimestamp):
		p.add(path+".signed", "must hold {timestamp}, or anybody could change it")
	}
	switch {
	case len(m.Timestamp) > 0:
		p.oneOf(path+".unit", m.Unit, units)
		if m.Tolerance < 0 || m.Tolerance > maxTolerance {
			p.add(path+".tolerance", "must be between 0 and 365d")
		}
	case m.Unit != "" || m.Tolerance != 0 || m.PastOnly:
		p.add(path+".timestamp", "is required for unit, tolerance and past_only")
	}
}

func (p *settingsParser) checkURL(c Config) {
	if c.URL == "" {
		return
	}
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "":
		p.add("url", "must be an address such as https://example.com/webhook/name")
	case u.User != nil:
		p.add("url", "must not hold a user or password")
	case u.Fragment != "":
		p.add("url", "must not have a fragment")
	}
}

func (p *settingsParser) checkLimits(c Config) {
	rate := func(path string, rate float64, burst int) {
		if rate < 0 || math.IsNaN(rate) || math.IsInf(rate, 0) {
			p.add("limits."+path+"rate", "must be a number of requests a second, or 0 for no limit")
		}
		switch {
		case burst < 0:
			p.add("limits."+path+"burst", "must not be negative")
		case burst > 0 && rate == 0:
			p.add("limits."+path+"burst", "is nothing without a rate")
		}
	}
	rate("", c.Limits.Rate, c.Limits.Burst)
	rate("address_", c.Limits.AddressRate, c.Limits.AddressBurst)
	if c.Rejected.Rows < 0 {
		p.add("rejected.rows", "must not be negative")
	}
	if c.Rejected.Bytes < 0 {
		p.add("rejected.bytes", "must not be negative")
	}
	if c.Rejected.Age < time.Minute {
		p.add("rejected.age", "must be at least a minute")
	}
}

// isHeaderName reports whether a text can be the name of a header (RFC 9110,
// section 5.1: a token).
func isHeaderName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// idIsSigned reports whether nobody who has seen a request can send its body
// under another id: each rule that can come into play is made of the body or of
// what one of the methods signs. Where nothing is verified there is nothing to
// be told apart, and where a token is asked for the body is all that is tied to
// an id.
func idIsSigned(c Config, methods []Method) bool {
	for _, m := range methods {
		if m.Scheme != schemeNone && !signsID(m, c.ID) {
			return false
		}
	}
	return true
}

// signsID walks the rules in their order, since a header that comes before the
// signed one could be added by anybody.
func signsID(m Method, rules []string) bool {
	signed := signedHeaders(m)
	looked := map[string]bool{} // headers that alone make a rule before this one
	for _, rule := range rules {
		always := true
		made := placeholders(rule)
		for _, placeholder := range made {
			kind, name, _ := strings.Cut(placeholder, ":")
			switch kind {
			case "header":
				group := groupOf(signed, name)
				if group == nil {
					return false
				}
				for _, before := range group[:slices.Index(group, canonical(name))] {
					if !looked[before] {
						return false
					}
				}
				looked[canonical(name)] = looked[canonical(name)] || len(made) == 1
				always = always && len(group) == 1
			case "query":
				if m.Scheme != schemeTwilio {
					return false
				}
				always = false
			default:
				always = false
			}
		}
		if always {
			return true // this rule always fits: none after it comes into play
		}
	}
	return true
}

// groupOf is the list of alternatives that holds a header.
func groupOf(groups [][]string, name string) []string {
	for _, group := range groups {
		if slices.Contains(group, canonical(name)) {
			return group
		}
	}
	return nil
}

// placeholders are the texts in braces of a template.
func placeholders(text string) []string {
	var found []string
	for {
		_, rest, ok := strings.Cut(text, "{")
		if !ok {
			return found
		}
		inside, after, ok := strings.Cut(rest, "}")
		if !ok {
			return found
		}
		found, text = append(found, inside), after
	}
}
