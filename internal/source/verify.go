package source

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // what Twilio and older providers sign with; HMAC does not need more of it
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// Causes of an event.UnverifiedError.
const (
	causeSignatureMissing   = "signature_missing"
	causeSignatureWrong     = "signature_wrong"
	causeTimestampBad       = "timestamp_bad"
	causeTimestampStale     = "timestamp_stale"
	causeCredentialsMissing = "credentials_missing"
	causeCredentialsWrong   = "credentials_wrong"
)

// maxSignatures is how many signatures of a request are looked at: providers
// send one for each secret that holds. Checking one of ed25519 takes some 50 µs.
const maxSignatures = 16

// canonical is the form of a header's name in an http.Header.
func canonical(name string) string { return textproto.CanonicalMIMEHeaderKey(name) }

func unverified(cause, format string, args ...any) *event.UnverifiedError {
	return &event.UnverifiedError{Cause: cause, Detail: fmt.Sprintf(format, args...)}
}

// partKind is what a part of a signed message is.
type partKind int

const (
	partText      partKind = iota // as it stands
	partBody                      // the body, as it came
	partTimestamp                 // the time, as it was sent
	partURL                       // the address, as it is set
	partHeader                    // the value of a header
)

// signedPart is a part of what is signed.
type signedPart struct {
	kind    partKind
	text    string   // of a partText
	headers []string // of a partHeader: canonical names, the first that is there counts
}

// parseSigned reads a template of what is signed.
func parseSigned(text string) ([]signedPart, error) {
	var parts []signedPart
	for text != "" {
		before, rest, found := strings.Cut(text, "{")
		if before != "" {
			parts = append(parts, signedPart{kind: partText, text: before})
		}
		if !found {
			break
		}
		inside, after, closed := strings.Cut(rest, "}")
		if !closed {
			return nil, errors.New("has a { without its }")
		}
		text = after
		kind, names, named := strings.Cut(inside, ":")
		switch {
		case inside == "body":
			parts = append(parts, signedPart{kind: partBody})
		case inside == "timestamp":
			parts = append(parts, signedPart{kind: partTimestamp})
		case inside == "url":
			parts = append(parts, signedPart{kind: partURL})
		case kind == "header" && named:
			part := signedPart{kind: partHeader}
			for name := range strings.SplitSeq(names, "|") {
				if !isHeaderName(name) {
					return nil, errors.New("names a header that cannot be one")
				}
				part.headers = append(part.headers, canonical(name))
			}
			parts = append(parts, part)
		default:
			return nil, errors.New("may hold {body}, {timestamp}, {url} and {header:Name} in braces")
		}
	}
	return parts, nil
}

// signedHeaders are the headers that a method signs; each list is one of
// alternatives.
func signedHeaders(m Method) [][]string {
	if m.Signed == "" {
		return nil
	}
	parts, _ := parseSigned(m.Signed) // what cannot be read signs nothing
	var groups [][]string
	for _, part := range parts {
		if part.kind == partHeader {
			groups = append(groups, part.headers)
		}
	}
	return groups
}

// placeKind is where a time is.
type placeKind int

const (
	placeHeader placeKind = iota
	placeKey              // in the header of the signature
	placeBody
)

// place is where a time is.
type place struct {
	kind placeKind
	name string // of the header, canonical; of the key; or the JSON pointer
}

func parsePlace(text string) (place, error) {
	kind, name, _ := strings.Cut(text, ":")
	switch {
	case kind == "header" && isHeaderName(name):
		return place{kind: placeHeader, name: canonical(name)}, nil
	case kind == "key" && name != "":
		return place{kind: placeKey, name: name}, nil
	case kind == "body" && strings.HasPrefix(name, "/"):
		return place{kind: placeBody, name: name}, nil
	}
	return place{}, errors.New("must be header:Name, key:name, or body:/json/pointer")
}

// method is a Method with its keys.
type method struct {
	Method
	headers []string // canonical
	parts   []signedPart
	places  []place
	url     string
	keys    []*key
}

// key is a secret that a method takes.
type key struct {
	place       int // in the list of secrets
	from, until time.Time
	hashes      sync.Pool         // of *keyed, for an HMAC: making one costs more than using it
	bytes       []byte            // for an HMAC
	public      ed25519.PublicKey // for ed25519
	private     ed25519.PrivateKey
	text        string   // token, or user:password
	sum         [32]byte // SHA-256 of what the header holds; compared in its place, since its length does not tell the token's
}

// keyed is an HMAC with room for what goes into it and comes out of it.
type keyed struct {
	mac hash.Hash
	in  []byte
	out []byte
}

// holds reports whether a secret holds at a time.
func (k *key) holds(at time.Time) bool {
	return (k.from.IsZero() || !at.Before(k.from)) && (k.until.IsZero() || at.Before(k.until))
}

