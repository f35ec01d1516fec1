package terminal

import (
	"strconv"
	"strings"
)

// Printable escapes whatever cannot be seen, as Go does: control characters, line ends, changes of writing direction.
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

// PrintableLines is Printable for each line of a text.
func PrintableLines(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = Printable(line)
	}
	return strings.Join(lines, "\n")
}

// OneLine brings a text, such as that of an error, onto one printable line.
func OneLine(s string) string { return Printable(strings.Join(strings.Fields(s), " ")) }

// Word is s where s reads as one word, else s in quotes as Go writes them.
func Word(s string) string {
	if s == "" || strings.ContainsAny(s, ` "=`) || Printable(s) != s {
		return strconv.Quote(s)
	}
	return s
}

// longestDetail is how many characters Shorten leaves: two lines of an ordinary terminal.
const longestDetail = 160

// Shorten cuts a detail that somebody else has worded, such as an error message, to a length that a line can bear.
func Shorten(s string) string {
	if runes := []rune(s); len(runes) > longestDetail {
		return string(runes[:longestDetail-1]) + "…"
	}
	return s
}
