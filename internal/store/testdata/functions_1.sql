-- The functions, triggers and views of schema version 1, as they were: for the test that migrates such a database. Never changed.

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
        _name := 'audit_log_' || to_char(_day, 'YYYYMMDD');
        continue when to_regclass('spine.' || _name) is not null;
        execute format('create table %I (like audit_log including defaults including constraints including comments)', _name);
        if exists (select from audit_log_default where timestamp >= _day and timestamp < _day + 1) then
            lock table audit_log_default in access exclusive mode;
            execute format(
                'with moved as (delete from audit_log_default where timestamp >= %1$L and timestamp < %2$L returning *) insert into %3$I select * from moved',
                _day, _day + 1, _name);
        end if;
        execute format('comment on table %I is %L', _name, 'The audit log of ' || to_char(_day, 'YYYY-MM-DD') || ' (UTC).');
        execute format('alter table audit_log attach partition %I for values from (%L) to (%L)', _name, _day, _day + 1);
        _made := _made + 1;
    end loop;
    return _made;
end $$;
comment on function spine.ensure_audit_partitions(integer) is 'Internal. Makes the daily audit partitions ahead of time. Returns how many it made.';

-- reject: audits refused requests as a summary. _count requests of one source were refused for one cause since _since.
create or replace function spine.reject(_source text[], _cause text[], _status integer[], _count bigint[], _since timestamptz[]) returns void
language sql set search_path = spine, pg_temp as $$
    insert into audit_log (source, action, success, details)
    select r.source, 'request_rejected', 'failure', jsonb_build_object('cause', r.cause, 'status', r.status, 'count', r.count, 'since', r.since)
    from unnest(_source, _cause, _status, _count, _since) as r(source, cause, status, count, since)
$$;
comment on function spine.reject(text[], text[], integer[], bigint[], timestamptz[]) is 'Internal. Audits refused requests as summaries, without an event_id.';
-- The canonical form of a payload, for callers of spine.ingest() that leave the hash out. The receiving process computes the
-- same form itself; a property test holds both to be equal.

-- utf16_order: a key that sorts text by its UTF-16 code units, as RFC 8785 sorts names. Code-point order (UTF-8) differs only
-- for characters beyond U+FFFF, which are therefore written as their two surrogates (CESU-8).
create or replace function spine.utf16_order(_text text) returns bytea
language plpgsql immutable strict parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    _key bytea := '';
    _char text;
    _code integer;
    _unit integer;
begin
    if _text !~ '[\U00010000-\U0010FFFF]' then
        return convert_to(_text, 'UTF8');
    end if;
    foreach _char in array string_to_array(_text, null) loop
        _code := ascii(_char);
        if _code < 65536 then
            _key := _key || convert_to(_char, 'UTF8');
        else
            foreach _unit in array array[55296 + ((_code - 65536) >> 10), 56320 + ((_code - 65536) & 1023)] loop
                _key := _key || decode(to_hex((14680064 | ((_unit >> 12) << 16)) | 32768 | (((_unit >> 6) & 63) << 8) | 128 | (_unit & 63)), 'hex');
            end loop;
        end if;
    end loop;
    return _key;
end $$;
comment on function spine.utf16_order(text) is 'Internal. Key that sorts text by UTF-16 code units, as RFC 8785 sorts names.';

-- canonical: names sorted, no white space, escapes in their shortest form, numbers as written. Never by way of jsonb, which
-- changes numbers. Raises 22030 for a name that stands twice in an object, 22P05 or 22P02 for text that Postgres cannot hold.
create or replace function spine.canonical(_value json) returns text
language plpgsql immutable strict parallel safe set search_path = spine, pg_temp as $$
declare
    _result text;
