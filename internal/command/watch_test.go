package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/view"
)

// numbers are steps in which n things happened each; of the first ones it is not
// known.
func numbers[N int64 | float64](steps, unknown int, n N) []*N {
	series := make([]*N, steps)
	for i := unknown; i < steps; i++ {
		series[i] = &n
	}
	return series
}

// busy is a quarter of an hour of which the last ten minutes are known: 512
// events a second came in, the last step is half over.
func busy(now time.Time) view.Overview {
	const steps, unknown = 90, 30
	o := view.Overview{At: event.Timestamp{Time: now}, RangeSeconds: 900, StepSeconds: 10, CoveredTo: &event.Timestamp{Time: now}}
	start := now.Truncate(10 * time.Second)
	for i := range steps {
		o.Series.At = append(o.Series.At, start.Add(time.Duration(i-steps+1)*10*time.Second).Unix())
	}
	partial := float64(now.Sub(start)) / float64(10*time.Second)
	count := func(n int64) []*int64 {
		series := numbers(steps, unknown, n)
		last := int64(float64(n) * partial)
		series[steps-1] = &last
		return series
	}
	s := &o.Series
	s.Received, s.Accepted, s.Deduplicated, s.Conflicts, s.Rejected = count(5120), count(5000), count(120), count(0), count(4)
	s.Attempts, s.AttemptsFailed, s.Delivered, s.Died = count(5500), count(500), count(5000), count(0)
	for i := unknown; i < steps; i++ { // rising
		n := int64((i - unknown) * 100)
		if i < steps-7 {
			s.Delivered[i] = &n
		}
	}
	s.LatencyP50, s.LatencyP95, s.LatencyP99 = numbers(steps, unknown, 1.7), numbers(steps, unknown, 6.66), numbers(steps, unknown, 12.4)
	slow := 840.0
	s.LatencyP99[50] = &slow
	return o
}

func overviewOf(seen view.Overview) *overview {
	worker := "ops"
	oldest := 2.34
	at := func(ago time.Duration) event.Timestamp { return event.Timestamp{Time: seen.At.Time.Add(-ago)} }
	dead := func(id, why string, ago time.Duration) view.ProcessingRow {
		return view.ProcessingRow{EventID: id, Destination: "default", ErrorMessage: &why, UpdatedAt: at(ago)}
	}
	depthAt := at(time.Second)
	return &overview{
		At: seen.At, OldestReady: &oldest, DepthAt: &depthAt, Rates: ratesOf(&seen), Latency: latencyOf(&seen), series: seen.Series,
		Backlog: []view.BacklogRow{
			{Destination: "billing", Status: "failed", Count: 3, OldestCreatedAt: at(90 * time.Second)},
			{Destination: "default", Status: "dead", Count: 1200, OldestCreatedAt: at(48 * time.Hour)},
			{Destination: "default", Status: "pending", Count: 1_234_567, OldestCreatedAt: at(2300 * time.Millisecond)},
			{Destination: "default", Status: "processing", Count: 64, OldestCreatedAt: at(time.Second)},
		},
		Paused:      []view.PauseRow{{Destination: "billing", PausedAt: at(time.Minute), PausedBy: &worker}},
		Stuck:       []store.StuckRow{{EventID: "inv-7", Destination: "billing", DueAt: at(80 * time.Second), Reason: "claims are paused"}},
		LastArrival: map[string]time.Time{"default": at(2 * time.Second).Time, "github": at(4 * time.Minute).Time},
		DeadLetters: []view.ProcessingRow{
			dead("72d3162e-cc78-11e3-81ab-4c9367dc0958", "HTTP 410 Gone", 3*time.Second), dead("受注-001", "HTTP 422 Unprocessable Entity: "+strings.Repeat("no ", 40), time.Hour),
			dead("c", "HTTP 400", 2*time.Hour), dead("d", "HTTP 400", 3*time.Hour),
		},
	}
}

var watchedAt = time.Date(2024, 1, 30, 12, 0, 5, 0, time.UTC)

func drawnAt(f *frame, columns, rows int) string {
	return terminal.Draw(f.lines(columns, rows, watchedAt), columns, false)
}

