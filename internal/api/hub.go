package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
	"github.com/webhookspine/spine/internal/view"
)

// Intervals of the hub. The doorbell is heard at once; the gap bounds how often
// the log is read however often it rings.
const (
	hubPoll     = time.Second
	hubGap      = 50 * time.Millisecond
	hubMaxRetry = 2 * time.Second
)

// AuditLog is the audit log as Stream follows it. ReadAudit returns the page
// after c of the rows that match f, and the cursor after it, which is settled
// with the last page of what is committed now, or of what c is reading to. It
// returns trail.ErrCursorAhead where the log has not got as far as c. With an
// error next is c, reading to somewhere as soon as it was found out how far.
// Both heed their context and are called concurrently.
type AuditLog interface {
	CurrentCursor(ctx context.Context) (trail.Cursor, error)
	ReadAudit(ctx context.Context, c trail.Cursor, f trail.Filter) (rows []trail.Step, next trail.Cursor, err error)
}

// hub reads the audit log once for all viewers, as long as there is one. It
// works in runs, each from a place that is settled to another.
type hub struct {
	audit   AuditLog
	timeout time.Duration // of one read
	log     zerolog.Logger
	bell    chan struct{} // of capacity 1: there may be something to read

	mu       sync.Mutex
	runs     uint64             // how many have begun
	joining  map[*viewer]uint64 // how many had begun when it asked
	watching map[*viewer]struct{}
}

func newHub(audit AuditLog, timeout time.Duration, log zerolog.Logger) *hub {
	return &hub{
		audit: audit, timeout: timeout, log: log, bell: make(chan struct{}, 1),
		joining: map[*viewer]uint64{}, watching: map[*viewer]struct{}{},
	}
}

// ring says that there may be something to read. It never blocks.
func (h *hub) ring() {
	select {
	case h.bell <- struct{}{}:
	default:
	}
}

// join has v told where it begins, on v.joined, and all that comes after that.
// v must leave in the end.
func (h *hub) join(v *viewer) {
	h.mu.Lock()
	h.joining[v] = h.runs
	h.mu.Unlock()
	h.ring()
}

func (h *hub) leave(v *viewer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.joining, v)
	delete(h.watching, v)
}

func (h *hub) watched() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.joining)+len(h.watching) > 0
}

// begin counts a run, and returns its number.
func (h *hub) begin() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.runs++
	return h.runs
}

// admit lets in who asked before the run with this number began, which is now
// complete up to at. Whatever such a viewer has seen was committed before the
// run, and so is part of at; or it was seen in another database.
func (h *hub) admit(run uint64, at trail.Cursor) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for v, asked := range h.joining {
		if asked < run {
			delete(h.joining, v)
			h.watching[v] = struct{}{}
			v.joined <- place{at: at, reset: v.from != nil && !at.Seen.Contains(*v.from)}
		}
	}
	if len(h.joining) > 0 {
		h.ring()
	}
}

// tell hands a message to all viewers.
func (h *hub) tell(m message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for v := range h.watching {
		v.push(m)
	}
}

// Run follows the log while it is watched, until ctx ends.
func (h *hub) Run(ctx context.Context) {
	for {
		select {
		case <-h.bell:
		case <-ctx.Done():
			return
		}
		if h.watched() {
			h.follow(ctx)
		}
	}
}

// follow reads the log until nobody watches or ctx ends.
func (h *hub) follow(ctx context.Context) {
	f := follower{hub: h}
	var outage time.Duration // how long to wait before the next attempt; 0 while the database is there
	for h.watched() {
		err := f.run(ctx)
		wait := hubGap
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if outage == 0 {
				h.log.Warn().Err(err).Msg("the stream cannot read the audit log, trying again")
			}
			outage = min(max(2*outage, hubGap), hubMaxRetry)
			wait = outage
		case outage > 0:
			h.log.Info().Msg("the stream reads the audit log again, nothing was missed")
			outage = 0
		}
		if !pause(ctx, nil, wait) || outage == 0 && !pause(ctx, h.bell, hubPoll) {
			return
		}
	}
}

// follower is where a hub stands in the log.
type follower struct {
	hub    *hub
	begun  bool
	at     trail.Cursor
	number uint64 // of the run that is under way
}

// run reads all that is committed now, or what an earlier run had left when it
// failed, and hands it to the viewers page by page.
func (f *follower) run(ctx context.Context) (err error) {
	if !f.begun || f.at.Settled() {
		f.number = f.hub.begin()
	}
	if !f.begun {
		if err := f.start(ctx); err != nil {
			return err
		}
	}
	for {
		rows, next, err := read(ctx, f.hub.audit, f.hub.timeout, f.at, trail.Filter{})
		if errors.Is(err, trail.ErrCursorAhead) {
			f.hub.log.Warn().Err(err).Msg("the stream begins anew")
			if err := f.start(ctx); err != nil {
				return err
			}
			f.hub.tell(message{reset: true, after: f.at.String()})
			break
		}
		if err != nil {
			return err
		}
		f.at = next
		if len(rows) > 0 {
			p := &page{rows: rows}
			f.hub.tell(message{page: p, after: next.String()})
		}
		if next.Settled() {
			break
		}
	}
	f.hub.admit(f.number, f.at)
	return nil
}

// start goes to the end of the log.
func (f *follower) start(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, f.hub.timeout)
	defer cancel()
	if f.at, err = f.hub.audit.CurrentCursor(ctx); err != nil {
		return fmt.Errorf("looking for the end of the audit log: %w", err)
	}
	f.begun = true
	return nil
}

