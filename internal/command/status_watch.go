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

// readTimeout is how long one reading may take before the database counts as away.
const readTimeout = 5 * time.Second

// redrawInterval is how often the terminal is asked for its size, and how often the clock on it may move.
const redrawInterval = 250 * time.Millisecond

// watcher reads the overview again and again, and shows it.
type watcher struct {
	read     func(ctx context.Context) (overview, error)
	interval time.Duration
	now      func() time.Time
	stderr   io.Writer
}

// display shows frames, those of failed readings too. refresh is called between readings.
type display interface {
	show(f *frame) error
	refresh(f *frame) error
}

// run reads and shows until ctx ends, somebody types q, or out takes no more.
func (w *watcher) run(ctx context.Context, in io.Reader, out io.Writer, asJSON bool, env environ) error {
	if asJSON || !terminal.IsTerminal(out) || env["TERM"] == "dumb" {
		return w.loop(ctx, &lineDisplay{out: out, stderr: w.stderr, json: asJSON}, nil)
	}
	quit, restore, err := terminal.WatchKeys(in)
	if err != nil {
		return err
	}
	defer restore() // after a panic too
	d := &screenDisplay{terminal.NewScreen(out, terminal.ColoursFor(out, env)), w.now}
	if err := d.screen.Open(); err != nil {
		return err
	}
	defer d.screen.Close()
	return w.loop(ctx, d, quit)
}

// reading is what one read returned.
type reading struct {
	overview overview
	err      error
	panicked string // what it panicked with
}

// loop reads and shows until ctx ends or quit is closed. It returns an error only where printing fails.
func (w *watcher) loop(ctx context.Context, d display, quit <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	readings := make(chan reading, 1)
	underWay := false
	begin := func() {
		underWay = true
		go func() { readings <- w.readOnce(ctx) }()
	}
	defer func() {
		cancel()
		if underWay {
			<-readings
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
		case r := <-readings:
			underWay = false
			switch {
			case r.panicked != "":
				panic(r.panicked) // here, where run restores the terminal
			case ctx.Err() != nil:
				return nil
			case r.err == nil:
				f.overview, f.readAt, f.away = &r.overview, w.now(), time.Time{}
			case f.away.IsZero():
				f.away = w.now()
			}
			if r.err != nil {
				f.failure = terminal.OneLine(r.err.Error())
			}
			err = d.show(&f)
		case <-again.C:
			if !underWay {
				begin()
			}
		case <-redraw.C:
			err = d.refresh(&f)
		}
	}
	return fmt.Errorf("printing: %w", err)
}

// readOnce reads within readTimeout.
func (w *watcher) readOnce(ctx context.Context) (r reading) {
	ctx, cancel := context.WithTimeoutCause(ctx, readTimeout, errors.New("the database does not answer"))
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			r.panicked = fmt.Sprintf("%v\n\n%s", p, debug.Stack())
		}
	}()
	o, err := w.read(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return reading{overview: o, err: err}
}

// lineDisplay shows each reading as a line: figures, or JSON. On the standard error it says once that the database is
// away.
type lineDisplay struct {
	out, stderr io.Writer
	json, away  bool
}

func (d *lineDisplay) refresh(*frame) error { return nil }

func (d *lineDisplay) show(f *frame) error {
	if !f.away.IsZero() {
		if !d.away {
			fmt.Fprintf(d.stderr, "spine: the database is away since %s, trying again: %s\n",
				f.away.UTC().Format(exactLayout), f.failure)
		}
		d.away = true
		return nil
	}
	if d.away {
		fmt.Fprintln(d.stderr, "spine: the database is back")
		d.away = false
	}
	if d.json {
		return terminal.WriteJSON(d.out, f.overview)
	}
	_, err := fmt.Fprintf(d.out, "%s %s\n", exactTime(f.overview.At), f.overview.figures())
	return err
}

// screenDisplay shows frames on a terminal.
type screenDisplay struct {
	screen *terminal.Screen
	now    func() time.Time
}

func (d *screenDisplay) refresh(f *frame) error { return d.show(f) }

func (d *screenDisplay) show(f *frame) error {
	return d.screen.Show(func(columns, rows int) []terminal.Line { return f.lines(columns, rows, d.now()) })
}
