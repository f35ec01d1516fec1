package main

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/observe"
)

// A process that starts before its database answers from the start: it is up,
// it is not ready, and senders are told to come again.
func TestServiceAnswersBeforeItsDatabaseDoes(t *testing.T) {
	t.Parallel()
	closed, err := observe.Listen(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	address := closed.Addr().(*net.TCPAddr).String()
	require.NoError(t, closed.Close())

	set, err := parse([]string{"DATABASE_URL=postgres://nobody@" + address + "/nothing", "DESTINATION_URL=none", "LOG_LEVEL=error"},
		needs{defaults: map[string]string{"LISTEN": "127.0.0.1:0"}})
	require.NoError(t, err)
	p, err := newService(t.Context(), &set, both, set.Log.logger(t.Output()))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()

	s := newTarget(t, p.URL(), "postgres://nobody@"+address+"/nothing")
	r, err := s.do(t.Context(), http.MethodGet, "/healthz", nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, r.code)
	r, err = s.do(t.Context(), http.MethodGet, "/readyz", nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, r.code)
	r, err = s.do(t.Context(), http.MethodPost, "/webhook",
		strings.NewReader(`{"event_id":"early","event_type":"a","occurred_at":"2024-01-30T12:00:00Z","payload":{}}`))
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, r.code)
	require.NotEmpty(t, r.header.Get("Retry-After"))

	select {
	case <-p.Ready():
		require.Fail(t, "ready without a database")
	default:
	}
	stop()
	require.NoError(t, <-ended, "told to stop, it stops")
}
