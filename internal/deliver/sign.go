package deliver

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/secret"
)

// Sizes of a symmetric secret by Standard Webhooks, in bytes.
const (
	minSecret = 24
	maxSecret = 64
)

// signer makes the value of Webhook-Signature. It holds the key where nothing that prints a Client sees it.
type signer func(id, timestamp string, body []byte) string

// newSigner makes a signer for a symmetric secret of Standard Webhooks. That of no secret is nil. The error does not
// repeat the secret.
func newSigner(from secret.Value) (signer, error) {
	if from.IsZero() {
		return nil, nil
	}
	key, err := parseSecret(from.Reveal())
	if err != nil {
		return nil, err
	}
	return func(id, timestamp string, body []byte) string { return sign(key, id, timestamp, body) }, nil
}

// parseSecret decodes a symmetric secret of Standard Webhooks. The error does not repeat it.
func parseSecret(text string) (key []byte, err error) {
	key, err = base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "whsec_"))
	if err != nil {
		return nil, errors.New(`must be base64, with or without the prefix "whsec_"`)
	}
	if len(key) < minSecret || len(key) > maxSecret {
		return nil, fmt.Errorf("must be base64 of %d to %d bytes, found %d", minSecret, maxSecret, len(key))
	}
	return key, nil
}

// sign makes the value of Webhook-Signature (Standard Webhooks, v1).
func sign(key []byte, id, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id))
	mac.Write([]byte{'.'})
	mac.Write([]byte(timestamp))
	mac.Write([]byte{'.'})
	mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// messageID makes the value of Webhook-Id, which is the same for every attempt at an event and that of no other event.
// It percent-encodes bytes outside visible ASCII and the percent sign. Only ids of other sources than default have a
// slash, and the first one ends the source.
func messageID(job event.Job) string {
	isDefault := job.Source == event.DefaultSource
	id := job.ID
	const hex = "0123456789ABCDEF"
	b := make([]byte, 0, len(job.Source)+1+len(id))
	if !isDefault {
		b = append(append(b, job.Source...), '/') // a slug is visible ASCII without either of them
	}
	for i := range len(id) {
		if c := id[i]; c > ' ' && c < 0x7f && c != '%' && (c != '/' || !isDefault) {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&0xf])
		}
	}
	return string(b)
}
