-- Which binaries work on this database, functions that make partitions for roles that own nothing.

-- +goose Up

set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '2s';

alter table spine.schema_functions add column compatible_from bigint;
comment on column spine.schema_functions.compatible_from is
    'Oldest schema version whose binaries work with this database. They leave it as it is.';
