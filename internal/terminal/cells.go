package terminal

import (
	"strings"
	"unicode"

	"golang.org/x/text/width"
)

// Cells is how many cells printable text takes on a terminal. Some characters take two, some take none.
func Cells(s string) int {
	cells := 0
	for _, r := range s {
		cells += runeCells(r)
	}
	return cells
}

func runeCells(r rune) int {
	switch kind := width.LookupRune(r).Kind(); {
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case kind == width.EastAsianWide, kind == width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// Pad fills s with spaces up to a number of cells.
func Pad(s string, cells int) string { return s + strings.Repeat(" ", max(0, cells-Cells(s))) }

// Fit is s if s takes at most room cells, else its beginning with an ellipsis.
func Fit(s string, room int) string {
	if Cells(s) <= room {
		return s
	}
	used := 0
	for i, r := range s {
		if used += runeCells(r); used > room-1 {
			return s[:i] + strings.Repeat("…", min(1, max(0, room)))
		}
	}
	return s
}

// leastWrap is the narrowest line that Wrap makes. On a terminal that is narrower still it would make one line a
// character.
const leastWrap = 8

// Wrap breaks s into lines, at spaces if possible. The first line has room for first cells, the others for rest. There
// is at least one line.
func Wrap(s string, first, rest int) (lines []string) {
	first, rest = max(first, leastWrap), max(rest, leastWrap)
	line, room := "", first
	endLine := func() {
		lines = append(lines, line)
		line, room = "", rest
	}
	for text := range strings.SplitSeq(s, " ") {
		if line != "" && Cells(line)+1+Cells(text) <= room {
			line += " " + text
			continue
		}
		if line != "" {
			endLine()
		}
		for _, r := range text {
			if Cells(line)+runeCells(r) > room {
				endLine()
			}
			line += string(r)
		}
	}
	return append(lines, line)
}
