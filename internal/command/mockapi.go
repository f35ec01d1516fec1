package command

import (
	"context"
	"sync"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
)

func mockAPICommand(env environ) *cobra.Command {
	var s service.Settings
	cmd := &cobra.Command{
		Use:   "mock-api",
		Short: "Run a destination that fails on purpose",
		Long: `Mock-api receives deliveries at /third_party/mock and fails a share of them. The
query of a request may ask for another behaviour: failure_rate, status, hang, cut,
delay or retry_after. /stats counts the ids that came, and those that came more
than once.`,
		Example: `  spine mock-api
  spine mock-api --mock-api-failure-rate 0.2 --listen 127.0.0.1:9001
  spine mock-api --mock-api-failure-rate 1 --mock-api-status 503 --mock-api-retry-after 2
  curl -X POST 'http://127.0.0.1:8001/third_party/mock?status=503' -d '{"event_id":"a"}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := s.Log.Logger(cmd.ErrOrStderr())
			env.warnMisspelt(log)
			server, err := service.NewMockAPI(cmd.Context(), s.Listen.Address, s.Mock, s.Stop, log)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			var told sync.WaitGroup
			told.Go(func() {
				if <-ctx.Done(); cmd.Context().Err() != nil {
					log.Info().Msg("stopping")
				}
			})
			err = server.Run(ctx)
			cancel()
			if told.Wait(); err == nil {
				log.Info().Msg("stopped")
			}
			return err
		},
	}
	env.bind(cmd, needs{
		groups:   []any{&s.Listen, &s.Mock, &s.Stop, &s.Log},
		defaults: map[string]string{"LISTEN": ":8001"},
	})
	return cmd
}
