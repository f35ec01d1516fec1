-- Retention: finished events that are older than a cutoff go, in short steps that hold nobody up. The rounds of upkeep
-- call these functions. Anybody may call each by hand at any time too.

-- expire_events: deletes finished events, with their rows of the queue and their evidence. A call is one batch of a
-- walk up the ids.
--   _before  cutoff. An event goes when each of its rows is completed or dead and last changed before it. Without a
--            row it goes when it was stored before the cutoff. A pending, failed or processing event always stays.
--   _after   events.id to go on from: 0 at first, then the id that the last call returned. This spares a batch the walk
--            over the dead index entries of earlier batches, and over old events that stay.
--   _limit   how many events to read, at most
-- Returns how many events stored before the cutoff it read, how many it deleted, and the id that it reached. That is
-- NULL when the walk is over: it has reached younger events, or another session is at work.
-- Locks: it waits for nothing. An event with a row that somebody else has locked is left to the next walk. It locks the
-- event first. That holds off a duplicate and a row inserted by hand. Each statement sees what was committed before it,
-- so the later ones see what came in before the lock. A duplicate that meets the delete waits for it and is new.
-- Relies on events_pkey, processing_state_pkey and conflicts_pkey.
-- A crash before the commit leaves everything as it was.
create or replace function spine.expire_events(
    _before timestamptz,
    _after bigint default 0,
    _limit integer default 500)
returns table (looked_at integer, deleted integer, last bigint)
language plpgsql
set search_path = spine, pg_temp
set lock_timeout = '250ms'
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_material = off
set plan_cache_mode = force_generic_plan as $$
declare
    _events bigint[];
begin
    looked_at := 0;
    deleted := 0;
    if not try_lock('expire_events') then
        return next;
        return;
    end if;
    -- The last event of a batch decides whether there is more, not the first young one: clocks are set back, and
    -- batches of ingest overlap.
    with walked as materialized (
        select e.id, e.created_at < _before as old from events e where e.id > _after order by e.id limit _limit
    )
    select
        count(*) filter (where w.old),
        array_agg(w.id) filter (where w.old and p.done),
        case when count(*) = _limit and (array_agg(w.old order by w.id desc))[1] then max(w.id) end
    into looked_at, _events, last
    from walked w cross join lateral (
        select coalesce(bool_and(p.status in ('completed', 'dead') and p.updated_at < _before), true) as done
        from processing_state p
        where p.event = w.id
    ) p;

    select array_agg(l.id) into _events
    from (
        select e.id from events e where e.id = any (_events) for update skip locked
    ) l;
    with held as materialized (
        select p.event, p.destination
        from processing_state p
        where p.event = any (_events) and p.status in ('completed', 'dead') and p.updated_at < _before
        for update skip locked
    )
    select array_agg(i) into _events
    from unnest(_events) i
    where i not in (
        select p.event
        from processing_state p
        where p.event = any (_events)
            and (p.event, p.destination) not in (select h.event, h.destination from held h));

    if _events is not null then
        delete from processing_state p where p.event = any (_events);
        delete from conflicts c where c.event = any (_events);
        with gone as (
            delete from events e where e.id = any (_events) returning e.created_at
        ), audited as (
            insert into audit_trail (action, details)
            select
                'events_expired',
                json_build_object(
                    'count', count(*),
                    'oldest', min(g.created_at),
                    'newest', max(g.created_at),
                    'before', _before)
            from gone g
        )
        select count(*) into deleted from gone;
        update retention_state r set expired_at = clock_timestamp(), before = greatest(r.before, _before);
    end if;
    return next;
end $$;
comment on function spine.expire_events(timestamptz, bigint, integer) is
    'Deletes a batch of finished events unchanged since _before, but not their trail. '
    'Returns how many it read, how many it deleted, and the _after of the next call. '
    'That is NULL at the end of the walk.';

