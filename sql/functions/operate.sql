-- Calls for an operator: replay, pause, resume.

-- replay_rows: puts rows back to pending with attempt_count 0. Returns how many.
--   arrays, one element a row: _event, _destination
-- It leaves rows alone that are pending or processing. It announces the whole once instead of row by row. The audit log
-- names the caller where the transaction does: set_config('spine.caller', …, true).
-- Relies on processing_state_pkey. A crash before the commit leaves the rows as they were.
create or replace function spine.replay_rows(_event bigint[], _destination text[]) returns bigint
language plpgsql
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_material = off
set plan_cache_mode = force_generic_plan as $$
declare
    _now timestamptz := clock_timestamp();
    _announced text := coalesce(current_setting('spine.announced', true), '');
    _count bigint;
    _event_ids text[];
begin
    perform set_config('spine.announced', '5', true);
    with input as materialized (
        select * from unnest(_event, _destination) as i(event, destination)
    ), chosen as materialized (
        select p.event, p.destination, p.status, p.attempt_count
        from input i join processing_state p on p.event = i.event and p.destination = i.destination
        where p.status in ('completed', 'failed', 'dead')
        for update of p
    ), replayed as (
        update processing_state p set
            status = 'pending',
            attempt_count = 0,
            deferrals = null,
            deferred_since = null,
            lease_token = p.lease_token + 1,
            next_attempt_at = _now,
            completed_at = null,
            error_message = null,
            updated_at = _now
        from chosen c
        where p.event = c.event and p.destination = c.destination
        returning
            p.event,
            p.event_id,
            p.source,
            p.destination,
            c.status as status_before,
            c.attempt_count as attempts_before
    ), audited as (
        insert into audit_trail (timestamp, event, event_id, source, action, details)
        select
            _now,
            r.event,
            r.event_id,
            nullif(r.source, 'default'),
            'event_replayed',
            json_strip_nulls(json_build_object(
                'destination', r.destination,
                'from', r.status_before,
                'attempts', r.attempts_before,
                'by', session_user,
                'caller', left(nullif(current_setting('spine.caller', true), ''), 300)))
        from replayed r
    )
    select count(*), (array_agg(r.event_id))[1:5] into _count, _event_ids from replayed r;
    perform set_config('spine.announced', _announced, true);
    if _count > 0 then
        perform announce(_count, _event_ids, _now);
    end if;
    return _count;
end $$;
comment on function spine.replay_rows(bigint[], text[]) is
    'Internal. Puts completed, failed and dead rows back to pending with attempt_count 0. Returns how many.';

-- replay: delivers an event again. Returns how many rows it replayed: 0 when they are pending or processing.
--   _event_id, _source  as for id_of()
--   _destination        where to; every destination where left out
-- Raises P0002 for an id that was never stored. Relies on processing_state_pkey. A crash before the commit leaves the
-- rows as they were.
create or replace function spine.replay(
    _event_id text,
    _source text default null,
    _destination text default null)
returns bigint
language plpgsql
set search_path = spine, pg_temp as $$
declare
    _event bigint := id_of(_event_id, _source);
    _destinations text[];
begin
    select array_agg(p.destination) into _destinations
    from processing_state p
    where p.event = _event and (_destination is null or p.destination = _destination);
    if _destinations is null then
        raise exception 'event "%" is queued for no destination%',
            _event_id,
            coalesce(' ' || quote_literal(_destination), '') using errcode = 'no_data_found';
    end if;
    return replay_rows(array_fill(_event, array[cardinality(_destinations)]), _destinations);
end $$;
comment on function spine.replay(text, text, text) is
    'Delivers an event again and returns how many rows it replayed. It leaves pending and processing rows alone. '
    'Example: select spine.replay(''test-001'').';

-- replay_dead: delivers dead events again, oldest first. Returns how many it replayed.
--   _since, _until  when they died: from (inclusive), to (exclusive)
--   _source, _event_type, _destination  only these, where given
--   _limit          how many at most; NULL for all. With a limit, call it until it returns 0: each call can be a
--                   transaction of its own.
-- Relies on processing_state_dead. A crash before the commit leaves the rows as they were.
create or replace function spine.replay_dead(
    _since timestamptz default '-infinity',
    _until timestamptz default 'infinity',
    _source text default null,
    _event_type text default null,
    _destination text default null,
    _limit bigint default null)
returns bigint
language plpgsql
set search_path = spine, pg_temp as $$
declare
    _chunk constant integer := 1000;
    _events bigint[];
    _destinations text[];
    _total bigint := 0;
