package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/webhookspine/spine/internal/event"
	"github.com/webhookspine/spine/internal/view"
)

// sourceColumns are in the order of the fields of event.SourceSettings.
const sourceColumns = "s.name, s.settings, s.disabled_at, s.created_at, s.updated_at, s.updated_by, " +
	"spine.last_arrival(s.name) as last_arrival_at"

// Sources lists the sources by name.
func (s *Store) Sources(ctx context.Context) ([]event.SourceSettings, error) {
	return collect[event.SourceSettings](
		ctx,
		s,
		"listing the sources",
		"select "+sourceColumns+" from spine.sources s order by s.name",
	)
}

// Source returns one source. The error is an *event.NoSourceError or the database's.
func (s *Store) Source(ctx context.Context, name string) (event.SourceSettings, error) {
	var found event.SourceSettings
	batch := &pgx.Batch{}
	batch.Queue("select spine.require_source($1)", name)
	queue(
		batch,
		pgx.CollectExactlyOneRow[event.SourceSettings],
		&found,
		"select "+sourceColumns+" from spine.sources s where s.name = $1",
		name,
	)
	if err := s.read(ctx, batch); err != nil {
		return event.SourceSettings{}, sourceError("reading a source", err)
	}
	return found, nil
}

// PutSource adds a source or gives it other settings. The error is an *event.BadSettingsError where the database
// rejects them, or the database's. caller is who asks, as the audit log keeps it.
func (s *Store) PutSource(
	ctx context.Context,
	name string,
	settings json.RawMessage,
	caller string,
) (change view.SourceChange, err error) {
	changes, err := s.ApplySources(ctx, map[string]json.RawMessage{name: settings}, false, false, caller)
	if err != nil {
		return view.SourceChange{}, err
	}
	return changes[0], nil
}

// errDryRun rolls back the transaction of a dry run.
var errDryRun = errors.New("dry run")

// ApplySources gives sources the settings in puts, in one transaction, and adds those that are missing. With prune it
// removes all others except default. A dry run changes nothing and returns the same. The changes are sorted by name and
// include unchanged sources. Errors are those of PutSource.
func (s *Store) ApplySources(
	ctx context.Context,
	puts map[string]json.RawMessage,
	prune, dryRun bool,
	caller string,
) (changes []view.SourceChange, err error) {
	err = s.operate(ctx, caller, func(tx pgx.Tx) error {
		changes = nil
		before := map[string]json.RawMessage{}
		rows, err := tx.Query(ctx, "select s.name, s.settings from spine.sources s order by s.name for update")
		if err != nil {
			return err
		}
		var name string
		var settings json.RawMessage
		if _, err := pgx.ForEachRow(rows, []any{&name, &settings}, func() error {
			before[name] = slices.Clone(settings)
			return nil
		}); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(puts)) {
			c := view.SourceChange{Source: name, From: before[name], To: puts[name]}
			if err := tx.QueryRow(ctx, "select spine.put_source($1, $2)", name, puts[name]).
				Scan(&c.Change); err != nil {
				return fmt.Errorf("source %s: %w", name, err)
			}
			changes = append(changes, c)
		}
		for _, name := range slices.Sorted(maps.Keys(before)) {
			if _, stays := puts[name]; stays || !prune || name == event.DefaultSource {
				continue
			}
			if _, err := tx.Exec(ctx, "select spine.remove_source($1)", name); err != nil {
				return err
			}
			changes = append(changes, view.SourceChange{Source: name, Change: "removed", From: before[name]})
		}
		slices.SortFunc(changes, func(a, b view.SourceChange) int { return strings.Compare(a.Source, b.Source) })
		if dryRun {
			return errDryRun
		}
		return nil
	})
	if err != nil && !errors.Is(err, errDryRun) {
		return nil, sourceError("changing the sources", err)
	}
	return changes, nil
}

// EnableSource enables or disables a source, and returns whether that changed anything. The error is an
// *event.NoSourceError or the database's.
func (s *Store) EnableSource(ctx context.Context, name string, enabled bool, caller string) (changed bool, err error) {
	if enabled {
		return s.switchSource(ctx, "select spine.enable_source($1)", name, caller)
	}
	return s.DisableSource(ctx, name, "", caller)
}

// DisableSource disables a source. reason is for those who ask later and may be empty. It returns the same as
// EnableSource.
func (s *Store) DisableSource(ctx context.Context, name, reason, caller string) (changed bool, err error) {
	return s.switchSource(ctx, "select spine.disable_source($1, nullif($2, ''))", name, caller, storable(reason))
}

