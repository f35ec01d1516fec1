package store

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/webhookspine/spine/internal/event"
)

func TestClassify(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err              pgconn.PgError
		rejected, locked bool
	}{
		{pgconn.PgError{Code: "22P02"}, true, false},
		{pgconn.PgError{Code: "23514", TableName: "events"}, true, false},
		{pgconn.PgError{Code: "23514", TableName: "audit_trail_default"}, false, false},
		{pgconn.PgError{Code: "54001"}, true, false},
		{pgconn.PgError{Code: "54000", Routine: "PreCommit_Notify"}, false, false},
		{pgconn.PgError{Code: "54000"}, true, false},
		{pgconn.PgError{Code: "23505", ConstraintName: "events_pkey"}, false, false},
		{pgconn.PgError{Code: "23514", ConstraintName: "no_fridays"}, true, false},
		{pgconn.PgError{Code: "55P03"}, false, true},
		{pgconn.PgError{Code: "57P01"}, false, false},
	} {
		err := classify(&c.err)
		require.Equal(t, c.rejected, errors.Is(err, event.ErrInvalidData), c.err)
		require.Equal(t, c.locked, errors.Is(err, event.ErrLocked), c.err)
		require.Equal(t, c.err.ConstraintName == "no_fridays", errors.Is(err, event.ErrForeignRule), c.err)
	}
}
