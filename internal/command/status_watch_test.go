package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/store"
	"github.com/webhookspine/spine/internal/terminal"
	"github.com/webhookspine/spine/internal/view"
)

// sameNumbers are steps with n each. The first unknown of them are not known.
func sameNumbers[N int64 | float64](steps, unknown int, n N) []*N {
	series := make([]*N, steps)
	for i := unknown; i < steps; i++ {
		series[i] = &n
	}
	return series
}

// busyOverview is a quarter of an hour with 512 events a second. Only the last ten minutes are known, and the last step
// is half over.
func busyOverview(now time.Time) view.Overview {
	const steps, unknown = 90, 30
	o := view.Overview{
		At:           event.Timestamp{Time: now},
		RangeSeconds: 900,
		StepSeconds:  10,
		CoveredTo:    &event.Timestamp{Time: now},
	}
	start := now.Truncate(10 * time.Second)
	for i := range steps {
		o.Series.At = append(o.Series.At, start.Add(time.Duration(i-steps+1)*10*time.Second).Unix())
	}
	partial := float64(now.Sub(start)) / float64(10*time.Second)
	count := func(n int64) []*int64 {
		series := sameNumbers(steps, unknown, n)
		last := int64(float64(n) * partial)
		series[steps-1] = &last
		return series
	}
	s := &o.Series
	s.Received, s.Accepted, s.Deduplicated = count(5120), count(5000), count(120)
	s.Conflicts, s.Rejected = count(0), count(4)
	s.Attempts, s.AttemptsFailed, s.Delivered, s.Died = count(5500), count(500), count(5000), count(0)
	for i := unknown; i < steps; i++ { // rising
		n := int64((i - unknown) * 100)
		if i < steps-7 {
			s.Delivered[i] = &n
		}
	}
	s.LatencyP50, s.LatencyP95 = sameNumbers(steps, unknown, 1.7), sameNumbers(steps, unknown, 6.66)
	s.LatencyP99 = sameNumbers(steps, unknown, 12.4)
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
		At:          seen.At,
		OldestReady: &oldest,
		DepthAt:     &depthAt,
		Rates:       ratesOf(&seen),
		Latency:     latencyOf(&seen),
		series:      seen.Series,
		Backlog: []view.BacklogRow{
			{Destination: "billing", Status: "failed", Count: 3, OldestCreatedAt: at(90 * time.Second)},
			{Destination: "default", Status: "dead", Count: 1200, OldestCreatedAt: at(48 * time.Hour)},
			{Destination: "default", Status: "pending", Count: 1_234_567, OldestCreatedAt: at(2300 * time.Millisecond)},
			{Destination: "default", Status: "processing", Count: 64, OldestCreatedAt: at(time.Second)},
		},
		Paused: []view.PauseRow{{Destination: "billing", PausedAt: at(time.Minute), PausedBy: &worker}},
		Stuck: []store.StuckRow{
			{EventID: "inv-7", Destination: "billing", DueAt: at(80 * time.Second), Reason: "claims are paused"},
		},
		LastArrival: map[string]time.Time{"default": at(2 * time.Second).Time, "github": at(4 * time.Minute).Time},
		DeadLetters: []view.ProcessingRow{
			dead("72d3162e-cc78-11e3-81ab-4c9367dc0958", "HTTP 410 Gone", 3*time.Second),
			dead("受注-001", "HTTP 422 Unprocessable Entity: "+strings.Repeat("no ", 40), time.Hour),
			dead("c", "HTTP 400", 2*time.Hour),
			dead("d", "HTTP 400", 3*time.Hour),
		},
	}
}

var watchedAt = time.Date(2024, 1, 30, 12, 0, 5, 0, time.UTC)

func frameText(f *frame, columns, rows int) string {
	return terminal.JoinLines(f.lines(columns, rows, watchedAt), columns, false)
}

func TestWatchFitsAnOrdinaryTerminal(t *testing.T) {
	f := frame{overview: overviewOf(busyOverview(watchedAt)), readAt: watchedAt, interval: time.Second}
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
`, frameText(&f, 80, 24))
}

func TestWatchOnASmallTerminal(t *testing.T) {
	f := frame{overview: overviewOf(busyOverview(watchedAt)), readAt: watchedAt, interval: time.Second}
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
`, frameText(&f, 40, 12))
}

