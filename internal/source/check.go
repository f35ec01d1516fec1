package source

import (
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/secret"
)

// Bounds of settings. Those of lists also bound what verifying and reading one request can cost.
const (
	maxSecrets   = 10
	maxMethods   = 10
	maxList      = 20 // of any other list
	maxTolerance = 365 * day
)

// Values of the settings that are a choice.
var (
	formats    = []string{"envelope", "body", "cloudevents"}
	handshakes = []string{"none", "slack", "meta", "discord", "cloudevents"}
	policies   = []string{"keep", "refuse"}
	schemes    = []string{
		schemeHMAC, schemeEd25519, schemeToken, schemeBearer, schemeBasic, schemeTwilio, schemeNone,
	}
	hashes      = []string{"sha256", "sha1", "sha512"}
	encodings   = []string{"hex", "base64"}
	secretKinds = []string{"text", "base64", "hex"}
	units       = []string{"seconds", "milliseconds", "rfc3339"}
)

// check collects what makes no sense in settings that are complete. The rules of ids, types and times are for
// checkRules.
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
		p.add("verify_token", "is required: a reference to the word that Meta asks for when the webhook is set up, "+
			"such as env:NAME")
	}
	p.checkURL(c)
	p.checkLimits(c)
}

func (p *settingsParser) oneOf(path, value string, choices []string) {
	if !slices.Contains(choices, value) {
		p.add(path, "must be one of "+strings.Join(choices, ", "))
	}
}

func (p *settingsParser) atMost(path string, n, limit int) {
	if n > limit {
		p.add(path, fmt.Sprintf("must have at most %d, found %d", limit, n))
	}
}

func (p *settingsParser) checkSecrets(c Config) {
	needed := slices.ContainsFunc(c.Verify, func(m Method) bool { return m.Scheme != schemeNone })
	switch {
	case needed && len(c.Secrets) == 0:
		p.add("secrets", "must have at least one reference: "+secret.Form)
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

// checkRef checks a reference. The problem does not repeat a bad one, since it may be the secret itself.
func (p *settingsParser) checkRef(path, ref string) {
	if _, ok := secret.ParseReference(ref); !ok {
		p.add(path, "must be a reference: "+secret.Form+", never the secret itself")
	}
}

func (p *settingsParser) checkMethod(path string, m Method, c Config) {
	if !slices.Contains(schemes, m.Scheme) {
		p.add(path+".scheme", "must be one of "+strings.Join(schemes, ", "))
		return
	}
	p.atMost(path+".header", len(m.Header), maxList)
	for i, name := range m.Header {
		field := fmt.Sprintf("%s.header[%d]", path, i)
		switch canonical := canonicalName(name); {
		case !isHeaderName(name):
			p.add(field, "must be the name of a header")
		case slices.Contains(plainHeaders, canonical), strings.HasPrefix(canonical, "Ce-"):
			p.add(field, canonical+" must not hold a signature or a token: Spine reads it")
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
	p.checkPrefixes(path+".secret_prefix", m.SecretPrefix)
	p.checkPrefixes(path+".secret_not", m.SecretNot)
	if m.Scheme == schemeTwilio && c.URL == "" {
		p.add("url", "is required: Twilio signs the address as it is entered there, such as https://example.com"+
			pathOf("twilio"))
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
	p.oneOf(path+".secret", m.Secret, secretKinds)
	if m.Scheme == schemeEd25519 && m.Secret == "text" {
		p.add(path+".secret", "must be base64 or hex for the scheme "+m.Scheme)
	}
	if (m.Assign == "") != (m.Key == "") {
		p.add(path+".key", "and assign go together")
	}
	p.checkSigned(path, m, c)
}

// plainHeaders are headers that Spine reads for itself, and of which it shows or stores what it read.
var plainHeaders = []string{
	"Connection", "Content-Encoding", "Content-Length", "Content-Type", "Forwarded", "Host", "Transfer-Encoding",
	"Webhook-Request-Origin", "X-Forwarded-For", "X-Real-Ip",
}

// maxPrefix bounds the prefix of a secret, in bytes.
const maxPrefix = 16

// checkPrefixes keeps prefixes to what tells one kind of secrets from others, such as whsec_. With any text for a
// prefix, the state of a source would tell a secret, one character after the other.
func (p *settingsParser) checkPrefixes(path string, prefixes []string) {
	for i, prefix := range prefixes {
		if prefix != "" && (len(prefix) > maxPrefix || !strings.HasSuffix(prefix, "_")) {
			p.add(fmt.Sprintf("%s[%d]", path, i), fmt.Sprintf("must end in _ and have at most %d bytes", maxPrefix))
		}
	}
}

// checkUnsigned rejects the settings that only signatures have.
func (p *settingsParser) checkUnsigned(path string, m Method) {
	for _, setting := range []struct {
		name  string
		given bool
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
		if setting.given {
			p.add(path+"."+setting.name, "is not for the scheme "+m.Scheme)
		}
	}
}

// checkSigned checks what is signed and the time in it.
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
	if problem := touchingParts(parts, m.PastOnly); problem != "" {
		p.add(path+".signed", problem)
	}
	redactor := NewRedactor(c)
	for _, part := range parts {
		for _, name := range part.headers {
			if redactor.hidesFromRules(name) {
				p.add(path+".signed", "names {header:"+name+"}, which may hold a credential or a signature")
			}
		}
	}
	if has(partURL) && c.URL == "" {
		p.add("url", "is required: the address is signed as it is entered at the provider")
	}
	outside := false
	p.atMost(path+".timestamp", len(m.Timestamp), maxList)
	for i, text := range m.Timestamp {
		field := fmt.Sprintf("%s.timestamp[%d]", path, i)
		place, err := parsePlace(text)
		switch {
		case err != nil:
			p.add(field, err.Error())
			continue
		case place.kind == timestampKey && (m.Assign == "" || m.Separator == ""):
			p.add(field, "is for a header that lists names and values: say separator, assign and key")
		case place.kind == timestampHeader && redactor.hidesFromRules(place.name):
			p.add(field, "names the header "+place.name+", which may hold a credential or a signature")
		}
		outside = outside || place.kind != timestampBody
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
	checkRate := func(path string, rate float64, burst int) {
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
	checkRate("", c.Limits.Rate, c.Limits.Burst)
	checkRate("address_", c.Limits.AddressRate, c.Limits.AddressBurst)
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

// isHeaderName reports whether a text can be the name of a header (RFC 9110, section 5.1: a token).
func isHeaderName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}
