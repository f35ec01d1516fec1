-- The audit log: its partitions, which of them a reader needs, and summaries of rejected requests.

-- ensure_audit_partitions: makes the daily partitions (UTC) ahead of time. Returns how many it made.
--   _days  up to how many days from today, 366 at most
-- It moves the rows that the default partition had to take meanwhile.
-- It runs with the rights of the table's owner, so that Spine works under a role that owns nothing. That is safe: the
-- caller must have the right to insert steps. He chooses a number of days, which is limited, and no name and no text.
-- All names are found in spine and pg_catalog, where the caller cannot create any. Names in texts have their schema.
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
    _taken tstzmultirange;
begin
    perform require_right('audit_trail', 'INSERT');
    perform make_durable();
    if _days > 366 then
        raise exception 'partitions are made 366 days ahead at most' using errcode = 'invalid_parameter_value';
    end if;
    perform take_lock('partitions');
    select range_agg(tstzrange(p.since, p.until)) into _taken from audit_partitions() p;
    for _day in select d::date from generate_series(current_date, current_date + _days, interval '1 day') d loop
        _name := 'audit_trail_' || to_char(_day, 'YYYYMMDD');
        continue when coalesce(_day::timestamptz <@ _taken, false);
        execute format(
            'create table spine.%I (like audit_trail including defaults including constraints including comments)
            with (
                autovacuum_vacuum_insert_scale_factor = 0,
                autovacuum_vacuum_insert_threshold = 100000,
                autovacuum_freeze_min_age = 0
            )', _name);
        -- A publication of all tables lets no row be deleted from a table without one. Spine deletes none from a day,
        -- but people may.
        execute format('alter table spine.%I replica identity full', _name);
        -- Attaching takes these locks in this order. With them no row comes in between.
        perform lock_default_partition();
        if exists (select from audit_trail_default where timestamp >= _day and timestamp < _day + 1) then
            execute format(
                'with moved as (
                    delete from audit_trail_default where timestamp >= %1$L and timestamp < %2$L returning *)
                insert into spine.%3$I select * from moved',
                _day,
                _day + 1,
                _name);
        end if;
        execute format(
            'comment on table spine.%I is %L',
            _name,
            'The audit log of ' || to_char(_day, 'YYYY-MM-DD') || ' (UTC).');
        execute format(
            'alter table audit_trail attach partition spine.%I for values from (%L) to (%L)',
            _name,
            _day,
            _day + 1);
        _made := _made + 1;
    end loop;
    return _made;
end $$;
comment on function spine.ensure_audit_partitions(integer) is
    'Internal. Makes the daily partitions of the audit log ahead of time. Returns how many it made.';

-- lock_default_partition: takes the default partition for itself, until the end of the transaction. It asks often and
-- waits briefly, since readers of the log wait behind it. Raises 55P03 after 25 times. A crash releases the locks.
create or replace function spine.lock_default_partition() returns void
language plpgsql
set search_path = spine, pg_temp
set lock_timeout = '50ms' as $$
begin
    for _time in 1..25 loop
        begin
            lock table only audit_trail in share update exclusive mode;
            lock table only audit_trail_default in access exclusive mode;
            return;
        exception when lock_not_available then
            if _time = 25 then
                raise;
            end if;
        end;
        perform pg_sleep(0.2);
    end loop;
end $$;
comment on function spine.lock_default_partition() is
    'Internal. Takes the default partition for itself, until the transaction ends.';

-- mark_audit: notes once a day where in time the positions of the log are. spine.roll_up() calls it every second.
-- A transaction gets its number before it writes a step. So steps of later positions than this transaction's are
-- written from now on. Their times may be earlier: spine.reject() goes back by a day, and clocks are set back. The mark
-- leaves them three days. Where the clock went back, there is a new mark at once.
-- In a copy of a database there is none before spine.note_database() has moved positions beyond those of the original.
-- It runs with the rights of the table's owner, since no other role writes to the table. That is safe: the caller must
-- have the right to insert steps, and chooses nothing.
-- Relies on audit_marks_pkey. Where there is nothing to note it writes nothing. A crash before the commit leaves no
-- mark.
create or replace function spine.mark_audit() returns void
language plpgsql
security definer
set search_path = spine, pg_temp
set enable_seqscan = off as $$
declare
    _since constant timestamptz := clock_timestamp() - interval '3 days';
    _last audit_marks;
    _position xid8;
begin
    perform require_right('audit_trail', 'INSERT');
    select * into _last from audit_marks m order by m.position desc limit 1;
    if _since >= _last.since and _since < _last.since + interval '1 day' then
        return;
    end if;
    perform make_durable();
    _position := (pg_current_xact_id()::text::bigint + trail_shift())::text::xid8;
    if _last.position is null or _position > _last.position then
        insert into audit_marks (position, since, id)
        values (_position, _since, coalesce(pg_sequence_last_value('audit_trail_id_seq'), 0));
    end if;
