package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/webhookspine/spine/internal/bell"
	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/trail"
)

// viewer is a client as the hub knows it: a queue that the hub fills without waiting, and the stream empties.
type viewer struct {
	selection selection
	limit     int                 // of steps that wait
	seen      *trail.Transactions // before it joins; nil where nothing
	joined    chan trail.Cursor   // of capacity 1: the place at which it joined

	mu    sync.Mutex
	queue []message
	steps int        // in the pages of queue
	ready *bell.Bell // something waits
}

func newViewer(s selection, limit int) *viewer {
	return &viewer{selection: s, limit: limit, joined: make(chan trail.Cursor, 1), ready: bell.New()}
}

// push queues a message for v. It never blocks: where more steps wait than the limit, all of them become a summary.
// Pages are shared, so that many slow viewers hold no more of them than one.
func (v *viewer) push(m message) {
	v.mu.Lock()
	if m.reset {
		v.queue, v.steps = nil, 0
	}
	v.queue = append(v.queue, m)
	if m.page != nil {
		v.steps += len(m.page.steps)
	}
	if v.steps > v.limit {
		v.collapse()
	}
	v.mu.Unlock()
	v.ready.Ring()
}

// collapse puts a summary in place of all that waits. A reset with which the queue begins stays.
func (v *viewer) collapse() {
	sum := &summary{}
	var kept []message
	for _, m := range v.queue {
		switch {
		case m.reset:
			kept = append(kept, m)
		case m.page != nil:
			sum.add(v.selection.of(m.page.steps))
		default:
			sum.merge(*m.summary)
		}
	}
	v.queue = append(kept, message{summary: sum, after: v.queue[len(v.queue)-1].after})
	v.steps = 0
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
		v.steps -= len(m.page.steps)
	}
	return m, true
}

// message is what a viewer is told: a page, a summary in place of pages, or that it must read everything anew.
type message struct {
	page    *page
	summary *summary
	reset   bool
	after   string // the cursor after it
}

// page is a page of the audit log that all viewers share. Nobody changes it.
type page struct {
	steps []trail.Step

	once sync.Once
	text []byte
	err  error
}

// json returns all steps as a JSON array without line breaks, made once for all viewers.
func (p *page) json() ([]byte, error) {
	p.once.Do(func() { p.text, p.err = encodeLine(p.steps) })
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

// summary stands in place of steps.
type summary struct {
	Rows   int                  `json:"rows"`
	Counts map[trail.Action]int `json:"counts"`
	Since  event.Timestamp      `json:"since"` // of the earliest step
	Until  event.Timestamp      `json:"until"` // of the latest step
}

// add counts steps in.
func (s *summary) add(steps []trail.Step) {
	for i := range steps {
		s.count(steps[i].Action, 1, steps[i].Timestamp, steps[i].Timestamp)
	}
}

// merge counts the steps of another summary in.
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

// selection says which steps a viewer wants to see. Empty fields choose all.
type selection struct {
	eventID, source string
	action          trail.Action
	success         string // success, failure or pending
}

func (s selection) all() bool { return s == selection{} }

// of returns those of steps that are chosen.
func (s selection) of(steps []trail.Step) []trail.Step {
	if s.all() {
		return steps
	}
	var chosen []trail.Step
	for i := range steps {
		step := &steps[i]
		if matches(s.eventID, step.EventID) && matches(s.source, step.Source) &&
			(s.action == "" || s.action == step.Action) && (s.success == "" || s.success == step.Success) {
			chosen = append(chosen, *step)
		}
	}
	return chosen
}

func matches(wanted string, value *string) bool {
	return wanted == "" || value != nil && *value == wanted
}

// inDatabase is the part of s that the database looks for where it is read for one viewer alone.
func (s selection) inDatabase() trail.Filter {
	return trail.Filter{EventIDs: listOf(s.eventID), Sources: listOf(s.source), Actions: listOf(s.action)}
}

// searches reports whether inDatabase leaves steps out, so that it may take long to find the next one.
func (s selection) searches() bool { return s.eventID != "" || s.source != "" || s.action != "" }

// listOf is a list of value alone, or of none where it is empty.
func listOf[T ~string](value T) []T {
	if value == "" {
		return nil
	}
	return []T{value}
}
