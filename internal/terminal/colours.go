package terminal

import (
	"io"
)

// Colours paints text on a terminal, and leaves it alone elsewhere.
type Colours bool

const (
	Dim    = "2"
	Bold   = "1"
	Red    = "31"
	Green  = "32"
	Yellow = "33"
)

// ColoursFor is on where w is a terminal whose user does not object
// (https://no-color.org).
func ColoursFor(w io.Writer, env map[string]string) Colours {
	return Colours(IsTerminal(w) && env["NO_COLOR"] == "" && env["TERM"] != "dumb")
}

func (on Colours) Paint(colour, text string) string {
	if !on || colour == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}
