package command

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
)

// healthTimeout is just above the server's own limit on its checks, so that the answer of a sick server still arrives.
const healthTimeout = 3 * time.Second

func healthCommand(env environ) *cobra.Command {
	var s service.Settings
	var base string
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask a running spine whether it is ready (a container's probe)",
		Long: `Health asks /readyz of the process that listens on LISTEN on this machine, or of
the server at --url, and prints the answer. It exits with 0 if the process is
ready, else with 1.`,
		Example: `  spine health
  spine health --listen :8002
  spine health --url https://spine.example.com`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			base := cmp.Or(base, "http://"+localAddress(string(s.Listen.Address)))
			return checkHealth(cmd.Context(), base, cmd.OutOrStdout())
		},
	}
	env.bind(cmd, needs{groups: []any{&s.Listen}})
	cmd.Flags().Lookup("listen").Usage = "where the process on this machine listens [LISTEN]"
	cmd.Flags().StringVar(&base, "url", "",
		"base `URL` of the server to ask instead, or the full URL of a check other than /readyz")
	return cmd
}

// localAddress is where to reach a server that listens on address from its own machine.
func localAddress(address string) string {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err != nil || host != "" && !ip.IsUnspecified() {
		return address
	}
	return net.JoinHostPort("127.0.0.1", port)
}

// checkHealth asks the server at base for /readyz, or for the path of base if it has one.
func checkHealth(ctx context.Context, base string, out io.Writer) error {
	address, err := url.Parse(base)
	if err != nil {
		return misuse("--url: %w", err)
	}
	if address.Path == "" || address.Path == "/" {
		address.Path = "/readyz"
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return misuse("--url: %w", err)
	}
	code, body, err := sendRequest(req)
	if err != nil {
		return err
	}
	if err := writeAnswer(out, body); err != nil {
		return fmt.Errorf("printing the answer: %w", err)
	}
	if code != http.StatusOK {
		return fmt.Errorf("not ready: %s answered %d", address.Redacted(), code)
	}
	return nil
}
