-- Tables, indexes and their comments. Functions, triggers and views stand in sql/functions.
-- Spine replaces them as a whole after the migrations, so that each stands in one place.
-- The first migration has number 5: lower numbers belong to databases from before the first release.

-- +goose Up

set local search_path = pg_catalog, pg_temp;

-- Sources and destinations.

create table spine.sources (
    name text collate "C" primary key check (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    created_at timestamptz not null default now(),
    last_arrival_at timestamptz,
    settings jsonb not null default '{"preset": "envelope"}',
    preset text generated always as (settings ->> 'preset') stored,
    disabled_at timestamptz,
    updated_at timestamptz not null default now(),
    updated_by text
);
comment on table spine.sources is
    'The sources that may send, and how Spine verifies each. '
    'POST /webhook feeds the source default, POST /webhook/NAME the others. '
    'Every change is audited and takes effect at once (NOTIFY spine_sources).';
comment on column spine.sources.name is 'Immutable slug.';
comment on column spine.sources.created_at is 'When the source was added.';
comment on column spine.sources.last_arrival_at is
    'When it last sent a new event, as far as that was noted. '
    'spine.last_arrival() also knows the events above spine.arrivals_watermark that no rollup has counted.';
comment on column spine.sources.settings is
    'JSON object: a preset, and what differs from it. spine source presets lists the members. '
    'Secrets stand here by reference alone: env:NAME or file:/path.';
comment on column spine.sources.preset is 'The preset named in settings.';
comment on column spine.sources.disabled_at is 'Since when Spine takes nothing from it. NULL while it is enabled.';
comment on column spine.sources.updated_at is 'When it last changed: its settings, or whether it is disabled.';
comment on column spine.sources.updated_by is 'Who made that change. A database role, and on whose behalf it acted.';
comment on index spine.sources_pkey is 'Look-ups by name.';
insert into spine.sources (name) values ('default');

create table spine.destinations (
    name text collate "C" primary key check (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    created_at timestamptz not null default now(),
    paused_at timestamptz,
    paused_by text
);
comment on table spine.destinations is
    'Where events go. While a destination is paused, its events are stored and queued, but not claimed.';
comment on column spine.destinations.name is 'Immutable slug.';
comment on column spine.destinations.created_at is 'When the destination was added.';
comment on column spine.destinations.paused_at is
    'Since when claims are paused. NULL while they are not. See spine.pause() and spine.resume().';
comment on column spine.destinations.paused_by is 'Database role that paused it.';
comment on index spine.destinations_pkey is 'spine.claim(): whether a destination is paused.';
insert into spine.destinations (name) values ('default');

-- Events. The sequential id keeps all other tables and indexes small, and they grow at their end.
-- The text key is the one random index. It is the idempotency key.
-- spine.ingest_events() checks the contract's rules once for a batch. As table checks, Postgres would parse them for
-- each statement and run them for each row: a tenth of the cost of storing.
-- There is no index on source. It would serve spine.last_arrival() alone, for a tenth of the time to store an event.
-- The columns from headers on are NULL for an envelope, and NULL takes no room.
-- Vacuum, here and below: the table only grows. Vacuum runs after equal steps instead of ever larger ones, while the
-- new pages are still in memory, and freezes them in the same pass. The scan against wraparound then finds no work.

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
    headers json,
    id_derived boolean,
    id_unsigned boolean,
    same_body_as text collate "C",
    constraint events_event_id_source_key unique (event_id, source)
) with (
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_freeze_min_age = 0,
    autovacuum_vacuum_scale_factor = 0.05
);
comment on table spine.events is
    'Each webhook once, as it first arrived. spine.ingest_events() writes it. Afterwards only seen_count changes.';
comment on column spine.events.id is 'Key by which other tables refer to the event, in their column event.';
comment on column spine.events.event_id is
    'The sender''s id: 1 to 255 characters, no control characters. Unique within the source.';
comment on column spine.events.source is 'Who sent it.';
comment on column spine.events.event_type is 'What happened, in the sender''s words: 1 to 100 characters.';
comment on column spine.events.occurred_at is
    'When it happened, as the sender says. Years 1 to 9999, the range of RFC 3339.';
comment on column spine.events.payload is
    'The payload''s exact text, or the fields of a form. The exact bytes of a form are in raw_body. '
    'NULL where Postgres cannot query the payload: unqueryable says why, and raw_body has the bytes.';
comment on column spine.events.payload_hash is
    'SHA-256 of the canonical payload, see spine.canonical(). SHA-256 of raw_body where payload is NULL.';
comment on column spine.events.created_at is 'When Spine stored it.';
comment on column spine.events.seen_count is 'How often this id arrived, duplicates and conflicts included.';
comment on column spine.events.unqueryable is 'Why payload is NULL. NULL where it is not.';
comment on column spine.events.raw_body is 'The exact bytes where payload is not the exact text.';
comment on column spine.events.headers is
    'Headers of the request without secrets: names with arrays of values. NULL for an envelope.';
comment on column spine.events.id_derived is 'True where the sender gave no id and Spine made event_id from the body.';
comment on column spine.events.id_unsigned is
    'True where the signature does not cover the id. '
    'Anyone who has seen such a request could send its body again under another id.';
comment on column spine.events.same_body_as is
    'event_id of an earlier event with the same payload, where id_unsigned. It is of the same source. '
    'Perhaps somebody sent the body again under another id.';
comment on constraint events_event_id_source_key on spine.events is
    'The idempotency key. ON CONFLICT in spine.ingest_events() relies on it.';
comment on index spine.events_pkey is 'Joins from other tables, and newest first in the API.';
comment on index spine.events_event_id_source_key is 'Idempotency, and every look-up by event_id (spine.id_of).';

create index events_same_body on spine.events (source, payload_hash) where id_unsigned;
comment on index spine.events_same_body is
    'spine.ingest_events(): whether a body arrived before under another id. Only for sources whose ids are unsigned.';

-- Where the newest events stand: which of them spine.sources knows as last arrivals.

create table spine.arrivals_watermark (
    only_row boolean primary key default true check (only_row),
    event bigint not null default 0,
    next_event bigint not null default 0,
    next_xid xid8 not null default '0'
);
comment on table spine.arrivals_watermark is
    'Up to which event sources.last_arrival_at is known. spine.note_arrivals() raises it.';
comment on column spine.arrivals_watermark.only_row is 'Holds the table to one row.';
comment on column spine.arrivals_watermark.event is 'events.id up to which all arrivals are noted.';
comment on column spine.arrivals_watermark.next_event is
    'events.id up to which the next turn notes them. It waits until every transaction that began before is over.';
comment on column spine.arrivals_watermark.next_xid is
    'First transaction that may have begun after next_event was taken.';
comment on index spine.arrivals_watermark_pkey is 'Holds the table to one row.';
insert into spine.arrivals_watermark default values;

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
    accepted_as text collate "C",
    primary key (event, payload_hash)
);
comment on table spine.conflicts is
    'Evidence: other payloads that arrived under a known event_id. '
    'One row for each distinct hash, at most ten an event.';
