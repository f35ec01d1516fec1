-- Writing to the audit log: its daily partitions, and summaries of rejected requests.

-- ensure_audit_partitions: makes the daily partitions (UTC) ahead of time. Returns how many it made.
--   _days  up to how many days from today, 366 at most
-- It moves the rows that the default partition had to take meanwhile.
-- It runs with the rights of the table's owner, so that Spine works under a role that owns nothing. That is safe: the
-- caller must have the right to insert steps. He chooses a number of days, which is limited, and no name and no text.
-- All names are found in spine and pg_catalog, where the caller cannot create any.
-- Locks: two callers take turns. It fills a partition on its own and then attaches it. It holds up nothing but inserts
-- into the default partition.
-- A crash leaves whole partitions or nothing.
create or replace function spine.ensure_audit_partitions(_days integer default 7) returns integer
language plpgsql
security definer
set search_path = spine, pg_temp
set lock_timeout = '5s'
set timezone = 'UTC' as $$
declare
    _day date;
    _name text;
    _made integer := 0;
begin
    perform require_right('audit_trail', 'INSERT');
    perform make_durable();
    if _days > 366 then
        raise exception 'partitions are made 366 days ahead at most' using errcode = 'invalid_parameter_value';
    end if;
    perform take_lock('partitions');
    for _day in select d::date from generate_series(current_date, current_date + _days, interval '1 day') d loop
        _name := 'audit_trail_' || to_char(_day, 'YYYYMMDD');
        continue when to_regclass('spine.' || _name) is not null;
        execute format('create table %I (like audit_trail including defaults including constraints including comments)
            with (
                autovacuum_vacuum_insert_scale_factor = 0,
                autovacuum_vacuum_insert_threshold = 100000,
                autovacuum_freeze_min_age = 0
            )', _name);
        -- A publication of all tables lets no row be deleted from a table without one. Spine deletes none from a day,
        -- but people may.
        execute format('alter table %I replica identity full', _name);
        -- Attaching takes these locks in this order. With them no row comes in between.
        lock table only audit_trail in share update exclusive mode;
        lock table only audit_trail_default in access exclusive mode;
        if exists (select from audit_trail_default where timestamp >= _day and timestamp < _day + 1) then
            execute format(
                'with moved as (
                    delete from audit_trail_default where timestamp >= %1$L and timestamp < %2$L returning *)
                insert into %3$I select * from moved',
                _day,
                _day + 1,
                _name);
        end if;
        execute format(
            'comment on table %I is %L',
            _name,
            'The audit log of ' || to_char(_day, 'YYYY-MM-DD') || ' (UTC).');
        execute format(
            'alter table audit_trail attach partition %I for values from (%L) to (%L)',
            _name,
            _day,
            _day + 1);
        _made := _made + 1;
    end loop;
    return _made;
end $$;
comment on function spine.ensure_audit_partitions(integer) is
    'Internal. Makes the daily partitions of the audit log ahead of time. Returns how many it made.';

-- reject: writes rejected requests to the audit log, as summaries.
--   arrays, one element a summary:
--   _source, _cause, _status  what the requests of a summary have in common
--   _count, _since            how many there were, and since when, by the caller's clock
--   _age                      how long ago that was: the step is stamped with the time at which the first of them came
--   _again  true where the caller handed in the same summaries before and does not know the outcome. It leaves out
--           those that the log has. It looks from a day before _since on, since that time is of the caller's clock.
-- Locks: callers take turns, since the first may still be at work.
-- With _again it reads the steps of the log that concern no event.
-- A crash before the commit leaves nothing behind.
create or replace function spine.reject(
    _source text[],
    _cause text[],
    _status integer[],
    _count bigint[],
    _since timestamptz[],
    _age interval[],
    _again boolean)
returns void
language plpgsql
set search_path = spine, pg_temp
set timezone = 'UTC' as $$
begin
    perform make_durable();
    perform take_lock('reject');
    insert into audit_trail (timestamp, source, action, details)
    select
        clock_timestamp() - greatest(least(r.age, interval '1 day'), interval '0'),
        r.source,
        'request_rejected',
        r.details
    from (
        select
            u.source,
            u.since,
            u.age,
            json_build_object('cause', u.cause, 'status', u.status, 'count', u.count, 'since', u.since) as details
        from unnest(_source, _cause, _status, _count, _since, _age) as u(source, cause, status, count, since, age)
    ) r
    where not _again or not exists (
        select
        from audit_trail a
        where a.event is null
            and a.timestamp >= least(r.since, clock_timestamp()) - interval '1 day'
            and a.action = 'request_rejected'
            and a.source is not distinct from r.source
            and a.details::text = r.details::text);
end $$;
comment on function spine.reject(text[], text[], integer[], bigint[], timestamptz[], interval[], boolean) is
    'Internal. Writes rejected requests to the audit log, as summaries.';
