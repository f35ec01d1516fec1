package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// Any row of the audit log might be in the default partition. So rows in the order of time come from all partitions
// that a query allows, at once. With hundreds of them the plan takes 50 ms, and with thousands more locks than Postgres
// has room for. So a page reads stretches of time, one after the other, until it has enough. The bounds are arguments:
// the planner leaves out partitions only by known values.

// stretchDays are the lengths of the stretches, in days. The last one repeats.
var stretchDays = [...]int{1, 15, 128}

// stretch is a span of time. A bound that is not valid is none.
type stretch struct {
	since, until pgtype.Timestamptz // from since on, and before until
}

// in returns the query with the stretch as conditions on the rows of the audit log a.
func (q query) in(t stretch) query {
	if t.since.Valid {
		q = q.and("a.timestamp >= ?", t.since)
	}
	if t.until.Valid {
		q = q.and("a.timestamp < ?", t.until)
	}
	return q
}

// newestFirst calls read with stretches from newest back to end, until it has enough. The first one has no upper bound,
// and the last one begins with end.
func (s *Store) newestFirst(
	ctx context.Context, newest time.Time, end pgtype.Timestamptz, read func(stretch) (enough bool, err error),
) error {
	var t stretch
	var begins pgtype.Timestamptz
	for i := 0; ; i++ {
		days := stretchDays[min(i, len(stretchDays)-1)]
		if i == len(stretchDays)-1 {
			var err error
			if begins, err = s.auditBegins(ctx); err != nil {
				return err
			}
		}
		newest = newest.AddDate(0, 0, -days)
		since := pgtype.Timestamptz{Time: newest, Valid: true}
		last := newest.Year() < 1 || !before(end, since) || begins.Valid && !before(begins, since)
		if last {
			since = end
		}
		t.since = since
		if enough, err := read(t); enough || err != nil || last {
			return err
		}
		t.until = since
	}
}

// oldestFirst calls read with stretches from a time on, until it has enough. The last one has no upper bound.
func (s *Store) oldestFirst(
	ctx context.Context, from pgtype.Timestamptz, read func(stretch) (enough bool, err error),
) error {
	begin, err := s.auditBegins(ctx)
	if err != nil {
		return err
	}
	if begin.InfinityModifier == pgtype.Finite && !before(from, begin) {
		begin = from
	}
	t := stretch{since: from}
	for i := 0; ; i++ {
		days := stretchDays[min(i, len(stretchDays)-1)]
		begin.Time = begin.Time.AddDate(0, 0, days)
		// This clock may be wrong: the last stretch may then be longer.
		last := begin.InfinityModifier == pgtype.Infinity || begin.Time.After(time.Now())
		if t.until = begin; last {
			t.until = pgtype.Timestamptz{}
		}
		if enough, err := read(t); enough || err != nil || last {
			return err
		}
		t.since = begin
	}
}

// before reports whether a is before b, which is finite.
func before(a, b pgtype.Timestamptz) bool {
	return a.InfinityModifier == pgtype.NegativeInfinity ||
		a.InfinityModifier == pgtype.Finite && a.Time.Before(b.Time)
}

// auditBegins is a time before which only the default partition has steps.
func (s *Store) auditBegins(ctx context.Context) (at pgtype.Timestamptz, err error) {
	if err = s.readOne(ctx, "select spine.audit_begins()", nil, &at); err != nil {
		return at, fmt.Errorf("finding the beginning of the audit log: %w", err)
	}
	return at, nil
}
