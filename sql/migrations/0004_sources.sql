-- Sources as data; what requests of providers hold beside their payload; requests that were refused.

-- +goose Up

-- Taken in the order in which an ingest takes them, or not at all: the migration is then tried again. Until the functions are in place
-- nothing is taken in or delivered: senders are told to come again.
set local lock_timeout = '2s';
lock table spine.processing_state, spine.audit_trail, spine.events, spine.sources in access exclusive mode;
delete from spine.schema_functions;

alter table spine.sources
    add column settings jsonb not null default '{"preset": "envelope"}',
    add column preset text generated always as (settings ->> 'preset') stored,
    add column disabled_at timestamptz,
    add column updated_at timestamptz not null default now(),
    add column updated_by text;
-- Nothing could be sent to the others until now.
update spine.sources set disabled_at = now() where name <> 'default';
comment on table spine.sources is 'Who may send: POST /webhook feeds the source default, POST /webhook/NAME the others. Every change is audited and takes effect at once (NOTIFY spine_sources).';
comment on column spine.sources.settings is
    'A JSON object: preset, and what differs from it (verify, secrets, id, type, time, conflicts, limits and others, see spine source presets). Secrets stand here by reference alone: env:NAME or file:/path.';
comment on column spine.sources.preset is 'The settings'' preset.';
comment on column spine.sources.disabled_at is 'Since when nothing is taken from it; NULL while something is.';
comment on column spine.sources.updated_at is 'When its settings last changed, or whether it is disabled.';
comment on column spine.sources.updated_by is 'Who changed it then: a database role, and who asked it to.';

-- NULL takes no room, and what came in an envelope has nothing else here.
alter table spine.events
    add column headers json,
    add column id_derived boolean,
    add column id_unsigned boolean,
    add column same_body_as text collate "C";
comment on column spine.events.payload is
    'The payload''s exact text, or the fields of a form, whose exact bytes are in raw_body. NULL where Postgres cannot query it: unqueryable says why, raw_body has the bytes.';
comment on column spine.events.raw_body is 'The exact bytes where payload is not the exact text.';
comment on column spine.events.headers is 'Headers of the request, without secrets: an object of names and arrays of values. NULL for what came in an envelope.';
comment on column spine.events.id_derived is 'True where the sender gave no id and event_id was made from the body.';
comment on column spine.events.id_unsigned is 'True where whoever has seen a request could send its body again under another id.';
comment on column spine.events.same_body_as is 'event_id of an earlier event of this source with the same payload, where id_unsigned: perhaps somebody has sent it again under an id of their own.';

alter table spine.conflicts add column accepted_as text collate "C";
comment on column spine.conflicts.accepted_as is 'event_id of the event that spine.accept_conflict() made of it; NULL where it did not.';
create index conflicts_created_at on spine.conflicts (created_at, event, payload_hash);
comment on index spine.conflicts_created_at is 'Newest first: spine conflicts, GET /api/conflicts.';

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
    'Requests to a source that were refused, within the budget of rows, bytes and age of that source: settings -> rejected. spine.replay_rejected() has one looked at again.';
comment on column spine.rejected_requests.id is 'Ascending number.';
comment on column spine.rejected_requests.source is 'Whom it was sent to.';
comment on column spine.rejected_requests.at is 'When it came.';
comment on column spine.rejected_requests.cause is 'A short word for why it was refused.';
comment on column spine.rejected_requests.status is 'HTTP status that it was answered with.';
comment on column spine.rejected_requests.detail is 'The sentence that it was answered with.';
comment on column spine.rejected_requests.remote is 'Address of the client.';
comment on column spine.rejected_requests.method is 'HTTP method.';
comment on column spine.rejected_requests.target is 'Path and query, without secrets.';
comment on column spine.rejected_requests.headers is 'Headers, without secrets: an object of names and arrays of values.';
comment on column spine.rejected_requests.body is 'The body as it came over the wire.';
comment on column spine.rejected_requests.size is 'Bytes that it counts for in the budget: of body and headers.';
comment on column spine.rejected_requests.state is
    'kept -> requested: spine.replay_rejected(). requested -> taken_in|refused: an API process looked at it again (spine.settle_rejected()). All but requested -> requested once more.';
comment on column spine.rejected_requests.trust is 'Whether it is to be taken in without being verified.';
comment on column spine.rejected_requests.note is 'What came of it when it was last looked at again.';
comment on column spine.rejected_requests.event_id is 'The event that it became.';
comment on column spine.rejected_requests.settled_at is 'When it was last looked at again.';
comment on column spine.rejected_requests.taken_until is 'Until when an API process has it in hand.';
comment on index spine.rejected_requests_pkey is 'Newest first, and one by its number.';
create index rejected_requests_source on spine.rejected_requests (source, cause, id);
comment on index spine.rejected_requests_source is 'spine.keep_rejected(): the oldest of a source and cause; lists of one source.';
create index rejected_requests_requested on spine.rejected_requests (id) where state = 'requested';
comment on index spine.rejected_requests_requested is 'spine.take_requested(): what is to be looked at again.';

alter type spine.audit_action add value 'source_added';
alter type spine.audit_action add value 'source_changed';
alter type spine.audit_action add value 'source_disabled';
alter type spine.audit_action add value 'source_enabled';
alter type spine.audit_action add value 'source_removed';
alter type spine.audit_action add value 'request_replayed';
alter type spine.audit_action add value 'conflict_accepted';
