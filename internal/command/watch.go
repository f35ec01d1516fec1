package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"time"

	"github.com/webhookspine/spine/internal/terminal"
)

// lookTimeout is how long one look may take before the database counts as away.
const lookTimeout = 5 * time.Second

// redrawn is how often a terminal is asked for its size, and how often the
// clock on it may move.
const redrawn = 250 * time.Millisecond

// watching looks again and again, and shows what it saw.
type watching struct {
	read     func(ctx context.Context) (overview, error)
	interval time.Duration
	now      func() time.Time
	stderr   io.Writer
}

// display shows frames. A look that failed is in the frame as well. refresh is
// called between looks.
type display interface {
	show(f *frame) error
	refresh(f *frame) error
}

// run looks and shows until ctx ends, someone types q, or nobody takes what is
// shown.
func (w *watching) run(ctx context.Context, in io.Reader, out io.Writer, asJSON bool, env environ) error {
	if asJSON || !terminal.IsTerminal(out) || env["TERM"] == "dumb" {
		return w.loop(ctx, &lines{out: out, stderr: w.stderr, json: asJSON}, nil)
	}
	s := &screen{out: out, size: func() (int, int) {
		if columns, rows, ok := terminal.Size(out); ok {
			return columns, rows
		}
		return 80, 24
	}, on: terminal.ColoursFor(out, env), now: w.now}
	keys, restore, err := terminal.QuitKey(in)
	if err != nil {
		return err
	}
	defer restore() // also where something panics
	if err := s.open(); err != nil {
		return err
	}
	defer s.close()
	return w.loop(ctx, s, keys)
}

// loop looks and shows. quit is closed where it is to end.
func (w *watching) loop(ctx context.Context, d display, quit <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	type look struct {
		seen     overview
		err      error
		panicked string
	}
	looks := make(chan look, 1)
	looking := false
	begin := func() {
		looking = true
		go func() {
			ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, errors.New("the database does not answer"))
			defer cancel()
			defer func() { // the loop panics in its place, so that the terminal is restored
				if p := recover(); p != nil {
					looks <- look{panicked: fmt.Sprintf("%v\n\n%s", p, debug.Stack())}
				}
			}()
			seen, err := w.read(ctx)
			if cause := context.Cause(ctx); err != nil && cause != nil {
				err = cause
			}
			looks <- look{seen: seen, err: err}
		}()
	}
	defer func() {
		cancel()
		if looking {
			<-looks
		}
	}()

	again, redraw := time.NewTicker(w.interval), time.NewTicker(redrawn)
	defer again.Stop()
	defer redraw.Stop()
	f := frame{interval: w.interval}
	err := d.refresh(&f)
	begin()
	for err == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-quit:
			return nil
		case l := <-looks:
			looking = false
			switch {
			case l.panicked != "":
				panic(l.panicked)
			case ctx.Err() != nil:
				return nil
			case l.err == nil:
				f.seen, f.at, f.away = &l.seen, w.now(), time.Time{}
			case f.away.IsZero():
				f.away = w.now()
			}
			if l.err != nil {
				f.failure = terminal.OneLine(l.err.Error())
			}
			err = d.show(&f)
		case <-again.C:
			if !looking {
				begin()
			}
		case <-redraw.C:
			err = d.refresh(&f)
		}
	}
	return fmt.Errorf("printing: %w", err)
}

// lines shows each look as a line: figures, or JSON. That the database is away is
// said beside them, once.
type lines struct {
	out, stderr io.Writer
	json, away  bool
}

func (l *lines) refresh(*frame) error { return nil }

func (l *lines) show(f *frame) error {
	if !f.away.IsZero() {
		if !l.away {
			fmt.Fprintf(l.stderr, "spine: the database is away since %s, trying again: %s\n", f.away.UTC().Format(clockLayout), f.failure)
		}
		l.away = true
		return nil
	}
	if l.away {
		fmt.Fprintln(l.stderr, "spine: the database is back")
		l.away = false
	}
	if l.json {
		return terminal.WriteJSON(l.out, f.seen)
	}
	_, err := fmt.Fprintf(l.out, "%s %s\n", clock(f.seen.At), f.seen.figures())
	return err
}

// What a terminal is told. Each picture is written over the one before, within a
// synchronized update where the terminal knows that, so that nothing flickers. A
// line is erased before it is written: the cursor stays on the last column when
// that is filled, and what erases the rest of the line erases that as well.
const (
	alternateScreen = "\x1b[?1049h\x1b[?25l" // and no cursor
	normalScreen    = "\x1b[?25h\x1b[?1049l"
	beginUpdate     = "\x1b[?2026h\x1b[H"
	restOfLine      = "\x1b[K"
	restOfScreen    = "\x1b[J"
	endUpdate       = "\x1b[?2026l"
)

// screen shows frames on a terminal.
type screen struct {
	out   io.Writer
	size  func() (columns, rows int)
	on    terminal.Colours
	now   func() time.Time
	shown string // what stands there
}

func (s *screen) open() error {
	_, err := io.WriteString(s.out, alternateScreen)
	return err
}

func (s *screen) close() { _, _ = io.WriteString(s.out, normalScreen) }

func (s *screen) refresh(f *frame) error { return s.show(f) }

func (s *screen) show(f *frame) error {
	columns, rows := s.size()
	drawn := f.lines(columns, rows, s.now())
	var b strings.Builder
	for i, l := range drawn {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(restOfLine + l.Fit(columns, s.on))
	}
	if len(drawn) < rows {
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
