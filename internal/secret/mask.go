package secret

import (
	"cmp"
	"encoding/hex"
	"html"
	"slices"
	"strings"
)

const (
	// minMasked is how many bytes a secret has at least that a Mask looks for.
	minMasked = 4
	// minCut is how many bytes of a secret a text that was cut ends with at least, for a Mask to hide them.
	minCut = 6
	// maxEscaped is how often a text may be escaped.
	maxEscaped = 4
)

// Mask hides secrets in texts that somebody else has made and that may repeat them. The zero value hides none.
type Mask struct {
	forms []Value // in lower case, the longest first
}

// NewMask returns the Mask of secrets of four bytes or more.
func NewMask(secrets ...Value) Mask {
	var m Mask
	for _, s := range secrets {
		if len(s.Reveal()) < minMasked {
			continue
		}
		for _, form := range Forms(s.Reveal()) {
			if len(form) >= minMasked {
				m.forms = append(m.forms, New(lowerASCII(form)))
			}
		}
	}
	slices.SortFunc(m.forms, func(a, b Value) int {
		return cmp.Or(cmp.Compare(len(b.Reveal()), len(a.Reveal())), strings.Compare(a.Reveal(), b.Reveal()))
	})
	m.forms = slices.CompactFunc(m.forms, Value.Equal)
	return m
}

// Hide returns a text with Shown in the place of each secret, in whatever form and letters. Where the text was cut, it
// may end with the beginning of one, and Hide hides that too. Of a text that holds one in escaped form it returns only
// Shown.
func (m Mask) Hide(text string, isCut bool) string {
	if len(m.forms) == 0 || text == "" {
		return text
	}
	text = m.hide(text, isCut)
	for plain := range unescapedViews(text) {
		if m.hide(plain, isCut) != plain {
			return Shown
		}
	}
	return text
}

// hide hides the secrets that a text holds as they are.
func (m Mask) hide(text string, isCut bool) string {
	lower := lowerASCII(text)
	for _, form := range m.forms {
		known := form.Reveal()
		for from := 0; ; {
			i := strings.Index(lower[from:], known)
			if i < 0 {
				break
			}
			i += from
			text = text[:i] + Shown + text[i+len(known):]
			lower = lower[:i] + Shown + lower[i+len(known):]
			from = i + len(Shown)
		}
	}
	if !isCut {
		return text
	}
	for _, form := range m.forms {
		known := form.Reveal()
		for n := min(len(known)-1, len(lower)); n >= minCut; n-- {
			if strings.HasSuffix(lower, known[:n]) {
				return text[:len(text)-n] + Shown
			}
		}
	}
	return text
}

// lowerASCII is a text with its letters of ASCII in lower case. It has as many bytes.
func lowerASCII(text string) string {
	b := []byte(text)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// escapedQuotes undoes what JSON and Go do to quotes, in one pass: a backslash may stand before another one.
var escapedQuotes = strings.NewReplacer(`\"`, `"`, `\\`, `\`)

// unescapedViews are what a text says where it is escaped for JSON, a URL, HTML or Go, once or more often.
func unescapedViews(text string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for range maxEscaped {
			plain := Unescaped(escapedQuotes.Replace(html.UnescapeString(text)))
			if plain == text || !yield(plain) {
				return
			}
			text = plain
		}
	}
}

// Unescaped is a text without its percent-encoding, and without that of ASCII and of slashes in JSON. What is no
// encoding stays.
func Unescaped(text string) string {
	if !strings.ContainsAny(text, "%\\") {
		return text
	}
	b := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		digits, skip := "", 0
		switch rest := text[i:]; {
		case strings.HasPrefix(rest, `\/`): // as PHP writes them
			continue
		case len(rest) >= 3 && rest[0] == '%':
			digits, skip = rest[1:3], 2
		case len(rest) >= 6 && strings.HasPrefix(rest, `\u00`):
			digits, skip = rest[4:6], 5
		}
		var c [1]byte
		if n, err := hex.Decode(c[:], []byte(digits)); n == 1 && err == nil {
			b = append(b, c[0])
			i += skip
			continue
		}
		b = append(b, text[i])
	}
	return string(b)
}
