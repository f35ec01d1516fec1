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
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/webhookspine/spine/internal/event"
)

// Why a source cannot sign.
var (
	errNoKey      = errors.New("the source has no secret that holds now")
	errPublicOnly = errors.New("the source has only a public key: requests are signed by the provider's private one, which nobody else has")
)

// Sign signs a request in place, as the provider would at a time: over Wire, or
// Body where there is no Wire, with the newest secret that holds then. Headers
// that are signed too and missing are added; a time that is part of the body is
// not changed. A source that takes requests from anyone leaves it as it is.
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
	if s.open() {
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

// signer is the newest secret that holds at a time and can sign: the one that
// began to hold last, or of several the first that the settings name.
func (s *Source) signer(now time.Time) (m *method, k *key, err error) {
	err = errNoKey
	for _, method := range s.methods {
		for _, candidate := range method.keys {
			switch {
			case !candidate.holds(now):
			case method.Scheme == schemeEd25519 && candidate.private == nil:
				err = errPublicOnly
			case k == nil || candidate.from.After(k.from) || candidate.from.Equal(k.from) && candidate.place < k.place:
				m, k = method, candidate
			}
		}
	}
	if k != nil {
		err = nil
	}
	return m, k, err
}

// sign makes the value of the method's header, after the other headers that are
// signed.
func (m *method) sign(k *key, r *event.Request, now time.Time) string {
	switch m.Scheme {
	case schemeBearer:
		return "Bearer " + k.text
	case schemeBasic:
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(k.text))
	case schemeTwilio:
		return m.signTwilio(k, r)
	case schemeToken:
		return k.text
	}
	for _, part := range m.parts {
		if name, _ := first(r.Header, part.headers); part.kind == partHeader && name == "" {
			r.Header.Set(part.headers[0], "msg_"+uuid.NewString())
		}
	}
	timestamp := formatTimestamp(m.Unit, now)
	var list []string
	set := false
	for _, p := range m.places {
		switch p.kind {
		case placeHeader:
			r.Header.Del(p.name)
			if !set {
				r.Header.Set(p.name, timestamp)
				set = true
			}
		case placeKey:
			if !set {
				list = append(list, p.name+m.Assign+timestamp)
				set = true
			}
		case placeBody:
		}
	}
	var sum []byte
	if m.Scheme == schemeEd25519 {
		sum = ed25519.Sign(k.private, m.message(nil, r, timestamp))
	} else {
		h := k.hashes.Get().(*keyed)
		sum = append(sum, m.sum(h, r, timestamp)...)
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

// formatTimestamp is the text that parseTimestamp reads.
func formatTimestamp(unit string, t time.Time) string {
	switch unit {
	case "milliseconds":
		return strconv.FormatInt(t.UnixMilli(), 10)
	case "rfc3339":
		return t.UTC().Format(time.RFC3339)
	}
	return strconv.FormatInt(t.Unix(), 10)
}

// signTwilio puts the hash of a body that is no form into the query.
func (m *method) signTwilio(k *key, r *event.Request) string {
	fields, failed := twilioFields(r)
	if failed != nil {
		sum := sha256.Sum256(r.Wire)
		address := *r.URL
		query := address.Query()
		if len(query) == 0 {
			_, text, _ := strings.Cut(m.url, "?")
			query, _ = url.ParseQuery(text) // what cannot be read is left out, here and there
		}
		query.Set(twilioHash, hex.EncodeToString(sum[:]))
		address.RawQuery = query.Encode()
		r.URL, fields = &address, ""
	}
	h := k.hashes.Get().(*keyed)
	defer k.hashes.Put(h)
	return base64.StdEncoding.EncodeToString(twilioSum(h, twilioAddresses(m.url, r.URL)[0], fields))
}