// read reads one page within timeout.
func read(ctx context.Context, log AuditLog, timeout time.Duration, c trail.Cursor, f trail.Filter) ([]trail.Step, trail.Cursor, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return log.ReadAudit(ctx, c, f)
}

// pause waits for a ring or d, and reports false where ctx ends first.
func pause(ctx context.Context, bell <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-bell:
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	return true
}

// message is what a viewer is told: a page, a summary in place of pages, or
// that all must be read anew.
type message struct {
	page    *page
	summary *summary
	reset   bool
	after   string // the cursor after it
}

// page is a page of audit rows that all viewers share. Nobody changes it.
type page struct {
	rows []trail.Step

	once sync.Once
	text []byte
	err  error
}

// json returns all rows as a JSON array without line breaks, made once for all
// who want it.
func (p *page) json() ([]byte, error) {
	p.once.Do(func() { p.text, p.err = encodeLine(p.rows) })
	return p.text, p.err
}

// encodeLine returns v as JSON in one line.
func encodeLine(v any) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false) // as the lists have it
	if err := encoder.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding a message: %w", err)
	}
	return bytes.TrimSuffix(text.Bytes(), []byte("\n")), nil
}

// summary stands in place of rows.
type summary struct {
	Rows   int                  `json:"rows"`
	Counts map[trail.Action]int `json:"counts"`
	Since  event.Timestamp      `json:"since"` // of the earliest row
	Until  event.Timestamp      `json:"until"` // of the latest row
}

// add counts rows in.
func (s *summary) add(rows []trail.Step) {
	for i := range rows {
		s.count(rows[i].Action, 1, rows[i].Timestamp, rows[i].Timestamp)
	}
}

// merge counts the rows of another summary in.
func (s *summary) merge(o summary) {
	for action, n := range o.Counts {
		s.count(action, n, o.Since, o.Until)
	}
}

func (s *summary) count(action trail.Action, n int, since, until event.Timestamp) {
	if s.Rows == 0 {
		*s = summary{Counts: map[trail.Action]int{}, Since: since, Until: until}
	}
	s.Rows += n
	s.Counts[action] += n
	if since.UnixMicro() < s.Since.UnixMicro() {
		s.Since = since
	}
	if until.UnixMicro() > s.Until.UnixMicro() {
		s.Until = until
	}
}

// place is where the hub was when a viewer joined it.
type place struct {
	at    trail.Cursor
	reset bool // it does not contain what the viewer has seen
}

// viewer is somebody who watches, as the hub knows them.
type viewer struct {
	wants  wants
	limit  int                 // of rows that wait
	from   *trail.Transactions // what they have seen; nil where nothing
	joined chan place          // of capacity 1

	mu    sync.Mutex
	queue []message
	rows  int           // in the pages of queue
	ready chan struct{} // of capacity 1: something waits
}

func newViewer(w wants, limit int) *viewer {
	return &viewer{wants: w, limit: limit, joined: make(chan place, 1), ready: make(chan struct{}, 1)}
}

// push has a message wait for v. It never blocks: where more rows wait than the
// limit, all of them become a summary. Pages are shared, so that many slow
// viewers hold no more of them than one.
func (v *viewer) push(m message) {
	v.mu.Lock()
	if m.reset {
		v.queue, v.rows = nil, 0
	}
	v.queue = append(v.queue, m)
	if m.page != nil {
		v.rows += len(m.page.rows)
	}
	if v.rows > v.limit {
		v.collapse()
	}
	v.mu.Unlock()
	select {
	case v.ready <- struct{}{}:
	default:
	}
}

// collapse puts a summary in place of all that waits, but for the reset with
// which it may begin.
func (v *viewer) collapse() {
	sum := &summary{}
	var kept []message
	for _, m := range v.queue {
		switch {
		case m.reset:
			kept = append(kept, m)
		case m.page != nil:
			sum.add(v.wants.of(m.page.rows))
		default:
			sum.merge(*m.summary)
		}
	}
	v.queue = append(kept, message{summary: sum, after: v.queue[len(v.queue)-1].after})
	v.rows = 0
}

// next returns what has waited longest.
func (v *viewer) next() (m message, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.queue) == 0 {
		return message{}, false
	}
	m = v.queue[0]
	v.queue[0] = message{} // so that nothing holds the page
	v.queue = v.queue[1:]
	if m.page != nil {
		v.rows -= len(m.page.rows)
	}
	return m, true
}

// wants says which rows somebody wants to see. Empty fields choose all.
type wants struct {
	view.AuditFilter // without Type
}

func (w wants) all() bool { return w.AuditFilter == view.AuditFilter{} }

// of returns those of rows that are wanted.
func (w wants) of(rows []trail.Step) []trail.Step {
	if w.all() {
		return rows
	}
	var wanted []trail.Step
	for i := range rows {
		r := &rows[i]
		if matches(w.EventID, r.EventID) && matches(w.Source, r.Source) && (w.Action == "" || w.Action == r.Action) && (w.Success == "" || w.Success == r.Success) {
			wanted = append(wanted, *r)
		}
	}
	return wanted
}

func matches(wanted string, found *string) bool {
	return wanted == "" || found != nil && *found == wanted
}

// inDatabase is the part of w that the database is asked for when one viewer
// alone reads.
func (w wants) inDatabase() trail.Filter {
	return trail.Filter{EventIDs: one(w.EventID), Sources: one(w.Source), Actions: one(w.Action)}
}

// searches reports whether inDatabase leaves rows out, so that it may take long
// to find the next that it does not.
func (w wants) searches() bool {
	w.Success = ""
	return !w.all()
}

// one is a list of value alone, or of none where it is empty.
func one[T ~string](value T) []T {
	if value == "" {
		return nil
	}
	return []T{value}
}
