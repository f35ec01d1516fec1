package store_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/store"
)

var databases = postgrestest.Databases{Migrate: func(ctx context.Context, url string) error {
	_, err := store.Migrate(ctx, url, nil)
	return err
}}

func TestMain(m *testing.M) { goleak.VerifyTestMain(databases.Main(m)) }

// open returns a store on a database of t's own.
func open(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: databases.New(t), MaxConns: 4, AppName: "spine test"})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}
