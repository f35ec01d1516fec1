package trail_test

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
)

func transactions(t *rapid.T, label string, least uint64) trail.Transactions {
	end := rapid.Uint64Min(least).Draw(t, label)
	except := rapid.SliceOfDistinct(rapid.Uint64Range(0, end-1), rapid.ID[uint64]).Draw(t, label+" except")
	if end == 0 {
		except = nil
	}
	slices.Sort(except)
	if len(except) == 0 {
		except = nil
	}
	return trail.Transactions{End: end, Except: except}
}

func timestamp(t *rapid.T) event.Timestamp {
	if infinity := rapid.SampledFrom([]int{0, 0, -1, 1}).Draw(t, "infinity"); infinity != 0 {
		return event.Timestamp{Infinity: infinity}
	}
	first, last := time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(294276, 12, 31, 0, 0, 0, 0, time.UTC)
	seconds := rapid.Int64Range(first.Unix(), last.Unix()).
		Draw(t, "seconds")
	return event.Timestamp{Time: time.Unix(seconds, rapid.Int64Range(0, 999_999_999).Draw(t, "nanoseconds")).UTC()}
}

func key(t *rapid.T) trail.Key {
	return trail.Key{XID: rapid.Uint64().Draw(t, "xid"), Timestamp: timestamp(t), ID: rapid.Int64().Draw(t, "id")}
}

// anyCursor draws a cursor as reading makes them.
func anyCursor(t *rapid.T) trail.Cursor {
	c := trail.CursorSince(time.Date(2024, 1, 30, 12, 0, 0, 123, time.UTC))
	if rapid.Bool().Draw(t, "live") {
		c = trail.CursorAt(transactions(t, "seen", 1))
	}
	if rapid.Bool().Draw(t, "reading") {
		c = c.ReadingTo(transactions(t, "until", max(1, c.Seen.End)))
	}
	for range rapid.IntRange(0, 3).Draw(t, "pages") {
		if c.Until != nil {
			c = c.After(key(t), rapid.Bool().Draw(t, "full"))
		}
	}
	return c
}

func TestACursorIsReadBackAsItWasWritten(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := anyCursor(t)
		text := c.String()
		require.Regexp(t, `^[A-Za-z0-9_-]+$`, text)
		read, err := trail.ParseCursor(text)
		require.NoError(t, err)
		require.Equal(t, c, read)
	})
}

func TestACursorIsShort(t *testing.T) {
	t.Parallel()
	require.Len(t, trail.CursorAt(trail.Transactions{End: 1 << 31}).String(), 11)
	busy := trail.Transactions{End: 1 << 40}
	for n := range uint64(5000) {
		busy.Except = append(busy.Except, 1<<39+n*100)
	}
	text := trail.CursorAt(busy).String()
	require.Less(t, len(text), 7000)
	_, err := trail.ParseCursor(text)
	require.NoError(t, err)
}

func TestATextThatIsNotACursorIsRejected(t *testing.T) {
	t.Parallel()
	raw := func(b ...byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	good := trail.CursorAt(trail.Transactions{End: 100, Except: []uint64{7}}).String()
	_, err := trail.ParseCursor(good)
	require.NoError(t, err)
	for name, text := range map[string]string{
		"nothing":                  "",
		"prose":                    "give me everything",
		"padding":                  good + "=",
		"a cursor and more":        good + "AA",
		"half of one":              good[:len(good)-2],
		"too long":                 good + strings.Repeat("A", 40<<10),
		"another version":          raw(2, 1, 100, 0),
		"unknown flags":            raw(1, 9, 100, 0),
		"a number in a long form":  raw(1, 1, 0x80|100, 0, 0),
		"an exception at the end":  raw(1, 1, 100, 1, 0),
		"an exception below zero":  raw(1, 1, 100, 1, 101),
		"many exceptions":          raw(1, 1, 100, 0xff, 0xff, 0xff, 0xff, 0x0f),
		"an end that moves back":   raw(1, 3, 100, 0, 99, 0, 0, 0, 0),
		"late, but not reading":    raw(1, 5, 100, 0),
		"late, but nothing was so": raw(1, 7, 100, 0, 101, 0, 0, 0, 0),
		"another infinity":         raw(1, 3, 100, 0, 101, 0, 0, 3, 0),
	} {
		_, err := trail.ParseCursor(text)
		require.ErrorIs(t, err, trail.ErrBadCursor, name)
	}
}

func FuzzParseAuditCursor(f *testing.F) {
	busy := trail.CursorAt(trail.Transactions{End: 1000, Except: []uint64{3, 500, 999}})
	for _, c := range []trail.Cursor{
		trail.CursorSince(time.Unix(1_700_000_000, 0)),
		busy,
		busy.ReadingTo(trail.Transactions{End: 2000, Except: []uint64{500, 1500}}),
	} {
		f.Add(c.String())
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := trail.ParseCursor(text)
		if err != nil {
			require.ErrorIs(t, err, trail.ErrBadCursor)
			return
		}
		require.Equal(t, text, c.String())
		require.True(t, c.Until == nil || c.Until.End >= c.Seen.End)
	})
}

// auditLog is a model of the log: transactions write rows and commit in any order. The xid of each is its index.
type auditLog struct {
	rows  [][]int64 // ids by xid
	state []string  // open, committed, aborted; by xid
	next  int64
}

