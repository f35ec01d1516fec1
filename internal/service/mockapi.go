package service

import (
	"context"

	"github.com/rs/zerolog"

	"github.com/webhookspine/spine/internal/mockapi"
	"github.com/webhookspine/spine/internal/observe"
)

// NewMockAPI binds an address and returns the mock API's server. Call its Run with the same ctx.
func NewMockAPI(
	ctx context.Context, listen Address, m MockSettings, stop StopSettings, log zerolog.Logger,
) (observe.Server, error) {
	mock, err := mockapi.New(mockapi.Config{
		Behaviour: mockapi.Behaviour{
			FailureRate: m.FailureRate, Status: m.Status, Hang: m.Hang,
			Cut: mockapi.Cut(m.Cut), Delay: m.Delay, RetryAfter: m.RetryAfter,
		},
		Stop: ctx.Done(),
		Log:  log,
	})
	if err != nil {
		return observe.Server{}, SettingError{err}
	}
	l, err := observe.Listen(ctx, string(listen))
	if err != nil {
		return observe.Server{}, err
	}
	health := observe.NewHealth(log)
	return observe.Server{
		Listener: l, Handler: health.Around(mock), Health: health, Log: log,
		Delay: stop.Delay, Timeout: stop.Timeout,
	}, nil
}
