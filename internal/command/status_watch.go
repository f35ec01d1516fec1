package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/webhookspine/spine/internal/terminal"
)

// readTimeout is how long one look may take before the database counts as away.
const readTimeout = 5 * time.Second

// redrawInterval is how often a terminal is asked for its size, and how often the
// clock on it may move.
const redrawInterval = 250 * time.Millisecond

// watcher looks again and again, and shows what it saw.
type watcher struct {
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
func (w *watcher) run(ctx context.Context, in io.Reader, out io.Writer, asJSON bool, env environ) error {
	if asJSON || !terminal.IsTerminal(out) || env["TERM"] == "dumb" {
		return w.loop(ctx, &lineDisplay{out: out, stderr: w.stderr, json: asJSON}, nil)
	}
	keys, restore, err := terminal.WatchKeys(in)
	if err != nil {
		return err
	}
	defer restore() // also where something panics
	s := &screenDisplay{terminal.NewScreen(out, terminal.ColoursFor(out, env)), w.now}
	if err := s.screen.Open(); err != nil {
		return err
	}
	defer s.screen.Close()
	return w.loop(ctx, s, keys)
}

// loop looks and shows. quit is closed where it is to end.
func (w *watcher) loop(ctx context.Context, d display, quit <-chan struct{}) error {
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
			ctx, cancel := context.WithTimeoutCause(ctx, readTimeout, errors.New("the database does not answer"))
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

	again, redraw := time.NewTicker(w.interval), time.NewTicker(redrawInterval)
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

// lineDisplay shows each look as a line: figures, or JSON. That the database is away is
// said beside them, once.
type lineDisplay struct {
	out, stderr io.Writer
	json, away  bool
}

func (l *lineDisplay) refresh(*frame) error { return nil }

func (l *lineDisplay) show(f *frame) error {
	if !f.away.IsZero() {
		if !l.away {
			fmt.Fprintf(l.stderr, "spine: the database is away since %s, trying again: %s\n", f.away.UTC().Format(exactLayout), f.failure)
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
	_, err := fmt.Fprintf(l.out, "%s %s\n", exactTime(f.seen.At), f.seen.figures())
	return err
}

// screenDisplay shows frames on a terminal.
type screenDisplay struct {
	screen *terminal.Screen
	now    func() time.Time
}

func (s *screenDisplay) refresh(f *frame) error { return s.show(f) }

func (s *screenDisplay) show(f *frame) error {
	return s.screen.Show(func(columns, rows int) []terminal.Line { return f.lines(columns, rows, s.now()) })
}