func TestWatchKeepsWithinEveryTerminal(t *testing.T) {
	full := overviewOf(busyOverview(watchedAt))
	for i := range 30 {
		full.Backlog = append(full.Backlog,
			view.BacklogRow{Destination: fmt.Sprintf("destination-%d-of-many", i), Status: "pending", Count: 1})
	}
	for _, seen := range []*overview{nil, {}, full} {
		for _, away := range []time.Time{{}, watchedAt} {
			f := frame{
				overview: seen,
				readAt:   watchedAt,
				away:     away,
				failure:  strings.Repeat("refused ", 30),
				interval: time.Second,
			}
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

// An unknown figure is never shown as 0, nor an old one as new.
func TestWatchSaysWhatItDoesNotKnow(t *testing.T) {
	f := frame{interval: time.Second}
	require.Contains(t, frameText(&f, 80, 24), "reading …")

	f = frame{
		overview: overviewOf(view.Overview{At: event.Timestamp{Time: watchedAt}, StepSeconds: 10}),
		readAt:   watchedAt,
		interval: time.Second,
	}
	f.overview.Backlog, f.overview.OldestReady, f.overview.Stuck, f.overview.DeadLetters = nil, nil, nil, nil
	text := frameText(&f, 80, 24)
	require.NotRegexp(t, `(?m)^[a-z ]+\b0\b`, text)
	require.Contains(t, text, "received           ?       ?       ?       ?\n")
	require.Contains(t, text, "latency      p50 ?       p95 ?       p99 ?       worst p99 ?\n")
	require.Contains(t, text, "What waits is not known yet")
	require.Contains(t, text, "oldest waiting  ?\n")
	require.Equal(
		t,
		"received=? accepted=? deduplicated=? conflicts=? rejected=? attempts=? attempts_failed=? delivered=? died=? "+
			"pending=? processing=? failed=? dead=? oldest_ready=? p50=? p95=? p99=?",
		f.overview.figures(),
	)
	var machine strings.Builder
	require.NoError(t, terminal.WriteJSON(&machine, f.overview))
	require.Contains(t, machine.String(), `"backlog":null`)
	require.Contains(t, machine.String(), `"received":{"now":null,"1m":null,"5m":null,"15m":null}`)

	f = frame{
		overview: overviewOf(busyOverview(watchedAt)),
		readAt:   watchedAt.Add(-time.Minute),
		away:     watchedAt.Add(-50 * time.Second),
		failure:  "connection refused",
		interval: time.Second,
	}
	f.overview.DepthAt.Time = watchedAt.Add(-time.Hour)
	text = frameText(&f, 80, 24)
	require.Contains(t, text,
		"the database is away since 11:59:15 UTC, trying again: connection refused\nas it was at 11:59:05 UTC\n")
	require.Contains(t, text, "OLDEST QUEUED (counted…")

	// If the rollups lag, their last figure counts as that of now for a moment, and no longer.
	o := busyOverview(watchedAt)
	received := o.Series.Received
	for late, want := range []string{"512", "512", "512", "?"} {
		require.Equal(t, want, rateText(averageRate(&o, received, 1)), "%d steps late", late)
		received[len(received)-1-late] = nil
	}
	require.Equal(t, "?", rateText(averageRate(&o, nil, 1)))
	require.Equal(t, "?", rateText(averageRate(&o, sameNumbers(1, 0, int64(7)), 1)))
	// Without a delivery there is no latency, but that is known.
	require.Equal(t, "-", latencyText(nil, true))
}

// frameChannel gets the frames that a loop shows.
type frameChannel chan frame

func (s frameChannel) show(f *frame) error    { s <- *f; return nil }
func (s frameChannel) refresh(f *frame) error { return nil }

func TestWatchGoesOnThroughAnOutage(t *testing.T) {
	answers := make(chan error)
	w := watcher{
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
	frames, quit, ended := make(frameChannel), make(chan struct{}), make(chan error, 1)
	go func() { ended <- w.loop(t.Context(), frames, quit) }()
	look := func(err error) frame {
		answers <- err
		return <-frames
	}
	require.Nil(t, look(errors.New("gone\x1b[2J")).overview)
	require.Equal(t, watchedAt, look(errors.New("still gone")).away)
	f := look(nil)
	require.NotNil(t, f.overview)
	require.Zero(t, f.away)
	f = look(errors.New("gone\nagain"))
	require.NotNil(t, f.overview, "what was seen last stays")
	require.Equal(t, "gone again", f.failure)
	close(quit)
	require.NoError(t, <-ended)
}

func TestWatchEndsWhereNobodyTakesWhatItShows(t *testing.T) {
	w := watcher{
		read:     func(context.Context) (overview, error) { return overview{}, nil },
		interval: time.Millisecond,
		now:      time.Now,
	}
	out, in := io.Pipe()
	require.NoError(t, out.Close())
	require.ErrorIs(t, w.loop(t.Context(), &lineDisplay{out: in, json: true}, nil), io.ErrClosedPipe)
}

func TestWatchPanicsWhereTheTerminalIsRestored(t *testing.T) {
	w := watcher{
		read:     func(context.Context) (overview, error) { panic("a bug") },
		interval: time.Millisecond,
		now:      time.Now,
	}
	require.Panics(t, func() { _ = w.loop(t.Context(), &lineDisplay{}, nil) })
}
