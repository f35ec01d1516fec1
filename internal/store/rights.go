package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// neededRights are the rights on tables and views that a process needs which does not migrate, by name. A process that
// owns the schema has them all. TestARoleWithTheNeededRights runs each method of Store with these rights and no more.
var neededRights = map[string]string{
	"arrivals_watermark":  "SELECT UPDATE",
	"audit_log":           "SELECT",
	"audit_trail":         "SELECT INSERT DELETE",
	"audit_trail_default": "SELECT UPDATE DELETE",
	"conflicting":         "SELECT",
	"conflicts":           "SELECT INSERT UPDATE DELETE",
	"dead_letters":        "SELECT",
	"depth":               "SELECT",
	"depth_samples":       "SELECT INSERT UPDATE DELETE",
	"depth_state":         "SELECT UPDATE",
	"destinations":        "SELECT UPDATE",
	"events":              "SELECT INSERT UPDATE DELETE",
	"locks":               "SELECT UPDATE",
	"processing_state":    "SELECT INSERT UPDATE DELETE",
	"rates":               "SELECT",
	"receivers":           "SELECT INSERT UPDATE DELETE",
	"rejected_requests":   "SELECT INSERT UPDATE DELETE",
	"retention_state":     "SELECT UPDATE",
	"rollup_state":        "SELECT UPDATE",
	"rollups":             "SELECT INSERT UPDATE DELETE",
	"schema_functions":    "SELECT",
	"schema_version":      "SELECT",
	"source_reports":      "SELECT INSERT UPDATE DELETE",
	"sources":             "SELECT INSERT UPDATE DELETE",
	"stuck":               "SELECT",
}

// ErrReadOnly says that the database takes no writes.
var ErrReadOnly = errors.New("the database takes no writes: it is a standby, or read-only")

// CheckWritable says why nothing can be stored now: ErrReadOnly, or that the database cannot be reached. It gives up
// connections to a server that takes no writes, since new ones may reach its successor.
func (s *Store) CheckWritable(ctx context.Context) error {
	var readOnly string
	if err := s.call(
		ctx,
		[]any{&readOnly},
		"select pg_catalog.current_setting($1)",
		"transaction_read_only",
	); err != nil {
		return fmt.Errorf("asking whether the database takes writes: %w", err)
	}
	if readOnly != "off" {
		s.pool.Reset()
		return ErrReadOnly
	}
	return nil
}

// RightsError says which rights a role lacks.
type RightsError struct {
	Role    string
	Missing []string // such as "UPDATE on the table spine.locks"
}

func (e *RightsError) Error() string {
	const most = 5
	missing := e.Missing
	if len(missing) > most {
		missing = append(slices.Clone(missing[:most]), fmt.Sprintf("%d more", len(e.Missing)-most))
	}
	return fmt.Sprintf("the role %q lacks these rights: %s; \"Database roles\" in deploy/README.md has the grants",
		e.Role, strings.Join(missing, ", "))
}

// missingRights are the rights that the role lacks, one a row. It reads the catalog alone, which each role may do.
// A table that is not there is no matter of rights.
const missingRights = `
	with space as (select n.oid from pg_namespace n where n.nspname = 'spine')
	select current_user::text, coalesce(array_agg(m.lacks order by m.place, m.lacks), '{}')
	from (
		select 1 as place, 'USAGE on the schema spine' as lacks
		from space s
		where not has_schema_privilege(s.oid, 'USAGE')
		union all
		select 2, r || ' on ' || case c.relkind when 'v' then 'the view' else 'the table' end || ' spine.' || c.relname
		from space s
		join pg_class c on c.relnamespace = s.oid
		join unnest($1::text[], $2::text[]) as n (name, rights) on n.name = c.relname
		cross join unnest(string_to_array(n.rights, ' ')) r
		where not has_table_privilege(c.oid, r)
		union all
		select 3, 'EXECUTE on the function spine.' || p.proname || '()'
		from space s
		join pg_proc p on p.pronamespace = s.oid
		where p.proconfig && array['search_path=spine, pg_temp', 'search_path=pg_catalog, pg_temp']
			and p.prorettype <> 'trigger'::regtype
			and not has_function_privilege(p.oid, 'EXECUTE')
		group by p.proname
	) m`

// CheckRights says whether the role has all rights that a process needs which does not migrate. It returns nil, a
// *RightsError, or why it could not tell.
func (s *Store) CheckRights(ctx context.Context) error {
	names := slices.Sorted(maps.Keys(neededRights))
	rights := make([]string, len(names))
	for i, name := range names {
		rights[i] = neededRights[name]
	}
	var e RightsError
	if err := s.one(ctx, missingRights, []any{names, rights}, &e.Role, &e.Missing); err != nil {
		return fmt.Errorf("reading the rights of this role: %w", classify(err))
	}
	if len(e.Missing) > 0 {
		return &e
	}
	return nil
}
