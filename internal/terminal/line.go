package terminal

import (
	"strings"
)

// Line is what stands on one row of the screen: pieces of printable text, each
// in one colour.
type Line []segment

type segment struct{ colour, text string }

// PlainLine is a line without colours.
func PlainLine(text string) Line { return Line{{"", text}} }

// ColouredLine is a line in one colour.
func ColouredLine(colour, text string) Line { return Line{{colour, text}} }

// And is the line with more text behind it.
func (l Line) And(colour, text string) Line { return append(l, segment{colour, text}) }

// Fit cuts a line to room cells; 0 is as much as it takes.
func (l Line) Fit(room int, on Colours) string {
	var b strings.Builder
	for _, s := range l {
		text := s.text
		if room > 0 {
			used := Cells(text)
			if text = Fit(text, room); used > room {
				b.WriteString(on.Paint(s.colour, text))
				break
			}
			if room -= used; room == 0 {
				b.WriteString(on.Paint(s.colour, text))
				break
			}
		}
		b.WriteString(on.Paint(s.colour, text))
	}
	return b.String()
}

// Draw is the text of lines, each ended.
func Draw(lines []Line, room int, on Colours) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(strings.TrimRight(l.Fit(room, on), " ") + "\n")
	}
	return b.String()
}
