package source

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // Twilio and older providers sign with it, and an HMAC does not need more of it
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"
	"time"

	"github.com/webhookspine/spine/internal/secret"
)

// key is a secret that a method takes, ready to verify with.
type key struct {
	index       int // in the list of secrets
	from, until time.Time
	hashes      sync.Pool         // of *hmacState, for an HMAC: making one costs more than using it
	public      ed25519.PublicKey // for ed25519
	private     secret.Value      // an ed25519.PrivateKey; none where only the public one is known
	text        secret.Value      // token, or user:password
	// SHA-256 of text. It is compared in the place of text, since its length does not tell that of the token.
	sum [32]byte
}

// hmacState is an HMAC with room for its input and its output.
type hmacState struct {
	mac hash.Hash
	in  []byte
	out []byte
}

// validAt reports whether a secret is valid at a time: from is inclusive, until is exclusive.
func (k *key) validAt(t time.Time) bool {
	return (k.from.IsZero() || !t.Before(k.from)) && (k.until.IsZero() || t.Before(k.until))
}

// matchSecret reports whether a method takes a secret, by the secret's prefix. It returns the secret without the
// prefix.
func (m Method) matchSecret(text string) (rest string, ok bool) {
	for _, prefix := range m.SecretNot {
		if strings.HasPrefix(text, prefix) {
			return "", false
		}
	}
	if len(m.SecretPrefix) == 0 {
		return text, true
	}
	for _, prefix := range m.SecretPrefix {
		if rest, ok := strings.CutPrefix(text, prefix); ok {
			return rest, true
		}
	}
	return "", false
}

// newKey makes a key of a secret, whose text is without its prefix. The error does not repeat the secret. It reads on
// from the secret's reference.
func (m *method) newKey(s Secret, text string) (*key, error) {
	k := &key{from: s.From, until: s.Until, text: secret.New(text)}
	switch m.Scheme {
	case schemeHMAC, schemeTwilio:
		decoded, err := decodeSecret(m.Secret, text)
		if err != nil {
			return nil, err
		}
		newHash := m.hashFunction()
		k.hashes.New = func() any { return &hmacState{mac: hmac.New(newHash, decoded)} }
	case schemeEd25519:
		decoded, err := decodeSecret(m.Secret, text)
		if err != nil {
			return nil, err
		}
		switch len(decoded) {
		case ed25519.PublicKeySize:
			k.public = decoded
		case ed25519.PrivateKeySize:
			k.private = secret.New(string(decoded))
			k.public = ed25519.NewKeyFromSeed(decoded[:ed25519.SeedSize]).Public().(ed25519.PublicKey)
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

// hashFunction is the hash of the method's HMAC.
func (m *method) hashFunction() func() hash.Hash {
	switch {
	case m.Scheme == schemeTwilio || m.Hash == "sha1":
		return sha1.New
	case m.Hash == "sha512":
		return sha512.New
	}
	return sha256.New
}

// decodeSecret reads the bytes of a key. The error does not repeat the secret.
func decodeSecret(kind, text string) (decoded []byte, err error) {
	switch kind {
	case "base64":
		// Padding is often lost when a secret is copied.
		decoded, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
	case "hex":
		decoded, err = hex.DecodeString(text)
	default:
		decoded = []byte(text)
	}
	if err != nil {
		return nil, fmt.Errorf("does not hold %s", kind)
	}
	if len(decoded) == 0 {
		return nil, errors.New("is empty")
	}
	return decoded, nil
}
