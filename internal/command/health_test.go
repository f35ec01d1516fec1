package command

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/service"
)

func TestMockAPIServesUntilToldToStop(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	server, err := service.NewMockAPI(ctx, "127.0.0.1:0", service.MockSettings{FailureRate: 1, Status: 418},
		service.StopSettings{}, service.LogSettings{}.Logger(t.Output()))
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()

	base := "http://" + server.Listener.Addr().String()
	require.NoError(t, checkHealth(t.Context(), base+"/readyz", t.Output()))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/third_party/mock",
		strings.NewReader(`{"event_id":"a"}`))
	require.NoError(t, err)
	code, _, err := sendRequest(req)
	require.NoError(t, err)
	require.Equal(t, http.StatusTeapot, code)

	stop()
	require.NoError(t, <-ended)
}
