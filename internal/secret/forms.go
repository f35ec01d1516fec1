package secret

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"
)

// Forms returns the forms in which a text may hold a secret: as it is, as a part of an address, in hex, and in base64.
// There are several of base64, since what stands before the secret moves the borders of its groups.
func Forms(text string) []string {
	hexed := hex.EncodeToString([]byte(text))
	forms := []string{
		text,
		url.QueryEscape(text),
		url.PathEscape(text),
		hexed,
		strings.ToUpper(hexed),
		base64.RawStdEncoding.EncodeToString([]byte(text)),
		base64.RawURLEncoding.EncodeToString([]byte(text)),
	}
	for before := range 3 {
		padded := append(make([]byte, before), text...)
		start := (before*8 + 5) / 6 // the first character that no bit before the secret changes
		end := len(padded) * 8 / 6  // the last one that no bit after it changes
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			forms = append(forms, encoding.EncodeToString(padded)[min(start, end):end])
		}
	}
	slices.Sort(forms)
	return slices.Compact(forms)
}

// minTrace is how many bytes of a secret in a row are a trace of it.
const minTrace = 8

// Traces finds parts of secrets in texts. The zero value finds none.
type Traces struct {
	in func(text string) bool // package fmt shows no more of it than an address
}

// NewTraces returns the Traces of secrets, in all of their forms.
func NewTraces(secrets []Value) Traces {
	parts := map[string]bool{}
	for _, s := range secrets {
		for _, form := range Forms(s.Reveal()) {
			form = strings.ToLower(form)
			for i := range max(len(form)-minTrace+1, 0) {
				parts[form[i:i+minTrace]] = true
			}
		}
	}
	return Traces{func(text string) bool {
		text = strings.ToLower(text)
		for i := range max(len(text)-minTrace+1, 0) {
			if parts[text[i:i+minTrace]] {
				return true
			}
		}
		return false
	}}
}

// In reports whether a text holds a part of one of the secrets, in letters of whatever case.
func (t Traces) In(text string) bool { return t.in != nil && t.in(text) }

// String returns Shown.
func (Traces) String() string { return Shown }