begin
    case json_typeof(_value)
    when 'object' then
        if exists (select from json_object_keys(_value) as k(name) group by k.name having count(*) > 1) then
            raise exception 'a name stands twice in an object' using errcode = 'duplicate_json_object_key_value';
        end if;
        select '{' || coalesce(string_agg(to_json(m.key)::text || ':' || canonical(m.value), ',' order by utf16_order(m.key)), '') || '}'
            into _result from json_each(_value) m;
    when 'array' then
        select '[' || coalesce(string_agg(canonical(m.value), ',' order by m.ord), '') || ']'
            into _result from json_array_elements(_value) with ordinality as m(value, ord);
    when 'string' then
        _result := to_json(_value #>> '{}')::text;
    else
        _result := btrim(_value::text, E' \t\r\n');
    end case;
    return _result;
end $$;
comment on function spine.canonical(json) is 'Canonical text of a payload: sorted names, no white space, numbers as written. events.payload_hash is its SHA-256.';

-- unqueryable: why Postgres cannot query a payload that JSON allows; NULL where it can. Text that is no JSON at all raises 22P02.
-- Not parallel safe: catching an error takes a subtransaction.
create or replace function spine.unqueryable(_payload text) returns text
language plpgsql immutable strict set search_path = spine, pg_temp as $$
begin
    perform _payload::json;
    begin
        perform canonical(_payload::json);
    exception when data_exception then
        return sqlerrm;
    end;
    return null;
end $$;
comment on function spine.unqueryable(text) is 'Internal. Why Postgres cannot query a JSON text; NULL where it can.';
-- Finding an event by the id its sender gave it.

-- id_of: events.id of an event.
--   _event_id  the sender's id
--   _source    who sent it; may be left out where the id exists in one source only
-- Relies on events_event_id_source_key. Raises P0002 for an id that was never stored, naming the source's last arrival,
-- and 21000 for one that exists in several sources. Reads only.
create or replace function spine.id_of(_event_id text, _source text default null) returns bigint
language plpgsql stable set search_path = spine, pg_temp set enable_seqscan = off as $$
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
        using errcode = 'no_data_found';
end $$;
comment on function spine.id_of(text, text) is
    'events.id of an event, for example: select * from spine.processing_state where event = spine.id_of(''test-001''). An error says so when the id was never stored, or exists in several sources.';

-- last_arrival: when a source last sent a new event, NULL if it never did.
-- Relies on events_pkey, read from its newest end: a source that sent nothing for long takes a long walk.
create or replace function spine.last_arrival(_source text) returns timestamptz
language sql stable set search_path = spine, pg_temp set enable_seqscan = off set enable_sort = off as $$
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
language plpgsql stable set search_path = spine, pg_temp set enable_seqscan = off as $$
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

-- trace: the trail of one event in the order it happened. Relies on audit_log_event.
create or replace function spine.trace(_event_id text, _source text default null)
returns table ("timestamp" timestamptz, action text, success text, details jsonb, id bigint)
language plpgsql stable set search_path = spine, pg_temp set enable_seqscan = off as $$
begin
    return query
    select a.timestamp, a.action, a.success, a.details, a.id
    from audit_log a where a.event = id_of(_event_id, _source)
    order by a.timestamp, a.id;
end $$;
comment on function spine.trace(text, text) is 'What happened to one event, step by step, for example: select * from spine.trace(''test-001'').';
-- Storing events: one statement, one transaction, any number of events.

-- ingest: stores each event once, queues the new ones, keeps conflicting payloads as evidence and audits all of it.
--   arrays, one element an event:
--   _event_id, _event_type, _occurred_at   as the sender gave them
--   _payload      exact JSON text; NULL where _raw_body holds the bytes instead
--   _source       who sent it; 'default' where left out
--   _hash         SHA-256 of the canonical payload, or of _raw_body; computed here where left out
--   _raw_body     exact bytes of a payload that Postgres cannot query
--   _unqueryable  why it cannot
-- Returns for each event, by its position: accepted (new), deduplicated (known id, same hash), conflict (known id, other hash).
-- One key may stand in a batch several times: its first row goes to the table, the others are judged against what is stored.
-- Rows are upserted in the order of their key, so that two batches cannot deadlock. The trail is dated after that, when every row is
-- locked: of two batches with one key, the one that had to wait for the other is also the later one in the trail.
-- Raises 55P03 when somebody else keeps one of the rows locked: the caller then tries that event apart from the others.
-- Relies on events_event_id_source_key. A crash before the commit leaves nothing behind; when the answer to the commit is
-- lost, the same batch may be sent again and is answered deduplicated.
create or replace function spine.ingest(
    _event_id text[], _event_type text[], _occurred_at timestamptz[], _payload text[],
    _source text[] default null, _hash bytea[] default null, _raw_body bytea[] default null, _unqueryable text[] default null)
returns table (ord bigint, outcome text)
language plpgsql set search_path = spine, pg_temp set jit = off set enable_seqscan = off set lock_timeout = '250ms' as $$
#variable_conflict use_column
declare
    _now timestamptz := clock_timestamp();
begin
    return query
    with given as (
        select g.ord, g.event_id, coalesce(g.source, 'default') as source, g.event_type, g.occurred_at, g.payload, g.hash, g.raw_body,
            case when g.hash is null and g.unqueryable is null then unqueryable(g.payload) else g.unqueryable end as unqueryable
        from unnest(_event_id, _event_type, _occurred_at, _payload, _source, _hash, _raw_body, _unqueryable)
            with ordinality as g(event_id, event_type, occurred_at, payload, source, hash, raw_body, unqueryable, ord)
    ), input as materialized (
        select g.ord, g.event_id, g.source, g.event_type, g.occurred_at, g.unqueryable,
            case when g.unqueryable is null then g.payload end as payload,
            case when g.unqueryable is not null then coalesce(g.raw_body, convert_to(g.payload, 'UTF8')) end as raw_body,
            coalesce(g.hash,
                case when g.unqueryable is null then sha256(convert_to(canonical(g.payload::json), 'UTF8'))
                else sha256(coalesce(g.raw_body, convert_to(g.payload, 'UTF8'))) end) as hash
        from given g
    ), leader as materialized (
        select distinct on (i.event_id, i.source) i.*, count(*) over (partition by i.event_id, i.source) as copies
        from input i
        order by i.event_id, i.source, i.ord
    ), stored as (
        -- The update is there so that RETURNING sees the row that stays, locked: payload_hash is the first one's.
        insert into events as e (event_id, source, event_type, occurred_at, payload, unqueryable, raw_body, payload_hash, created_at, seen_count)
        select l.event_id, l.source, l.event_type, l.occurred_at, l.payload::json, l.unqueryable, l.raw_body, l.hash, _now, l.copies
        from leader l
        on conflict (event_id, source) do update set seen_count = e.seen_count + excluded.seen_count
        returning e.id, e.event_id, e.source, e.payload_hash, e.seen_count
    ), locked as materialized (
        select count(*), clock_timestamp() as at from stored
    ), judged as materialized (
        select i.ord, s.id, i.event_id, i.source, i.hash,
            case
                when i.ord = l.ord and s.seen_count = l.copies then 'accepted'
                when i.hash = s.payload_hash then 'deduplicated'
                else 'conflict'
            end as outcome,
            i.event_type, i.occurred_at, i.payload, i.unqueryable, i.raw_body
        from input i
        join leader l on l.event_id = i.event_id and l.source = i.source
        join stored s on s.event_id = i.event_id and s.source = i.source
    ), queued as (
        insert into processing_state (event, event_id, source, lease_token, next_attempt_at, created_at, updated_at)
        select j.id, j.event_id, j.source, 0, l.at, l.at, l.at from judged j cross join locked l where j.outcome = 'accepted' order by j.id
    ), audited as (
        insert into audit_log (timestamp, event, event_id, source, action, success, details)
        select (select l.at from locked l), a.id, a.event_id, a.source, a.action, a.success, a.details
        from (
            select j.ord, step.n, j.id, j.event_id, j.source,
                case when step.n = 1 then 'event_received'
                    when j.outcome = 'accepted' then 'event_inserted'
                    when j.outcome = 'deduplicated' then 'event_deduped'
                    else 'conflict_detected' end as action,
                case when step.n = 2 and j.outcome = 'conflict' then 'failure' else 'success' end as success,
                case when step.n = 2 and j.outcome = 'conflict' then jsonb_build_object(
                        'payload_hash', encode(j.hash, 'hex'),
                        'evidence', keep_evidence(j.id, j.hash, j.event_id, j.source, j.event_type, j.occurred_at, j.payload, j.unqueryable, j.raw_body))
                    else '{}' end as details
            from judged j cross join (values (1), (2)) as step(n)
            order by j.ord, step.n
        ) a
    )
    select j.ord, j.outcome from judged j order by j.ord;
end $$;
comment on function spine.ingest(text[], text[], timestamptz[], text[], text[], bytea[], bytea[], text[]) is
    'Stores each event exactly once, queues it, keeps conflicting payloads as evidence, audits every step. Returns accepted, deduplicated or conflict by position.';

-- ingest for one event by hand: select spine.ingest('test-001', 'user.created', '{"user_id": 123}')
create or replace function spine.ingest(
    _event_id text, _event_type text, _payload text, _occurred_at timestamptz default now(), _source text default 'default')
returns text
language sql set search_path = spine, pg_temp as $$
    select i.outcome from ingest(array[_event_id], array[_event_type], array[_occurred_at], array[_payload], array[_source]) i
$$;
comment on function spine.ingest(text, text, text, timestamptz, text) is
    'Stores one event by hand, for example: select spine.ingest(''test-001'', ''user.created'', ''{"user_id": 123}''), or with the names of more parameters: '
    '… , _occurred_at => ''2024-01-30T12:00:00Z'', _source => ''default''). Returns accepted, deduplicated or conflict.';

-- keep_evidence: keeps a conflicting payload, once for each distinct hash and at most ten an event.
-- Returns kept, known (this payload was kept before) or full. The caller holds the lock on the event's row; being volatile, this
-- function then sees what others committed before it got that lock, so that ten is ten under concurrency too.
create or replace function spine.keep_evidence(
    _event bigint, _hash bytea, _event_id text, _source text, _event_type text, _occurred_at timestamptz,
    _payload text, _unqueryable text, _raw_body bytea)
returns text
language plpgsql volatile set search_path = spine, pg_temp as $$
begin
    update conflicts set seen_count = seen_count + 1 where event = _event and payload_hash = _hash;
    if found then
        return 'known';
    end if;
    if (select count(*) from conflicts where event = _event) >= 10 then
        return 'full';
    end if;
    insert into conflicts (event, payload_hash, event_id, source, event_type, occurred_at, payload, unqueryable, raw_body)
    values (_event, _hash, _event_id, _source, _event_type, _occurred_at, _payload::json, _unqueryable, _raw_body);
    return 'kept';
end $$;
comment on function spine.keep_evidence(bigint, bytea, text, text, text, timestamptz, text, text, bytea) is
    'Internal. Called by spine.ingest(): keeps a conflicting payload, once for each distinct hash, at most ten an event. Returns kept, known or full.';
-- What an operator does: replay, pause, resume.

-- replay_rows: puts rows back to pending with their attempts set to 0. Called by replay() and replay_dead(); announces the whole
-- once instead of row by row. Returns how many it replayed; rows that are pending or processing are left alone.
-- Relies on processing_state_pkey.
create or replace function spine.replay_rows(_event bigint[], _destination text[]) returns bigint
language plpgsql set search_path = spine, pg_temp
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off set plan_cache_mode = force_generic_plan as $$
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
            status = 'pending', attempt_count = 0, lease_token = p.lease_token + 1, next_attempt_at = _now,
            completed_at = null, error_message = null, updated_at = _now
        from chosen c
        where p.event = c.event and p.destination = c.destination
        returning p.event, p.event_id, p.source, p.destination, c.status as status_before, c.attempt_count as attempts_before
    ), audited as (
        insert into audit_log (timestamp, event, event_id, source, action, success, details)
        select _now, r.event, r.event_id, r.source, 'event_replayed', 'success',
            jsonb_build_object('destination', r.destination, 'from', r.status_before, 'attempts', r.attempts_before, 'by', session_user)
        from replayed r
    )
    select count(*), (array_agg(r.event_id))[1:5] into _count, _event_ids from replayed r;
    perform set_config('spine.announced', _announced, true);
    if _count > 0 then
        perform announce(_count, _event_ids);
    end if;
    return _count;
