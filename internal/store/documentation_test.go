package store_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// \d+ and \df+ read like documentation. Daily partitions share the comments of
// the table they are a part of.
func TestEverythingInTheSchemaIsDescribed(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	for kind, undescribed := range map[string]string{
		"schema": "select nspname from pg_namespace where nspname = 'spine' and obj_description(oid, 'pg_namespace') is null",
		"tables and views": `select relname from pg_class
			where relnamespace = 'spine'::regnamespace and relkind in ('r', 'p', 'v') and obj_description(oid, 'pg_class') is null`,
		"indexes": `select relname from pg_class
			where relnamespace = 'spine'::regnamespace and relkind in ('i', 'I') and not relispartition and obj_description(oid, 'pg_class') is null`,
		"columns": `select c.relname || '.' || a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid
			where c.relnamespace = 'spine'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
				and a.attnum > 0 and not a.attisdropped and col_description(c.oid, a.attnum) is null`,
		"functions": `select oid::regprocedure from pg_proc where pronamespace = 'spine'::regnamespace and obj_description(oid, 'pg_proc') is null`,
		"triggers": `select t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid
			where c.relnamespace = 'spine'::regnamespace and not t.tgisinternal and obj_description(t.oid, 'pg_trigger') is null`,
		"statuses": `select status from unnest(array['pending', 'processing', 'completed', 'failed', 'dead']) status
			where col_description('spine.processing_state'::regclass, (select attnum from pg_attribute
				where attrelid = 'spine.processing_state'::regclass and attname = 'status')) !~ status`,
	} {
		require.Empty(t, d.rows(undescribed), kind)
	}
	require.Greater(t, len(d.rows("select from pg_proc where pronamespace = 'spine'::regnamespace")), 20)
}

// Functions do not depend on the caller's search_path, and temporary tables
// cannot stand in for Spine's.
func TestEveryFunctionNamesItsSearchPath(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, 1)
	require.Empty(t, d.rows(`select oid::regprocedure from pg_proc where pronamespace = 'spine'::regnamespace
		and not coalesce(proconfig && array['search_path=spine, pg_temp', 'search_path=pg_catalog, pg_temp'], false)`))
	require.Empty(t, d.rows("select oid::regprocedure from pg_proc where pronamespace = 'spine'::regnamespace and prosecdef"))
}
