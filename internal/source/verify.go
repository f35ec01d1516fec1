package source

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"github.com/webhookspine/spine/internal/event"
)

// Causes of an event.UnverifiedError. Rejected requests, metrics and the page know them by these names.
const (
	causeSignatureMissing   = "signature_missing"
	causeSignatureWrong     = "signature_wrong"
	causeTimestampBad       = "timestamp_bad"
	causeTimestampStale     = "timestamp_stale"
	causeCredentialsMissing = "credentials_missing"
	causeCredentialsWrong   = "credentials_wrong"
)

func unverified(cause, format string, args ...any) *event.UnverifiedError {
	return &event.UnverifiedError{Cause: cause, Detail: fmt.Sprintf(format, args...)}
}

// Verify checks that a request comes from the source's provider. It depends on the header of a method, Wire, URL, and
// At, the time of arrival by which secrets and timestamps are judged. The error is an *event.UnverifiedError.
func (s *Source) Verify(r *event.Request) error {
	methods := s.methods
	for i, m := range methods {
		if header, _ := m.findHeader(r.Header); m.Final && header != "" {
			methods = methods[i : i+1]
			break
		}
	}
	var nearest *event.UnverifiedError
	for _, m := range methods {
		if m.Scheme == schemeNone {
			return nil
		}
		header, values := m.findHeader(r.Header)
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
		if nearest == nil || causeRank(failed) > causeRank(nearest) {
			nearest = failed
		}
	}
	if nearest != nil {
		return nearest
	}
	return s.missingProof()
}

// causeRank orders causes by how near the request was to being right. Of several methods the nearest one explains most.
func causeRank(e *event.UnverifiedError) int {
	return slices.Index([]string{
		causeSignatureMissing,
		causeCredentialsMissing,
		causeCredentialsWrong,
		causeSignatureWrong,
		causeTimestampBad,
		causeTimestampStale,
	}, e.Cause)
}

// missingProof names the headers by which a request could have proved where it comes from.
func (s *Source) missingProof() *event.UnverifiedError {
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

// method is a Method with its keys.
type method struct {
	Method
	headers []string // canonical
	parts   []signedPart
	places  []timestampPlace
	url     string
	keys    []*key
}

// newMethod makes a method without keys. Its settings must have been checked before.
func newMethod(m Method, address string) (*method, error) {
	compiled := &method{Method: m, url: address}
	for _, name := range m.Header {
		compiled.headers = append(compiled.headers, canonicalName(name))
	}
	var err error
	if compiled.parts, err = parseSigned(m.Signed); err != nil {
		return nil, err
	}
	for _, text := range m.Timestamp {
		place, err := parsePlace(text)
		if err != nil {
			return nil, err
		}
		compiled.places = append(compiled.places, place)
	}
	return compiled, nil
}

// usesSignature reports whether the method checks a signature. The others check a credential.
func (m Method) usesSignature() bool {
	return m.Scheme == schemeHMAC || m.Scheme == schemeEd25519 || m.Scheme == schemeTwilio
}

// causes are the causes of a proof that is missing and of one that is wrong.
func (m *method) causes() (missing, wrong string) {
	if m.usesSignature() {
		return causeSignatureMissing, causeSignatureWrong
	}
	return causeCredentialsMissing, causeCredentialsWrong
}

// canonicalName is the form of a header's name in an http.Header.
func canonicalName(name string) string { return textproto.CanonicalMIMEHeaderKey(name) }

// findHeader returns the header that holds the signature or the credential. The name is empty if there is none.
func (m *method) findHeader(h http.Header) (name string, values []string) {
	return firstHeader(h, m.headers)
}

// firstHeader returns the first of some headers that is there. The name is empty if there is none.
func firstHeader(h http.Header, names []string) (name string, values []string) {
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

// cutScheme cuts the name of a scheme, in any case, off the value of Authorization (RFC 9110, section 11.4).
func cutScheme(value, scheme string) (credential string, ok bool) {
	name, rest, hasSpace := strings.Cut(value, " ")
	return strings.Trim(rest, " "), hasSpace && strings.EqualFold(name, scheme)
}

// verifyCredential compares a credential with every valid secret, in constant time.
func (m *method) verifyCredential(r *event.Request, header, credential string) *event.UnverifiedError {
	sum := sha256.Sum256([]byte(credential))
	right := 0
	for _, k := range m.keys {
		if k.validAt(r.At) {
			right |= subtle.ConstantTimeCompare(sum[:], k.sum[:])
		}
	}
	if right == 1 {
		return nil
	}
	return unverified(causeCredentialsWrong, "The value of the header %s is not right.", header)
}
