-- Numbers over time, so that nobody counts events to know how many there are: what spine.roll_up() and spine.sample_depth() fill.

-- +goose Up

set local lock_timeout = '2s';

-- The rows of the steps under way are updated every second: where their page has room, that touches no index.
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
    'What the audit log says, counted by spine.roll_up(): steps of 10 seconds are kept for 2 hours, of a minute for 12 hours, of 5 minutes for 2 days, of an hour for 90 days. No row where nothing happened. Read the last hour as spine.rates.';
comment on column spine.rollups.step is 'Length of the step in seconds: 10, 60, 300 or 3600. Each row of the log is counted in one step of each length.';
comment on column spine.rollups.at is 'Beginning of the step.';
comment on column spine.rollups.source is 'Who sent it. Empty for requests that were rejected and are of no source.';
comment on column spine.rollups.received is 'Requests that were stored: accepted, deduplicated and conflicts.';
comment on column spine.rollups.accepted is 'New events.';
comment on column spine.rollups.deduplicated is 'Events of a known id with the same payload.';
comment on column spine.rollups.conflicts is 'Events of a known id with another payload.';
comment on column spine.rollups.rejected is 'Requests that were refused.';
comment on column spine.rollups.attempts is 'Attempts to deliver that started.';
comment on column spine.rollups.attempts_failed is 'Attempts that came to nothing, those whose lease ran out among them.';
comment on column spine.rollups.delivered is 'Events that a destination took.';
comment on column spine.rollups.died is 'Events that were given up.';
comment on column spine.rollups.latency is
    'How long the delivered ones took from when they were stored, retries included, as a histogram: element 1 counts up to 1 ms, element n up to 1.2 ^ (n - 1) ms, element 130 all that took longer. '
    'Ends with the last element that is not 0. Events that were replayed are left out, unless all of that took less than ten seconds. See spine.latency_percentile().';
comment on index spine.rollups_pkey is 'The steps of a time, and where spine.roll_up() adds to them.';

create table spine.rollup_state (
    only_row boolean primary key default true check (only_row),
    next_xid xid8 not null,
    in_progress xid8[] not null,
    covered_from timestamptz not null,
    covered_to timestamptz not null,
    tidied_at timestamptz not null
);
comment on table spine.rollup_state is 'Which rows of the audit log are in spine.rollups. Changes in the same transactions as these.';
comment on column spine.rollup_state.only_row is 'Holds the table to one row.';
comment on column spine.rollup_state.next_xid is 'Transactions before this one are counted, but for those in in_progress.';
comment on column spine.rollup_state.in_progress is 'Transactions that were in progress when they would have been counted: those before next_xid will be, once they have ended.';
comment on column spine.rollup_state.covered_from is 'From when on rows of the log are counted.';
comment on column spine.rollup_state.covered_to is 'Up to when all was counted that was committed, when something last was: spine.rolled_up_to() is the time up to which that is so now.';
comment on column spine.rollup_state.tidied_at is 'When old steps were last deleted.';
comment on index spine.rollup_state_pkey is 'Holds the table to one row.';

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
    'How much of the queue was not done, as last sampled in each step: counted by spine.sample_depth(). Kept as spine.rollups is. No row where nothing was sampled.';
comment on column spine.depth_samples.step is 'Length of the step in seconds: 10, 60, 300 or 3600.';
comment on column spine.depth_samples.at is 'Beginning of the step.';
comment on column spine.depth_samples.pending is 'Rows that were pending, of all destinations.';
comment on column spine.depth_samples.processing is 'Rows that were being processed.';
comment on column spine.depth_samples.failed is 'Rows that waited to be tried again.';
comment on column spine.depth_samples.dead is 'Rows that were dead.';
comment on column spine.depth_samples.oldest_ready is 'For how long the oldest claimable row had been due, in destinations that were not paused; 0 when none was.';
comment on index spine.depth_samples_pkey is 'The steps of a time.';

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
comment on table spine.depth_state is 'The last sample of the queue by spine.sample_depth(). Written when it differs from the one before, and every ten seconds.';
comment on column spine.depth_state.only_row is 'Holds the table to one row.';
comment on column spine.depth_state.sampled_at is 'When it was taken; NULL before the first.';
comment on column spine.depth_state.took is 'How long that took.';
comment on column spine.depth_state.rows is 'spine.depth as it was: objects with destination, status, count, oldest_created_at and next_attempt_at.';
comment on column spine.depth_state.oldest_ready is 'For how long the oldest claimable row had been due.';
comment on column spine.depth_state.next_xid is 'The sample saw what transactions before this one did, but for those in in_progress. While the audit log has nothing else, the sample holds.';
comment on column spine.depth_state.in_progress is 'Transactions that were in progress when it was taken.';
comment on column spine.depth_state.tidied_at is 'When old samples were last deleted.';
comment on index spine.depth_state_pkey is 'Holds the table to one row.';
insert into spine.depth_state default values;

-- Counting begins here: what was audited before is left alone, however much it is. Where nothing was, the steps under way are covered as a
-- whole, so that a new database has numbers from its first second on. One statement, so that the end and the
-- transactions in progress are of one moment, as in spine.audited_now().
insert into spine.rollup_state (next_xid, in_progress, covered_from, covered_to, tidied_at)
select
    coalesce((
        select ((a.xid::text)::bigint + 1)::text::xid8 from spine.audit_trail a
        where a.xid < pg_snapshot_xmax(pg_current_snapshot()) order by a.xid desc limit 1), '0'),
    array(select pg_snapshot_xip(pg_current_snapshot())),
    case when exists (select from spine.audit_trail) then clock_timestamp() else date_bin('1 hour', clock_timestamp(), 'epoch') end,
    clock_timestamp(), clock_timestamp();

update spine.sources s set last_arrival_at = coalesce(
    (select e.created_at from spine.events e where e.source = s.name and e.id > (select w.event from spine.arrivals_watermark w) order by e.id desc limit 1),
    s.last_arrival_at);
comment on column spine.sources.last_arrival_at is
    'When it last sent a new event, but for those that are above spine.arrivals_watermark and not rolled up: spine.last_arrival() knows these as well.';