comment on column spine.conflicts.event is 'events.id of the event that stays.';
comment on column spine.conflicts.payload_hash is 'Hash of this payload, made as in events.';
comment on column spine.conflicts.event_id is 'Copy of the event''s id, for the reader.';
comment on column spine.conflicts.source is 'Copy of the event''s source, for the reader.';
comment on column spine.conflicts.event_type is 'Type that came with this payload.';
comment on column spine.conflicts.occurred_at is 'Time that came with this payload.';
comment on column spine.conflicts.payload is 'The other payload''s exact text. NULL as in events.';
comment on column spine.conflicts.unqueryable is 'Why payload is NULL. NULL where it is not.';
comment on column spine.conflicts.raw_body is 'The other payload''s exact bytes where payload cannot hold them.';
comment on column spine.conflicts.created_at is 'When it first arrived.';
comment on column spine.conflicts.seen_count is 'How often it arrived.';
comment on column spine.conflicts.accepted_as is
    'event_id of the event that spine.accept_conflict() made of it. NULL where it made none.';
comment on index spine.conflicts_pkey is 'Evidence of one event, one row for each distinct hash.';
create index conflicts_created_at on spine.conflicts (created_at, event, payload_hash);
comment on index spine.conflicts_created_at is 'Newest first: spine conflicts, GET /api/conflicts.';

-- The queue. Every claim and every settle moves a row from one partial index entry to another. Its updates are
-- therefore never HOT, and autovacuum must come early.
-- A claim adds an index entry for each new version of a row before vacuum can remove the old ones. Room on the pages of
-- the primary key saves splitting them: 46 instead of 63 bytes an event.

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
    primary key (event, destination) with (fillfactor = 65)
) with (
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_freeze_min_age = 0
);
comment on table spine.processing_state is
    'The queue: where each event stands on its way to each destination. Rows stay after completion.';
