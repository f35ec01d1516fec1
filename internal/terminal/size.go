package terminal

import (
	"io"
	"os"

	"golang.org/x/term"
)

// IsTerminal reports whether a person may be reading what is written to w.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Width is how many cells a line of the terminal w has: 80 where it does
// not say.
func Width(w io.Writer) int {
	if columns, _, ok := Size(w); ok {
		return columns
	}
	return 80
}

// Size asks the terminal w how large it is.
func Size(w io.Writer) (columns, rows int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	columns, rows, err := term.GetSize(int(f.Fd()))
	return columns, rows, err == nil && columns > 0 && rows > 0
}
