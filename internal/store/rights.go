package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
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
	return fmt.Sprintf("the role %q lacks these rights: %s; as the owner of the schema run spine migrate --grant-to %s",
		e.Role, strings.Join(missing, ", "), shellWord(e.Role))
}

// shellWord is a word of a command line that an operator may paste.
func shellWord(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)

// rightsOf are the needed rights on tables, in their order.
func rightsOf(names []string) []string {
	rights := make([]string, len(names))
	for i, name := range names {
		rights[i] = neededRights[name]
	}
	return rights
}

// missingRights follows a query working with the names of roles. It has the rights that each of them lacks, and no row
// of a role that lacks none. It reads the catalog alone, which each role may do. A table that is not there is no matter
// of rights.
const missingRights = `
	select w.name::text as role, array_agg(m.lacks order by m.place, m.lacks) as missing
	from working w
	cross join (select n.oid from pg_namespace n where n.nspname = 'spine') s
	cross join lateral (
		select 1 as place, 'USAGE on the schema spine' as lacks
		where not has_schema_privilege(w.name, s.oid, 'USAGE')
		union all
		select 2, r || ' on ' || case c.relkind when 'v' then 'the view' else 'the table' end || ' spine.' || c.relname
		from pg_class c
		join unnest($1::text[], $2::text[]) as n (name, rights) on n.name = c.relname
		cross join unnest(string_to_array(n.rights, ' ')) r
		where c.relnamespace = s.oid and not has_table_privilege(w.name, c.oid, r)
		union all
		select 3, 'EXECUTE on the function spine.' || p.proname || '()'
		from pg_proc p
		where p.pronamespace = s.oid
			and p.proconfig && array['search_path=spine, pg_temp', 'search_path=pg_catalog, pg_temp']
			and p.prorettype <> 'trigger'::regtype
			and not has_function_privilege(w.name, p.oid, 'EXECUTE')
		group by p.proname
	) m
	group by w.name order by w.name`

// CheckRights says whether the role has all rights that a process needs which does not migrate. It returns nil, a
// *RightsError, or why it could not tell.
func (s *Store) CheckRights(ctx context.Context) error {
	names := slices.Sorted(maps.Keys(neededRights))
	var lacking []RightsError
	batch := &pgx.Batch{}
	queue(batch, pgx.CollectRows[RightsError], &lacking,
		"with working as (select current_user as name)"+missingRights, names, rightsOf(names))
	if err := s.send(ctx, batch); err != nil {
		return fmt.Errorf("reading the rights of this role: %w", classify(err))
	}
	if len(lacking) > 0 {
		return &lacking[0]
	}
	return nil
}