comment on column spine.processing_state.event is
    'events.id. An INSERT by hand may leave it out: a trigger finds it by event_id and source.';
comment on column spine.processing_state.event_id is 'Copy of the event''s id, for the reader.';
comment on column spine.processing_state.source is 'Copy of the event''s source, for the reader.';
comment on column spine.processing_state.destination is 'Where it goes.';
comment on column spine.processing_state.status is
    'pending, processing, completed, failed (to be tried again) or dead.
Transitions, the function that makes each, and the actions that it writes to the audit log:
new -> pending: ingest_events() writes event_inserted
pending|failed -> processing: claim() writes processing_attempt_started
processing -> completed: settle() writes processing_succeeded
processing -> failed: settle() writes processing_attempt_failed, retry_scheduled
processing -> dead: settle() writes processing_attempt_failed, processing_failed_permanently
processing -> failed: claim() writes lease_expired, retry_scheduled
processing -> dead: claim() writes lease_expired, processing_failed_permanently
processing -> pending|failed: give_back() writes lease_returned
completed|failed|dead -> pending: replay_rows() writes event_replayed
An INSERT by hand writes event_queued. Any other change of status by hand writes status_changed and voids a lease.';
comment on column spine.processing_state.attempt_count is
    'Attempts since it was stored or replayed. The claim counts them.';
comment on column spine.processing_state.next_attempt_at is
    'When a worker turns to it next. pending and failed: when it may be claimed. processing: the end of the lease. '
    'Otherwise NULL.';
comment on column spine.processing_state.last_attempt_at is 'When it was last claimed.';
comment on column spine.processing_state.completed_at is 'When the destination had accepted it.';
comment on column spine.processing_state.error_message is 'Why the last attempt failed. NULL once completed.';
comment on column spine.processing_state.worker is 'Worker that claimed it last.';
comment on column spine.processing_state.lease_token is
    'Fencing token: every change of status raises it. '
    'Nothing lowers it, so a write under an older lease matches no row. '
    'Rows of spine.ingest_events() start with 0, rows by hand with the time in microseconds. '
    'A row that is deleted and inserted again therefore does not repeat its tokens.';
comment on column spine.processing_state.created_at is 'When it was queued.';
comment on column spine.processing_state.updated_at is 'When it last changed.';
comment on index spine.processing_state_pkey is
    'spine.settle(), spine.renew() and joins. One row for each event and destination.';

-- One index for all rows that fall due: new events, retries, and leases that ran out.
create index processing_state_due on spine.processing_state (destination, next_attempt_at)
    where status in ('pending', 'failed', 'processing');
comment on index spine.processing_state_due is
    'spine.claim(), the views depth and stuck. Rows by due time, for each destination.';

create index processing_state_dead on spine.processing_state (updated_at) where status = 'dead';
comment on index spine.processing_state_dead is
    'The view dead_letters and spine.replay_dead(): dead rows by the time they died.';

-- The audit log. People read it as the view spine.audit_log. Its rows are in spine.audit_trail, which is kept compact.
-- A row has at most eight columns, so that NULLs take no room. The fixed ones come first, so that none is padded.

create type spine.audit_action as enum (
    'event_received',                -- no transition: a request was stored, the next step says how
    'event_inserted',                -- new -> pending: a new event, stored and queued
    'event_deduped',                 -- no transition: known id, same payload
    'conflict_detected',             -- no transition: known id, other payload, kept as evidence
    'event_queued',                  -- new -> any status: a row of the queue was inserted by hand
    'processing_attempt_started',    -- pending, failed -> processing: a worker claimed it
    'processing_attempt_failed',     -- processing -> failed, dead: the next step says which
    'retry_scheduled',               -- processing -> failed: a later attempt follows
    'processing_succeeded',          -- processing -> completed: the destination accepted it
    'processing_failed_permanently', -- processing -> dead: no attempt follows
    'lease_expired',                 -- processing -> failed, dead: no result came in time, the next step says which
    'lease_returned',                -- processing -> pending, failed: given back unstarted
    'lease_lost',                    -- no transition: a result came too late and changed nothing
    'status_changed',                -- any -> any status: changed by hand
    'event_replayed',                -- completed, failed, dead -> pending: to be delivered again
    'request_rejected',              -- no transition: a summary of rejected requests
    'claims_paused',                 -- no transition: a destination was paused
    'claims_resumed',                -- no transition: a destination was resumed
    'events_expired',                -- rows removed: a summary of events that retention deleted
    'audit_expired',                 -- no transition: what retention deleted of this log
    'source_added',                  -- no transition: a source was added
    'source_changed',                -- no transition: the settings of a source changed
    'source_disabled',               -- no transition: a source was disabled
    'source_enabled',                -- no transition: a source was enabled
    'source_removed',                -- no transition: a source was removed
    'request_replayed',              -- no transition: a rejected request is to be read again
    'conflict_accepted'              -- no transition: a new event was made of evidence
);
comment on type spine.audit_action is
    'What a step of the audit log says. sql/README.md has a line for each, and the transition that it stands for.';

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
comment on table spine.audit_trail is
    'The rows of the audit log, one partition a day (UTC). '
    'Each step is written in the transaction of the step itself. Read them as the view spine.audit_log.';
