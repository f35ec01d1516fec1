package service

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/deliver"
	"github.com/webhookspine/spine/internal/secret"
)

// Viewers that come back cannot take all the connections that others read by.
func TestConnectionsForReading(t *testing.T) {
	t.Parallel()
	for conns, want := range map[int]struct{ reading, catchUps int }{
		1: {1, 1}, 3: {1, 1}, 4: {2, 1}, 7: {2, 1}, 8: {2, 1}, 12: {3, 2}, 1000: {250, 2},
	} {
		reading := readingConns(conns)
		require.Equal(t, want.reading, reading, conns)
		require.Equal(t, want.catchUps, streamConfig(reading).CatchUps, conns)
	}
}

// Package deliver does not know the names of settings. The service names them.
func TestBadDeliverySettingIsNamed(t *testing.T) {
	good := deliver.Config{URL: "http://localhost/", Timeout: time.Second, Concurrency: 1}
	for setting, spoil := range map[string]func(c *deliver.Config){
		"DESTINATION_URL":      func(c *deliver.Config) { c.URL = "localhost" },
		"DESTINATION_SECRET":   func(c *deliver.Config) { c.Secret = secret.New("short") },
		"DELIVERY_TIMEOUT":     func(c *deliver.Config) { c.Timeout = 0 },
		"DELIVERY_CONCURRENCY": func(c *deliver.Config) { c.Concurrency = 0 },
	} {
		config := good
		spoil(&config)
		_, err := deliver.New(config)
		require.ErrorContains(t, deliverySetting(err), setting+": must ")
	}
}
