-- What each process that receives webhooks makes of the sources, so that a command can tell it.

-- +goose Up

set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '2s';

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
