package source

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/webhookspine/spine/internal/event"
)

// Why a source cannot sign.
var (
	errNoKey      = errors.New("the source has no secret that is valid now")
	errPublicOnly = errors.New(
		"the source has only a public key: the private key, which signs, is the provider's alone",
	)
)

// Sign signs a request in place, as the provider would at a time, with the newest secret that is valid then. It signs
// Wire, or Body where Wire is nil. It adds missing headers that the signature covers. It does not change a time in the
// body. If the source takes requests from anyone, Sign leaves the request unsigned.
//
// The error says that no secret is valid, or that the source has only a public key.
func (s *Source) Sign(r *event.Request, now time.Time) error {
	if r.Wire == nil {
		r.Wire = r.Body
	}
	if r.Header == nil {
		r.Header = http.Header{}
	}
	if r.URL == nil {
		r.URL = &url.URL{Path: pathOf(s.name)}
	}
	if s.isOpen() {
		return nil
	}
	m, k, err := s.signer(now)
	if err != nil {
		return fmt.Errorf("signing for %s: %w", s, err)
	}
	for _, other := range s.methods {
		for _, name := range other.headers {
			r.Header.Del(name)
		}
	}
	r.Header.Set(m.headers[0], m.sign(k, r, now))
	return nil
}

// signer is the newest secret that is valid at a time and can sign. That is the one that became valid last, or of
// several the first in the settings.
func (s *Source) signer(now time.Time) (m *method, k *key, err error) {
	err = errNoKey
	for _, method := range s.methods {
		for _, candidate := range method.keys {
			switch {
			case !candidate.validAt(now):
			case method.Scheme == schemeEd25519 && candidate.private.IsZero():
				err = errPublicOnly
			case k == nil || candidate.from.After(k.from) ||
				candidate.from.Equal(k.from) && candidate.index < k.index:
				m, k = method, candidate
			}
		}
	}
	if k != nil {
		err = nil
	}
	return m, k, err
}

// sign makes the value of the method's header. Before, it sets the other headers that the signature covers.
func (m *method) sign(k *key, r *event.Request, now time.Time) string {
	switch m.Scheme {
	case schemeBearer:
		return "Bearer " + k.text.Reveal()
	case schemeBasic:
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(k.text.Reveal()))
	case schemeTwilio:
		return m.signTwilio(k, r)
	case schemeToken:
		return k.text.Reveal()
	}
	for _, part := range m.parts {
		if name, _ := firstHeader(r.Header, part.headers); part.kind == partHeader && name == "" {
			r.Header.Set(part.headers[0], "msg_"+uuid.NewString())
		}
	}
	timestamp := formatTimestamp(m.Unit, now)
	var list []string
	set := false
	for _, p := range m.places {
		switch p.kind {
		case timestampHeader:
			r.Header.Del(p.name)
			if !set {
				r.Header.Set(p.name, timestamp)
				set = true
			}
		case timestampKey:
			if !set {
				list = append(list, p.name+m.Assign+timestamp)
				set = true
			}
		case timestampBody:
		}
	}
	var sum []byte
	if m.Scheme == schemeEd25519 {
		sum = ed25519.Sign(ed25519.PrivateKey(k.private.Reveal()), m.signedMessage(r, timestamp))
	} else {
		h := k.hashes.Get().(*hmacState)
		sum = append(sum, m.hmacSum(h, r, timestamp)...)
		k.hashes.Put(h)
	}
	signature := hex.EncodeToString(sum)
	if m.Encoding == "base64" {
		signature = base64.StdEncoding.EncodeToString(sum)
	}
	if m.Assign != "" {
		signature = m.Key + m.Assign + signature
	}
	return strings.Join(append(list, signature), m.Separator)
}

// signTwilio makes Twilio's signature. If the body is not a form, it puts the hash of the body into the query.
func (m *method) signTwilio(k *key, r *event.Request) string {
	fields, failed := twilioFields(r)
	if failed != nil {
		sum := sha256.Sum256(r.Wire)
		address := *r.URL
		query := address.Query()
		if len(query) == 0 {
			_, text, _ := strings.Cut(m.url, "?")
			query, _ = url.ParseQuery(text) // it leaves out what cannot be read
		}
		query.Set(twilioHash, hex.EncodeToString(sum[:]))
		address.RawQuery = query.Encode()
		r.URL, fields = &address, ""
	}
	h := k.hashes.Get().(*hmacState)
	defer k.hashes.Put(h)
	return base64.StdEncoding.EncodeToString(twilioSum(h, twilioAddresses(m.url, r.URL)[0], fields))
}
