package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// planHints is a statement before a query, in the same transaction. It keeps the planner from plans that it takes for
// quick only where statistics are missing or old.
type planHints string

const (
	// withIndex reads no table as a whole as long as there is another way.
	withIndex planHints = "select set_config('enable_seqscan', 'off', true)"
	// inIndexOrder reads rows in the order of an index until there are enough. It helps only a query that needs no
	// sort: where a sort cannot be avoided, all plans look equally bad.
	inIndexOrder planHints = `select set_config('enable_seqscan', 'off', true),
		set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true),
		set_config('max_parallel_workers_per_gather', '0', true), ` + customPlan
	// byOneIndex finds rows by the index of their event, or of their position in the log, and by no two indexes together.
	byOneIndex planHints = `select set_config('enable_seqscan', 'off', true),
		set_config('enable_bitmapscan', 'off', true), ` + customPlan

	// customPlan plans each call for the partitions of its time. Otherwise the planner tries a plan for any time at the
	// sixth call, which takes 0.3 s with 400 partitions.
	customPlan = "set_config('plan_cache_mode', 'force_custom_plan', true)"
)

// noIndexNumber and noIndexText are expressions with the value of a column that no index of the column fits. A
// condition on them filters the rows of the index that the query walks. With the bare column the planner might choose
// the column's own index. It would then read and sort all of its rows for the sake of a page.
func noIndexNumber(column string) string { return column + " + 0" }
func noIndexText(column string) string   { return column + " || ''" }

// collect reads all rows of a query without hints. Columns go into the fields of a T by position, whatever their names.
// doing begins the text of an error.
func collect[T any](ctx context.Context, s *Store, doing, sql string, args ...any) ([]T, error) {
	return readRows[T](ctx, s, "", doing, sql, args...)
}

// list is collect with the hints withIndex.
func list[T any](ctx context.Context, s *Store, doing, sql string, args ...any) ([]T, error) {
	return readRows[T](ctx, s, withIndex, doing, sql, args...)
}

// readRows is collect with hints.
func readRows[T any](
	ctx context.Context,
	s *Store,
	hints planHints,
	doing, sql string,
	args ...any,
) (all []T, err error) {
	batch := &pgx.Batch{}
	if hints != "" {
		batch.Queue(string(hints))
	}
	queue(batch, pgx.CollectRows[T], &all, sql, args...)
	if err := s.read(ctx, batch); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return all, nil
}

// queue adds a query to a batch. It reads the rows into target by position, as collect does.
func queue[Row, Target any](
	batch *pgx.Batch,
	read func(pgx.Rows, pgx.RowToFunc[Row]) (Target, error),
	target *Target,
	sql string,
	args ...any,
) {
	batch.Queue(sql, args...).Query(func(rows pgx.Rows) (err error) {
		*target, err = read(rows, pgx.RowToStructByPos[Row])
		return err
	})
}