// newMethod makes a method without keys of one that was checked.
func newMethod(m Method, address string) (*method, error) {
	r := &method{Method: m, url: address}
	for _, name := range m.Header {
		r.headers = append(r.headers, canonical(name))
	}
	var err error
	if r.parts, err = parseSigned(m.Signed); err != nil {
		return nil, err
	}
	for _, text := range m.Timestamp {
		p, err := parsePlace(text)
		if err != nil {
			return nil, err
		}
		r.places = append(r.places, p)
	}
	return r, nil
}

// newKey makes a key of a secret without its prefix.
func (m *method) newKey(s Secret, text string) (*key, error) {
	k := &key{from: s.From, until: s.Until, text: text}
	switch m.Scheme {
	case schemeHMAC, schemeTwilio:
		decoded, err := decodeSecret(m.Secret, text)
		if err != nil {
			return nil, err
		}
		k.bytes = decoded
		size := m.newHash()
		k.hashes.New = func() any { return &keyed{mac: hmac.New(size, decoded)} }
	case schemeEd25519:
		decoded, err := decodeSecret(m.Secret, text)
		if err != nil {
			return nil, err
		}
		switch len(decoded) {
		case ed25519.PublicKeySize:
			k.public = decoded
		case ed25519.PrivateKeySize:
			k.private = decoded
			k.public = ed25519.NewKeyFromSeed(k.private.Seed()).Public().(ed25519.PublicKey)
			if !bytes.Equal(k.public, decoded[ed25519.SeedSize:]) {
				return nil, errors.New("holds a private key that does not fit its public one")
			}
		default:
			return nil, fmt.Errorf("must hold a public key of %d bytes or a private key of %d, found %d bytes",
				ed25519.PublicKeySize, ed25519.PrivateKeySize, len(decoded))
		}
	case schemeBasic:
		if !strings.Contains(text, ":") {
			return nil, errors.New("must hold user:password")
		}
		k.sum = sha256.Sum256([]byte(text))
	default:
		if text == "" {
			return nil, errors.New("is empty")
		}
		k.sum = sha256.Sum256([]byte(text))
	}
	return k, nil
}

// newHash is the function that an HMAC is made with.
func (m *method) newHash() func() hash.Hash {
	switch {
	case m.Scheme == schemeTwilio || m.Hash == "sha1":
		return sha1.New
	case m.Hash == "sha512":
		return sha512.New
	}
	return sha256.New
}

// signs reports whether the method checks a signature, and not a credential.
func (m *method) signs() bool {
	return m.Scheme == schemeHMAC || m.Scheme == schemeEd25519 || m.Scheme == schemeTwilio
}

// causes are the method's words for what is not there and what is not right.
func (m *method) causes() (missing, wrong string) {
	if m.signs() {
		return causeSignatureMissing, causeSignatureWrong
	}
	return causeCredentialsMissing, causeCredentialsWrong
}

// find returns the header that holds the signature or the credential.
func (m *method) find(h http.Header) (name string, values []string) {
	return first(h, m.headers)
}

// first returns the first of some headers that is there.
func first(h http.Header, names []string) (name string, values []string) {
	for _, name := range names {
		if values := h[name]; len(values) > 0 {
			return name, values
		}
	}
	return "", nil
}

// verify checks a request by the value of the method's header.
func (m *method) verify(r *event.Request, header string, value string) *event.UnverifiedError {
	if len(m.keys) == 0 {
		_, wrong := m.causes()
		return unverified(wrong, "The request has the header %s, but the source has no secret for it.", header)
	}
	switch m.Scheme {
	case schemeHMAC, schemeEd25519:
		return m.verifySigned(r, header, value)
	case schemeTwilio:
		return m.verifyTwilio(r, header, value)
	case schemeBearer:
		credential, ok := cutScheme(value, "bearer")
		if !ok {
			return unverified(causeCredentialsWrong, "The header %s must be Bearer and a token.", header)
		}
		return m.verifyCredential(r, header, credential)
	case schemeBasic:
		encoded, ok := cutScheme(value, "basic")
		decoded, err := base64.StdEncoding.DecodeString(encoded)
		if !ok || err != nil {
			return unverified(causeCredentialsWrong, "The header %s must be Basic and base64 of user:password.", header)
		}
		return m.verifyCredential(r, header, string(decoded))
	}
	return m.verifyCredential(r, header, value)
}

// cutScheme cuts the name of a scheme, in any case, off the value of
// Authorization (RFC 9110, section 11.4).
func cutScheme(value, scheme string) (credential string, ok bool) {
	name, rest, found := strings.Cut(value, " ")
	return strings.Trim(rest, " "), found && strings.EqualFold(name, scheme)
}

