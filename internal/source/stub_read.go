package source

import (
	"encoding/json"

	"github.com/webhookspine/spine/internal/event"
)

// What stands here holds the places of the readers of formats, the rules of ids,
// types and times, JSON pointers and handshakes: every body is read as Spine's own
// envelope, no rule is checked, no handshake is answered, and textAt finds members
// of the top level only.

type reader struct{ name string }

func newReader(name string, _ Config) (*reader, error) { return &reader{name: name}, nil }

func (r *reader) read(q *event.Request) ([]event.Event, error) {
	body := q.Body
	if body == nil {
		body = q.Wire
	}
	e, err := ReadEnvelope(body)
	if err != nil {
		return nil, err
	}
	e.Source = r.name
	return []event.Event{e}, nil
}

type handshake struct{}

func newHandshake(Config, Resolve) (*handshake, error) { return &handshake{}, nil }

func (h *handshake) answer(*event.Request) (event.Answer, bool) { return event.Answer{}, false }

func (h *handshake) methods() []string { return nil }

func checkRules(Config) []event.Problem { return nil }

func textAt(body []byte, pointer string) (string, bool) {
	var m map[string]json.RawMessage
	if json.Unmarshal(body, &m) != nil {
		return "", false
	}
	v, ok := m[pointer[1:]]
	return string(v), ok
}
