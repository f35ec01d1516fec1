package deliver

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/webhookspine/spine/internal/event"
)

// Sizes of a symmetric secret by Standard Webhooks, in bytes.
const (
	minSecret = 24
	maxSecret = 64
)

// parseSecret decodes a symmetric secret of Standard Webhooks. The key of an empty secret is nil. The error does not
// repeat the secret.
func parseSecret(secret string) (key []byte, err error) {
	if secret == "" {
		return nil, nil
	}
	key, err = base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
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

// messageID makes the value of Webhook-Id, which is the same for every attempt at an event. It percent-encodes bytes
// outside visible ASCII. A percent sign is visible ASCII and stays as it is.
func messageID(job event.Job) string {
	id := job.ID
	if job.Source != event.DefaultSource {
		id = job.Source + "/" + job.ID
	}
	const hex = "0123456789ABCDEF"
	b := make([]byte, 0, len(id))
	for i := range len(id) {
		if c := id[i]; c > ' ' && c < 0x7f {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&0xf])
		}
	}
	return string(b)
}