// verifyCredential compares what was sent with every secret that holds.
func (m *method) verifyCredential(r *event.Request, header, credential string) *event.UnverifiedError {
	sum := sha256.Sum256([]byte(credential))
	right := 0
	for _, k := range m.keys {
		if k.holds(r.At) {
			right |= subtle.ConstantTimeCompare(sum[:], k.sum[:])
		}
	}
	if right == 1 {
		return nil
	}
	return unverified(causeCredentialsWrong, "What the header %s holds is not right.", header)
}

// verifySigned checks the signatures in a header. What is out of date is told
// from what is wrong only once the signature is known to be right.
func (m *method) verifySigned(r *event.Request, header, value string) *event.UnverifiedError {
	var given candidates
	size := m.size()
	m.eachPart(value, func(key, signature string) {
		if key == m.Key {
			given.add(m.Encoding, signature, size)
		}
	})
	if given.n == 0 {
		return unverified(causeSignatureWrong, "The header %s does not hold a signature of the form %s.", header, m.form())
	}
	timestamp, text, failed := m.timestamp(r, header, value)
	if failed != nil {
		return failed
	}
	for _, part := range m.parts {
		if part.kind != partHeader {
			continue
		}
		name, values := first(r.Header, part.headers)
		if name == "" {
			return unverified(causeSignatureMissing, "The header %s is missing: the signature is also over it.", part.headers[0])
		}
		if len(values) > 1 {
			return unverified(causeSignatureWrong, "The header %s came more than once.", name)
		}
	}
	if !m.match(r, text, &given) {
		return unverified(causeSignatureWrong, "The signature in the header %s does not fit the request and the source's secret.", header)
	}
	if len(m.places) == 0 {
		return nil
	}
	if timestamp.IsZero() {
		if timestamp, failed = m.bodyTimestamp(r); failed != nil {
			return failed
		}
	}
	// A difference of times would overflow for some that a sender can think of.
	switch {
	case timestamp.Before(r.At.Add(-m.Tolerance)):
		return unverified(causeTimestampStale, "The request was signed more than %s ago.", words(m.Tolerance))
	case timestamp.After(r.At.Add(m.Tolerance)) && !m.PastOnly:
		return unverified(causeTimestampStale, "The request was signed more than %s ahead of the server's clock.", words(m.Tolerance))
	}
	return nil
}

// words is a duration for people.
func words(d time.Duration) string {
	if text := formatDuration(d); text != "" {
		return text
	}
	return "0s"
}

// form shows what the method's header should look like.
func (m *method) form() string {
	if m.Assign == "" {
		return m.Encoding
	}
	return m.Key + m.Assign + m.Encoding
}

// eachPart calls yield with the names and values that a header lists; the name
// is empty where parts have none.
func (m *method) eachPart(value string, yield func(key, value string)) {
	for value != "" {
		part, rest := value, ""
		if m.Separator != "" {
			part, rest, _ = strings.Cut(value, m.Separator)
		}
		value = rest
		part = strings.Trim(part, " \t")
		if m.Assign == "" {
			yield("", part)
		} else if name, v, ok := strings.Cut(part, m.Assign); ok {
			yield(name, v)
		}
	}
}

// timestamp finds the time that is signed as a text of its own; zero where there
// is none outside of the body.
func (m *method) timestamp(r *event.Request, header, value string) (t time.Time, text string, failed *event.UnverifiedError) {
	where, outside := "", false
	for _, p := range m.places {
		switch p.kind {
		case placeHeader:
			outside = true
			values := r.Header[p.name]
			if len(values) > 1 {
				return t, "", unverified(causeTimestampBad, "The header %s came more than once.", p.name)
			}
			if len(values) == 0 {
				continue
			}
			text, where = values[0], p.name
		case placeKey:
			outside = true
			n := 0
			m.eachPart(value, func(key, v string) {
				if key == p.name {
					n++
					text = v
				}
			})
			if n > 1 {
				return t, "", unverified(causeTimestampBad, "The header %s holds %s more than once.", header, p.name)
			}
			if n == 0 {
				continue
			}
			where = header
		case placeBody:
			continue
		}
		t, ok := parseTimestamp(m.Unit, text)
		if !ok {
			return t, "", unverified(causeTimestampBad, "The header %s does not hold a time in %s.", where, m.Unit)
		}
		return t, text, nil
	}
	if outside {
		return t, "", unverified(causeTimestampBad, "The time at which the request was signed is missing.")
	}
	return t, "", nil
}