func TestWatchFitsAnOrdinaryTerminal(t *testing.T) {
	f := frame{seen: overviewOf(busy(watchedAt)), at: watchedAt, interval: time.Second}
	require.Equal(t, `spine status  2024-01-30 12:00:05 UTC                        every 1s, q ends it

PER SECOND       now   1 min   5 min  15 min   THE LAST 15 MINUTES
received         512     512     512       ?             ████████████████████
  accepted       500     500     500       ?             ████████████████████
  duplicates      12      12      12       ?             ████████████████████
  conflicts        0       0       0       ?             ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁
rejected         0.4     0.4     0.4       ?             ████████████████████
attempts         550     550     550       ?             ████████████████████
  failed          50      50      50       ?             ████████████████████
delivered        500     500     425       ?             ▂▂▂▃▃▄▄▄▅▅▆▆▆▇▇█████
died               0       0       0       ?             ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁
latency      p50 1.7ms   p95 6.66ms  p99 12ms    worst p99 840ms       █████████

DESTINATION       PENDING  PROCESSING   FAILED     DEAD  OLDEST QUEUED
billing                 0           0        3        0  1m30s ago
default           1234567          64        0     1200  2.3s ago
oldest waiting  due for 2.34s
paused          billing since 2024-01-30T11:59:05.000Z by ops
stuck           inv-7 at billing, due 1m20s ago: claims are paused
last arrival    default 2s ago, github 4m ago
LAST DIED                             WHEN        WHY
72d3162e-cc78-11e3-81ab-4c9367dc0958  3s ago      HTTP 410 Gone
受注-001                              1h ago      HTTP 422 Unprocessable Entity…
`, drawnAt(&f, 80, 24))
}

func TestWatchOnASmallTerminal(t *testing.T) {
	f := frame{seen: overviewOf(busy(watchedAt)), at: watchedAt, interval: time.Second}
	require.Equal(t, `spine status  2024-01-30 12:00:05 UTC

PER SECOND       now   1 min   5 min
received         512     512     512
failed            50      50      50
delivered        500     500     425
died               0       0       0
latency      p50 1.7ms   p95 6.66ms  p9…
DESTINATION       PENDING  PROCESSING  …
billing                 0           0  …
default           1234567          64  …
… 4 more lines: the window is too low f…
`, drawnAt(&f, 40, 12))
}

func TestWatchKeepsWithinEveryTerminal(t *testing.T) {
	full := overviewOf(busy(watchedAt))
	for i := range 30 {
		full.Backlog = append(full.Backlog, view.BacklogRow{Destination: fmt.Sprintf("destination-%d-of-many", i), Status: "pending", Count: 1})
	}
	for _, seen := range []*overview{nil, {}, full} {
		for _, away := range []time.Time{{}, watchedAt} {
			f := frame{seen: seen, at: watchedAt, away: away, failure: strings.Repeat("refused ", 30), interval: time.Second}
			for columns := 1; columns < 160; columns += 3 {
				for rows := 1; rows < 60; rows++ {
					lines := f.lines(columns, rows, watchedAt)
					require.LessOrEqual(t, len(lines), rows)
					for _, l := range lines {
						require.LessOrEqual(t, terminal.Cells(l.Fit(columns, false)), columns)
					}
				}
			}
		}
	}
}

