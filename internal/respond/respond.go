// Package respond writes answers over HTTP, so that all stages answer alike: JSON with its length,
// and rejections as problems (RFC 9457).
//
// It promises that an answer is written whole or not begun. It tells browsers and caches not to
// keep an answer and not to guess its type. It knows nothing of what is answered.
package respond

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// JSON answers with body as application/json. If body cannot be encoded, it answers 500 and returns
// the error. Raw messages come out as they are, without the white space between their tokens.
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

// Write answers with body, and with its length and type.
func Write(w http.ResponseWriter, status int, contentType string, body []byte) {
	header := w.Header()
	header["X-Content-Type-Options"], header["Cache-Control"] = nosniff, noStore
	header.Set("Content-Type", contentType)
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
}

// Secure sets the headers that stop browsers and caches from misusing an answer. Write sets the first two by itself.
// Clients other than browsers need no more.
func Secure(header http.Header) {
	header["X-Content-Type-Options"], header["Cache-Control"] = nosniff, noStore
	header["Cross-Origin-Resource-Policy"], header["Referrer-Policy"] = sameOrigin, noReferrer
}

// Values of headers. All answers share them: no one changes the values of a header in place.
var (
	nosniff    = []string{"nosniff"}
	noStore    = []string{"no-store"}
	sameOrigin = []string{"same-origin"}
	noReferrer = []string{"no-referrer"}
)
