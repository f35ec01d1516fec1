package terminal

import "strings"

// Line is what stands on one row of a screen: printable text, in pieces of one colour each.
type Line []segment

type segment struct {
	colour Colour
	text   string
}

// PlainLine is a line without colours.
func PlainLine(text string) Line { return ColouredLine(Plain, text) }

// ColouredLine is a line in one colour.
func ColouredLine(colour Colour, text string) Line { return Line{{colour, text}} }

// And is the line with more text at its end.
func (l Line) And(colour Colour, text string) Line { return append(l, segment{colour, text}) }

// Fit is the line's text, cut to room cells; 0 cuts nothing.
func (l Line) Fit(room int, colours Colours) string {
	var b strings.Builder
	for _, s := range l {
		text := s.text
		if room > 0 {
			used := Cells(text)
			text = Fit(text, room)
			if room -= used; room <= 0 {
				b.WriteString(colours.Paint(s.colour, text))
				break
			}
		}
		b.WriteString(colours.Paint(s.colour, text))
	}
	return b.String()
}

// JoinLines is the text of lines, each cut as by Fit and ended.
func JoinLines(lines []Line, room int, colours Colours) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(strings.TrimRight(l.Fit(room, colours), " ") + "\n")
	}
	return b.String()
}
