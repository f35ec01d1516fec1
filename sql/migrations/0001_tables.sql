-- Tables, indexes and their comments. Functions, triggers and views live in sql/functions: they are replaced as a whole
-- after the migrations, so that each can be read in one place.

-- +goose Up

create table spine.sources (
    name text collate "C" primary key check (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    created_at timestamptz not null default now(),
    last_arrival_at timestamptz
);
comment on table spine.sources is 'Who may send: POST /webhook feeds the source default.';
comment on column spine.sources.name is 'Immutable slug.';
comment on column spine.sources.created_at is 'When the source was made.';
comment on column spine.sources.last_arrival_at is 'When it last sent a new event, but for those above spine.arrivals_watermark: spine.last_arrival() knows these as well.';
insert into spine.sources (name) values ('default');

create table spine.destinations (
    name text collate "C" primary key check (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    created_at timestamptz not null default now(),
    paused_at timestamptz,
    paused_by text
);
comment on table spine.destinations is 'Where events go. What is paused here is stored and queued, and not claimed.';
comment on column spine.destinations.name is 'Immutable slug.';
comment on column spine.destinations.created_at is 'When the destination was made.';
comment on column spine.destinations.paused_at is 'Since when claims are paused, NULL while they are not. See spine.pause() and spine.resume().';
comment on column spine.destinations.paused_by is 'Database role that paused it.';
insert into spine.destinations (name) values ('default');

-- Vacuum, here and below: a table that only grows is cleaned in steps of equal size instead of ever larger ones, soon enough that its new
-- pages are still in memory, and is frozen in that pass. A scan of all of it against wraparound then finds nothing left to do.

-- The sequential id keeps every other table and index small and appended to at its end; the text key is the one random
-- index, and it is the idempotency key. The rules for a row are checked by spine.ingest(), once for a batch: a CHECK here would be
-- parsed anew for each statement.
create table spine.events (
    id bigint generated always as identity primary key,
    event_id text collate "C" not null,
    source text collate "C" not null default 'default',
    event_type text not null,
    occurred_at timestamptz not null,
    payload json,
    payload_hash bytea not null,
    created_at timestamptz not null default now(),
    seen_count bigint not null default 1,
    unqueryable text,
    raw_body bytea,
    constraint events_event_id_source_key unique (event_id, source)
) with (
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_freeze_min_age = 0,
    autovacuum_vacuum_scale_factor = 0.05
);
comment on table spine.events is 'Each webhook once, as it was first received. Rows are written by spine.ingest() and never change but for seen_count.';
comment on column spine.events.id is 'Key by which the other tables refer to the event (their column event).';
comment on column spine.events.event_id is 'The sender''s id, 1 to 255 characters and no control characters, unique within the source.';
comment on column spine.events.source is 'Who sent it.';
comment on column spine.events.event_type is 'What happened, in the sender''s words, 1 to 100 characters.';
comment on column spine.events.occurred_at is 'When it happened, as the sender says: in the years 1 to 9999, which is what RFC 3339 can say.';
comment on column spine.events.payload is 'The payload''s exact text. NULL where Postgres cannot query it: unqueryable says why, raw_body has the bytes.';
comment on column spine.events.payload_hash is 'SHA-256 of the canonical payload (spine.canonical), or of raw_body where payload is NULL.';
comment on column spine.events.created_at is 'When Spine stored it.';
comment on column spine.events.seen_count is 'How often this id was received, duplicates and conflicts included.';
comment on column spine.events.unqueryable is 'Why payload is NULL; NULL where it is not.';
comment on column spine.events.raw_body is 'The payload''s exact bytes where payload cannot hold them.';
comment on index spine.events_pkey is 'Joins from the other tables; newest first in the API.';
comment on constraint events_event_id_source_key on spine.events is 'The idempotency key: ON CONFLICT in spine.ingest() relies on it.';
comment on index spine.events_event_id_source_key is 'Idempotency, and every look-up by event_id (spine.id_of).';

create table spine.conflicts (
    event bigint not null,
    payload_hash bytea not null,
    event_id text collate "C" not null,
    source text collate "C" not null,
    event_type text not null,
    occurred_at timestamptz not null,
    payload json,
    unqueryable text,
    raw_body bytea,
    created_at timestamptz not null default now(),
    seen_count bigint not null default 1,
    primary key (event, payload_hash)
);
comment on table spine.conflicts is 'Evidence: other payloads that came under a known event_id. Once for each distinct hash, at most ten an event.';
comment on column spine.conflicts.event is 'events.id of the event that stays.';
comment on column spine.conflicts.payload_hash is 'Hash of this payload, made as in events.';
comment on column spine.conflicts.event_id is 'Copy of the event''s id, for the reader.';
comment on column spine.conflicts.source is 'Copy of the event''s source, for the reader.';
comment on column spine.conflicts.event_type is 'Type that came with this payload.';
comment on column spine.conflicts.occurred_at is 'Time that came with this payload.';
comment on column spine.conflicts.payload is 'The other payload''s exact text, NULL as in events.';
comment on column spine.conflicts.unqueryable is 'Why payload is NULL; NULL where it is not.';
comment on column spine.conflicts.raw_body is 'The other payload''s exact bytes where payload cannot hold them.';
comment on column spine.conflicts.created_at is 'When it was first seen.';
comment on column spine.conflicts.seen_count is 'How often it was seen.';
comment on index spine.conflicts_pkey is 'Evidence of one event; one row for each distinct hash.';

-- Every claim and settle moves the row out of one partial index entry into another, so its updates are never HOT;
-- autovacuum is told to come early.
create table spine.processing_state (
    event bigint not null,
    event_id text collate "C" not null,
    source text collate "C" not null default 'default',
    destination text collate "C" not null default 'default',
    status text not null default 'pending' check (status in ('pending', 'processing', 'completed', 'failed', 'dead')),
    attempt_count integer not null default 0 check (attempt_count between 0 and 1000000),
    next_attempt_at timestamptz default now(),
    last_attempt_at timestamptz,
    completed_at timestamptz,
    error_message text,
    worker text,
    lease_token bigint not null default (extract(epoch from clock_timestamp()) * 1000000),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (event, destination)
) with (
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_freeze_min_age = 0
);
comment on table spine.processing_state is 'The queue: where each event stands on its way to each destination. Kept after completion.';
comment on column spine.processing_state.event is 'events.id. Left out in an INSERT by hand, it is found by event_id and source.';
comment on column spine.processing_state.event_id is 'Copy of the event''s id, for the reader.';
comment on column spine.processing_state.source is 'Copy of the event''s source, for the reader.';
comment on column spine.processing_state.destination is 'Where it goes.';
comment on column spine.processing_state.status is
    'pending: never tried, or replayed. pending|failed -> processing: spine.claim(). processing -> completed|failed|dead: spine.settle(). '
    'processing -> failed|dead: the lease ran out (spine.claim()). processing -> pending|failed: given back unstarted (spine.give_back()). '
    'completed|failed|dead -> pending: spine.replay(). Any change by hand is audited and voids a lease.';
comment on column spine.processing_state.attempt_count is 'Attempts since it was stored or replayed; counted at the claim.';
comment on column spine.processing_state.next_attempt_at is
    'When a worker will turn to it next: pending and failed, the time from which it may be claimed; processing, the end of the lease; otherwise NULL.';
comment on column spine.processing_state.last_attempt_at is 'When it was last claimed.';
comment on column spine.processing_state.completed_at is 'When the destination had taken it.';
comment on column spine.processing_state.error_message is 'Why the last attempt failed; NULL once completed.';
comment on column spine.processing_state.worker is 'Worker that claimed it last.';
comment on column spine.processing_state.lease_token is
    'Fencing token. Raised by every change of status and never lowered, so that a write under an older lease matches nothing. Rows of spine.ingest() '
    'start with 0, rows by hand with the time in microseconds, so that a row deleted and inserted again does not repeat its tokens';
comment on column spine.processing_state.created_at is 'When it was queued.';
comment on column spine.processing_state.updated_at is 'When it last changed.';
comment on index spine.processing_state_pkey is 'spine.settle(), spine.renew() and joins: one row for each event and destination.';

-- One index for all that falls due: new events, retries, and leases that ran out.
create index processing_state_due on spine.processing_state (destination, next_attempt_at)
    where status in ('pending', 'failed', 'processing');
comment on index spine.processing_state_due is 'spine.claim(), the views depth and stuck: what falls due, oldest first, for each destination.';

create index processing_state_dead on spine.processing_state (updated_at) where status = 'dead';
comment on index spine.processing_state_dead is 'The view dead_letters and spine.replay_dead(): dead rows by the time they died.';

create table spine.audit_log (
    timestamp timestamptz not null default clock_timestamp(),
    id bigint generated always as identity,
    xid xid8 not null default pg_current_xact_id(),
    event bigint,
    event_id text collate "C",
    source text collate "C",
    action text not null,
    success text not null,
    details jsonb not null default '{}'
) partition by range (timestamp);
comment on table spine.audit_log is 'Every step of every event, written in the transaction of the step itself. Partitioned by day (UTC).';
comment on column spine.audit_log.timestamp is 'When the step was made. The order of an event''s trail is timestamp, id.';
comment on column spine.audit_log.id is 'Ascending number; orders steps of one moment.';
comment on column spine.audit_log.xid is 'Transaction that wrote the row. Who follows the log goes by it, since rows become visible in the order of commits and not of ids.';
comment on column spine.audit_log.event is 'events.id, NULL where no event is concerned.';
comment on column spine.audit_log.event_id is 'The sender''s id, NULL where no event is concerned (rejected requests, pauses).';
comment on column spine.audit_log.source is 'Who sent it.';
comment on column spine.audit_log.action is
    'event_received, event_inserted, event_deduped, conflict_detected, event_queued (by hand), processing_attempt_started, processing_attempt_failed, '
    'retry_scheduled, processing_succeeded, processing_failed_permanently, lease_expired, lease_returned, lease_lost, status_changed (by hand), '
    'event_replayed, request_rejected, claims_paused, claims_resumed.';
comment on column spine.audit_log.success is
    'pending for processing_attempt_started and retry_scheduled; failure for conflict_detected, *_failed* and rejections; otherwise success.';
comment on column spine.audit_log.details is
    'A JSON object: attempt, lease, worker, status, answer, error, duration_ms, delay_ms and others, as they apply; destination where it is not default. The worker of an attempt stands where it started.';

create index audit_log_event on spine.audit_log (event);
comment on index spine.audit_log_event is 'spine.trace(): the trail of one event.';
create index audit_log_timestamp on spine.audit_log (timestamp);
comment on index spine.audit_log_timestamp is 'Newest first, in psql and in GET /api/audit.';
create index audit_log_xid on spine.audit_log (xid);
comment on index spine.audit_log_xid is 'spine tail: what was committed since it last looked.';

create table spine.audit_log_default partition of spine.audit_log default
    with (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000, autovacuum_freeze_min_age = 0);
comment on table spine.audit_log_default is 'Takes what no daily partition covers, so that a missing partition never fails an ingest. Normally empty.';

-- An index on the source, for spine.last_arrival() alone, would take a tenth of the time that it takes to store an event.
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

create table spine.schema_functions (
    only_row boolean primary key default true check (only_row),
    digest text not null,
    applied_at timestamptz not null default now()
);
comment on table spine.schema_functions is 'Which set of functions, triggers and views is in place.';
comment on column spine.schema_functions.only_row is 'Holds the table to one row.';
comment on column spine.schema_functions.digest is 'SHA-256 of the files in sql/functions, in hex.';
comment on column spine.schema_functions.applied_at is 'When they were last put in place.';
comment on index spine.sources_pkey is 'Look-ups by name.';
comment on index spine.destinations_pkey is 'Whether a destination is paused (spine.claim).';
comment on index spine.schema_functions_pkey is 'Holds the table to one row.';

-- Made by goose, which does not describe it.
comment on table spine.schema_version is 'Migrations that were applied, as goose notes them.';
comment on column spine.schema_version.id is 'Ascending number.';
comment on column spine.schema_version.version_id is 'Number of the migration: sql/migrations/NNNN_*.sql. 0 stands for the beginning.';
comment on column spine.schema_version.is_applied is 'Always true.';
comment on column spine.schema_version.tstamp is 'When it was applied.';
comment on index spine.schema_version_pkey is 'Order of the migrations.';