func (s *Store) switchSource(
	ctx context.Context, sql, name, caller string, more ...any,
) (changed bool, err error) {
	err = s.operate(ctx, caller, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, sql, append([]any{name}, more...)...).Scan(&changed)
	})
	if err != nil {
		return false, sourceError("changing a source", err)
	}
	return changed, nil
}

// RemoveSource removes a source and its rejected requests. Its events stay. The error is an *event.NoSourceError, an
// *event.BadSettingsError for default, which cannot be removed, or the database's.
func (s *Store) RemoveSource(ctx context.Context, name, caller string) error {
	err := s.operate(ctx, caller, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "select spine.remove_source($1)", name)
		return err
	})
	if err != nil {
		return sourceError("removing a source", err)
	}
	return nil
}

// RotateSource puts a new secret, by reference, before those of a source. The old ones stay valid for keep from now on.
// It returns the source. Errors are those of PutSource, and *event.NoSourceError.
func (s *Store) RotateSource(
	ctx context.Context,
	name, secret string,
	keep time.Duration,
	caller string,
) (event.SourceSettings, error) {
	err := s.operate(ctx, caller, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "select spine.rotate_source($1, $2, $3)", name, secret, keep)
		return err
	})
	if err != nil {
		return event.SourceSettings{}, sourceError("rotating the secret of a source", err)
	}
	return s.Source(ctx, name)
}

// TellSources notes what a process that receives webhooks makes of all sources, and that it is alive.
func (s *Store) TellSources(ctx context.Context, process string, reports []event.SourceReport) error {
	told := make([]event.SourceReport, len(reports))
	for i, r := range reports {
		told[i] = r
		told[i].Problems = make([]string, len(r.Problems))
		for k, problem := range r.Problems {
			told[i].Problems[k] = storable(problem)
		}
	}
	text, err := json.Marshal(told)
	if err != nil {
		return fmt.Errorf("telling the state of the sources: %w", err)
	}
	if err := s.call(ctx, nil, "select spine.tell_sources($1, $2)", process, text); err != nil {
		return fmt.Errorf("telling the state of the sources: %w", err)
	}
	return nil
}

// ForgetReceiver removes what a process has told, and the process itself.
func (s *Store) ForgetReceiver(ctx context.Context, process string) error {
	if err := s.call(ctx, nil, "select spine.forget_receiver($1)", process); err != nil {
		return fmt.Errorf("removing what this process told of the sources: %w", err)
	}
	return nil
}

// SourceReports returns the processes that receive webhooks, and what they make of the sources with these names, or of
// all where names is nil. A process that has told nothing for 150 seconds, which is longer than two heartbeats, is
// taken for gone. It relies on receivers_pkey and source_reports_pkey.
func (s *Store) SourceReports(ctx context.Context, names []string) (event.SourceReports, error) {
	rows, err := collect[event.SourceReport](ctx, s, "reading what the servers know of the sources", `
		select r.process, coalesce(p.source, ''), coalesce(p.settings_at, '-infinity'), coalesce(p.state, ''),
			coalesce(p.problems, '{}')
		from spine.receivers r
		left join spine.source_reports p on p.process = r.process and ($1::text[] is null or p.source = any ($1::text[]))
		where r.told_at > clock_timestamp() - interval '150 seconds'
		order by r.process, p.source`, names)
	if err != nil {
		return event.SourceReports{}, err
	}
	var found event.SourceReports
	for _, row := range rows {
		if n := len(found.Processes); n == 0 || found.Processes[n-1] != row.Process {
			found.Processes = append(found.Processes, row.Process)
		}
		if row.Source != "" { // else the process has told nothing of these sources
			found.Reports = append(found.Reports, row)
		}
	}
	return found, nil
}

// storable is text without what Postgres rejects in a text.
func storable(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

// sourceError makes errors of package event out of those that the SQL functions for sources raise.
func sourceError(doing string, err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch {
		case pgErr.Code == "P0002":
			detail := pgErr.Message
			if pgErr.Hint != "" {
				detail += " (" + pgErr.Hint + ")"
			}
			return &event.NoSourceError{Detail: detail}
		case pgErr.Code == "23514" && pgErr.ConstraintName == "sources_name_check":
			return &event.BadSettingsError{
				Problems: []event.Problem{
					{
						Field: "source",
						Detail: "must be lower-case letters, digits, - and _, at most 63, and begin with a letter or " +
							"digit",
					},
				},
			}
		case pgErr.Code == "23514" || pgErr.Code == "22P02" || pgErr.Code == "22P05":
			return &event.BadSettingsError{Problems: []event.Problem{{Detail: pgErr.Message}}}
		}
	}
	return fmt.Errorf("%s: %w", doing, err)
}
