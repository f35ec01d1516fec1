package terminal

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// emulator is a terminal as xterm and the Linux console are. A character in the last column leaves the cursor there
// until the next one comes. Erasing to the end of the line erases that character too.
type emulator struct {
	columns  int
	cells    [][]rune
	row, col int
	wraps    bool // before the next character
}

func (e *emulator) Write(text []byte) (int, error) {
	for rest := string(text); rest != ""; {
		if code := regexp.MustCompile(`^\x1b\[[?\d]*[A-Za-z]`).FindString(rest); code != "" {
			switch code {
			case "\x1b[H":
				e.row, e.col, e.wraps = 0, 0, false
			case restOfLine:
				e.erase(e.row, e.col)
			case restOfScreen:
				e.erase(e.row, e.col)
				for row := e.row + 1; row < len(e.cells); row++ {
					e.erase(row, 0)
				}
			}
			rest = rest[len(code):]
			continue
		}
		r, size := utf8.DecodeRuneInString(rest)
		rest = rest[size:]
		switch r {
		case '\r':
			e.col, e.wraps = 0, false
		case '\n':
			e.row++
		default:
			if e.wraps {
				e.row, e.col, e.wraps = e.row+1, 0, false
			}
			e.cells[e.row][e.col] = r
			for range runeCells(r) - 1 {
				e.col++
				e.cells[e.row][e.col] = 0
			}
			if e.wraps = e.col == e.columns-1; !e.wraps {
				e.col++
			}
		}
	}
	return len(text), nil
}

func (e *emulator) erase(row, from int) {
	for col := from; col < e.columns; col++ {
		e.cells[row][col] = ' '
	}
}

// String is what stands there, without blanks at the end of lines and blank lines at the end.
func (e *emulator) String() string {
	var b strings.Builder
	for _, row := range e.cells {
		b.WriteString(strings.TrimRight(strings.ReplaceAll(string(row), "\x00", ""), " ") + "\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// picture has rows lines: some short, some as wide as the screen or wider, and some with wide characters.
func picture(columns, rows int) []Line {
	lines := []Line{ColouredLine(Bold, "title"), nil}
	for i := 0; len(lines) < rows; i++ {
		wide := strings.Repeat("受", columns/4)
		lines = append(lines,
			PlainLine(strings.Repeat("a", columns-1)).And(Red, "b"),
			PlainLine(strings.Repeat("c", columns)),
			PlainLine(strings.Repeat("d", columns)).And(Green, "e"),
			PlainLine(wide).And(Dim, wide+wide),
			PlainLine("short"))
	}
	return lines[:rows]
}

func TestScreenShowsAllThatIsDrawnAndNothingElse(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {40, 12}, {120, 60}, {120, 24}, {41, 3}} {
		columns, rows := size[0], size[1]
		e := &emulator{columns: columns, cells: make([][]rune, rows)}
		for row := range e.cells {
			e.cells[row] = []rune(strings.Repeat("x", columns)) // from before
		}
		s := Screen{out: e, size: func() (int, int) { return columns, rows }}
		for _, height := range []int{rows, 2, rows - 1, 1, rows} {
			draw := func(columns, _ int) []Line { return picture(columns, height) }
			require.NoError(t, s.Show(draw))
			want := strings.TrimRight(JoinLines(draw(columns, rows), columns, false), "\n") + "\n"
			require.Equal(t, want, e.String(), "%v, %d lines", size, height)
		}
	}
}

func TestScreenIsRedrawnWithoutFlicker(t *testing.T) {
	var out strings.Builder
	columns := 80
	s := Screen{out: &out, size: func() (int, int) { return columns, 24 }}
	require.NoError(t, s.Open())
	require.NoError(t, s.Show(picture))
	first := out.String()
	require.True(t, strings.HasPrefix(first, "\x1b[?1049h\x1b[?25l\x1b[?2026h\x1b[H\x1b[Ktitle"))
	require.NotContains(t, first, "\x1b[2J", "nothing is wiped before it is drawn over")
	require.Equal(t, 23, strings.Count(first, "\r\n\x1b[K"), "24 lines, and none scrolls")
	require.NoError(t, s.Show(picture))
	require.Equal(t, first, out.String(), "what stands there already is not drawn again")
	columns = 60
	require.NoError(t, s.Show(picture))
	require.Greater(t, out.Len(), len(first), "the window has changed")
	s.Close()
	require.True(t, strings.HasSuffix(out.String(), "\x1b[?2026l\x1b[?25h\x1b[?1049l"))
}
