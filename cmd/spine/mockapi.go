package main

import (
	"context"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/mockapi"
	"github.com/webhookspine/spine/internal/observe"
)

func mockAPICommand(env environ) *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "mock-api",
		Short: "Run a destination that fails on purpose",
		Long: `Mock-api takes deliveries at /third_party/mock and fails a share of them. A
request's own query may ask for another behaviour (failure_rate, status, hang,
cut, delay, retry_after). /stats tells which ids came, and which more than once.`,
		Example: `  spine mock-api
  spine mock-api --mock-api-failure-rate 0.2 --listen 127.0.0.1:9001
  spine mock-api --mock-api-failure-rate 1 --mock-api-status 503 --mock-api-retry-after 2
  curl -X POST 'http://127.0.0.1:8001/third_party/mock?status=503' -d '{"event_id":"a"}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			server, err := newMockAPI(cmd.Context(), s.Listen.Address, s.Mock, s.Stop, s.Log.logger(cmd.ErrOrStderr()))
			if err != nil {
				return err
			}
			return server.Run(cmd.Context())
		},
	}
	env.bind(cmd, needs{
		groups:   []any{&s.Listen, &s.Mock, &s.Stop, &s.Log},
		defaults: map[string]string{"LISTEN": ":8001"},
	})
	return cmd
}

// newMockAPI binds listen and returns the server that is to Run there, with
// the same ctx.
func newMockAPI(ctx context.Context, listen address, m mockSettings, stop stopSettings, log zerolog.Logger) (observe.Server, error) {
	mock, err := mockapi.New(mockapi.Config{
		Behaviour: mockapi.Behaviour{
			FailureRate: m.FailureRate, Status: m.Status, Hang: m.Hang,
			Cut: mockapi.Cut(m.Cut), Delay: m.Delay, RetryAfter: m.RetryAfter,
		},
		Stop: ctx.Done(),
		Log:  log,
	})
	if err != nil {
		return observe.Server{}, misuseError{err}
	}
	l, err := observe.Listen(ctx, string(listen))
	if err != nil {
		return observe.Server{}, err
	}
	health := observe.NewHealth(log, observe.NewMetrics())
	return observe.Server{
		Listener: l, Handler: health.Around(mock), Health: health, Log: log,
		Delay: stop.Delay, Timeout: stop.Timeout,
	}, nil
}
