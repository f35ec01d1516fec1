package service

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/ingest"
	"github.com/webhookspine/spine/internal/source"
)

// intakeSources are the sources of a registry, as package ingest sees them.
type intakeSources struct{ *source.Registry }

// Lookup keeps the promises of ingest.Sources.
func (s intakeSources) Lookup(name string) (ingest.Source, error) {
	compiled, err := s.Registry.Lookup(name)
	if err != nil {
		return nil, err
	}
	return intakeSource{compiled}, nil
}

// Stray keeps the promises of ingest.Sources.
func (s intakeSources) Stray(name string) ingest.Stray {
	if stray, ok := s.Registry.Stray(name); ok {
		found := ingest.Stray{Redactor: &stray.Redactor, Kept: kept(stray.Config.Rejected)}
		if stray.Source != nil {
			found.Source = intakeSource{stray.Source}
		}
		return found
	}
	return ingest.Stray{Kept: kept(source.DefaultBudget())}
}

// kept is a budget of rejected requests, as package ingest sees it.
func kept(b source.Budget) event.Budget {
	return event.Budget{Rows: b.Rows, Bytes: b.Bytes, Age: b.Age}
}

// intakeSource is a source, as package ingest sees it.
type intakeSource struct{ *source.Source }

// Policy is how the source's settings want its requests to be treated.
func (s intakeSource) Policy() ingest.Policy {
	c := s.Config()
	return ingest.Policy{
		RejectConflicts: c.Conflicts == "refuse",
		Verified:        ingest.Rate{PerSecond: c.Limits.Rate, Burst: c.Limits.Burst},
		Address:         ingest.Rate{PerSecond: c.Limits.AddressRate, Burst: c.Limits.AddressBurst},
		Kept:            kept(c.Rejected),
	}
}

// DryRun says what a server would do with a request to a source, and stores nothing. lookup is the error of looking the
// source up.
func DryRun(s *source.Source, lookup error, r *event.Request, maxBody int64) ingest.Trial {
	return ingest.DryRun(intakeSource{s}, lookup, r, maxBody)
}

// checkSources reports whether the sources have been read.
func (s *Service) checkSources(context.Context) error {
	if _, err := s.sources.Lookup(event.DefaultSource); errors.Is(err, event.ErrSourcesUnknown) {
		return err
	}
	return nil
}

// sourceProcess keeps the promises of api.SourceProcess.
type sourceProcess struct {
	*source.Registry
	handler *ingest.Handler
	secrets source.Secrets
}

// Check checks settings and returns them in the form in which they are stored.
func (p sourceProcess) Check(settings []byte) (json.RawMessage, error) {
	c, err := source.ParseConfig(settings)
	if err != nil {
		return nil, err
	}
	if _, err := c.Resolve(); err != nil {
		return nil, err
	}
	if err := c.CheckSecrets(p.secrets); err != nil {
		return nil, err
	}
	return json.Marshal(c)
}

// Presets are all presets.
func (p sourceProcess) Presets() any { return source.AllPresets() }

// Sample sends a signed sample through the same path as a request from the network.
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
