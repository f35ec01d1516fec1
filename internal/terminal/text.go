package terminal

import (
	"strconv"
	"strings"
)

// PrintableLines is printable for each line of a text.
func PrintableLines(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = Printable(line)
	}
	return strings.Join(lines, "\n")
}

// Everything that webhooks, destinations and servers say is text from outside, and a
// terminal obeys what it is told: nothing of it is printed but by way of
// printable, word or writeJSON.

// Printable escapes, as in Go, what cannot be seen: control characters, line
// ends, changes of writing direction.
func Printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if strconv.IsPrint(r) {
			b.WriteRune(r)
		} else {
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

// Word makes s one word, which is quoted as in Go where it is not one as it
// stands.
func Word(s string) string {
	if s == "" || strings.ContainsAny(s, ` "=`) || Printable(s) != s {
		return strconv.Quote(s)
	}
	return s
}

// OneLine brings an error's text onto one line.
func OneLine(s string) string { return Printable(strings.Join(strings.Fields(s), " ")) }

// longestDetail is how many characters are shown of what somebody says.
const longestDetail = 160

// Shorten shortens s to longestDetail.
func Shorten(s string) string {
	if runes := []rune(s); len(runes) > longestDetail {
		return string(runes[:longestDetail-1]) + "…"
	}
	return s
}
