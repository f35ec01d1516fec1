package notify

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/webhookspine/spine/internal/trail"
)

const interval = 200 * time.Millisecond

// sent is a summary that was sent, or that failed to be.
type sent struct {
	at      time.Duration // since the start
	channel string
	payload string
	summary summary
	err     error
}

// summarize runs f beside an Activity at work in a bubble, stops it, and returns what
// was sent. reply says how the notifier answers each call, counted from 0.
func summarize(t *testing.T, reply func(ctx context.Context, call int) error, f func(a *Activity)) (all []sent) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		a := NewActivity(notifierFunc(func(ctx context.Context, channel, payload string) error {
			s := sent{at: time.Since(began), channel: channel, payload: payload}
			if err := json.Unmarshal([]byte(payload), &s.summary); err != nil {
				t.Error(err)
			}
			if reply != nil {
				s.err = reply(ctx, len(all))
			}
			all = append(all, s)
			return s.err
		}), interval, zerolog.Nop())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- a.Run(ctx) }()
		f(a)
		cancel()
		require.NoError(t, <-ended)
	})
	return all
}

// total adds up what was really sent.
func total(all []sent) map[trail.Action]int {
	counts := map[trail.Action]int{}
	for _, s := range all {
		for action, n := range s.summary.Counts {
			if s.err == nil {
				counts[action] += n
			}
		}
	}
	return counts
}

func TestOneChangeIsSentAtOnce(t *testing.T) {
	var at time.Time
	all := summarize(t, nil, func(a *Activity) {
		<-time.After(time.Minute)
		at = time.Now()
		a.Add("event_inserted", "test-001")
		synctest.Wait()
		<-time.After(time.Minute)
	})
	require.Len(t, all, 1, "and nothing while nothing happens")
	require.Equal(t, time.Minute, all[0].at)
	require.Equal(t, "spine_activity", all[0].channel)
	text, err := at.UTC().MarshalJSON()
	require.NoError(t, err)
	require.JSONEq(
		t, `{"v":1,"at":`+string(text)+`,"counts":{"event_inserted":1},"event_ids":["test-001"]}`, all[0].payload,
	)
}

func TestAtMostFiveASecondAndTheLastChangeAlways(t *testing.T) {
	all := summarize(t, nil, func(a *Activity) {
		for i := range 3000 {
			a.Add("event_received", strconv.Itoa(i))
			if i%3 == 0 {
				a.Add("event_inserted", strconv.Itoa(i))
			}
			<-time.After(999 * time.Microsecond) // never at the same moment as a summary
		}
		a.Add("processing_succeeded", "the last")
		<-time.After(interval) // nothing else happens
		synctest.Wait()
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.counts) > 0 {
			t.Error("the last change waits for another")
		}
	})
	require.Len(t, all, 16)
	for i := 1; i < len(all); i++ {
		require.GreaterOrEqual(t, all[i].at-all[i-1].at, interval)
	}
	require.Equal(
		t, map[trail.Action]int{"event_received": 3000, "event_inserted": 1000, "processing_succeeded": 1}, total(all),
	)
	require.InDelta(t, 200, all[1].summary.Counts["event_received"], 1, "a summary, not a message each")
}

func TestUpToFiveIDs(t *testing.T) {
	all := summarize(t, nil, func(a *Activity) {
		a.Add("event_received", "0")
		synctest.Wait() // and the rest gathers
		for i := range 10 {
			a.Add("event_received", strconv.Itoa(i))
			a.Add("event_inserted", strconv.Itoa(i))
		}
	})
	require.Len(t, all, 2)
	require.Equal(t, []string{"0", "1", "2", "3", "4"}, all[1].summary.EventIDs)
	require.Equal(t, map[trail.Action]int{"event_received": 10, "event_inserted": 10}, all[1].summary.Counts)
}

func TestPayloadIsSmallByConstruction(t *testing.T) {
	const rejectedSize = 8000 // bytes, by NOTIFY
	long := summarize(t, nil, func(a *Activity) {
		a.Add("event_received", "first")
		synctest.Wait()
		for i := range 5 {
			a.Add("event_received", strings.Repeat("<", 254)+strconv.Itoa(i)) // six bytes each in JSON
		}
	})
	require.Len(t, long, 2)
	require.Equal(t, map[trail.Action]int{"event_received": 5}, long[1].summary.Counts)

	rapid.Check(t, func(rt *rapid.T) {
		ids := rapid.SliceOfN(rapid.StringOfN(rapid.Rune(), 1, 255, -1), 1, 20).Draw(rt, "ids")
		actions := rapid.SliceOfN(rapid.StringMatching("[a-z_]{5,30}"), 1, 15).Draw(rt, "actions")
		all := summarize(t, nil, func(a *Activity) {
			for i, id := range ids {
				a.Add(trail.Action(actions[i%len(actions)]), id)
			}
		})
		for _, s := range all {
			require.Less(rt, len(s.payload), rejectedSize)
			require.NotNil(rt, s.summary.EventIDs)
		}
		sum := 0
		for _, n := range total(all) {
			sum += n
		}
		require.Equal(rt, len(ids), sum)
	})
}

func TestWhatCannotBeSentGoesIntoTheNextSummary(t *testing.T) {
	all := summarize(t, func(_ context.Context, call int) error {
		if call < 3 {
			return errAway
		}
		return nil
	}, func(a *Activity) {
		a.Add("event_received", "a")
		<-time.After(100 * time.Millisecond)
		a.Add("event_received", "b")
		a.Add("event_inserted", "b")
		<-time.After(time.Minute)
	})
	require.Len(t, all, 4)
	require.Equal(t, 3*interval, all[3].at, "tried again without a further change, and not more often")
	require.Equal(t, map[trail.Action]int{"event_received": 2, "event_inserted": 1}, all[3].summary.Counts)
	require.Equal(t, []string{"a", "b"}, all[3].summary.EventIDs)
}

func TestNotifierThatHangsIsInNobodysWay(t *testing.T) {
	all := summarize(t, func(ctx context.Context, call int) error {
		if call == 0 {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}, func(a *Activity) {
		began := time.Now()
		for range 1000 {
			a.Add("event_received", "a")
			synctest.Wait()
		}
		if time.Since(began) > 0 {
			t.Error("Add blocks")
		}
		<-time.After(time.Minute)
	})
	require.Len(t, all, 2)
	require.Equal(t, time.Second+interval, all[1].at)
	require.Equal(t, map[trail.Action]int{"event_received": 1000}, total(all))
}

func TestStopSendsTheLastChange(t *testing.T) {
	all := summarize(t, nil, func(a *Activity) {
		a.Add("event_received", "a")
		synctest.Wait()
		a.Add("processing_succeeded", "a")
	})
	require.Equal(t, map[trail.Action]int{"event_received": 1, "processing_succeeded": 1}, total(all))
}

func TestStopEndsWithoutTheDatabase(t *testing.T) {
	for name, reply := range map[string]func(context.Context, int) error{
		"errors": func(context.Context, int) error { return errAway },
		"hangs":  func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			var stopped time.Time
			var ended time.Time
			summarize(t, func(ctx context.Context, call int) error {
				err := reply(ctx, call)
				ended = time.Now()
				return err
			}, func(a *Activity) {
				a.Add("event_received", "a")
				<-time.After(500 * time.Millisecond)
				stopped = time.Now()
			})
			require.LessOrEqual(t, ended.Sub(stopped), time.Second)
		})
	}
}
