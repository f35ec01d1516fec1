-- What operators are told: attempts that did not reach the destination, reasons, beginnings of rejected requests, what
-- processes make of the sources, and which binaries work on a database.

-- +goose Up

set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '2s';

-- Attempts that do not reach the destination are deferred, and not counted.

alter type spine.audit_action add value 'delivery_deferred';
/*
    'delivery_deferred' -- processing -> failed: the destination was not reached, the attempt is not counted
*/

alter table spine.processing_state
    add column deferrals integer,
    add column deferred_since timestamptz;
comment on column spine.events.payload is
    'The payload''s exact text, a form''s fields, or a CloudEvent as one JSON object. '
    'Where it was made of a body, raw_body has the exact bytes of that. '
    'NULL where Postgres cannot query the payload: unqueryable says why, and raw_body has the bytes.';
comment on column spine.events.payload_hash is
    'SHA-256 of the canonical payload, see spine.canonical(). SHA-256 of raw_body where payload is NULL or a form''s '
    'fields. Values that do not count are left out, and a CloudEvent''s attributes are taken as text.';
comment on column spine.processing_state.deferrals is
    'Attempts in a row that did not reach the destination. They are not in attempt_count. NULL for none.';
comment on column spine.processing_state.deferred_since is
    'When the first of these attempts ended. NULL for none. Spine tries for 72 hours from then on.';
comment on column spine.processing_state.status is
    'pending, processing, completed, failed (to be tried again) or dead.
Transitions, the function that makes each, and the actions that it writes to the audit log:
new -> pending: ingest_events() writes event_inserted
pending|failed -> processing: claim() writes processing_attempt_started
processing -> completed: settle() writes processing_succeeded
processing -> failed: settle() writes processing_attempt_failed, retry_scheduled
processing -> failed: settle() writes delivery_deferred
processing -> dead: settle() writes processing_attempt_failed, processing_failed_permanently
processing -> failed: claim() writes lease_expired, retry_scheduled
processing -> dead: claim() writes lease_expired, processing_failed_permanently
processing -> pending|failed: give_back() writes lease_returned
completed|failed|dead -> pending: replay_rows() writes event_replayed
An INSERT by hand writes event_queued. Any other change of status by hand writes status_changed and voids a lease.';
comment on column spine.processing_state.attempt_count is
    'Attempts since it was stored or replayed. The claim counts them. '
    'An attempt that did not reach the destination is taken off again.';
comment on column spine.rollups.attempts_failed is
    'Attempts that failed, expired leases and deferred ones included.';
comment on column spine.audit_trail.event is
    'events.id. NULL where the step concerns no event. '
    'After the thousandth arrival of an event its trail has a sample. The other arrivals have the negative number.';
comment on column spine.audit_trail.details is
    'JSON object with what applies, NULL where empty. Members: attempt, lease, worker, status, answer, error, '
    'duration_ms, retry_after_ms, delay_ms, reason (of the delay) and others. '
    'The destination of an attempt stands there only where it is not default. '
    'The worker of an attempt stands in the step that started it.';

-- What the answers to an operator's questions need: reasons that people give, words of rejected requests, and how far
-- retention has gone.

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
alter table spine.rejected_requests add column words bigint[];
comment on column spine.rejected_requests.words is
    'Numbers of words that may be ids, by spine.word_number(). '
    'NULL for a request that was kept before schema version 6.';
create index rejected_requests_words on spine.rejected_requests using gin (words) with (gin_pending_list_limit = 256);
comment on index spine.rejected_requests_words is 'spine.rejected_like(): requests in which an id stands.';

alter table spine.arrivals_watermark add column seen bigint not null default 0;
comment on column spine.arrivals_watermark.seen is
    'events.id up to which they were noted before they could be counted.';

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

-- Rejected requests of which only the beginning is kept.

alter table spine.rejected_requests add column body_bytes bigint;
comment on column spine.rejected_requests.body is
    'The body as it arrived, compressed where it was. Its beginning where body_bytes is set.';
comment on column spine.rejected_requests.body_bytes is
    'Size of a body of which only the beginning is kept. NULL where all is kept. '
    'It is the announced size, or how much came at least. Such a request cannot be read again.';

-- Requests to a source that took none have room of their own where the source sent them.

alter table spine.rejected_requests add column verified boolean;
comment on column spine.rejected_requests.verified is
    'Whether its source sent it, of one that came while it was disabled or closed. '
    'NULL where nobody can tell, and for all others: the source was broken, or takes requests from anyone.';

-- What each process that receives webhooks makes of the sources, so that a command can tell it.

create table spine.receivers (
    process text primary key,
    told_at timestamptz not null default clock_timestamp()
);
comment on table spine.receivers is
    'Processes that receive webhooks. Each tells every minute that it is alive. See source_reports.';
comment on column spine.receivers.process is 'Name of the process, such as web-1-a2c1: its host and something random.';
comment on column spine.receivers.told_at is
    'When it last told. Readers take a process for gone that has told nothing for 150 s.';
comment on index spine.receivers_pkey is 'spine.tell_sources(): the row of one process.';

create table spine.source_reports (
    process text references spine.receivers on delete cascade,
    source text collate "C",
    settings_at timestamptz not null,
    state text not null,
    problems text[] not null default '{}',
    primary key (process, source)
);
comment on table spine.source_reports is
    'What each process that receives webhooks makes of each source. '
    'Whether a source can be used depends on secrets, which only these processes can read. '
    'No secret stands here. spine.tell_sources() writes it.';
