package service

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/store"
)

// patience is how long a test waits for what takes milliseconds on an idle
// machine.
const patience = 3 * time.Minute

var databases = postgrestest.Databases{Migrate: func(ctx context.Context, url string) error {
	_, err := store.Migrate(ctx, url, nil)
	return err
}}

func TestMain(m *testing.M) { goleak.VerifyTestMain(databases.Main(m)) }
