-- What the answers to an operator's questions need: reasons that people give, words of rejected requests, and how far
-- retention has gone.

-- +goose Up

set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '2s';

alter table spine.destinations add column paused_reason text;
comment on column spine.destinations.paused_by is 'Who paused it: a database role, and on whose behalf it acted.';
comment on column spine.destinations.paused_reason is 'Why, as far as somebody said. See spine.pause().';

alter table spine.sources
    add column disabled_reason text,
    add column disabled_by text,
    add column disabled_before jsonb;
comment on column spine.sources.disabled_by is 'Who disabled it: a database role, and on whose behalf it acted.';
comment on column spine.sources.disabled_before is
    'The last five times it was disabled and enabled again. Members: since, until, by, reason.';
comment on column spine.sources.disabled_reason is 'Why, as far as somebody said. See spine.disable_source().';

-- Bodies are large, and a search must not read them. Only rejected requests pay for this, and only those that are kept.
alter table spine.rejected_requests add column words text[];
comment on column spine.rejected_requests.words is
    'What may be an id in headers, target and body, as spine.look_alike() folds it. '
    'NULL for a request that was kept before schema version 7.';
create index rejected_requests_words on spine.rejected_requests using gin (words) with (gin_pending_list_limit = 256);
comment on index spine.rejected_requests_words is 'spine.rejected_like(): requests in which an id stands.';

create table spine.retention_state (
    only_row boolean primary key default true check (only_row),
    expired_at timestamptz,
    before timestamptz
);
comment on table spine.retention_state is
    'How far retention has gone, so that an id that is gone is told from one that never came.';
comment on column spine.retention_state.only_row is 'Holds the table to one row.';
comment on column spine.retention_state.expired_at is 'When spine.expire_events() last removed something.';
comment on column spine.retention_state.before is 'Latest cutoff with which it removed something.';
comment on index spine.retention_state_pkey is 'Holds the table to one row.';
insert into spine.retention_state (expired_at, before)
select max(a.timestamp), max((a.details ->> 'before')::timestamptz)
from spine.audit_trail a
where a.event is null and a.action = 'events_expired';
