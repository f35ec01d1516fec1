package service

import (
	"context"
	"encoding/json"
	"net/url"
	"time"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/ingest"
	"github.com/webhookspine/spine/internal/source"
)

// sourcesOf are the sources of a registry, as the intake sees them.
type sourcesOf struct{ *source.Registry }

// Lookup keeps the promises of ingest.Sources.
func (s sourcesOf) Lookup(name string) (ingest.Source, error) {
	found, err := s.Registry.Lookup(name)
	if err != nil {
		return nil, err
	}
	return intakeSource{found}, nil
}

// intakeSource is a source, as the intake sees it.
type intakeSource struct{ *source.Source }

// Policy is what its settings say of how it is treated.
func (s intakeSource) Policy() ingest.Policy {
	c := s.Config()
	return ingest.Policy{
		RejectConflicts: c.Conflicts == "refuse",
		Verified:        ingest.Rate{PerSecond: c.Limits.Rate, Burst: c.Limits.Burst},
		Address:         ingest.Rate{PerSecond: c.Limits.AddressRate, Burst: c.Limits.AddressBurst},
		Kept:            event.Budget{Rows: c.Rejected.Rows, Bytes: c.Rejected.Bytes, Age: c.Rejected.Age},
	}
}

// DryRun says what would become of a request to a source, and stores nothing.
func DryRun(s *source.Source, lookup error, r *event.Request, maxBody int64) ingest.Trial {
	return ingest.DryRun(intakeSource{s}, lookup, r, maxBody)
}

// RedactTarget is the address of a request, without secrets.
func (s intakeSource) RedactTarget(u *url.URL) string { return source.RedactTarget(u) }

// sourceProcess keeps the promises of api.SourceProcess.
type sourceProcess struct {
	*source.Registry
	handler *ingest.Handler
}

// Check returns settings in the form in which they are stored.
func (p sourceProcess) Check(settings []byte) (json.RawMessage, error) {
	c, err := source.ParseConfig(settings)
	if err != nil {
		return nil, err
	}
	if _, err := c.Resolve(); err != nil {
		return nil, err
	}
	return json.Marshal(c)
}

// Presets are all that there are.
func (p sourceProcess) Presets() any {
	var all []source.Preset
	for _, name := range source.Presets() {
		preset, _ := source.PresetOf(name)
		all = append(all, preset)
	}
	return all
}

// Sample has a signed sample taken in.
func (p sourceProcess) Sample(ctx context.Context, name string) (status int, body []byte, err error) {
	s, err := p.Lookup(name)
	if err != nil {
		return 0, nil, err
	}
	r, err := s.Sample(time.Now())
	if err != nil {
		return 0, nil, err
	}
	status, body = p.handler.Admit(ctx, name, r)
	return status, body, nil
}