// bodyTimestamp finds the time in a body whose signature is known to be right.
func (m *method) bodyTimestamp(r *event.Request) (time.Time, *event.UnverifiedError) {
	body := r.Body
	if body == nil {
		body = r.Wire
	}
	for _, p := range m.places {
		if p.kind != placeBody {
			continue
		}
		text, ok := textAt(body, p.name)
		if !ok {
			continue
		}
		if t, ok := parseTimestamp(m.Unit, text); ok {
			return t, nil
		}
		return time.Time{}, unverified(causeTimestampBad, "The body does not hold a time in %s at %s.", m.Unit, p.name)
	}
	return time.Time{}, unverified(causeTimestampBad, "The body does not hold the time at which it was sent.")
}

// parseTimestamp reads a time as strictly as it is signed: decimal digits of a
// number that a time can have, or RFC 3339 with a zone.
func parseTimestamp(unit, text string) (time.Time, bool) {
	if unit == "rfc3339" {
		t, err := time.Parse(time.RFC3339Nano, text)
		if err != nil || !isStrictRFC3339([]byte(text)) {
			return time.Time{}, false
		}
		return t, true
	}
	// 9999-12-31 has 12 digits in seconds and 15 in milliseconds.
	most := 12
	if unit == "milliseconds" {
		most = 15
	}
	if text == "" || len(text) > most {
		return time.Time{}, false
	}
	for i := range len(text) {
		if !isDigit(text[i]) {
			return time.Time{}, false
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	if unit == "milliseconds" {
		return time.UnixMilli(n), true
	}
	return time.Unix(n, 0), true
}

// candidates are the signatures of a request, decoded.
type candidates struct {
	bytes [maxSignatures][ed25519.SignatureSize]byte // which is also the size of a SHA-512
	n     int
}

// add takes a signature that is encoded as it should be and has the right size;
// others cannot be right.
func (c *candidates) add(encoding, text string, size int) {
	if c.n == maxSignatures {
		return
	}
	to := c.bytes[c.n][:size]
	var n int
	var err error
	if encoding == "hex" {
		if len(text) != hex.EncodedLen(size) {
			return
		}
		n, err = hex.Decode(to, []byte(text))
	} else {
		// The length is looked at first, since the decoder skips line ends.
		if len(text) != base64.StdEncoding.EncodedLen(size) {
			return
		}
		var room [ed25519.SignatureSize + 2]byte // padding is decoded into up to two bytes more
		n, err = base64.StdEncoding.Strict().Decode(room[:], []byte(text))
		copy(to, room[:n])
	}
	if err == nil && n == size {
		c.n++
	}
}

// match reports whether one of the signatures is right by one of the secrets
// that hold.
func (m *method) match(r *event.Request, timestamp string, given *candidates) bool {
	if m.Scheme == schemeEd25519 {
		message := m.message(nil, r, timestamp)
		for _, k := range m.keys {
			for i := range given.n {
				if k.holds(r.At) && ed25519.Verify(k.public, message, given.bytes[i][:]) {
					return true
				}
			}
		}
		return false
	}
	equal := 0
	for _, k := range m.keys {
		if !k.holds(r.At) {
			continue
		}
		h := k.hashes.Get().(*keyed)
		sum := m.sum(h, r, timestamp)
		for i := range given.n {
			equal |= subtle.ConstantTimeCompare(sum, given.bytes[i][:len(sum)])
		}
		k.hashes.Put(h)
	}
	return equal == 1
}

// size is that of a signature, in bytes.
func (m *method) size() int {
	switch {
	case m.Scheme == schemeEd25519:
		return ed25519.SignatureSize
	case m.Scheme == schemeTwilio || m.Hash == "sha1":
		return sha1.Size
	case m.Hash == "sha512":
		return sha512.Size
	}
	return sha256.Size
}

// sum makes the HMAC of a request; it is h's and good until h is used again.
func (m *method) sum(h *keyed, r *event.Request, timestamp string) []byte {
	h.mac.Reset()
	for i := range m.parts {
		if m.parts[i].kind == partBody {
			h.mac.Write(r.Wire)
			continue
		}
		h.in = m.appendPart(h.in[:0], i, r, timestamp)
		h.mac.Write(h.in)
	}
	h.out = h.mac.Sum(h.out[:0])
	return h.out
}

// message appends what is signed.
func (m *method) message(b []byte, r *event.Request, timestamp string) []byte {
	for i := range m.parts {
		b = m.appendPart(b, i, r, timestamp)
	}
	return b
}

// appendPart appends one part of what is signed.
func (m *method) appendPart(b []byte, i int, r *event.Request, timestamp string) []byte {
	part := &m.parts[i]
	switch part.kind {
	case partText:
		b = append(b, part.text...)
	case partBody:
		b = append(b, r.Wire...)
	case partTimestamp:
		b = append(b, timestamp...)
	case partURL:
		b = append(b, m.url...)
	case partHeader:
		if _, values := first(r.Header, part.headers); len(values) > 0 {
			b = append(b, values[0]...)
		}
	}
	return b
}