comment on column spine.source_reports.process is 'The process, as in receivers.';
comment on column spine.source_reports.source is 'The source.';
comment on column spine.source_reports.settings_at is
    'updated_at of the source, as the process has read it.';
comment on column spine.source_reports.state is 'open, verified, closed, disabled or broken.';
comment on column spine.source_reports.problems is 'Why it is broken, or warnings about one that works.';
comment on index spine.source_reports_pkey is 'spine.tell_sources(): what one process says of one source.';

-- Which binaries work on this database.

alter table spine.schema_functions add column compatible_from bigint;
comment on column spine.schema_functions.compatible_from is
    'Oldest schema version whose binaries work with this database. They leave it as it is.';

-- Which database this is, so that Spine knows a copy.

create table spine.database_identity (
    only_row boolean primary key default true check (only_row),
    system_identifier bigint,
    database_oid oid,
    noted_at timestamptz,
    trail_shift bigint not null default 0
);
comment on table spine.database_identity is
    'Which database Spine is in. spine.note_database() writes it, and pauses all claims where it finds another one.';
comment on column spine.database_identity.only_row is 'Holds the table to one row.';
comment on column spine.database_identity.system_identifier is
    'That of the server, as in pg_control_system(). NULL where Spine''s role may not know it.';
comment on column spine.database_identity.database_oid is
    'pg_database.oid. NULL until the first process of Spine has started.';
comment on column spine.database_identity.noted_at is 'When it was noted.';
comment on column spine.database_identity.trail_shift is
    'The default of audit_trail.xid adds it to the number of a transaction. 0 in a database that never moved.';
comment on index spine.database_identity_pkey is 'Holds the table to one row.';
insert into spine.database_identity default values;

-- Where in time the positions of the audit log are, so that followers read few of its partitions.

create table spine.audit_marks (
    position xid8 primary key,
    since timestamptz not null,
    id bigint not null
);
comment on table spine.audit_marks is
    'From which time on the steps of the audit log stand that a follower has not read yet. '
    'Spine adds a row a day with spine.mark_audit(), and spine.audit_since() reads them.';
comment on column spine.audit_marks.position is 'A position in the log, as in audit_trail.xid.';
comment on column spine.audit_marks.since is
    'Three days before the mark was made. Until the next mark, steps have this time or a later one.';
comment on column spine.audit_marks.id is 'Largest audit_trail.id that was given out before.';
comment on index spine.audit_marks_pkey is 'spine.audit_since(): the mark before a position.';
-- The rollups have counted all up to here. Without this mark they would look for the rest in all partitions. Steps of a
-- transaction that has been open for longer than thirty days would be missed.
insert into spine.audit_marks
select
    least(s.next_xid, (select x from unnest(s.in_progress) x order by x limit 1)),
    s.covered_to - interval '30 days',
    coalesce(pg_sequence_last_value('spine.audit_trail_id_seq'), 0)
from spine.rollup_state s;

-- Days that are being merged.

create table spine.audit_merge (
    only_row boolean primary key default true check (only_row),
    partition text not null,
    days text[] not null,
    since timestamptz not null,
    until timestamptz not null,
    seen_at timestamptz
);
comment on table spine.audit_merge is
    'A copy of old days of the audit log, that will take their place. Without a row there is none. '
    'See spine.copy_audit_days() and spine.merge_audit_days().';
comment on column spine.audit_merge.only_row is 'Holds the table to one row.';
comment on column spine.audit_merge.partition is 'The table with the copy. Nobody reads it yet.';
comment on column spine.audit_merge.days is 'Partitions of the days.';
comment on column spine.audit_merge.since is 'Beginning of the first day.';
comment on column spine.audit_merge.until is 'End of the last day.';
comment on column spine.audit_merge.seen_at is 'When spine.merge_audit_days() first saw the copy.';
comment on index spine.audit_merge_pkey is 'Holds the table to one row.';

-- Functions that write to these three run with the rights of audit_trail's owner, whoever migrates.
-- +goose StatementBegin
do $$
declare
    _owner constant regrole := (select c.relowner from pg_class c where c.oid = 'spine.audit_trail'::regclass);
begin
    execute format('alter table spine.database_identity owner to %s', _owner);
    execute format('alter table spine.audit_marks owner to %s', _owner);
    execute format('alter table spine.audit_merge owner to %s', _owner);
end $$;
-- +goose StatementEnd

comment on column spine.audit_trail.xid is
    'Position of the transaction that wrote the row. '
    'It is the transaction''s number plus database_identity.trail_shift. '
    'Followers of the log go by it: rows become visible in the order of commits, not of ids.';
-- The audit log has no key, since it is only ever added to. A publication of all tables would let no row leave the
-- default partition. New days get this as they are made.

alter table spine.audit_trail replica identity full;
alter table spine.audit_trail_default replica identity full;

-- Bodies are compressed with lz4, where the server has it. A sender can write a text on which pglz takes a second a
-- megabyte. What is stored already stays as it is.

-- +goose StatementBegin
do $$
declare
    _table text;
    _column text;
begin
    -- The view pg_settings can be locked by anybody.
    if not exists (
        select from pg_show_all_settings() s where s.name = 'default_toast_compression' and 'lz4' = any (s.enumvals))
    then
        return;
    end if;
    for _table, _column in
        values
            ('events', 'payload'),
            ('events', 'raw_body'),
            ('events', 'headers'),
            ('conflicts', 'payload'),
            ('conflicts', 'raw_body'),
            ('rejected_requests', 'body'),
            ('rejected_requests', 'headers')
    loop
        execute format('alter table spine.%I alter column %I set compression lz4', _table, _column);
    end loop;
end $$;
-- +goose StatementEnd