// What is not known is never shown as 0, nor what is old as new.
func TestWatchSaysWhatItDoesNotKnow(t *testing.T) {
	f := frame{interval: time.Second}
	require.Contains(t, drawnAt(&f, 80, 24), "looking …")

	f = frame{seen: overviewOf(view.Overview{At: event.Timestamp{Time: watchedAt}, StepSeconds: 10}), at: watchedAt, interval: time.Second}
	f.seen.Backlog, f.seen.OldestReady, f.seen.Stuck, f.seen.DeadLetters = nil, nil, nil, nil
	text := drawnAt(&f, 80, 24)
	require.NotRegexp(t, `(?m)^[a-z ]+\b0\b`, text)
	require.Contains(t, text, "received           ?       ?       ?       ?\n")
	require.Contains(t, text, "latency      p50 ?       p95 ?       p99 ?       worst p99 ?\n")
	require.Contains(t, text, "What waits is not known yet")
	require.Contains(t, text, "oldest waiting  ?\n")
	require.Equal(t, "received=? accepted=? deduplicated=? conflicts=? rejected=? attempts=? attempts_failed=? delivered=? died=? "+
		"pending=? processing=? failed=? dead=? oldest_ready=? p50=? p95=? p99=?", f.seen.figures())
	var machine strings.Builder
	require.NoError(t, terminal.WriteJSON(&machine, f.seen))
	require.Contains(t, machine.String(), `"backlog":null`)
	require.Contains(t, machine.String(), `"received":{"now":null,"1m":null,"5m":null,"15m":null}`)

	f = frame{seen: overviewOf(busy(watchedAt)), at: watchedAt.Add(-time.Minute), away: watchedAt.Add(-50 * time.Second), failure: "connection refused", interval: time.Second}
	f.seen.DepthAt.Time = watchedAt.Add(-time.Hour)
	text = drawnAt(&f, 80, 24)
	require.Contains(t, text, "the database is away since 11:59:15 UTC, trying again: connection refused\nwhat follows was so at 11:59:05 UTC\n")
	require.Contains(t, text, "OLDEST QUEUED (counted…")

	// Where the rollups lag, what they know goes on being the present for a
	// moment, and no longer.
	o := busy(watchedAt)
	received := o.Series.Received
	for late, want := range []string{"512", "512", "512", "?"} {
		require.Equal(t, want, perSecondText(perSecond(&o, received, 1)), "%d steps late", late)
		received[len(received)-1-late] = nil
	}
	require.Equal(t, "?", perSecondText(perSecond(&o, nil, 1)))
	require.Equal(t, "?", perSecondText(perSecond(&o, numbers(1, 0, int64(7)), 1)))
	// Nothing was delivered: that is no latency, but it is known.
	require.Equal(t, "-", milliseconds(nil, true))
}

// shown are the frames that a loop shows.
type shown chan frame

func (s shown) show(f *frame) error    { s <- *f; return nil }
func (s shown) refresh(f *frame) error { return nil }

func TestWatchGoesOnThroughAnOutage(t *testing.T) {
	answers := make(chan error)
	w := watching{
		read: func(ctx context.Context) (overview, error) {
			select {
			case err := <-answers:
				return overview{Schema: "current"}, err
			case <-ctx.Done():
				return overview{}, ctx.Err()
			}
		},
		interval: time.Millisecond, now: func() time.Time { return watchedAt },
	}
	frames, quit, ended := make(shown), make(chan struct{}), make(chan error, 1)
	go func() { ended <- w.loop(t.Context(), frames, quit) }()
	look := func(err error) frame {
		answers <- err
		return <-frames
	}
	require.Nil(t, look(errors.New("gone\x1b[2J")).seen)
	require.Equal(t, watchedAt, look(errors.New("still gone")).away)
	f := look(nil)
	require.NotNil(t, f.seen)
	require.Zero(t, f.away)
	f = look(errors.New("gone\nagain"))
	require.NotNil(t, f.seen, "what was seen last stays")
	require.Equal(t, "gone again", f.failure)
	close(quit)
	require.NoError(t, <-ended)
}

func TestWatchEndsWhereNobodyTakesWhatItShows(t *testing.T) {
	w := watching{read: func(context.Context) (overview, error) { return overview{}, nil }, interval: time.Millisecond, now: time.Now}
	out, in := io.Pipe()
	require.NoError(t, out.Close())
	require.ErrorIs(t, w.loop(t.Context(), &lines{out: in, json: true}, nil), io.ErrClosedPipe)
}

func TestWatchPanicsWhereTheTerminalIsRestored(t *testing.T) {
	w := watching{read: func(context.Context) (overview, error) { panic("a bug") }, interval: time.Millisecond, now: time.Now}
	require.Panics(t, func() { _ = w.loop(t.Context(), &lines{}, nil) })
}

