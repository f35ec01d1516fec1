// Package respond writes answers over HTTP, so that all stages speak alike:
// JSON with its length, and refusals as problems (RFC 9457).
//
// It promises that an answer is written whole or not begun, and that browsers
// and caches are told not to keep it, guess its type or pass it on. It knows
// nothing of what is answered.
package respond

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// JSON answers with body as application/json, or with 500 and the error that
// body cannot be encoded. Raw messages come out as they are but for the white
// space between their tokens.
func JSON(w http.ResponseWriter, status int, body any) error {
	text, err := encode(body)
	if err != nil {
		Secure(w.Header())
		w.WriteHeader(http.StatusInternalServerError)
		return fmt.Errorf("encoding an answer: %w", err)
	}
	Write(w, status, "application/json", text)
	return nil
}

func encode(body any) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(body)
	return text.Bytes(), err
}

// Write answers with body.
func Write(w http.ResponseWriter, status int, contentType string, body []byte) {
	header := w.Header()
	Secure(header)
	header.Set("Content-Type", contentType)
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
}

// Secure keeps browsers and caches from doing with an answer what it is not
// for.
func Secure(header http.Header) {
	for name, value := range secure {
		header[name] = value
	}
}

// secure is shared by all answers; nobody changes the values of a header in place.
var secure = http.Header{
	"X-Content-Type-Options":       {"nosniff"},
	"Cache-Control":                {"no-store"},
	"Cross-Origin-Resource-Policy": {"same-origin"},
	"Referrer-Policy":              {"no-referrer"},
}