end $$;
comment on function spine.mark_audit() is
    'Internal. Notes once a day where in time the positions of the audit log are.';

-- audit_since: a time before which there are no steps of a position or later ones.
-- A plan locks each partition that it may read, with three indexes. After years these are thousands, more than Postgres
-- has room for. So a look at the log has a bound in time. The planner must know it as a value. trail_start() says why
-- the bound has an "or".
--   _position  as in audit_trail.xid
-- Returns '-infinity' where there is no mark before the position, such as of a time before schema version 6. Steps that
-- somebody inserts by hand with older times are not counted.
-- It runs with the rights of the table's owner, so that readers of the audit log need no right on another table. That
-- is safe: it returns one time.
-- Relies on audit_marks_pkey. Reads only.
create or replace function spine.audit_since(_position xid8) returns timestamptz
language plpgsql stable
security definer
set search_path = spine, pg_temp
set enable_seqscan = off as $$
begin
    perform require_right('audit_log', 'SELECT');
    -- The least of all later ones, since clocks are set back. This one may have been ahead, or may be behind now.
    return coalesce((
        select least(min(m.since), clock_timestamp() - interval '3 days')
        from audit_marks m
        where m.position >= (
            select n.position from audit_marks n where n.position <= _position order by n.position desc limit 1)
        having count(*) > 0),
        '-infinity');
end $$;
comment on function spine.audit_since(xid8) is
    'Internal. A time before which the audit log has no steps of a position or later ones.';

-- last_mark: the newest mark's position, among those that the server's transactions have reached. '0' where there is
-- none. Transactions before it are over, or in progress: no crash gives their numbers out again.
-- It runs with the rights of the table's owner, as audit_since() does. Relies on audit_marks_pkey. Reads only.
create or replace function spine.last_mark() returns xid8
language plpgsql stable
security definer
set search_path = spine, pg_temp
set enable_seqscan = off as $$
begin
    perform require_right('audit_log', 'SELECT');
    return coalesce((
        select m.position
        from audit_marks m
        where m.position <= (select trail_end())
        order by m.position desc
        limit 1), '0');
end $$;
comment on function spine.last_mark() is
    'Internal. The newest position in the audit log of which the time is known.';

