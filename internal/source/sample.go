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

// sampleOf is the preset whose sample a source with these settings can read. The format counts for more than the
// preset.
func sampleOf(c Config) string {
	switch {
	case c.Format == "envelope" || c.Format == "cloudevents":
		return c.Format
	case c.Preset == "envelope":
		return "none" // the settings have the preset read any body
	}
	return c.Preset
}

// Sample makes a small request as the provider sends it, with a fresh id, signed for a time. The error is that of Sign.
func (s *Source) Sample(now time.Time) (*event.Request, error) {
	preset, _ := PresetOf(sampleOf(s.config))
	fill := strings.NewReplacer(
		"{{id}}", uuid.NewString(),
		"{{seconds}}", strconv.FormatInt(now.Unix(), 10),
		"{{milliseconds}}", strconv.FormatInt(now.UnixMilli(), 10),
		"{{time}}", now.UTC().Format(time.RFC3339),
	)
	body := []byte(fill.Replace(preset.sample.body))
	r := &event.Request{
		Method: http.MethodPost, URL: &url.URL{Path: pathOf(s.name)}, Header: http.Header{},
		Wire: body, Body: body, At: now,
	}
	for name, value := range preset.sample.headers {
		r.Header.Set(name, fill.Replace(value))
	}
	if err := s.Sign(r, now); err != nil {
		return nil, err
	}
	return r, nil
}
