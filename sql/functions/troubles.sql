-- Sentences about what hinders Spine as a whole. spine status, the page and the log say them.

-- clock_ahead: the latest step of the audit log that is later than now by more than ten seconds. NULL where there is
-- none, as is normal. There is one after the database's clock was set back.
-- Relies on audit_trail_timestamp, of the partitions from today on: the literal lets the planner leave out all others.
-- Reads only.
create or replace function spine.clock_ahead() returns timestamptz
language plpgsql stable
set search_path = spine, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '250ms'
set enable_seqscan = off as $$
declare
    _latest timestamptz;
begin
    execute format(
        'select max(timestamp) from audit_trail where timestamp > %L and isfinite(timestamp)',
        clock_timestamp() + interval '10 seconds') into _latest;
    return _latest;
exception when lock_not_available then
    return null; -- somebody has locked the audit log, which is told elsewhere
end $$;
comment on function spine.clock_ahead() is
    'Internal. The latest step of the audit log that is later than now. NULL is normal.';

-- troubles: what hinders Spine as a whole now, one sentence a row, and what to do.
-- Topics: read_only, standby, locked, partitions, clock. Rights are not among them: see internal/store/troubles.go.
-- Reads only.
create or replace function spine.troubles() returns table (topic text, says text)
language plpgsql stable
set search_path = spine, pg_temp as $$
declare
    _day constant date := (clock_timestamp() at time zone 'UTC')::date + 2;
    _ahead timestamptz;
begin
    if pg_is_in_recovery() then
        return query select
            'read_only',
            'the database takes no writes, since it is a standby: set DATABASE_URL to the primary, or promote it';
        return;
    end if;
    return query select 'standby', w from commits_waiting() w where w is not null;
    return query select 'locked', t.says || ': nothing can be stored meanwhile'
    from table_lockers(true) t
    -- Of another role's session the beginning is often not known.
    where coalesce((t.facts ->> 'since')::timestamptz < clock_timestamp() - interval '1 second', true);
    if to_regclass('spine.audit_trail_' || to_char(_day, 'YYYYMMDD')) is null
        and not exists (
            select
            from audit_partitions() p
            where p.since <= _day::timestamp at time zone 'UTC' and p.until > _day::timestamp at time zone 'UTC')
    then
        return query select
            'partitions',
            format(
                'the audit log has no partition for %s: nothing is lost, but steps go to the default partition; '
                    'a process says in its log why it makes none, and spine migrate makes them',
                to_char(_day, 'YYYY-MM-DD'));
    end if;
    _ahead := clock_ahead();
    if _ahead is not null then
        return query select
            'clock',
            format(
                'the database''s clock was set back: the audit log has a step of %s, %s from now, and retries planned '
                    'then wait until that time comes again; select spine.mend_clock() plans them anew',
                exact_time(_ahead),
                short_span(_ahead - clock_timestamp()));
    end if;
end $$;
comment on function spine.troubles() is
    'What hinders Spine as a whole now, and what to do. Normally empty. Example: select says from spine.troubles().';

-- mend_clock: plans anew what was planned before the database's clock was set back. Returns how many rows.
-- A row that seems to have changed later than now keeps its delay, or its lease, from now on. Rows that somebody has
-- locked are left alone: whoever settles or renews them plans them by the new clock.
-- Relies on processing_state_due. A crash before the commit leaves the rows as they were.
create or replace function spine.mend_clock() returns bigint
language plpgsql
set search_path = spine, pg_temp
set enable_seqscan = off as $$
declare
    _now constant timestamptz := clock_timestamp();
    _count bigint;
begin
    perform make_durable();
    with planned as (
        select p.event, p.destination
        from processing_state p
        where p.status in ('pending', 'failed', 'processing')
            and p.next_attempt_at > _now
            and isfinite(p.next_attempt_at)
            and p.updated_at > _now
            and isfinite(p.updated_at)
        for update of p skip locked
    )
    update processing_state p set
        next_attempt_at = _now + greatest(p.next_attempt_at - p.updated_at, interval '0'),
        updated_at = _now
    from planned r
    where p.event = r.event and p.destination = r.destination;
    get diagnostics _count = row_count;
    return _count;
end $$;
comment on function spine.mend_clock() is
    'Plans anew what was planned before the database''s clock was set back. '
    'Each row keeps its delay, from now on. Returns how many rows.';