-- audit_partitions: the partitions of the audit log with their spans of time, the default partition left out.
-- Reads only the catalog, and takes no lock on a partition.
create or replace function spine.audit_partitions()
returns table (partition regclass, name name, since timestamptz, until timestamptz)
language sql stable
set search_path = spine, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO' as $$
    select
        b.oid,
        b.relname,
        case when b.bound like 'FOR VALUES FROM (''%' then split_part(b.bound, '''', 2)::timestamptz end,
        case when b.bound like '%'')' then split_part(b.bound, '''', -2)::timestamptz end
    from (
        select c.oid, c.relname, pg_get_expr(c.relpartbound, 0) as bound
        from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'audit_trail'::regclass
    ) b
    where b.bound <> 'DEFAULT'
$$;
comment on function spine.audit_partitions() is
    'Internal. The partitions of the audit log with their spans of time.';

-- audit_begins: a time before which only the default partition has steps. 'infinity' where there is no other partition.
-- Reads only the catalog.
create or replace function spine.audit_begins() returns timestamptz
language sql stable
set search_path = spine, pg_temp as $$
    select coalesce(min(p.since), 'infinity') from audit_partitions() p
$$;
comment on function spine.audit_begins() is
    'Internal. A time before which only the default partition of the audit log has steps.';

-- audit_stretches: spans of time that follow each other, for reading the log from one time to another.
--   _since, _until  from (inclusive), to (exclusive).
-- Each has 128 partitions, the first one those that are left. The last one also has those up to _until. A plan locks
-- each partition that it may read, with three indexes, until the transaction ends. After years these are more than a
-- server has locks for. So a reader takes one span after the other, each in a block that ends with an exception. That
-- gives the locks back, and rows returned before it stay. Four rules make it right:
--   * The reader locks audit_trail itself before, outside of the blocks. So no partition goes meanwhile.
--   * The planner must know the times as values, or it locks all partitions. So plans are not kept.
--   * Steps of an event have an "or infinity", as trail_start() says. Only a last span without an end returns those.
--   * Large values are copied, since a row leads to its partition, which may be gone after the function.
-- Reads only the catalog.
create or replace function spine.audit_stretches(_since timestamptz, _until timestamptz default 'infinity')
returns table (since timestamptz, until timestamptz)
language plpgsql stable
set search_path = spine, pg_temp as $$
declare
    _partitions constant integer := 128;
    _now constant timestamptz := clock_timestamp();
begin
    since := _since;
    if _since < least(_until, _now) - _partitions * interval '1 day' then
        for until in
            select o.since
            from (
                select p.since, row_number() over (order by p.since desc) as n
                from audit_partitions() p
                where p.since > _since and p.since < least(_until, _now)
            ) o
            where o.n % _partitions = 0
            order by o.since
        loop
            return next;
            since := until;
        end loop;
    end if;
    until := _until;
    return next;
end $$;
comment on function spine.audit_stretches(timestamptz, timestamptz) is
    'Internal. Spans of time in which a reader of the audit log takes its locks.';

-- steps_of: the steps of events in a span of time, in no order.
--   _first, _last   a range of events.id, both ends inclusive.
--   _since, _until  from (inclusive), to (exclusive): beginnings of days. trail_start() says why.
-- One plan reads a partition once, however many events there are. Relies on audit_trail_event. Reads only.
create or replace function spine.steps_of(
    _first bigint,
    _last bigint,
    _since timestamptz,
    _until timestamptz default 'infinity')
returns table (event bigint, "timestamp" timestamptz, id bigint, xid xid8, action spine.audit_action, details json)
language plpgsql stable rows 100000
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set plan_cache_mode = force_custom_plan as $$
declare
    _from timestamptz;
    _to timestamptz;
begin
    perform from only audit_trail where false;
    for _from, _to in select s.since, s.until from audit_stretches(_since, _until) s loop
        begin
            return query
            select a.event, a.timestamp, a.id, a.xid, a.action, (array[a.details])[1] -- an array has a copy
            from audit_trail a
            where a.event >= _first
                and a.event <= _last
                and (a.timestamp >= _from and a.timestamp < _to or a.timestamp = 'infinity')
                and (_to = 'infinity' or a.timestamp is distinct from 'infinity');
            raise sqlstate 'SP000';
        exception when sqlstate 'SP000' then null;
        end;
    end loop;
end $$;
comment on function spine.steps_of(bigint, bigint, timestamptz, timestamptz) is
    'Internal. The steps of events in a span of time, in no order.';

-- trail_of: the steps of one event as people read them, in no order. Its columns are those of audit_log.
--   _event  events.id
-- It reads as steps_of() does, from trail_start() to trail_until(). Relies on events_pkey, processing_state_pkey and
-- audit_trail_event. Reads only.
create or replace function spine.trail_of(_event bigint)
returns table (
    "timestamp" timestamptz,
    id bigint,
    xid xid8,
    event bigint,
    event_id text,
    source text,
    action text,
    success text,
    details jsonb)
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set plan_cache_mode = force_custom_plan as $$
declare
    _from timestamptz;
    _to timestamptz;
begin
    perform from only audit_trail where false;
    for _from, _to in
        select s.since, s.until from audit_stretches(trail_start(_event), trail_until(_event)) s
    loop
        begin
            return query
            select a.*
            from audit_log a
            where a.event = _event
                and (a.timestamp >= _from and a.timestamp < _to or a.timestamp = 'infinity')
                and (_to = 'infinity' or a.timestamp is distinct from 'infinity');
            raise sqlstate 'SP000';
        exception when sqlstate 'SP000' then null;
        end;
    end loop;
end $$;
comment on function spine.trail_of(bigint) is
    'Internal. The steps of one event as people read them, in no order.';

-- reject: writes rejected requests to the audit log, as summaries.
--   arrays, one element a summary:
--   _source, _cause, _status  what the requests of a summary have in common
--   _count, _since            how many there were, and since when, by the caller's clock
--   _age                      how long ago that was: the step is stamped with the time at which the first of them came
--   _again  true where the caller handed in the same summaries before and does not know the outcome. It leaves out
--           those that the log has. It looks from a day before _since on, since that time is of the caller's clock.
-- Locks: callers take turns, since the first may still be at work.
-- With _again it relies on audit_trail_timestamp.
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
set timezone = 'UTC'
set plan_cache_mode = force_custom_plan as $$
declare
    _told_since constant timestamptz := case
        when _again then least((select min(s) from unnest(_since) s), clock_timestamp()) - interval '1 day'
        else 'infinity'
    end;
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
            and a.timestamp >= _told_since
            and a.timestamp >= least(r.since, clock_timestamp()) - interval '1 day'
            and a.action = 'request_rejected'
            and a.source is not distinct from r.source
            and a.details::text = r.details::text);
end $$;
comment on function spine.reject(text[], text[], integer[], bigint[], timestamptz[], interval[], boolean) is
    'Internal. Writes rejected requests to the audit log, as summaries.';