end $$;
comment on function spine.replay_rows(bigint[], text[]) is 'Internal. Puts completed, failed and dead rows back to pending with no attempts spent. Returns how many.';

-- replay: delivers an event again, to every destination or to one.
-- Returns how many rows were replayed: 0 when they are pending or processing already. Raises P0002 for an id never stored.
create or replace function spine.replay(_event_id text, _source text default null, _destination text default null) returns bigint
language plpgsql set search_path = spine, pg_temp as $$
declare
    _event bigint := id_of(_event_id, _source);
    _destinations text[];
begin
    select array_agg(p.destination) into _destinations from processing_state p
    where p.event = _event and (_destination is null or p.destination = _destination);
    if _destinations is null then
        raise exception 'event "%" is queued for no destination%', _event_id, coalesce(' ' || quote_literal(_destination), '') using errcode = 'no_data_found';
    end if;
    return replay_rows(array_fill(_event, array[cardinality(_destinations)]), _destinations);
end $$;
comment on function spine.replay(text, text, text) is
    'Delivers an event again, for example: select spine.replay(''test-001''). Rows that are pending or processing are left alone. Returns how many were replayed.';

-- replay_dead: delivers again what died in a span of time, oldest first.
--   _since, _until  when it died: from (inclusive), to (exclusive)
--   _source, _event_type, _destination  only these, where given
--   _limit          how many at most; NULL for all. Call it again until it returns 0, and each call is a transaction of its own.
-- Returns how many were replayed. Relies on processing_state_dead.
create or replace function spine.replay_dead(
    _since timestamptz default '-infinity', _until timestamptz default 'infinity',
    _source text default null, _event_type text default null, _destination text default null, _limit bigint default null)
