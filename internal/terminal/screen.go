package terminal

import (
	"fmt"
	"io"
	"strings"
)

// Control sequences. Each picture is written over the one before, within a synchronized update if the terminal knows
// that, so that nothing flickers. A line is erased before it is written. Afterwards it would be too late: the cursor
// stays on a filled last column, and erasing the rest of the line would erase that column too.
const (
	alternateScreen = "\x1b[?1049h\x1b[?25l" // and no cursor
	normalScreen    = "\x1b[?25h\x1b[?1049l"
	beginUpdate     = "\x1b[?2026h\x1b[H"
	restOfLine      = "\x1b[K"
	restOfScreen    = "\x1b[J"
	endUpdate       = "\x1b[?2026l"
)

// Screen is a whole terminal on which one picture is drawn over the other. It is for one goroutine.
type Screen struct {
	out     io.Writer
	colours Colours
	size    func() (columns, rows int)
	shown   string // what stands there
}

// NewScreen knows a screen on the terminal out.
func NewScreen(out io.Writer, colours Colours) *Screen {
	return &Screen{out: out, colours: colours, size: func() (int, int) { return Size(out) }}
}

// Open puts what stands on the terminal aside, until Close.
func (s *Screen) Open() error {
	_, err := io.WriteString(s.out, alternateScreen)
	return err
}

// Close brings back what stood on the terminal before Open.
func (s *Screen) Close() { _, _ = io.WriteString(s.out, normalScreen) }

// Show asks draw for the lines that fit the terminal as it is now, and shows them. It writes nothing if they stand
// there already.
func (s *Screen) Show(draw func(columns, rows int) []Line) error {
	columns, rows := s.size()
	lines := draw(columns, rows)
	var b strings.Builder
	for i, l := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(restOfLine + l.Fit(columns, s.colours))
	}
	if len(lines) < rows {
		b.WriteString("\r\n" + restOfScreen)
	}
	picture := fmt.Sprintf("%s%d %d", b.String(), columns, rows) // a window that grew is drawn anew
	if picture == s.shown {
		return nil
	}
	s.shown = picture
	_, err := io.WriteString(s.out, beginUpdate+b.String()+endUpdate)
	return err
}
