package terminal

import (
	"strings"
	"unicode"

	"golang.org/x/text/width"
)

// Cells is how much room printable text takes on a terminal, where some
// characters take two cells and some none.
func Cells(s string) int {
	n := 0
	for _, r := range s {
		n += RuneCells(r)
	}
	return n
}

func RuneCells(r rune) int {
	switch kind := width.LookupRune(r).Kind(); {
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case kind == width.EastAsianWide, kind == width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// Pad fills s up to a number of cells.
func Pad(s string, to int) string { return s + strings.Repeat(" ", max(0, to-Cells(s))) }

// Fit is s where it takes at most room cells, and else its beginning.
func Fit(s string, room int) string {
	if Cells(s) <= room {
		return s
	}
	taken := 0
	for i, r := range s {
		if taken += RuneCells(r); taken > room-1 {
			return s[:i] + strings.Repeat("…", min(1, max(0, room)))
		}
	}
	return s
}

// Wrap breaks s into lines, at spaces where it can be: one of first cells and
// others of rest cells. There is at least one.
func Wrap(s string, first, rest int) (lines []string) {
	first, rest = max(first, 8), max(rest, 8) // else a narrow terminal gets a character a line
	line, room := "", first
	end := func() {
		lines = append(lines, line)
		line, room = "", rest
	}
	for text := range strings.SplitSeq(s, " ") {
		if line != "" && Cells(line)+1+Cells(text) <= room {
			line += " " + text
			continue
		}
		if line != "" {
			end()
		}
		for _, r := range text {
			if Cells(line)+RuneCells(r) > room {
				end()
			}
			line += string(r)
		}
	}
	return append(lines, line)
}