returns bigint
language plpgsql set search_path = spine, pg_temp as $$
declare
    _chunk constant integer := 1000;
    _events bigint[];
    _destinations text[];
    _total bigint := 0;
begin
    loop
        select array_agg(d.event), array_agg(d.destination) into _events, _destinations from (
            select p.event, p.destination
            from processing_state p join events e on e.id = p.event
            where p.status = 'dead' and p.updated_at >= _since and p.updated_at < _until
                and (_source is null or p.source = _source) and (_destination is null or p.destination = _destination)
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
    'Delivers dead events again, for example: select spine.replay_dead(now() - interval ''1 hour''). Returns how many were replayed.';

-- pause, resume: whether events of a destination (all, where none is named) are claimed. What is in hand is finished, everything
-- goes on being stored. Both return how many destinations they changed.
create or replace function spine.pause(_destination text default null) returns bigint
language plpgsql set search_path = spine, pg_temp as $$
declare
    _changed bigint;
begin
    with paused as (
        update destinations d set paused_at = clock_timestamp(), paused_by = session_user
        where d.paused_at is null and (_destination is null or d.name = _destination)
        returning d.name
    ), audited as (
        insert into audit_log (action, success, details)
        select 'claims_paused', 'success', jsonb_build_object('destination', p.name, 'by', session_user) from paused p
    )
    select count(*) into _changed from paused;
    perform require_destination(_destination);
    return _changed;
end $$;
comment on function spine.pause(text) is 'Stops claims for a destination (all, where none is named) until spine.resume(). Nothing is lost: events go on being stored and queued.';

create or replace function spine.resume(_destination text default null) returns bigint
language plpgsql set search_path = spine, pg_temp as $$
declare
    _changed bigint;
begin
    with resumed as (
        update destinations d set paused_at = null, paused_by = null
        where d.paused_at is not null and (_destination is null or d.name = _destination)
        returning d.name
    ), audited as (
        insert into audit_log (action, success, details)
        select 'claims_resumed', 'success', jsonb_build_object('destination', r.name, 'by', session_user) from resumed r
    )
    select count(*) into _changed from resumed;
    perform require_destination(_destination);
    if _changed > 0 then
        perform announce(0, '{}');
    end if;
    return _changed;
end $$;
comment on function spine.resume(text) is 'Takes up claims again that spine.pause() stopped.';

create or replace function spine.require_destination(_destination text) returns void
language plpgsql stable set search_path = spine, pg_temp as $$
begin
    if _destination is not null and not exists (select from destinations d where d.name = _destination) then
        raise exception 'there is no destination named %', quote_literal(_destination)
            using errcode = 'no_data_found', hint = 'Known: ' || (select string_agg(d.name, ', ' order by d.name) from destinations d);
    end if;
end $$;
comment on function spine.require_destination(text) is 'Internal. Raises P0002 where a named destination does not exist.';
-- The queue: claim, renew, settle, give back. Every write after the claim goes by primary key and lease token and by nothing
-- else: a predicate on status would invite the planner onto a partial index full of dead entries. None of them waits for a row that
-- somebody else has locked, so that a transaction left open in psql holds up its own rows alone, and nothing here can deadlock.

-- claim: leases what is due, oldest first, and takes back leases that ran out.
--   _destination  whose events
--   _limit        how many at most: the caller's free slots
--   _lease        how long the lease holds
--   _worker       who claims, as audited
--   _delays       the retry policy: element n is the delay after failed attempt n; there are cardinality + 1 attempts in all
--   _low          low watermark: nothing due before it is looked at. It spares a walk over dead index entries, and loses nothing only
--                 as long as the caller looks without it now and then.
-- Returns what a delivery needs. A lease that ran out spends its attempt: the row backs off or dies. It counts against _limit and
-- is returned with lease NULL, so that the caller knows how much it looked at.
-- Relies on processing_state_due, processing_state_pkey and events_pkey. A crash after the commit leaves leases that run out.
create or replace function spine.claim(
    _destination text, _limit integer, _lease interval, _worker text,
    _delays interval[] default array['1 s', '2 s', '4 s', '8 s']::interval[], _low timestamptz default '-infinity')
returns table (
    event bigint, lease bigint, attempt integer, due_at timestamptz,
    event_id text, source text, event_type text, occurred_at timestamptz, payload json, raw_body bytea)
language plpgsql set search_path = spine, pg_temp
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    _now timestamptz := clock_timestamp();
    _retries constant integer := coalesce(cardinality(_delays), 0);
begin
    if exists (select from destinations d where d.name = _destination and d.paused_at is not null) then
        return;
    end if;
    return query
    with due as materialized (
        select p.event, p.destination, p.status = 'processing' as lost, p.next_attempt_at as due_at
        from processing_state p
        where p.destination = _destination and p.status in ('pending', 'failed', 'processing')
            and p.next_attempt_at <= _now and p.next_attempt_at >= _low
        order by p.next_attempt_at
        limit _limit
        for update skip locked
    ), claimed as (
        update processing_state p set
            status = 'processing', attempt_count = p.attempt_count + 1, lease_token = p.lease_token + 1,
            next_attempt_at = _now + _lease, last_attempt_at = _now, worker = _worker, updated_at = _now
        from due d
        where p.event = d.event and p.destination = d.destination and not d.lost
        returning p.event, p.event_id, p.source, p.destination, p.attempt_count, p.lease_token, d.due_at
    ), expired as (
        update processing_state p set
            status = case when p.attempt_count > _retries then 'dead' else 'failed' end,
            next_attempt_at = case when p.attempt_count > _retries then null else _now + coalesce(_delays[greatest(p.attempt_count, 1)], '0') end,
            lease_token = p.lease_token + 1, error_message = 'the lease ran out: ' || coalesce(p.worker, 'no worker') || ' did not report back',
            updated_at = _now
        from due d
        where p.event = d.event and p.destination = d.destination and d.lost
        returning p.event, p.event_id, p.source, p.destination, p.attempt_count, p.lease_token - 1 as lease, p.worker, p.status, p.next_attempt_at, p.error_message
    ), audited as (
        insert into audit_log (timestamp, event, event_id, source, action, success, details)
        select _now, c.event, c.event_id, c.source, 'processing_attempt_started', 'pending',
            jsonb_build_object('attempt', c.attempt_count, 'lease', c.lease_token, 'worker', _worker, 'destination', c.destination)
        from claimed c
    ), audited_expiry as (
        insert into audit_log (timestamp, event, event_id, source, action, success, details)
        select _now, a.event, a.event_id, a.source, a.action, a.success, a.details
        from (
            select x.event, step.n, x.event_id, x.source,
                case when step.n = 1 then 'lease_expired' when x.status = 'dead' then 'processing_failed_permanently' else 'retry_scheduled' end as action,
                case when step.n = 1 then 'success' when x.status = 'dead' then 'failure' else 'pending' end as success,
                jsonb_build_object('attempt', x.attempt_count, 'lease', x.lease, 'destination', x.destination) ||
                case when step.n = 1 then jsonb_build_object('worker', x.worker)
                    when x.status = 'dead' then jsonb_build_object('error', x.error_message)
                    else jsonb_build_object('delay_ms', trim_scale(extract(epoch from x.next_attempt_at - _now) * 1000), 'next_attempt_at', x.next_attempt_at) end as details
            from expired x cross join (values (1), (2)) as step(n)
            order by x.event, step.n
        ) a
    )
    select c.event, c.lease_token, c.attempt_count, greatest(c.due_at, 'epoch'), c.event_id, c.source, e.event_type, e.occurred_at, e.payload, e.raw_body
    from claimed c join events e on e.id = c.event
    union all
    select x.event, null, x.attempt_count, null, x.event_id, x.source, null, null, null, null
    from expired x;
end $$;
comment on function spine.claim(text, integer, interval, text, interval[], timestamptz) is
    'Leases due events of a destination to a worker, oldest first, and takes back leases that ran out. Returns what a delivery needs.';

-- next_due: when the next row of a destination falls due: a retry, or the end of a lease. NULL when nothing waits.
-- What was due when the transaction began is looked past. After a claim in the same transaction the answer may therefore lie in the
-- past by a moment: a row that fell due since the claim read the clock, which nobody else would mention.
-- Relies on processing_state_due.
create or replace function spine.next_due(_destination text) returns timestamptz
language plpgsql stable set search_path = spine, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
begin
    return (
        select p.next_attempt_at from processing_state p
        where p.destination = _destination and p.status in ('pending', 'failed', 'processing') and p.next_attempt_at > now()
            and p.next_attempt_at < 'infinity'
        order by p.next_attempt_at limit 1);
end $$;
comment on function spine.next_due(text) is 'When the next retry of a destination falls due or the next lease ends; NULL when nothing waits.';

-- oldest_ready: for how long the oldest claimable row of any destination that is not paused has been due; 0 when none is. Relies on
-- processing_state_due, of which it reads the beginning for each destination. A row that was made due in the infinite past counts
-- from its last change.
create or replace function spine.oldest_ready() returns interval
language plpgsql stable set search_path = spine, pg_temp set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
declare
    _now timestamptz := clock_timestamp();
begin
    return coalesce((
        select max(_now - greatest(o.next_attempt_at, o.updated_at))
        from destinations d cross join lateral (
            select p.next_attempt_at, p.updated_at from processing_state p
            -- The first condition on status is the index's own; without it the index would not be used.
            where p.destination = d.name and p.status in ('pending', 'failed', 'processing') and p.status <> 'processing' and p.next_attempt_at <= _now
            order by p.next_attempt_at limit 1) o
        where d.paused_at is null), '0');
end $$;
comment on function spine.oldest_ready() is 'For how long the oldest claimable row has been due, in destinations that are not paused; 0 when none is.';

-- renew: prolongs leases to _lease from now. Returns for each, by position, whether it is still held: false must be let go of at once;
-- NULL is held as far as can be seen, but somebody else has the row locked and it could not be prolonged.
-- Relies on processing_state_pkey.
create or replace function spine.renew(_event bigint[], _destination text[], _lease_token bigint[], _lease interval) returns boolean[]
language plpgsql set search_path = spine, pg_temp
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
declare
    _now timestamptz := clock_timestamp();
    _held bigint[];
    _locked bigint[];
begin
    with input as materialized (
        select * from unnest(_event, _destination, _lease_token) with ordinality as i(event, destination, lease, ord)
    ), held as materialized (
        select i.*
        from input i join processing_state p on p.event = i.event and p.destination = i.destination
        where p.lease_token = i.lease
        for update of p skip locked
    ), renewed as (
        update processing_state p set next_attempt_at = _now + _lease, updated_at = _now
        from held h
        where p.event = h.event and p.destination = h.destination
        returning h.ord
    )
    select coalesce(array_agg(r.ord), '{}') into _held from renewed r;
    _locked := locked_by_others(_event, _destination, _lease_token, _held);
    return array(select case when n = any (_held) then true when n = any (_locked) then null else false end from generate_series(1, cardinality(_event)) n order by n);
end $$;
comment on function spine.renew(bigint[], text[], bigint[], interval) is
    'Prolongs leases. Returns for each, by position, whether it is still held; NULL where somebody else has the row locked.';

-- locked_by_others: which leases stand as they were and yet were passed over, because somebody else had the row locked. Called by renew()
-- and settle() after their update; being volatile, it sees what was committed meanwhile.
--   _done  positions of the leases that were not passed over
create or replace function spine.locked_by_others(_event bigint[], _destination text[], _lease_token bigint[], _done bigint[]) returns bigint[]
language plpgsql volatile set search_path = spine, pg_temp
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
begin
    if cardinality(_done) = cardinality(_event) then
        return '{}';
    end if;
    return array(
        select i.ord
        from unnest(_event, _destination, _lease_token) with ordinality as i(event, destination, lease, ord)
            join processing_state p on p.event = i.event and p.destination = i.destination and p.lease_token = i.lease
        where i.ord <> all (_done));
end $$;
comment on function spine.locked_by_others(bigint[], text[], bigint[], bigint[]) is 'Internal. Positions of leases that stand, but whose rows somebody else has locked.';

-- settle: records what delivery attempts came to.
--   arrays, one element an attempt:
--   _event, _destination, _lease_token   the lease under which it was made
--   _outcome   completed, failed (to be tried again after _delay) or dead
--   _delay     until the next attempt; only for failed
--   _error     why it was not completed
--   _details   a JSON object for the audit: status, answer, duration_ms
-- Returns for each, by position, whether it counts: its lease was still held, or this very result was settled before (the answer to
-- that commit was lost). A result of a lost lease changes nothing and is audited as lease_lost. NULL: somebody else has the row locked,
-- nothing was decided, and the same call is to be made again later.
-- Relies on processing_state_pkey; on audit_log_event for results that come late.
create or replace function spine.settle(
    _event bigint[], _destination text[], _lease_token bigint[], _outcome text[], _delay interval[], _error text[], _details text[])
returns boolean[]
language plpgsql set search_path = spine, pg_temp
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
declare
    _now timestamptz := clock_timestamp();
    _counted bigint[];
    _locked bigint[];
    _known bigint[];
begin
    with input as materialized (
        select * from unnest(_event, _destination, _lease_token, _outcome, _delay, _error, _details)
            with ordinality as i(event, destination, lease, outcome, delay, error, details, ord)
    ), held as materialized (
        select i.*
        from input i join processing_state p on p.event = i.event and p.destination = i.destination
        where p.lease_token = i.lease
        for update of p skip locked
    ), settled as (
        update processing_state p set
            status = i.outcome, lease_token = p.lease_token + 1,
            next_attempt_at = case when i.outcome = 'failed' then _now + i.delay end,
            completed_at = case when i.outcome = 'completed' then _now end,
            error_message = i.error, updated_at = _now
        from held i
        where p.event = i.event and p.destination = i.destination
        returning i.ord, p.event, p.event_id, p.source, p.destination, p.attempt_count, p.worker, p.next_attempt_at, i.lease, i.outcome, i.delay, i.error, i.details
    ), audited as (
        insert into audit_log (timestamp, event, event_id, source, action, success, details)
        select _now, a.event, a.event_id, a.source, a.action, a.success, a.details
        from (
            select s.ord, step.n, s.event, s.event_id, s.source,
                case when s.outcome = 'completed' then 'processing_succeeded'
                    when step.n = 1 then 'processing_attempt_failed'
                    when s.outcome = 'failed' then 'retry_scheduled'
                    else 'processing_failed_permanently' end as action,
                case when s.outcome = 'completed' then 'success' when step.n = 2 and s.outcome = 'failed' then 'pending' else 'failure' end as success,
                case when step.n = 1 then
                        jsonb_build_object('attempt', s.attempt_count, 'lease', s.lease, 'worker', s.worker, 'destination', s.destination) || s.details::jsonb ||
                        case when s.error is null then '{}' else jsonb_build_object('error', s.error) end
                    when s.outcome = 'failed' then
                        jsonb_build_object('attempt', s.attempt_count, 'delay_ms', trim_scale(extract(epoch from s.delay) * 1000), 'next_attempt_at', s.next_attempt_at)
                    else jsonb_build_object('attempt', s.attempt_count, 'error', s.error) end as details
            from settled s join (values (1), (2)) as step(n) on step.n = 1 or s.outcome <> 'completed'
            order by s.ord, step.n
        ) a
    )
    select coalesce(array_agg(s.ord), '{}') into _counted from settled s;

    if cardinality(_counted) < cardinality(_event) then
        _locked := locked_by_others(_event, _destination, _lease_token, _counted);
        _now := clock_timestamp(); -- later than whatever took the lease
        with late as materialized (
            select i.* from unnest(_event, _destination, _lease_token, _outcome) with ordinality as i(event, destination, lease, outcome, ord)
            where i.ord <> all (_counted || _locked)
        ), known as materialized (
            select l.ord from late l
            where exists (
                select from audit_log a
                where a.event = l.event and a.action in ('processing_succeeded', 'processing_attempt_failed')
                    and a.details @> jsonb_build_object('lease', l.lease, 'destination', l.destination))
        ), audited as (
            insert into audit_log (timestamp, event, event_id, source, action, success, details)
            select _now, p.event, p.event_id, p.source, 'lease_lost', 'success',
                jsonb_build_object('lease', l.lease, 'destination', l.destination, 'outcome', l.outcome)
            from late l join processing_state p on p.event = l.event and p.destination = l.destination
            where l.ord not in (select k.ord from known k)
        )
        select coalesce(array_agg(k.ord), '{}') into _known from known k;
        _counted := _counted || _known;
    end if;
    return array(select case when n = any (_counted) then true when n = any (_locked) then null else false end from generate_series(1, cardinality(_event)) n order by n);
end $$;
comment on function spine.settle(bigint[], text[], bigint[], text[], interval[], text[], text[]) is
    'Records what delivery attempts came to, fenced by their lease tokens. Returns for each, by position, whether it counts; NULL where somebody else has the row locked.';

-- give_back: returns leases of deliveries that were never started, and with each its attempt. Returns how many were still
-- held; a row that somebody else has locked is left to its lease. Relies on processing_state_pkey.
create or replace function spine.give_back(_event bigint[], _destination text[], _lease_token bigint[]) returns bigint
language plpgsql set search_path = spine, pg_temp
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
declare
    _now timestamptz := clock_timestamp();
    _returned bigint;
begin
    with input as materialized (
        select * from unnest(_event, _destination, _lease_token) as i(event, destination, lease)
    ), held as materialized (
        select i.*
        from input i join processing_state p on p.event = i.event and p.destination = i.destination
        where p.lease_token = i.lease
        for update of p skip locked
    ), returned as (
        update processing_state p set
            status = case when p.attempt_count <= 1 then 'pending' else 'failed' end, attempt_count = greatest(p.attempt_count - 1, 0),
            lease_token = p.lease_token + 1, next_attempt_at = _now, updated_at = _now
        from held i
        where p.event = i.event and p.destination = i.destination
        returning p.event, p.event_id, p.source, p.destination, p.attempt_count, p.worker, i.lease
    ), audited as (
        insert into audit_log (timestamp, event, event_id, source, action, success, details)
        select _now, r.event, r.event_id, r.source, 'lease_returned', 'success',
            jsonb_build_object('attempt', r.attempt_count + 1, 'lease', r.lease, 'worker', r.worker, 'destination', r.destination)
        from returned r
    )
    select count(*) into _returned from returned;
    return _returned;
end $$;
comment on function spine.give_back(bigint[], text[], bigint[]) is 'Returns leases whose delivery was never started, without spending an attempt. Returns how many were still held.';
-- The wake-up, and what happens when somebody changes the queue by hand. Row triggers carry a WHEN that is false on the hot
-- path, so that they cost nothing there.

-- announce: sends spine_ready. The message is a hint: count of rows that became claimable and up to five of their event ids.
create or replace function spine.announce(_count bigint, _event_ids text[]) returns void
language plpgsql set search_path = spine, pg_temp as $$
begin
    -- NOTIFY takes less than 8000 bytes: five ids of 255 characters come to 5100 at most.
    perform pg_notify('spine_ready', json_build_object('count', _count, 'event_ids', _event_ids)::text);
end $$;
comment on function spine.announce(bigint, text[]) is 'Internal. Sends NOTIFY spine_ready with a count and up to five event ids.';

-- processing_state_inserted: one notification for each INSERT statement, if anything in it can be claimed now.
create or replace function spine.processing_state_inserted() returns trigger
language plpgsql set search_path = spine, pg_temp as $$
declare
    _now timestamptz := clock_timestamp();
    _count bigint;
begin
    select count(*) into _count from inserted i where i.status in ('pending', 'failed') and i.next_attempt_at <= _now;
    if _count > 0 then
        perform announce(_count, array(select i.event_id from inserted i where i.status in ('pending', 'failed') and i.next_attempt_at <= _now limit 5));
    end if;
    return null;
end $$;
comment on function spine.processing_state_inserted() is 'Internal. Trigger: wakes the workers after every INSERT that queued something claimable.';

create or replace trigger processing_state_inserted after insert on spine.processing_state
    referencing new table as inserted for each statement execute function spine.processing_state_inserted();
comment on trigger processing_state_inserted on spine.processing_state is 'Wakes the workers (NOTIFY spine_ready).';

-- processing_state_claimable: a row was made claimable by an UPDATE, by hand or by a lease given back. A transaction announces its
-- first five rows one by one; more would say nothing new.
create or replace function spine.processing_state_claimable() returns trigger
language plpgsql set search_path = spine, pg_temp as $$
declare
    _announced integer := coalesce(nullif(current_setting('spine.announced', true), ''), '0')::integer;
begin
    if _announced < 5 then
        perform set_config('spine.announced', (_announced + 1)::text, true);
        perform announce(1, array[new.event_id]);
    end if;
    return null;
end $$;
comment on function spine.processing_state_claimable() is 'Internal. Trigger: wakes the workers when an UPDATE makes a row claimable.';

create or replace trigger processing_state_claimable after update on spine.processing_state
    for each row when (
        new.status in ('pending', 'failed') and new.next_attempt_at <= clock_timestamp()
        and (old.status is distinct from new.status or old.next_attempt_at is distinct from new.next_attempt_at))
    execute function spine.processing_state_claimable();
comment on trigger processing_state_claimable on spine.processing_state is 'Wakes the workers when an UPDATE makes a row claimable.';

-- processing_state_find_event: a row inserted by hand names its event by event_id and source; here it gets its key. Rows of
-- spine.ingest() start with lease token 0, those of a hand with a higher default, and that tells them apart.
-- Raises 23503 where there is no such event.
create or replace function spine.processing_state_find_event() returns trigger
language plpgsql set search_path = spine, pg_temp as $$
declare
    _event bigint;
begin
    select e.id into _event from events e where e.event_id = new.event_id and e.source = new.source;
    if _event is null or new.event <> _event then
        raise exception 'there is no event "%" in source "%"', new.event_id, new.source
            using errcode = 'foreign_key_violation', table = 'processing_state', schema = 'spine', hint = arrivals(new.source);
    end if;
    new.event := _event;
    if new.status in ('pending', 'failed', 'processing') then
        new.next_attempt_at := coalesce(new.next_attempt_at, clock_timestamp());
    end if;
    return new;
end $$;
comment on function spine.processing_state_find_event() is 'Internal. Trigger: finds the event of a row inserted by hand, 23503 where there is none.';

create or replace trigger processing_state_find_event before insert on spine.processing_state
    for each row when (new.lease_token > 0) execute function spine.processing_state_find_event();
comment on trigger processing_state_find_event on spine.processing_state is 'Finds the event of a row inserted by hand.';

-- processing_state_queued: audits a row queued by hand.
create or replace function spine.processing_state_queued() returns trigger
language plpgsql set search_path = spine, pg_temp as $$
begin
    insert into audit_log (event, event_id, source, action, success, details)
    values (new.event, new.event_id, new.source, 'event_queued', 'success',
        jsonb_build_object('destination', new.destination, 'status', new.status, 'by', session_user));
    return null;
end $$;
comment on function spine.processing_state_queued() is 'Internal. Trigger: audits a row queued by hand.';

create or replace trigger processing_state_queued after insert on spine.processing_state
    for each row when (new.lease_token > 0) execute function spine.processing_state_queued();
comment on trigger processing_state_queued on spine.processing_state is 'Audits a row queued by hand.';

-- processing_state_changed_by_hand: the functions of the queue raise lease_token with every change of status, a hand does not, and
-- that tells them apart. The change wins: the token is raised here, so that a worker that still holds the row finds its lease void.
-- Set to pending or failed with next_attempt_at left alone, the row is due at once.
create or replace function spine.processing_state_changed_by_hand() returns trigger
language plpgsql set search_path = spine, pg_temp as $$
begin
    update processing_state p set
        lease_token = p.lease_token + 1,
        next_attempt_at = case
            when new.status in ('completed', 'dead') then null
            when new.next_attempt_at is not distinct from old.next_attempt_at then clock_timestamp()
            else coalesce(new.next_attempt_at, clock_timestamp()) end,
        completed_at = case when new.status = 'completed' then coalesce(new.completed_at, clock_timestamp()) end,
        error_message = case when new.status <> 'completed' then new.error_message end,
        updated_at = clock_timestamp()
    where p.event = new.event and p.destination = new.destination;
    insert into audit_log (event, event_id, source, action, success, details)
    values (new.event, new.event_id, new.source, 'status_changed', 'success', jsonb_strip_nulls(jsonb_build_object(
        'from', old.status, 'to', new.status, 'destination', new.destination, 'by', session_user,
        'lease_voided', case when old.status = 'processing' then old.lease_token end)));
    return null;
end $$;
comment on function spine.processing_state_changed_by_hand() is 'Internal. Trigger: a status changed by hand voids the lease, is audited, and wins.';

create or replace trigger processing_state_changed_by_hand after update on spine.processing_state
    for each row when (old.status is distinct from new.status and old.lease_token = new.lease_token)
    execute function spine.processing_state_changed_by_hand();
comment on trigger processing_state_changed_by_hand on spine.processing_state is 'A status changed by hand voids the lease, is audited, and wins.';
-- Views for the operator. All of them stay cheap on large tables: they read partial indexes that hold only what is not done.

create or replace view spine.depth as
select p.destination, p.status, count(*) as count,
    min(p.next_attempt_at) as next_attempt_at, min(p.created_at) as oldest_created_at, d.paused_at
from spine.processing_state p left join spine.destinations d on d.name = p.destination
where p.status in ('pending', 'failed', 'processing')
group by p.destination, p.status, d.paused_at
union all
select p.destination, p.status, count(*), null, min(p.created_at), null
from spine.processing_state p
where p.status = 'dead'
group by p.destination, p.status;
comment on view spine.depth is 'How much of the queue is not done, by destination and status. Completed rows are not counted.';
comment on column spine.depth.destination is 'Where it goes.';
comment on column spine.depth.status is 'pending, failed (to be tried again), processing or dead.';
comment on column spine.depth.count is 'How many rows.';
comment on column spine.depth.next_attempt_at is 'The earliest time at which one of them falls due; for processing, the first lease to end.';
comment on column spine.depth.oldest_created_at is 'When the oldest of them was queued.';
comment on column spine.depth.paused_at is 'Since when claims are paused; NULL while they are not.';

create or replace view spine.dead_letters as
select p.event_id, p.source, e.event_type, p.destination, p.updated_at as died_at, p.attempt_count, p.error_message, p.created_at, p.event
from spine.processing_state p join spine.events e on e.id = p.event
where p.status = 'dead'
order by p.updated_at desc;
comment on view spine.dead_letters is 'What will not be tried again by itself, last died first. spine.replay() and spine.replay_dead() deliver it again.';
comment on column spine.dead_letters.event_id is 'The sender''s id.';
comment on column spine.dead_letters.source is 'Who sent it.';
comment on column spine.dead_letters.event_type is 'What happened, in the sender''s words.';
comment on column spine.dead_letters.destination is 'Where it was to go.';
comment on column spine.dead_letters.died_at is 'When it was given up.';
comment on column spine.dead_letters.attempt_count is 'Attempts that were spent on it.';
comment on column spine.dead_letters.error_message is 'Why the last one failed.';
comment on column spine.dead_letters.created_at is 'When it was queued.';
comment on column spine.dead_letters.event is 'events.id.';

create or replace view spine.stuck as
select p.event_id, p.source, p.destination, p.status, p.attempt_count, p.next_attempt_at as due_at, clock_timestamp() - greatest(p.next_attempt_at, p.updated_at) as overdue,
    case
        when d.paused_at is not null then 'claims are paused since ' || d.paused_at::text || ': select spine.resume()'
        when p.status = 'processing' then 'the lease of ' || coalesce(p.worker, 'a worker') || ' ran out and no worker took it back: is a worker running?'
        else 'due and not claimed: is a worker running, and has it free slots?'
    end as reason,
    p.event
from spine.processing_state p left join spine.destinations d on d.name = p.destination
where p.status in ('pending', 'failed', 'processing') and p.next_attempt_at < clock_timestamp() - interval '10 seconds'
order by p.next_attempt_at;
comment on view spine.stuck is 'What should have been claimed ten seconds ago or longer, and why it may not have been. Normally empty.';
comment on column spine.stuck.event_id is 'The sender''s id.';
comment on column spine.stuck.source is 'Who sent it.';
comment on column spine.stuck.destination is 'Where it goes.';
comment on column spine.stuck.status is 'pending, failed (to be tried again) or processing (its lease ran out).';
comment on column spine.stuck.attempt_count is 'Attempts so far.';
comment on column spine.stuck.due_at is 'When it fell due; for processing, when the lease ran out.';
comment on column spine.stuck.overdue is 'For how long it has been due.';
comment on column spine.stuck.reason is 'Where to look.';
comment on column spine.stuck.event is 'events.id.';
