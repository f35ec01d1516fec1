package store

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/webhookspine/spine/internal/view"
)

// Each list has a cursor of its own type: the keys of the last row of a page. Clients take its text for opaque.
type (
	eventsCursor struct {
		ID int64 `json:"id"`
	}
	stepsCursor struct {
		At int64 `json:"at"` // as event.Timestamp.UnixMicro counts
		ID int64 `json:"id"`
	}
	processingCursor struct {
		Event       int64  `json:"event"`
		Destination string `json:"destination"`
	}
	conflictsCursor struct {
		At    int64  `json:"at"` // as event.Timestamp.UnixMicro counts
		Event int64  `json:"event"`
		Hash  []byte `json:"hash"`
	}
	rejectedCursor struct {
		ID int64 `json:"id"`
	}
)

// taggedCursor is a cursor with the name of its list, so that no list takes another's.
type taggedCursor[C any] struct {
	List string `json:"list"`
	Keys *C     `json:"keys"`
}

// encodeCursor returns the text of a cursor of list.
func encodeCursor[C any](list string, keys C) (string, error) {
	text, err := json.Marshal(taggedCursor[C]{list, &keys})
	if err != nil {
		return "", fmt.Errorf("making a cursor: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(text), nil
}

// decodeCursor reads a cursor of list, or returns view.ErrBadCursor.
func decodeCursor[C any](list, text string) (keys C, err error) {
	decoded, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || bytes.Contains(decoded, []byte(`\u0000`)) { // which no text in Postgres holds
		return keys, view.ErrBadCursor
	}
	var c taggedCursor[C]
	if json.Unmarshal(decoded, &c) != nil || c.List != list || c.Keys == nil {
		return keys, view.ErrBadCursor
	}
	return *c.Keys, nil
}

// cursorTime undoes event.Timestamp.UnixMicro. A time before the years that Postgres knows is infinitely far away.
func cursorTime(micros int64) pgtype.Timestamptz {
	t := time.UnixMicro(micros).UTC()
	switch {
	case micros == math.MaxInt64:
		return pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}
	case t.Year() < -4713:
		return pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	}
	return pgtype.Timestamptz{Time: t, Valid: true}
}
