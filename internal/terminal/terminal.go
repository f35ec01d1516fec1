// Package terminal shows text to a person. It has colours, tables and sparklines. It cuts and wraps lines by the cells
// that they take. It draws over a whole screen, and reads keys as they are typed.
//
// A terminal obeys control characters, and senders, destinations and servers may put some into their texts. So such a
// text is printed only by way of Printable, PrintableLines, OneLine, Word or WriteJSON. They promise to escape whatever
// cannot be seen.
//
// This package knows nothing of Spine.
package terminal

import (
	"io"
	"os"
	"text/tabwriter"

	"golang.org/x/term"
)

// IsTerminal reports whether a person may be reading what is written to w.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// defaultColumns and defaultRows are taken for a terminal that does not tell its size.
const (
	defaultColumns = 80
	defaultRows    = 24
)

// Size asks the terminal w how many cells a line has and how many lines there are.
func Size(w io.Writer) (columns, rows int) {
	if f, ok := w.(*os.File); ok {
		if columns, rows, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 && rows > 0 {
			return columns, rows
		}
	}
	return defaultColumns, defaultRows
}

// Width is the columns of Size.
func Width(w io.Writer) int {
	columns, _ := Size(w)
	return columns
}

// Table aligns cells that are separated by tabs, two spaces apart. They stand in w after Flush.
func Table(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) }
