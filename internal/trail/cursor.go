// Package trail is the audit log as something to follow. A Step is one row of it, and an Action says what the step
// records. A Cursor is a place in the log, a Filter chooses steps, and a Follower reads the log as it grows.
//
// It promises that a reader who goes on from a cursor misses no step and sees none twice. It does not know the
// database: it reads through the interface Reader.
package trail

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/webhookspine/spine/internal/event"
)

// Cursor is a place in the audit log from which reading goes on. It is the set of transactions whose steps were read.
// Nothing is missed or repeated, even where transactions commit in another order than they began. A cursor outlives
// connections, restarts and crashes of the database.
type Cursor struct {
	Live bool         // false in the past, which begins at the time given to CursorSince
	Seen Transactions // whose steps were read; empty in the past

	// While pages are being read:
	Until *Transactions // up to where; nil between two readings
	Late  bool          // the pages are those of transactions that have ended since Seen excepted them
	Last  Key           // where the last page ended
}

// Transactions are the transactions with numbers below End, without some.
type Transactions struct {
	End    uint64
	Except []uint64 // below End, ascending: in progress when End was taken
}

// Key is the place of a step among pages. In the past pages go by timestamp and id, afterwards by xid, timestamp and
// id.
type Key struct {
	XID       uint64
	Timestamp event.Timestamp
	ID        int64
}

// Filter chooses the steps that match one value of each field. Empty fields choose all.
type Filter struct {
	EventIDs []string // with these, the past has only events that are still stored
	Sources  []string
	Types    []string // of events that are still stored
	Actions  []Action
	Statuses []string // into which the step brings its event
}

// ErrCursorAhead says that a cursor has seen transactions that the database has not reached. It is of another database,
// or this one was put back to an earlier state.
var ErrCursorAhead = errors.New(
	"the cursor is ahead of the audit log: it is of another database, or this one was restored",
)

// CursorSince returns a cursor before all steps of time t and later.
func CursorSince(t time.Time) Cursor {
	return Cursor{Last: Key{Timestamp: event.Timestamp{Time: t.UTC()}}}
}

// CursorAt returns a cursor after the steps of seen.
func CursorAt(seen Transactions) Cursor { return Cursor{Live: true, Seen: seen} }

// Has reports whether the transaction xid is one of t.
func (t Transactions) Has(xid uint64) bool {
	if xid >= t.End {
		return false
	}
	_, excepted := slices.BinarySearch(t.Except, xid)
	return !excepted
}

// Contains reports whether all transactions of o are in t. It may report false where the last numbers below o.End are
// all excepted.
func (t Transactions) Contains(o Transactions) bool {
	return o.End <= t.End && !slices.ContainsFunc(t.Except, o.Has)
}

// Settled reports whether all pages up to Until were read. Seen is all that a settled cursor holds.
func (c Cursor) Settled() bool { return c.Live && c.Until == nil }

// ReadingTo returns c before the first page up to now, or settled where there can be no page. If c is settled, now must
// contain what it has seen.
func (c Cursor) ReadingTo(now Transactions) Cursor {
	c.Until = &now
	if !c.Live {
		return c
	}
	c.Last = firstKey
	c.Late = len(c.EndedLate()) > 0
	if !c.Late && c.Seen.End == now.End {
		return CursorAt(now)
	}
	return c
}

// firstKey is before all steps.
var firstKey = Key{Timestamp: event.Timestamp{Infinity: -1}}

// EndedLate returns the transactions that were in progress when Seen was taken and have ended before Until was taken.
func (c Cursor) EndedLate() (late []uint64) {
	for _, xid := range c.Seen.Except {
		if c.Until.Has(xid) {
			late = append(late, xid)
		}
	}
	return late
}

// After returns the cursor after a page that ends with last. There are three kinds of pages, in this order: of the
// past, of transactions that ended late, and of new ones. A page that is not full is the last one of its kind.
func (c Cursor) After(last Key, full bool) Cursor {
	switch {
	case full:
		c.Last = last
	case c.Late && c.Seen.End < c.Until.End:
		c.Late, c.Last = false, firstKey
	default:
		return CursorAt(*c.Until)
	}
	return c
}

// The text of a cursor is base64url over a version, flags, and numbers as encoding/binary writes them. It has a dozen
// characters, and about two more for each transaction in progress.
const (
	cursorVersion = 1

	cursorLive  = 1
	cursorUntil = 2
	cursorLate  = 4

	// maxCursor is less than servers and proxies take as one header. It has room for thousands of transactions in
	// progress.
	maxCursor = 32 << 10
)

