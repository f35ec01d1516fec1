package command

import (
	"context"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/webhookspine/spine/internal/postgres/postgrestest"
	"github.com/webhookspine/spine/internal/store"
)

var databases = postgrestest.Databases{Migrate: func(ctx context.Context, url string) error {
	_, err := store.Migrate(ctx, url, nil)
	return err
}}

func TestMain(m *testing.M) { goleak.VerifyTestMain(databases.Main(m)) }

// runLine runs one command line.
func runLine(t *testing.T, environment []string, args ...string) (code int, stdout string) {
	t.Helper()
	var out strings.Builder
	code = Run(t.Context(), args, environment, strings.NewReader(""), &out, t.Output(), "")
	return code, out.String()
}
