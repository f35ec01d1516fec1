-- The audit log: its partitions, and rejected requests.

-- ensure_audit_partitions: makes the daily partitions (UTC) from today to _days ahead. Rows that the default partition had to take meanwhile
-- are moved. A partition is filled on its own and then attached, which does not hold up inserts. Returns how many it made.
-- Two callers at once are fine. A crash leaves whole partitions or nothing.
create or replace function spine.ensure_audit_partitions(_days integer default 7) returns integer
language plpgsql set search_path = spine, pg_temp set lock_timeout = '5s' set timezone = 'UTC' as $$
declare
    _day date;
    _name text;
    _made integer := 0;
begin
    perform pg_advisory_xact_lock(hashtextextended('spine.ensure_audit_partitions', 0));
    for _day in select d::date from generate_series(current_date, current_date + _days, interval '1 day') d loop
        _name := 'audit_trail_' || to_char(_day, 'YYYYMMDD');
        continue when to_regclass('spine.' || _name) is not null;
        execute format('create table %I (like audit_trail including defaults including constraints including comments)
            with (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000, autovacuum_freeze_min_age = 0)', _name);
        if exists (select from audit_trail_default where timestamp >= _day and timestamp < _day + 1) then
            lock table audit_trail_default in access exclusive mode;
            execute format(
                'with moved as (delete from audit_trail_default where timestamp >= %1$L and timestamp < %2$L returning *) insert into %3$I select * from moved',
                _day, _day + 1, _name);
        end if;
        execute format('comment on table %I is %L', _name, 'The audit log of ' || to_char(_day, 'YYYY-MM-DD') || ' (UTC).');
        execute format('alter table audit_trail attach partition %I for values from (%L) to (%L)', _name, _day, _day + 1);
        _made := _made + 1;
    end loop;
    return _made;
end $$;
comment on function spine.ensure_audit_partitions(integer) is 'Internal. Makes the daily audit partitions ahead of time. Returns how many it made.';

-- reject: audits refused requests as a summary. _count requests of one source were refused for one cause since _since. _again says that the
-- same summaries were handed in before and nobody knows what came of it: those that are there already are left out. Callers take turns, since
-- the first may still be at it. Looking for them reads the rows of the log that are of no event, from a day before _since on: that is of the
-- caller's clock.
create or replace function spine.reject(_source text[], _cause text[], _status integer[], _count bigint[], _since timestamptz[], _again boolean) returns void
language plpgsql set search_path = spine, pg_temp set timezone = 'UTC' as $$
begin
    perform pg_advisory_xact_lock(hashtextextended('spine.reject', 0));
    insert into audit_trail (source, action, details)
    select r.source, 'request_rejected', r.details
    from (
        select u.source, u.since, json_build_object('cause', u.cause, 'status', u.status, 'count', u.count, 'since', u.since) as details
        from unnest(_source, _cause, _status, _count, _since) as u(source, cause, status, count, since)
    ) r
    where not _again or not exists (
        select from audit_trail a
        where a.event is null and a.timestamp >= least(r.since, clock_timestamp()) - interval '1 day' and a.action = 'request_rejected'
            and a.source is not distinct from r.source and a.details::text = r.details::text);
end $$;
comment on function spine.reject(text[], text[], integer[], bigint[], timestamptz[], boolean) is 'Internal. Audits refused requests as summaries, without an event_id.';
