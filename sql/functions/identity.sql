-- Finding an event by the id its sender gave it.

-- id_of: events.id of an event.
--   _event_id  the sender's id
--   _source    who sent it; may be left out where the id exists in one source only
-- Relies on events_event_id_source_key. Raises P0002 for an id that was never stored, naming the source's last arrival,
-- and 21000 for one that exists in several sources. Reads only.
create or replace function spine.id_of(_event_id text, _source text default null) returns bigint
language plpgsql stable set search_path = spine, pg_temp set jit = off set enable_seqscan = off as $$
declare
    _ids bigint[];
    _sources text[];
begin
    select array_agg(e.id order by e.source), array_agg(e.source order by e.source) into _ids, _sources
    from events e where e.event_id = _event_id and (_source is null or e.source = _source);
    if cardinality(_ids) = 1 then
        return _ids[1];
    elsif cardinality(_ids) > 1 then
        raise exception 'event "%" exists in the sources %: name one', _event_id, array_to_string(_sources, ', ')
            using errcode = 'cardinality_violation', hint = format('For example: id_of(%L, %L)', _event_id, _sources[1]);
    end if;
    raise exception 'event "%" was never stored%. %', _event_id, coalesce(' in source "' || _source || '"', ''), arrivals(_source)
        using errcode = 'no_data_found', hint = 'Where RETENTION is set, an id that is gone counts as never stored.';
end $$;
comment on function spine.id_of(text, text) is
    'events.id of an event, for example: select * from spine.processing_state where event = spine.id_of(''test-001''). An error says so when the id was never stored, or exists in several sources.';

-- last_arrival: when a source last sent a new event, NULL if it never did.
-- Relies on events_pkey, read from its newest end: a source that sent nothing for long takes a long walk.
create or replace function spine.last_arrival(_source text) returns timestamptz
language sql stable set search_path = spine, pg_temp set jit = off set enable_seqscan = off set enable_sort = off as $$
    select e.created_at from events e where e.source = _source order by e.id desc limit 1
$$;
comment on function spine.last_arrival(text) is 'When a source last sent a new event; NULL if it never did.';

-- arrivals: one sentence about when the source, or each source where none is named, last sent something new.
create or replace function spine.arrivals(_source text default null) returns text
language sql stable set search_path = spine, pg_temp as $$
    select coalesce(
        string_agg(format('Source %s: %s.', s.name, coalesce('last arrival ' || last_arrival(s.name)::text, 'nothing has arrived yet')), ' ' order by s.name),
        format('There is no source named "%s".', _source))
    from sources s where _source is null or s.name = _source
$$;
comment on function spine.arrivals(text) is 'Internal. When a source (all, where none is named) last sent a new event, in words.';

-- event: all that is known of one event, in one row for each destination.
create or replace function spine.event(_event_id text, _source text default null)
returns table (
    event_id text, source text, event_type text, occurred_at timestamptz, created_at timestamptz, payload json, unqueryable text,
    seen_count bigint, conflicts bigint, destination text, status text, attempt_count integer, next_attempt_at timestamptz,
    last_attempt_at timestamptz, completed_at timestamptz, error_message text, id bigint)
language plpgsql stable set search_path = spine, pg_temp set jit = off set enable_seqscan = off as $$
begin
    return query
    select e.event_id, e.source, e.event_type, e.occurred_at, e.created_at, e.payload, e.unqueryable,
        e.seen_count, (select count(*) from conflicts c where c.event = e.id), p.destination, p.status, p.attempt_count, p.next_attempt_at,
        p.last_attempt_at, p.completed_at, p.error_message, e.id
    from events e left join processing_state p on p.event = e.id
    where e.id = id_of(_event_id, _source)
    order by p.destination;
end $$;
comment on function spine.event(text, text) is 'One event and where it stands, for example: select * from spine.event(''test-001'').';

-- trace: the trail of one event in the order it happened. Relies on audit_trail_event.
create or replace function spine.trace(_event_id text, _source text default null)
returns table ("timestamp" timestamptz, action text, success text, details jsonb, id bigint)
language plpgsql stable set search_path = spine, pg_temp set jit = off set enable_seqscan = off as $$
begin
    return query
    select a.timestamp, a.action, a.success, a.details, a.id
    from audit_log a where a.event = id_of(_event_id, _source)
    order by a.timestamp, a.id;
end $$;
comment on function spine.trace(text, text) is 'What happened to one event, step by step, for example: select * from spine.trace(''test-001'').';