comment on column spine.audit_trail.timestamp is
    'When the step was made. The order of an event''s trail is timestamp, id.';
comment on column spine.audit_trail.id is 'Ascending number. Orders the steps of one moment.';
comment on column spine.audit_trail.xid is
    'Transaction that wrote the row. Followers of the log go by it: '
    'rows become visible in the order of commits, not of ids.';
comment on column spine.audit_trail.event is 'events.id. NULL where the step concerns no event.';
comment on column spine.audit_trail.action is 'What was done.';
comment on column spine.audit_trail.event_id is
    'The sender''s id. NULL where the step concerns no event, such as a pause.';
comment on column spine.audit_trail.source is 'Who sent it. NULL stands for default.';
comment on column spine.audit_trail.details is
    'JSON object with what applies, NULL where empty. Members: attempt, lease, worker, status, answer, error, '
    'duration_ms, delay_ms and others. The destination of an attempt stands there only where it is not default. '
    'The worker of an attempt stands in the step that started it.';

create table spine.audit_trail_default partition of spine.audit_trail default with (
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_freeze_min_age = 0
);
comment on table spine.audit_trail_default is
    'Steps outside of all daily partitions. A missing partition therefore never fails an ingest. Normally empty.';

-- Later steps of an event land in the middle of the first index. Room on its pages saves splitting them: 49 instead of
-- 81 bytes an event. The other two indexes grow only at their end.
create index audit_trail_event on spine.audit_trail (event) with (fillfactor = 75);
comment on index spine.audit_trail_event is 'spine.trace(): the trail of one event.';
create index audit_trail_timestamp on spine.audit_trail (timestamp) with (fillfactor = 100);
comment on index spine.audit_trail_timestamp is 'Newest first, in psql and in GET /api/audit.';
create index audit_trail_xid on spine.audit_trail (xid) with (fillfactor = 100);
comment on index spine.audit_trail_xid is 'spine tail: the steps committed since it last read.';

-- Numbers over time, so that nobody must count events. spine.roll_up() and spine.sample_depth() fill them.
-- Spine updates the rows of the current time steps every second. With room on their page, such an update touches no
-- index.

create table spine.rollups (
    step integer not null check (step in (10, 60, 300, 3600)),
    at timestamptz not null,
    source text collate "C" not null,
    received bigint not null default 0,
    accepted bigint not null default 0,
    deduplicated bigint not null default 0,
    conflicts bigint not null default 0,
    rejected bigint not null default 0,
    attempts bigint not null default 0,
    attempts_failed bigint not null default 0,
    delivered bigint not null default 0,
    died bigint not null default 0,
    latency bigint[] not null default '{}',
    primary key (step, at, source)
) with (fillfactor = 50);
comment on table spine.rollups is
    'Counts from the audit log, by time step and source. spine.roll_up() adds to them. '
    'Time steps of 10 seconds stay for 2 hours, those of a minute for 12 hours. '
    'Time steps of 5 minutes stay for 2 days, those of an hour for 90 days. '
    'A time step without events has no row. The view spine.rates shows the last hour.';
comment on column spine.rollups.step is
    'Length of the time step in seconds: 10, 60, 300 or 3600. Each step of the log counts once in each length.';
