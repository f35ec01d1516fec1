package terminal

import "io"

// Colour is how a piece of text looks: the parameter of the terminal's own sequence for it.
type Colour string

// The colours that are used. Plain is the terminal's own.
const (
	Plain  Colour = ""
	Bold   Colour = "1"
	Dim    Colour = "2"
	Red    Colour = "31"
	Green  Colour = "32"
	Yellow Colour = "33"
)

// Colours says whether text is painted at all.
type Colours bool

// ColoursFor is true where w is a terminal whose user does not object (https://no-color.org).
func ColoursFor(w io.Writer, environment map[string]string) Colours {
	return Colours(IsTerminal(w) && environment["NO_COLOR"] == "" && environment["TERM"] != "dumb")
}

// Paint is text in a colour, or as it is where nothing is painted.
func (c Colours) Paint(colour Colour, text string) string {
	if !c || colour == Plain {
		return text
	}
	return "\x1b[" + string(colour) + "m" + text + "\x1b[0m"
}