// ErrBadCursor says that a text is not a Cursor.
var ErrBadCursor = errors.New("this is not a cursor of the audit log")

// String returns c as text that needs no escaping in a URL or header.
func (c Cursor) String() string {
	flags := byte(0)
	if c.Live {
		flags |= cursorLive
	}
	if c.Until != nil {
		flags |= cursorUntil
	}
	if c.Late {
		flags |= cursorLate
	}
	b := []byte{cursorVersion, flags}
	if c.Live {
		b = c.Seen.append(b)
	}
	if c.Until != nil {
		b = c.Until.append(b)
	}
	if !c.Settled() {
		b = binary.AppendUvarint(b, c.Last.XID)
		b = append(b, byte(c.Last.Timestamp.Infinity+1)) //nolint:gosec // 0, 1 or 2
		if c.Last.Timestamp.Infinity == 0 {
			b = binary.AppendVarint(b, c.Last.Timestamp.Time.Unix())
			b = binary.AppendUvarint(b, uint64(c.Last.Timestamp.Time.Nanosecond())) //nolint:gosec // 0 to 999,999,999
		}
		b = binary.AppendVarint(b, c.Last.ID)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// append writes the exceptions from the last one down, as distances, which are short.
func (t Transactions) append(b []byte) []byte {
	b = binary.AppendUvarint(b, t.End)
	b = binary.AppendUvarint(b, uint64(len(t.Except)))
	above := t.End
	for _, xid := range slices.Backward(t.Except) {
		b = binary.AppendUvarint(b, above-xid)
		above = xid
	}
	return b
}

// ParseCursor reads a text that String wrote, and no other. The error is ErrBadCursor. Only the database can tell
// whether the cursor is one of its own.
func ParseCursor(text string) (Cursor, error) {
	if len(text) > maxCursor {
		return Cursor{}, ErrBadCursor
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) < 2 || b[0] != cursorVersion {
		return Cursor{}, ErrBadCursor
	}
	flags := b[1]
	in := cursorReader{rest: b[2:]}
	c := Cursor{Live: flags&cursorLive != 0, Late: flags&cursorLate != 0}
	if c.Live {
		c.Seen = in.transactions()
	}
	if flags&cursorUntil != 0 {
		until := in.transactions()
		c.Until = &until
	}
	if !c.Settled() {
		c.Last = in.key()
	}
	switch {
	case in.bad || len(in.rest) > 0 || c.String() != text: // each cursor has one text
	case c.Until != nil && c.Until.End < c.Seen.End:
	case c.Late && (!c.Live || c.Until == nil || len(c.EndedLate()) == 0):
	default:
		return c, nil
	}
	return Cursor{}, ErrBadCursor
}

// cursorReader reads the numbers of a cursor until one is bad.
type cursorReader struct {
	rest []byte
	bad  bool
}

func (r *cursorReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	r.advance(n)
	return v
}

func (r *cursorReader) varint() int64 {
	v, n := binary.Varint(r.rest)
	r.advance(n)
	return v
}

func (r *cursorReader) advance(n int) {
	if n <= 0 {
		r.bad, r.rest = true, nil
		return
	}
	r.rest = r.rest[n:]
}

func (r *cursorReader) transactions() (t Transactions) {
	t.End = r.uvarint()
	n := r.uvarint()
	if n > uint64(len(r.rest)) { // each takes a byte at least
		r.bad = true
		return t
	}
	above := t.End
	for range n {
		below := r.uvarint()
		if below == 0 || below > above {
			r.bad = true
			return t
		}
		above -= below
		t.Except = append(t.Except, above)
	}
	slices.Reverse(t.Except)
	return t
}

// lastYear is the last year that Postgres knows.
const lastYear = 294276

func (r *cursorReader) key() (k Key) {
	k.XID = r.uvarint()
	if len(r.rest) == 0 {
		r.bad = true
		return k
	}
	k.Timestamp.Infinity = int(r.rest[0]) - 1
	r.rest = r.rest[1:]
	switch k.Timestamp.Infinity {
	case -1, 1:
	case 0:
		seconds, nanoseconds := r.varint(), r.uvarint()
		if nanoseconds >= uint64(time.Second) || seconds < -1<<40 || seconds > 1<<44 {
			r.bad = true
			return k
		}
		k.Timestamp.Time = time.Unix(seconds, int64(nanoseconds)).UTC()
		r.bad = r.bad || k.Timestamp.Time.Year() < 1 || k.Timestamp.Time.Year() > lastYear
	default:
		r.bad = true
	}
	k.ID = r.varint()
	return k
}