begin
    loop
        select array_agg(d.event), array_agg(d.destination) into _events, _destinations
        from (
            select p.event, p.destination
            from processing_state p join events e on e.id = p.event
            where p.status = 'dead'
                and p.updated_at >= _since
                and p.updated_at < _until
                and (_source is null or p.source = _source)
                and (_destination is null or p.destination = _destination)
                and (_event_type is null or e.event_type = _event_type)
            order by p.updated_at
            limit least(_chunk, coalesce(_limit, _chunk + _total) - _total)
            for update of p skip locked
        ) d;
        exit when _events is null;
        _total := _total + replay_rows(_events, _destinations);
    end loop;
    return _total;
end $$;
comment on function spine.replay_dead(timestamptz, timestamptz, text, text, text, bigint) is
    'Delivers dead events again and returns how many. '
    'Example: select spine.replay_dead(now() - interval ''1 hour'').';

-- pause: stops claims for a destination. Returns how many destinations it changed.
--   _destination  all of them where NULL
--   _reason       why, for those who ask later; may be NULL
-- The row says who paused it, and on whose behalf. Relies on destinations_pkey. A crash before the commit leaves the
-- destinations as they were.
create or replace function spine.pause(_destination text, _reason text) returns bigint
language plpgsql
set search_path = spine, pg_temp as $$
declare
    _why constant text := coalesce(left(nullif(btrim(_reason), ''), 300), reason());
    _changed bigint;
begin
    with paused as (
        update destinations d set paused_at = clock_timestamp(), paused_by = who(), paused_reason = _why
        where d.paused_at is null and (_destination is null or d.name = _destination)
        returning d.name
    ), audited as (
        insert into audit_trail (action, details)
        select
            'claims_paused',
            json_strip_nulls(json_build_object(
                'destination', p.name,
                'by', session_user,
                'caller', left(nullif(current_setting('spine.caller', true), ''), 300),
                'reason', _why))
        from paused p
    )
    select count(*) into _changed from paused;
    perform require_destination(_destination);
    -- Of one that is paused already, the first reason stays.
    update destinations d set paused_reason = _why
    where _why is not null
        and d.paused_at is not null
        and d.paused_reason is null
        and (_destination is null or d.name = _destination);
    return _changed;
end $$;
comment on function spine.pause(text, text) is
    'Stops claims for a destination, or for all where it is NULL, and says why. '
    'Example: select spine.pause(''default'', ''deploying billing'').';

-- pause: stops claims for a destination, without a reason. Returns how many destinations it changed.
--   _destination  all of them where left out
-- Relies on destinations_pkey. A crash before the commit leaves the destinations as they were.
create or replace function spine.pause(_destination text default null) returns bigint
language sql
set search_path = spine, pg_temp as $$
    select pause(_destination, null)
$$;
comment on function spine.pause(text) is
    'Stops claims for a destination until spine.resume(). All destinations where none is named. '
    'Nothing is lost: Spine goes on storing and queueing events.';

-- resume: takes up claims again. Returns how many destinations it changed.
--   _destination  all of them where left out
-- Relies on destinations_pkey. A crash before the commit leaves the destinations as they were.
create or replace function spine.resume(_destination text default null) returns bigint
language plpgsql
set search_path = spine, pg_temp as $$
declare
    _changed bigint;
begin
    with resumed as (
        update destinations d set paused_at = null, paused_by = null, paused_reason = null
        where d.paused_at is not null and (_destination is null or d.name = _destination)
        returning d.name
    ), audited as (
        insert into audit_trail (action, details)
        select
            'claims_resumed',
            json_strip_nulls(json_build_object(
                'destination', r.name,
                'by', session_user,
                'caller', left(nullif(current_setting('spine.caller', true), ''), 300)))
        from resumed r
    )
    select count(*) into _changed from resumed;
    perform require_destination(_destination);
    if _changed > 0 then
        perform announce(0, '{}', '-infinity'); -- for rows that fell due during the pause
    end if;
    return _changed;
end $$;
comment on function spine.resume(text) is 'Takes up claims again that spine.pause() stopped.';

-- require_destination: raises P0002 where a destination does not exist, and names those that do.
--   _destination  NULL is fine
-- Relies on destinations_pkey. Reads only.
create or replace function spine.require_destination(_destination text) returns void
language plpgsql stable
set search_path = spine, pg_temp as $$
begin
    if _destination is not null and not exists (select from destinations d where d.name = _destination) then
        raise exception 'there is no destination named %', quote_literal(_destination)
            using errcode = 'no_data_found',
                hint = 'Known: ' || (select string_agg(d.name, ', ' order by d.name) from destinations d);
    end if;
end $$;
comment on function spine.require_destination(text) is
    'Internal. Raises P0002 where a named destination does not exist.';
