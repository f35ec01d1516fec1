package notify

import (
	"context"
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/postgres/postgrestest"
)

var databases postgrestest.Databases

func TestMain(m *testing.M) { goleak.VerifyTestMain(databases.Main(m)) }

var errAway = errors.New("the database is away")

// notifierFunc is a Notifier.
type notifierFunc func(ctx context.Context, channel, payload string) error

func (f notifierFunc) Notify(ctx context.Context, channel, payload string) error {
	return f(ctx, channel, payload)
}
