package source

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/webhookspine/spine/internal/event"
)

// envelopeSample is what a source takes whose format is Spine's own envelope,
// whatever its preset.
func envelopeSample() sample {
	return sample{
		header: [][2]string{contentType},
		body:   `{"event_id":"{{id}}","event_type":"sample","occurred_at":"{{time}}","payload":{"hello":"world"}}`,
	}
}

// Sample makes a small request as the provider sends it, with an id of its own,
// signed for a time. The error says why the source cannot sign.
func (s *Source) Sample(now time.Time) (*event.Request, error) {
	preset, _ := PresetOf(s.config.Preset)
	made := preset.sample
	switch {
	case s.config.Format == "envelope":
		made = envelopeSample()
	case s.config.Format == "cloudevents":
		events, _ := PresetOf("cloudevents")
		made = events.sample
	case made.body == "":
		none, _ := PresetOf("none")
		made = none.sample
	}
	fill := strings.NewReplacer(
		"{{id}}", uuid.NewString(),
		"{{seconds}}", strconv.FormatInt(now.Unix(), 10),
		"{{milliseconds}}", strconv.FormatInt(now.UnixMilli(), 10),
		"{{time}}", now.UTC().Format(time.RFC3339),
	)
	body := []byte(fill.Replace(made.body))
	r := &event.Request{
		Method: http.MethodPost, URL: &url.URL{Path: pathOf(s.name)}, Header: http.Header{}, Wire: body, Body: body, At: now,
	}
	for _, h := range made.header {
		r.Header.Set(h[0], fill.Replace(h[1]))
	}
	if err := s.Sign(r, now); err != nil {
		return nil, err
	}
	return r, nil
}
