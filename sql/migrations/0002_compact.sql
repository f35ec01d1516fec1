-- Fewer bytes and less work for each event. The rules for events are checked by spine.ingest(), once for a batch: Postgres
-- would parse a CHECK anew for each statement. The audit log is kept in a compact table; spine.audit_log becomes a view of it.

-- +goose Up

-- All locks are taken at once, in the order in which claims take theirs, or none: the migration is then tried again. From here to the
-- commit, and on until the functions are in place, nothing is taken in or delivered: senders are told to come again.
set local lock_timeout = '2s';
lock table spine.processing_state, spine.audit_log, spine.events in access exclusive mode;
delete from spine.schema_functions; -- those that are there write to a table that is not

alter table spine.events
    drop constraint events_event_id_check, drop constraint events_source_check, drop constraint events_event_type_check,
    drop constraint events_occurred_at_check, drop constraint events_payload_check, drop constraint events_payload_or_raw_body;

-- A claim adds an entry for each new version of a row before the old ones can be removed. Where a page has room for the claims of a moment, it
-- need not be split: 46 instead of 63 bytes an event.
alter index spine.processing_state_pkey set (fillfactor = 65);

comment on index spine.processing_state_due is 'spine.claim(), the views depth and stuck: what falls due, oldest first, for each destination.';

-- Vacuum, here and below: a table that only grows is cleaned in steps of equal size instead of ever larger ones, soon enough that its new
-- pages are still in memory, and is frozen in that pass. A scan of all of it against wraparound then finds nothing left to do.
alter table spine.events set (
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_freeze_min_age = 0,
    autovacuum_vacuum_scale_factor = 0.05
);
alter table spine.processing_state set (autovacuum_freeze_min_age = 0);

-- An index on the source, for spine.last_arrival() alone, would take a tenth of the time that it takes to store an event.
alter table spine.sources add column last_arrival_at timestamptz;
comment on column spine.sources.last_arrival_at is 'When it last sent a new event, but for those above spine.arrivals_watermark: spine.last_arrival() knows these as well.';
create table spine.arrivals_watermark (
    only_row boolean primary key default true check (only_row),
    event bigint not null default 0,
    next_event bigint not null default 0,
    next_xid xid8 not null default '0'
);
comment on table spine.arrivals_watermark is 'Up to which event sources.last_arrival_at is known. Raised by spine.note_arrivals().';
comment on column spine.arrivals_watermark.only_row is 'Holds the table to one row.';
comment on column spine.arrivals_watermark.event is 'events.id up to which all is noted.';
comment on column spine.arrivals_watermark.next_event is 'Up to where it will be noted next, once every transaction that began before is over.';
comment on column spine.arrivals_watermark.next_xid is 'First transaction that may have begun after next_event was taken.';
comment on index spine.arrivals_watermark_pkey is 'Holds the table to one row.';
insert into spine.arrivals_watermark default values;

create type spine.audit_action as enum (
    'event_received',                -- a request was stored, as what the next step says
    'event_inserted',                -- new: stored and queued
    'event_deduped',                 -- known id, same payload
    'conflict_detected',             -- known id, other payload: kept as evidence
    'event_queued',                  -- a row of processing_state was inserted by hand
    'processing_attempt_started',    -- pending, failed -> processing
    'processing_attempt_failed',     -- the attempt came to nothing: the next step says what follows
    'retry_scheduled',               -- processing -> failed
    'processing_succeeded',          -- processing -> completed
    'processing_failed_permanently', -- processing -> dead
    'lease_expired',                 -- processing, and nobody reported back: the next step says what follows
    'lease_returned',                -- processing -> pending, failed: given back unstarted
    'lease_lost',                    -- a result came too late and changed nothing
    'status_changed',                -- by hand
    'event_replayed',                -- completed, failed, dead -> pending
    'request_rejected',              -- a summary of requests that were refused
    'claims_paused',
    'claims_resumed',
    'events_expired',                -- a summary of events that retention deleted
    'audit_expired'                  -- what retention deleted of this log
);
comment on type spine.audit_action is 'What a row of the audit log says.';

