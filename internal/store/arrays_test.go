package store

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/webhookspine/spine/internal/event"
)

// TestArraysAreEncodedAsPgxDoes holds arrayCodec to pgx' own, byte by byte.
func TestArraysAreEncodedAsPgxDoes(t *testing.T) {
	own, theirs := pgtype.NewMap(), pgtype.NewMap()
	registerArrays(own)
	// Both ends of what Postgres can hold, and times before 1970 and 2000.
	times := rapid.Custom(func(t *rapid.T) time.Time {
		return time.Unix(
			rapid.Int64Range(-210_866_803_200, 9_224_318_015_999).Draw(t, "seconds"),
			rapid.Int64Range(0, 999_999_999).Draw(t, "nanoseconds"),
		)
	})
	bytes := rapid.OneOf(rapid.Just[[]byte](nil), rapid.SliceOf(rapid.Byte()))
	rapid.Check(t, func(t *rapid.T) {
		values := map[uint32]any{
			pgtype.ByteaArrayOID:       rapid.SliceOf(bytes).Draw(t, "bytes"),
			pgtype.TimestamptzArrayOID: rapid.SliceOf(times).Draw(t, "times"),
			pgtype.Int8ArrayOID:        rapid.SliceOf(rapid.Int64()).Draw(t, "numbers"),
		}
		if rapid.Bool().Draw(t, "strings") {
			values[pgtype.TextArrayOID] = rapid.SliceOf(rapid.String()).Draw(t, "strings")
		} else {
			values[pgtype.TextArrayOID] = rapid.SliceOf(bytes).Draw(t, "texts")
		}
		for oid, value := range values {
			require.IsType(
				t,
				theirs.PlanEncode(oid, pgtype.TextFormatCode, value),
				own.PlanEncode(oid, pgtype.TextFormatCode, value),
				"text is not ours",
			)
			before := []byte("before")
			want, err := theirs.Encode(oid, pgtype.BinaryFormatCode, value, before)
			require.NoError(t, err)
			got, err := own.Encode(oid, pgtype.BinaryFormatCode, value, before)
			require.NoError(t, err)
			require.Equal(t, want, got, "%d: %v", oid, value)
		}
	})
}

// TestNoArrayIsNull: a nil slice is NULL and not an empty array.
func TestNoArrayIsNull(t *testing.T) {
	m := pgtype.NewMap()
	registerArrays(m)
	for _, value := range []any{[]string(nil), [][]byte(nil), []time.Time(nil), []int64(nil)} {
		got, err := m.Encode(pgtype.TextArrayOID, pgtype.BinaryFormatCode, value, nil)
		require.NoError(t, err)
		require.Nil(t, got, "%T", value)
	}
}

// BenchmarkParameters encodes a batch as it is sent to Postgres, by pgx' own
// codecs and by ours.
func BenchmarkParameters(b *testing.B) {
	for _, events := range []int{1, 30, 100} {
		batch := make([]event.Event, events)
		for i := range batch {
			batch[i] = event.Event{
				ID: fmt.Sprintf(
					"evt-%030d",
					i,
				),
				Type:       "user.created",
				Source:     event.DefaultSource,
				OccurredAt: time.Now(),
				Payload:    []byte(`{"text":"` + strings.Repeat("x", 1000) + `"}`),
			}
		}
		for _, codec := range []string{"pgx", "own"} {
			b.Run(fmt.Sprintf("events=%d/codec=%s", events, codec), func(b *testing.B) {
				m := pgtype.NewMap()
				if codec == "own" {
					registerArrays(m)
				}
				text, yes := uint32(pgtype.TextArrayOID), uint32(pgtype.BoolArrayOID)
				statement := &pgconn.StatementDescription{ParamOIDs: []uint32{
					text,
					text,
					pgtype.TimestamptzArrayOID,
					text,
					text,
					pgtype.ByteaArrayOID,
					pgtype.ByteaArrayOID,
					text,
					text,
					yes,
					yes,
				}}
				b.ReportAllocs()
				for b.Loop() {
					var query pgx.ExtendedQueryBuilder
					if err := query.Build(m, statement, ingestArguments(batch)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