// drawnOver is a terminal of so many columns, as xterm and the Linux console are: a
// character in the last column leaves the cursor there until the next one comes,
// and what erases to the end of the line erases that character too.
type drawnOver struct {
	columns  int
	cells    [][]rune
	row, col int
	wraps    bool // before the next character
}

func (d *drawnOver) Write(text []byte) (int, error) {
	for rest := string(text); rest != ""; {
		if code := regexp.MustCompile(`^\x1b\[[?\d]*[A-Za-z]`).FindString(rest); code != "" {
			switch code {
			case "\x1b[H":
				d.row, d.col, d.wraps = 0, 0, false
			case restOfLine:
				d.erase(d.row, d.col)
			case restOfScreen:
				d.erase(d.row, d.col)
				for row := d.row + 1; row < len(d.cells); row++ {
					d.erase(row, 0)
				}
			}
			rest = rest[len(code):]
			continue
		}
		r, size := utf8.DecodeRuneInString(rest)
		rest = rest[size:]
		switch r {
		case '\r':
			d.col, d.wraps = 0, false
		case '\n':
			d.row++
		default:
			if d.wraps {
				d.row, d.col, d.wraps = d.row+1, 0, false
			}
			d.cells[d.row][d.col] = r
			for range terminal.RuneCells(r) - 1 {
				d.col++
				d.cells[d.row][d.col] = 0
			}
			if d.wraps = d.col == d.columns-1; !d.wraps {
				d.col++
			}
		}
	}
	return len(text), nil
}

func (d *drawnOver) erase(row, from int) {
	for col := from; col < d.columns; col++ {
		d.cells[row][col] = ' '
	}
}

// String is what stands there, without what is blank at the end.
func (d *drawnOver) String() string {
	var b strings.Builder
	for _, row := range d.cells {
		b.WriteString(strings.TrimRight(strings.ReplaceAll(string(row), "\x00", ""), " ") + "\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

func TestScreenShowsAllThatIsDrawnAndNothingElse(t *testing.T) {
	columns, rows := 0, 0
	full := frame{seen: overviewOf(busy(watchedAt)), at: watchedAt, interval: time.Second}
	for _, size := range [][2]int{{80, 24}, {40, 12}, {120, 60}, {120, 24}} {
		columns, rows = size[0], size[1]
		d := &drawnOver{columns: columns, cells: make([][]rune, rows)}
		for row := range d.cells {
			d.cells[row] = []rune(strings.Repeat("x", columns)) // from before
		}
		s := screen{out: d, size: func() (int, int) { return columns, rows }, now: func() time.Time { return watchedAt }}
		for _, f := range []frame{full, {interval: time.Second}, full} {
			require.NoError(t, s.show(&f))
			require.Equal(t, drawnAt(&f, columns, rows), d.String(), "%v", size)
		}
	}
}

func TestScreenIsRedrawnWithoutFlicker(t *testing.T) {
	var out strings.Builder
	columns := 80
	s := screen{out: &out, size: func() (int, int) { return columns, 24 }, now: func() time.Time { return watchedAt }}
	f := frame{seen: overviewOf(busy(watchedAt)), at: watchedAt, interval: time.Second}
	require.NoError(t, s.open())
	require.NoError(t, s.show(&f))
	first := out.String()
	require.True(t, strings.HasPrefix(first, "\x1b[?1049h\x1b[?25l\x1b[?2026h\x1b[H\x1b[Kspine status"))
	require.NotContains(t, first, "\x1b[2J", "nothing is wiped before it is drawn over")
	require.Equal(t, 23, strings.Count(first, "\r\n\x1b[K"), "24 lines, and none scrolls")
	require.NoError(t, s.refresh(&f))
	require.Equal(t, first, out.String(), "what is shown already is not drawn again")
	columns = 60
	require.NoError(t, s.refresh(&f))
	require.Greater(t, out.Len(), len(first), "the window has changed")
	s.close()
	require.True(t, strings.HasSuffix(out.String(), "\x1b[?2026l\x1b[?25h\x1b[?1049l"))
}