alter table spine.audit_log rename to audit_log_before;

-- A row has at most eight columns, so that those that are NULL take no room; the fixed ones come first, so that none is padded.
create table spine.audit_trail (
    timestamp timestamptz not null default clock_timestamp(),
    id bigint generated always as identity,
    xid xid8 not null default pg_current_xact_id(),
    event bigint,
    action spine.audit_action not null,
    event_id text collate "C",
    source text collate "C",
    details json
) partition by range (timestamp);
comment on table spine.audit_trail is 'Every step of every event, written in the transaction of the step itself. Partitioned by day (UTC). Read it as spine.audit_log.';
comment on column spine.audit_trail.timestamp is 'When the step was made. The order of an event''s trail is timestamp, id.';
comment on column spine.audit_trail.id is 'Ascending number; orders steps of one moment.';
comment on column spine.audit_trail.xid is 'Transaction that wrote the row. Who follows the log goes by it, since rows become visible in the order of commits and not of ids.';
comment on column spine.audit_trail.event is 'events.id, NULL where no event is concerned.';
comment on column spine.audit_trail.action is 'What was done.';
comment on column spine.audit_trail.event_id is 'The sender''s id, NULL where no event is concerned (rejected requests, pauses).';
comment on column spine.audit_trail.source is 'Who sent it, NULL where that is default.';
comment on column spine.audit_trail.details is
    'A JSON object, NULL where it would be empty: attempt, lease, worker, status, answer, error, duration_ms, delay_ms and others, as they apply; the destination of an attempt only where it is not default. The worker of an attempt stands where it started.';

create table spine.audit_trail_default partition of spine.audit_trail default
    with (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000, autovacuum_freeze_min_age = 0);
comment on table spine.audit_trail_default is 'Takes what no daily partition covers, so that a missing partition never fails an ingest. Normally empty.';

-- What there is goes where it belongs, so that retention can drop it by the day.
-- +goose StatementBegin
do $$
declare
    _day timestamptz;
begin
    for _day in select distinct date_trunc('day', b.timestamp, 'UTC') from spine.audit_log_before b where isfinite(b.timestamp) loop
        execute format(
            'create table spine.%I partition of spine.audit_trail for values from (%L) to (%L)
                with (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000, autovacuum_freeze_min_age = 0)',
            'audit_trail_' || to_char(_day at time zone 'UTC', 'YYYYMMDD'), _day, _day + interval '24 hours');
        execute format('comment on table spine.%I is %L',
            'audit_trail_' || to_char(_day at time zone 'UTC', 'YYYYMMDD'), 'The audit log of ' || to_char(_day at time zone 'UTC', 'YYYY-MM-DD') || ' (UTC).');
    end loop;
end $$;
-- +goose StatementEnd
insert into spine.audit_trail (timestamp, id, xid, event, action, event_id, source, details)
overriding system value
select b.timestamp, b.id, b.xid, b.event, b.action::spine.audit_action, b.event_id,
    case when b.event_id is null or b.source <> 'default' then b.source end, nullif(b.details, '{}')::text::json
from spine.audit_log_before b
order by b.timestamp, b.id;
select setval(pg_get_serial_sequence('spine.audit_trail', 'id'), coalesce(max(id), 0) + 1, false) from spine.audit_trail;
drop table spine.audit_log_before;
drop function if exists spine.announce(bigint, text[]);

-- An event's later steps are not appended at the end of their index: room for them saves splitting its pages (49 instead of 81 bytes an
-- event). The other two are only ever appended to.
create index audit_trail_event on spine.audit_trail (event) with (fillfactor = 75);
comment on index spine.audit_trail_event is 'spine.trace(): the trail of one event.';
create index audit_trail_timestamp on spine.audit_trail (timestamp) with (fillfactor = 100);
comment on index spine.audit_trail_timestamp is 'Newest first, in psql and in GET /api/audit.';
create index audit_trail_xid on spine.audit_trail (xid) with (fillfactor = 100);
comment on index spine.audit_trail_xid is 'spine tail: what was committed since it last looked.';
