package source

import (
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/webhookspine/spine/internal/event"
)

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
	v := jsontext.Value(body)
	_ = v.Compact()
	_ = pointer
	return strconv.Itoa(len(body)), false
}