-- drop_audit_partition: drops the audit log's oldest partition, if all of it is older than the cutoff. Its trails go,
-- those of events that stay included.
--   _before  the cutoff; a partition that is not over yet always stays
-- Returns its name. NULL when there is none, or when another session is at work.
-- It runs with the rights of the table's owner, as spine.ensure_audit_partitions() does. That is safe: the caller must
-- have the right to delete steps, which lets him delete the same ones and more. He chooses a time, and no name.
-- Raises 55P03 when somebody reads the log for longer than 100 ms. The caller tries again much later.
-- Locks: it needs the audit log for itself. It waits 100 ms for readers, and inserts wait behind it meanwhile. DETACH
-- CONCURRENTLY would hold nobody up, but Postgres rejects it where there is a default partition.
-- A crash before the commit leaves the partition as it was.
create or replace function spine.drop_audit_partition(_before timestamptz) returns text
language plpgsql
security definer
set search_path = spine, pg_temp
set lock_timeout = '100ms' as $$
declare
    _table text;
    _name text;
begin
    perform require_right('audit_trail', 'DELETE');
    -- The lock of ensure_audit_partitions(), which takes the same tables in another order.
    if not try_lock('partitions') then
        return null;
    end if;
    -- With its schema, as months.sql says.
    select format('%I.%I', n.nspname, c.relname), c.relname into _table, _name
    from audit_partitions() p join pg_class c on c.oid = p.partition join pg_namespace n on n.oid = c.relnamespace
    where p.until <= least(_before, now())
    order by p.until
    limit 1;
    if _table is null then
        return null;
    end if;
    execute 'drop table ' || _table;
    insert into audit_trail (action, details)
    values ('audit_expired', json_build_object('partition', _name, 'before', _before));
    return _name;
end $$;
comment on function spine.drop_audit_partition(timestamptz) is
    'Drops the oldest partition of the audit log, if all of it is older than _before. '
    'Returns its name, NULL where there is none. Raises 55P03 when somebody reads the log for longer than 100 ms.';

-- expire_audit: deletes old rows from the default partition, which is never dropped. Returns how many.
--   _before  the cutoff
--   _limit   how many at most
-- Relies on the default partition's audit_trail_timestamp.
-- A crash before the commit leaves the rows as they were.
create or replace function spine.expire_audit(_before timestamptz, _limit integer default 500) returns integer
language plpgsql
set search_path = spine, pg_temp
set lock_timeout = '250ms'
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
declare
    _deleted integer;
begin
    delete from audit_trail_default a
    where a.ctid = any (array(
        select d.ctid
        from audit_trail_default d
        where d.timestamp < _before
        order by d.timestamp
        limit _limit
        for update skip locked));
    get diagnostics _deleted = row_count;
    if _deleted > 0 then
        insert into audit_trail (action, details)
        values (
            'audit_expired',
            json_build_object('partition', 'audit_trail_default', 'count', _deleted, 'before', _before));
    end if;
    return _deleted;
end $$;
comment on function spine.expire_audit(timestamptz, integer) is
    'Deletes old rows from the default partition of the audit log. Returns how many.';

-- expire_rejected: deletes rejected requests that are older than their source keeps them. Returns how many.
-- The age is settings -> rejected ->> age. It is 7 days where that is missing or is no interval. spine.keep_rejected()
-- does the same for sources that still send.
-- Relies on rejected_requests_source.
-- A crash before the commit leaves the requests as they were.
create or replace function spine.expire_rejected() returns bigint
language plpgsql
set search_path = spine, pg_temp
set lock_timeout = '250ms' as $$
declare
    _source record;
    _age interval;
    _deleted bigint := 0;
    _gone bigint;
begin
    perform make_durable();
    for _source in select s.name, s.settings #>> '{rejected,age}' as age from sources s loop
        begin
            _age := coalesce(_source.age, '7 days')::interval;
        exception when data_exception then
            _age := '7 days';
        end;
        delete from rejected_requests r
        where r.source = _source.name and r.at < clock_timestamp() - _age and r.state <> 'requested';
        get diagnostics _gone = row_count;
        _deleted := _deleted + _gone;
    end loop;
    return _deleted;
end $$;
comment on function spine.expire_rejected() is
    'Deletes rejected requests that are older than their source keeps them. Returns how many.';
