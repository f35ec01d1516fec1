-- Rejected requests of which only the beginning is kept, and functions that bound what senders make Spine spend.

-- +goose Up

set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '2s';

alter table spine.rejected_requests add column body_bytes bigint;
comment on column spine.rejected_requests.body is
    'The body as it arrived, compressed where it was. Its beginning where body_bytes is set.';
comment on column spine.rejected_requests.body_bytes is
    'Size of a body of which only the beginning is kept. NULL where all is kept. '
    'It is the announced size, or how much came at least. Such a request cannot be read again.';
