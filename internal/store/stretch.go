package store

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// Any row of the audit log might be in the default partition. So rows in the order of time come from all partitions
// that a query allows, at once. With hundreds of them the plan takes 50 ms, and with thousands more locks than Postgres
// has room for. So a page reads stretches of time, one after the other, until it has enough. The bounds are arguments:
// the planner leaves out partitions only by known values.

// firstStretches are the lengths of the first stretches, in days. spine.audit_stretches() makes the others.
var firstStretches = [...]int{1, 15}

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
	for _, days := range firstStretches {
		newest = newest.AddDate(0, 0, -days)
		t.since = pgtype.Timestamptz{Time: newest, Valid: true}
		last := newest.Year() < 1 || !before(end, t.since)
		if last {
			t.since = end
		}
		if enough, err := read(t); enough || err != nil || last {
			return err
		}
		t.until = t.since
	}
	others, err := s.auditStretches(ctx, end, t.until)
	if err != nil {
		return err
	}
	for _, t := range slices.Backward(others) {
		if enough, err := read(t); enough || err != nil {
			return err
		}
	}
	return nil
}

// oldestFirst calls read with stretches from a time on, until it has enough. The last one has no upper bound.
func (s *Store) oldestFirst(
	ctx context.Context, from pgtype.Timestamptz, read func(stretch) (enough bool, err error),
) error {
	t := stretch{since: from}
	if from.InfinityModifier == pgtype.Finite {
		for _, days := range firstStretches {
			t.until = pgtype.Timestamptz{Time: t.since.Time.AddDate(0, 0, days), Valid: true}
			if t.until.Time.After(time.Now()) { // or what this clock says
				break
			}
			if enough, err := read(t); enough || err != nil {
				return err
			}
			t.since = t.until
		}
	}
	others, err := s.auditStretches(ctx, t.since, pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true})
	if err != nil {
		return err
	}
	others[len(others)-1].until = pgtype.Timestamptz{}
	for _, t := range others {
		if enough, err := read(t); enough || err != nil {
			return err
		}
	}
	return nil
}

// before reports whether a is before b, which is finite.
func before(a, b pgtype.Timestamptz) bool {
	return a.InfinityModifier == pgtype.NegativeInfinity ||
		a.InfinityModifier == pgtype.Finite && a.Time.Before(b.Time)
}

// same reports whether a and b are the same time.
func same(a, b pgtype.Timestamptz) bool {
	return a.InfinityModifier == b.InfinityModifier && a.Time.Equal(b.Time)
}

// auditStretches are stretches from one time to another, at least one. Each has a bounded number of partitions.
func (s *Store) auditStretches(ctx context.Context, since, until pgtype.Timestamptz) ([]stretch, error) {
	type row struct{ Since, Until pgtype.Timestamptz }
	rows, err := readRows[row](ctx, s, "", "finding the partitions of the audit log",
		"select s.since, s.until from spine.audit_stretches($1, $2) s", since, until)
	if err != nil {
		return nil, err
	}
	all := make([]stretch, len(rows))
	for i, r := range rows {
		all[i] = stretch{r.Since, r.Until}
	}
	return all, nil
}