comment on column spine.rollups.at is 'Beginning of the time step.';
comment on column spine.rollups.source is 'Who sent it. Empty for rejected requests that belong to no source.';
comment on column spine.rollups.received is 'Events that arrived: accepted, deduplicated and conflicts.';
comment on column spine.rollups.accepted is 'New events.';
comment on column spine.rollups.deduplicated is 'Events of a known id with the same payload.';
comment on column spine.rollups.conflicts is 'Events of a known id with another payload.';
comment on column spine.rollups.rejected is 'Rejected requests.';
comment on column spine.rollups.attempts is 'Delivery attempts that started.';
comment on column spine.rollups.attempts_failed is 'Attempts that failed, expired leases included.';
comment on column spine.rollups.delivered is 'Events that a destination accepted.';
comment on column spine.rollups.died is 'Events that became dead.';
comment on column spine.rollups.latency is
    'Histogram of the time from stored to delivered, retries included. Element 1 counts up to 1 ms, '
    'element n up to 1.2 ^ (n - 1) ms, element 130 all above. The array ends with its last element that is not 0. '
    'Replayed events are left out, unless the whole took less than ten seconds. See spine.latency_percentile().';
comment on index spine.rollups_pkey is 'The time steps of a span, and where spine.roll_up() adds to them.';

create table spine.rollup_state (
    only_row boolean primary key default true check (only_row),
    next_xid xid8 not null,
    in_progress xid8[] not null,
    covered_from timestamptz not null,
    covered_to timestamptz not null,
    tidied_at timestamptz not null
);
comment on table spine.rollup_state is
    'Which steps of the audit log spine.rollups has counted. Both change in one transaction.';
comment on column spine.rollup_state.only_row is 'Holds the table to one row.';
comment on column spine.rollup_state.next_xid is
    'All transactions before this one are counted, except those in in_progress.';
comment on column spine.rollup_state.in_progress is
    'Transactions that were in progress at the last count. They are counted once they have ended.';
comment on column spine.rollup_state.covered_from is 'Steps from this time on are counted.';
comment on column spine.rollup_state.covered_to is
    'Up to this time all committed steps were counted. spine.rolled_up_to() says up to when that is so now.';
comment on column spine.rollup_state.tidied_at is 'When old rollups were last deleted.';
comment on index spine.rollup_state_pkey is 'Holds the table to one row.';
-- The current time steps count as covered from their beginning: a new database has numbers from its first second on.
insert into spine.rollup_state (next_xid, in_progress, covered_from, covered_to, tidied_at)
values ('0', '{}', date_bin('1 hour', clock_timestamp(), 'epoch'), clock_timestamp(), clock_timestamp());

create table spine.depth_samples (
    step integer not null check (step in (10, 60, 300, 3600)),
    at timestamptz not null,
    pending bigint not null,
    processing bigint not null,
    failed bigint not null,
    dead bigint not null,
    oldest_ready interval not null,
    primary key (step, at)
) with (fillfactor = 50);
comment on table spine.depth_samples is
    'How long the queue was: its last sample in each time step. spine.sample_depth() writes them. '
    'They stay as long as spine.rollups. A time step without a sample has no row.';
comment on column spine.depth_samples.step is 'Length of the time step in seconds: 10, 60, 300 or 3600.';
comment on column spine.depth_samples.at is 'Beginning of the time step.';
comment on column spine.depth_samples.pending is 'Pending rows of all destinations.';
comment on column spine.depth_samples.processing is 'Rows that workers held.';
comment on column spine.depth_samples.failed is 'Rows that waited for a retry.';
comment on column spine.depth_samples.dead is 'Dead rows.';
comment on column spine.depth_samples.oldest_ready is
    'How long the oldest claimable row had been due. 0 when there was none. Paused destinations do not count.';
comment on index spine.depth_samples_pkey is 'The time steps of a span.';

create table spine.depth_state (
    only_row boolean primary key default true check (only_row),
    sampled_at timestamptz,
    took interval not null default '0',
    rows jsonb not null default '[]',
    oldest_ready interval not null default '0',
    next_xid xid8 not null default '0',
    in_progress xid8[] not null default '{}',
    tidied_at timestamptz not null default now()
);
comment on table spine.depth_state is
    'The last depth sample. spine.sample_depth() writes it when it differs from the one before, and every ten seconds.';
comment on column spine.depth_state.only_row is 'Holds the table to one row.';
comment on column spine.depth_state.sampled_at is 'When it was taken. NULL before the first.';
comment on column spine.depth_state.took is 'How long the count took.';
comment on column spine.depth_state.rows is
    'The view spine.depth at that time, as an array of objects. '
    'Their members: destination, status, count, oldest_created_at and next_attempt_at.';