// now is what the store reads from the database.
func (l *auditLog) now(least uint64) (t trail.Transactions) {
	for xid, state := range l.state {
		if state == "committed" && len(l.rows[xid]) > 0 {
			t.End = uint64(xid) + 1
		}
	}
	t.End = max(t.End, least, 1)
	for xid, state := range l.state {
		if state == "open" && uint64(xid) < t.End {
			t.Except = append(t.Except, uint64(xid))
		}
	}
	return t
}

// read is what the store does with a cursor, in pages of two.
func (l *auditLog) read(c trail.Cursor) (ids []int64, next trail.Cursor) {
	if c.Until == nil {
		if c = c.ReadingTo(l.now(c.Seen.End)); c.Settled() {
			return nil, c
		}
	}
	const page = 2
	last := trail.Key{}
	late := c.EndedLate()
	for xid := range l.rows {
		x := uint64(xid)
		if l.state[xid] != "committed" || !c.Until.Has(x) || c.Late != (x < c.Seen.End) ||
			c.Late && !slices.Contains(late, x) {
			continue
		}
		for _, id := range l.rows[xid] {
			if x < c.Last.XID || x == c.Last.XID && c.Last.Timestamp.Infinity == 0 && id <= c.Last.ID {
				continue
			}
			if len(ids) < page {
				ids = append(ids, id)
				last = trail.Key{XID: x, Timestamp: event.Timestamp{Time: time.Unix(0, 0).UTC()}, ID: id}
			}
		}
	}
	return ids, c.After(last, len(ids) == page)
}

// A viewer is cut at any page, reads what it missed, joins a hub that has read other pages, and is cut again. It is
// told each row once.
func TestAViewerThatResumesAndJoinsSeesEachRowOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		log := &auditLog{rows: [][]int64{nil}, state: []string{"aborted"}} // no transaction has the number 0
		hub, viewer := trail.CursorAt(log.now(0)), trail.CursorAt(log.now(0))
		joined := false
		told := map[int64]int{}
		tell := func(ids []int64, c trail.Cursor) {
			for _, id := range ids {
				told[id]++
			}
			var err error
			if viewer, err = trail.ParseCursor(c.String()); err != nil {
				t.Fatal(err)
			}
		}
		openOnes := func() (xids []int) {
			for xid, state := range log.state {
				if state == "open" {
					xids = append(xids, xid)
				}
			}
			return xids
		}
		end := func(to string) func(*rapid.T) {
			return func(t *rapid.T) {
				open := openOnes()
				if len(open) == 0 {
					t.Skip("none is open")
				}
				log.state[rapid.SampledFrom(open).Draw(t, "xid")] = to
			}
		}
		page := func() {
			var ids []int64
			ids, hub = log.read(hub)
			if joined {
				tell(ids, hub)
			}
		}
		join := func() {
			for viewer.Until != nil || !viewer.Live {
				tell(log.read(viewer))
			}
			if !hub.Settled() || !hub.Seen.Contains(viewer.Seen) {
				return
			}
			for viewer = viewer.ReadingTo(hub.Seen); !viewer.Settled(); {
				tell(log.read(viewer))
			}
			joined = true
		}
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(*rapid.T) { log.rows, log.state = append(log.rows, nil), append(log.state, "open") },
			"write": func(t *rapid.T) {
				open := openOnes()
				if len(open) == 0 {
					t.Skip("none is open")
				}
				xid := rapid.SampledFrom(open).Draw(t, "xid")
				log.next++
				log.rows[xid] = append(log.rows[xid], log.next)
			},
			"commit":   end("committed"),
			"abort":    end("aborted"),
			"hub page": func(*rapid.T) { page() },
			"catch up": func(*rapid.T) {
				if !joined {
					tell(log.read(viewer))
				}
			},
			"join": func(*rapid.T) {
				if !joined {
					join()
				}
			},
			"cut": func(*rapid.T) { joined = false },
			"another hub": func(*rapid.T) {
				hub, joined = trail.CursorAt(log.now(0)), false
			},
			"": func(t *rapid.T) {
				for id, times := range told {
					if times > 1 {
						t.Fatalf("row %d was told %d times", id, times)
					}
				}
			},
		})
		for _, xid := range openOnes() {
			log.state[xid] = "committed"
		}
		if !joined {
			// A run of the hub that begins now contains what the viewer has read before it. A stream does it in this
			// order.
			for tell(log.read(viewer)); !viewer.Settled(); {
				tell(log.read(viewer))
			}
			for !hub.Settled() { // this run may have begun before
				page()
			}
			for page(); !hub.Settled(); {
				page()
			}
			join()
			if !joined {
				t.Fatalf("a hub at %v does not contain a viewer at %v", hub, viewer)
			}
		}
		for range 2 { // the second time up to what is committed now
			for page(); !hub.Settled(); {
				page()
			}
		}
		for xid, state := range log.state {
			for _, id := range log.rows[xid] {
				if state == "committed" && told[id] != 1 || state != "committed" && told[id] != 0 {
					t.Fatalf("row %d of a transaction that is %s was told %d times", id, state, told[id])
				}
			}
		}
	})
}
