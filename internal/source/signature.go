package source

import (
	"crypto/ed25519"
	"crypto/sha1" //nolint:gosec // as for the keys
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"strings"

	"github.com/webhookspine/spine/internal/event"
)

// maxSignatures bounds how many signatures of one request are checked. A provider sends one for each of its valid
// secrets. Checking one of ed25519 takes some 50 µs.
const maxSignatures = 16

// candidates are the signatures of a request, decoded.
type candidates struct {
	bytes [maxSignatures][ed25519.SignatureSize]byte // 64 bytes, which is also the size of a SHA-512
	n     int
}

// add takes a signature that has the right encoding and size. Any other cannot be right.
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
		// The length is checked first, since the decoder skips line ends.
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

// eachPart calls yield with the names and values that a header lists. The name is empty where the method has no
// Assign.
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

// signatureForm shows what the method's header should look like.
func (m *method) signatureForm() string {
	if m.Assign == "" {
		return m.Encoding
	}
	return m.Key + m.Assign + m.Encoding
}

// signatureSize is the size of a signature, in bytes.
func (m *method) signatureSize() int {
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

// verifySigned checks the signatures in a header. It judges the age of a request only after the signature, so that
// timestamp_stale is said of a right signature alone.
func (m *method) verifySigned(r *event.Request, header, value string) *event.UnverifiedError {
	var given candidates
	size := m.signatureSize()
	m.eachPart(value, func(key, signature string) {
		if key == m.Key {
			given.add(m.Encoding, signature, size)
		}
	})
	if given.n == 0 {
		return unverified(causeSignatureWrong, "The header %s does not hold a signature of the form %s.",
			header, m.signatureForm())
	}
	signed, text, failed := m.sentTimestamp(r, header, value)
	if failed != nil {
		return failed
	}
	if failed := m.checkSignedHeaders(r); failed != nil {
		return failed
	}
	if !m.matchesAny(r, text, &given) {
		return unverified(causeSignatureWrong,
			"The signature in the header %s does not fit the request and the source's secret.", header)
	}
	if len(m.places) == 0 {
		return nil
	}
	if signed.IsZero() {
		if signed, failed = m.bodyTimestamp(r); failed != nil {
			return failed
		}
	}
	return m.checkTolerance(signed, r.At)
}

// matchesAny reports whether one of the signatures is right by one of the valid secrets. It compares HMACs in constant
// time, each with each.
func (m *method) matchesAny(r *event.Request, timestamp string, given *candidates) bool {
	if m.Scheme == schemeEd25519 {
		message := m.signedMessage(r, timestamp)
		for _, k := range m.keys {
			for i := range given.n {
				if k.validAt(r.At) && ed25519.Verify(k.public, message, given.bytes[i][:]) {
					return true
				}
			}
		}
		return false
	}
	equal := 0
	for _, k := range m.keys {
		if !k.validAt(r.At) {
			continue
		}
		h := k.hashes.Get().(*hmacState)
		sum := m.hmacSum(h, r, timestamp)
		for i := range given.n {
			equal |= subtle.ConstantTimeCompare(sum, given.bytes[i][:len(sum)])
		}
		k.hashes.Put(h)
	}
	return equal == 1
}