comment on column spine.depth_state.oldest_ready is 'How long the oldest claimable row had been due.';
comment on column spine.depth_state.next_xid is
    'The sample saw all transactions before this one, except those in in_progress. '
    'While the audit log has no other steps, the sample holds.';
comment on column spine.depth_state.in_progress is 'Transactions that were in progress at the sample.';
comment on column spine.depth_state.tidied_at is 'When old samples were last deleted.';
comment on index spine.depth_state_pkey is 'Holds the table to one row.';
insert into spine.depth_state default values;

create table spine.rejected_requests (
    id bigint generated always as identity primary key,
    source text collate "C" not null,
    at timestamptz not null,
    cause text not null,
    status integer not null,
    detail text not null,
    remote text not null,
    method text not null,
    target text not null,
    headers json not null,
    body bytea not null,
    size bigint not null,
    state text not null default 'kept' check (state in ('kept', 'requested', 'taken_in', 'refused')),
    trust boolean not null default false,
    note text,
    event_id text collate "C",
    settled_at timestamptz,
    taken_until timestamptz
) with (autovacuum_vacuum_scale_factor = 0.1);
comment on table spine.rejected_requests is
    'Rejected requests, within the budget of their source. '
    'settings -> rejected limits rows, bytes and age. '
    'spine.replay_rejected() marks one to be read again.';
comment on column spine.rejected_requests.id is 'Ascending number.';
comment on column spine.rejected_requests.source is 'Source that it was sent to.';
comment on column spine.rejected_requests.at is 'When it arrived.';
comment on column spine.rejected_requests.cause is 'A short word for why it was rejected.';
comment on column spine.rejected_requests.status is 'HTTP status of the answer.';
comment on column spine.rejected_requests.detail is 'Sentence of the answer.';
comment on column spine.rejected_requests.remote is 'Address of the client.';
comment on column spine.rejected_requests.method is 'HTTP method.';
comment on column spine.rejected_requests.target is 'Path and query, without secrets.';
comment on column spine.rejected_requests.headers is 'Headers without secrets: names with arrays of values.';
comment on column spine.rejected_requests.body is 'The body as it arrived, compressed where it was.';
comment on column spine.rejected_requests.size is 'Bytes of body and headers, as the budget counts them.';
comment on column spine.rejected_requests.state is
    'kept, requested (to be read again), taken_in or refused (again). '
    'kept|refused -> requested: spine.replay_rejected(). '
    'requested -> taken_in|refused: an API process has read it again (spine.settle_rejected).';
comment on column spine.rejected_requests.trust is 'Whether to take it in without verifying it.';
comment on column spine.rejected_requests.note is 'Result of the last reading.';
comment on column spine.rejected_requests.event_id is 'The event that it became.';
comment on column spine.rejected_requests.settled_at is 'When it was last read again.';
comment on column spine.rejected_requests.taken_until is 'Until when an API process holds it.';
comment on index spine.rejected_requests_pkey is 'Newest first, and one request by its number.';
create index rejected_requests_source on spine.rejected_requests (source, cause, id);
comment on index spine.rejected_requests_source is
    'spine.keep_rejected(): the oldest of a source and cause. Lists of one source.';
create index rejected_requests_requested on spine.rejected_requests (id) where state = 'requested';
comment on index spine.rejected_requests_requested is 'spine.take_requested(): requests to be read again.';

-- The version of the database.

create table spine.schema_functions (
    only_row boolean primary key default true check (only_row),
    digest text not null,
    applied_at timestamptz not null default now()
);
comment on table spine.schema_functions is 'Which set of functions, triggers and views is in place.';
comment on column spine.schema_functions.only_row is 'Holds the table to one row.';
comment on column spine.schema_functions.digest is 'SHA-256, in hex, of the script that spine migrate runs.';
comment on column spine.schema_functions.applied_at is 'When they were last put in place.';
comment on index spine.schema_functions_pkey is 'Holds the table to one row.';

-- goose makes this table and does not describe it.
comment on table spine.schema_version is 'Migrations that were applied, as goose notes them.';
comment on column spine.schema_version.id is 'Ascending number.';
comment on column spine.schema_version.version_id is
    'Number of the migration: sql/migrations/NNNN_*.sql. 0 stands for the beginning.';
comment on column spine.schema_version.is_applied is 'Always true.';
comment on column spine.schema_version.tstamp is 'When it was applied.';
comment on index spine.schema_version_pkey is 'Order of the migrations.';
