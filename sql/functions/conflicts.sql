-- Conflicts: other payloads that arrived under a known id.

-- as_jsonb: a JSON value that Postgres can query, or NULL where it holds a number that jsonb cannot.
--   _value  the value
-- Reads no table.
create or replace function spine.as_jsonb(_value json) returns jsonb
language plpgsql immutable
set search_path = spine, pg_temp as $$
begin
    return _value::jsonb;
exception when data_exception or program_limit_exceeded then
    return null;
end $$;
comment on function spine.as_jsonb(json) is
    'Internal. A JSON value as jsonb; NULL where a number is beyond that.';

-- comparing: how much work it is to compare two JSON values, in bytes. It is their length, and 20 for each comma: every
-- member but the last of its object or array has one. Of more than 512 KiB the commas are not counted.
--   _was, _is  the two values
-- The variables hold the texts, so that each value is unpacked once. Reads no table.
create or replace function spine.comparing(_was json, _is json) returns bigint
language plpgsql immutable
set search_path = spine, pg_temp as $$
declare
    _first constant text := _was::text;
    _other constant text := _is::text;
    _size constant bigint := octet_length(_first)::bigint + octet_length(_other);
begin
    if _size is null or _size > 524288 then
        return _size;
    end if;
    return _size + 20 * (_size - octet_length(replace(_first, ',', '')) - octet_length(replace(_other, ',', '')));
end $$;
comment on function spine.comparing(json, json) is 'Internal. How much work it is to compare two JSON values.';

-- differences: where two JSON values differ, by JSON pointer (RFC 6901), at most 100 places.
--   _was, _is  the two values
-- A side that is not there is NULL; a JSON null is a value like any other.
-- An object or array that only one of them has is one place. Reads no table.
-- Senders choose the values, so the work is bounded. One place with the path '' and NULL on both sides says that the
-- two are too large to compare:
--   more than 512 KiB in all, where each comma counts 20 bytes more
--   numbers with exponents of three digits, which take that many bytes to write, or more digits than jsonb can hold
--   more than 2,000 values that differ, counting those around them
--   more than 16 levels of nesting; small values may have more, as many as copy 64 KiB
--   a path of more than 2 KiB
--   more than 64 KiB in the places that are shown
create or replace function spine.differences(_was json, _is json) returns table (path text, was json, "is" json)
language sql immutable
set search_path = spine, pg_temp as $$
    with recursive pair as (
        select case
            when comparing(_was, _is) > 524288 then false
            else (_was::text || _is::text) !~ '[[:space:]:,[]-?[0-9]+([.][0-9]+)?[eE][+-]?[0-9]{3}'
        end as fits
    ), whole as materialized (
        select
            case when p.fits then as_jsonb(_was) end as was,
            case when p.fits then as_jsonb(_is) end as "is"
        from pair p
        where p.fits
    ), walk(path, was, "is", level, most) as (
        -- Each level copies no more than the whole.
        select '', o.was, o."is", 0, 16 + 65536 / (pg_column_size(o.was) + pg_column_size(o."is"))
        from whole o
        where o.was is distinct from o."is"
        union all
        select
            w.path || '/' || replace(replace(left(v.key, 2048), '~', '~0'), '/', '~1'),
            v.was,
            v."is",
            w.level + case when octet_length(w.path) + octet_length(v.key) > 2048 then w.most + 1 else 1 end,
            w.most
        from walk w cross join lateral (
            select o.key, w.was -> o.key as was, w."is" -> o.key as "is"
            from (
                select a.key
                from jsonb_object_keys(case when jsonb_typeof(w.was) = 'object' then w.was else '{}' end) a(key)
                union
                select b.key
                from jsonb_object_keys(case when jsonb_typeof(w."is") = 'object' then w."is" else '{}' end) b(key)
            ) o
            where jsonb_typeof(w.was) = 'object' and jsonb_typeof(w."is") = 'object'
            union all
            select (coalesce(a.n, b.n) - 1)::text, a.value, b.value
            from jsonb_array_elements(
                    case when jsonb_typeof(w.was) = 'array' then w.was else '[]' end) with ordinality a(value, n)
                full join jsonb_array_elements(
                    case when jsonb_typeof(w."is") = 'array' then w."is" else '[]' end) with ordinality b(value, n)
                    on b.n = a.n
            where jsonb_typeof(w.was) = 'array' and jsonb_typeof(w."is") = 'array'
        ) v
        where w.level <= w.most and v.was is distinct from v."is"
    ), seen as materialized (
        -- Without an order, so that the walk ends with the row that is one too many.
        select w.* from walk w limit 2001
    ), place as materialized (
        select s.path, s.was, s."is"
        from seen s
        where not coalesce(
            jsonb_typeof(s.was) = jsonb_typeof(s."is") and jsonb_typeof(s.was) in ('object', 'array'),
            false)
        order by s.path
        limit 100
    ), verdict as (
        select (select p.fits from pair p)
            and not exists (
                select
                from whole o
                where o.was is null and _was is not null or o."is" is null and _is is not null)
            and (select count(*) <= 2000 and coalesce(bool_and(s.level <= s.most), true) from seen s)
            and (
                select coalesce(sum(
                    octet_length(p.path)
                    + coalesce(pg_column_size(p.was), 0) + coalesce(pg_column_size(p."is"), 0)), 0) <= 65536
                from place p) as fits
    )
    select p.path, p.was::json, p."is"::json
    from place p
    where (select d.fits from verdict d)
    union all
    select '', null, null
    from verdict d
    where not d.fits and _was is not null and _is is not null
    order by 1
$$;
comment on function spine.differences(json, json) is
    'Where two JSON values differ: JSON pointer, was and is. At most 100 places. It compares numbers by value. '
    'NULL stands for a side that is not there. '
    'One place with the path '''' and NULL on both sides stands for values that are too large to compare.';

-- differences_json: spine.differences() as one array of path, was and is.
--   _was, _is  the two values
-- A side that is not there is left out. NULL where one of the two is NULL, or where they are equal. Reads no table.
create or replace function spine.differences_json(_was json, _is json) returns json
language sql immutable
set search_path = spine, pg_temp as $$
    select json_agg(case
        when d.was is null and d."is" is null then json_build_object('path', d.path)
        when d.was is null then json_build_object('path', d.path, 'is', d."is")
        when d."is" is null then json_build_object('path', d.path, 'was', d.was)
        else json_build_object('path', d.path, 'was', d.was, 'is', d."is")
    end)
    from differences(_was, _is) d
$$;
comment on function spine.differences_json(json, json) is
    'spine.differences() as an array of path, was and is. A side that is not there is left out.';

-- weigh_conflicts: which rows of a page of conflicts are compared.
--   arrays, one element a row, in the order of the page:
--   _event, _payload_hash  the conflict
--   _most    how many bytes both sides of a row have at most that is compared, each comma as 20 more
--   _budget  how many bytes all rows have together that are compared
--   _unpack  how many bytes of compressed payloads are unpacked only to learn their size
-- The verdict is compared, too_large, or crowded: the page has no room for the row. Once the budget is spent, it reads
-- nothing more. A page of more rows then takes no longer. The size of what is not compressed is known without reading
-- it. So it weighs a small row also behind many that unpack to much.
-- Relies on conflicts_pkey and events_pkey. Reads only.
create or replace function spine.weigh_conflicts(
    _event bigint[],
    _payload_hash bytea[],
    _most bigint,
    _budget bigint,
    _unpack bigint)
returns table (n bigint, verdict text)
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan as $$
declare
    _row record;
    _size bigint;
    _spent bigint := 0;
    _unpacked bigint := 0;
begin
    for _row in
        select
            u.n,
            e.payload as first,
            c.payload as other,
            coalesce(octet_length(e.raw_body), 0)::bigint + coalesce(octet_length(c.raw_body), 0) as bodies,
            coalesce(pg_column_size(e.payload), 0)::bigint + coalesce(pg_column_size(c.payload), 0)
            + coalesce(pg_column_size(e.raw_body), 0) + coalesce(pg_column_size(c.raw_body), 0) as stored,
            coalesce(pg_column_compression(e.payload), pg_column_compression(c.payload)) is not null as compressed
        from unnest(_event, _payload_hash) with ordinality as u(event, payload_hash, n)
            join conflicts c on c.event = u.event and c.payload_hash = u.payload_hash
            join events e on e.id = c.event
        order by u.n
    loop
        n := _row.n;
        if _row.stored > _most then
            verdict := 'too_large';
        elsif _spent + _row.stored > _budget or _row.compressed and _unpacked > _unpack then
            verdict := 'crowded';
        else
            if _row.compressed then
                _unpacked := _unpacked
                    + coalesce(octet_length(_row.first::text), 0) + coalesce(octet_length(_row.other::text), 0);
            end if;
            _size := _row.bodies + coalesce(
                comparing(_row.first, _row.other),
                octet_length(_row.first::text),
                octet_length(_row.other::text),
                0);
            if _size > _most then
                verdict := 'too_large';
            else
                _spent := _spent + _size;
                verdict := case when _spent <= _budget then 'compared' else 'crowded' end;
            end if;
        end if;
        return next;
    end loop;
end $$;
comment on function spine.weigh_conflicts(bigint[], bytea[], bigint, bigint, bigint) is
    'Internal. Which rows of a page of conflicts are compared.';

create or replace view spine.conflicting as
select
    c.event_id,
    c.source,
    c.created_at,
    c.seen_count,
    encode(c.payload_hash, 'hex') as payload_hash,
    e.event_type,
    e.created_at as stored_at,
    e.payload as first_payload,
    c.payload as other_payload,
    spine.differences_json(e.payload, c.payload) as differences,
    c.accepted_as,
    c.event
from spine.conflicts c join spine.events e on e.id = c.event
order by c.created_at desc, c.event desc, c.payload_hash desc;
comment on view spine.conflicting is
    'Other payloads that arrived under a known event_id, beside the first. Newest first. '
    'spine.accept_conflict() makes an event of one.';
comment on column spine.conflicting.event_id is 'The sender''s id.';
comment on column spine.conflicting.source is 'Who sent it.';
comment on column spine.conflicting.created_at is 'When the other payload first arrived.';
comment on column spine.conflicting.seen_count is 'How often it arrived.';
comment on column spine.conflicting.payload_hash is 'Its hash, in hex.';
comment on column spine.conflicting.event_type is 'Type of the event that stays.';
comment on column spine.conflicting.stored_at is 'When the event that stays was stored.';
comment on column spine.conflicting.first_payload is 'Payload that stays. NULL where Postgres cannot query it.';
comment on column spine.conflicting.other_payload is 'The other payload. NULL where Postgres cannot query it.';
comment on column spine.conflicting.differences is
    'Where they differ: an array of path (JSON pointer), was and is. See spine.differences_json(). '
    'NULL where Postgres cannot query one of the two.';
comment on column spine.conflicting.accepted_as is
    'event_id of the event that was made of the other payload. NULL if none was.';
comment on column spine.conflicting.event is 'events.id of the event that stays.';

-- accept_conflict: makes an event of another payload that arrived under a known id. Returns the new event_id.
--   _event_id, _source  the known id
--   _payload_hash       first hex digits of the payload's hash; the newest evidence where left out
-- The first event stays, for it was delivered. A destination that goes by the id would drop the other payload under the
-- same one. The new event_id is the old one, a tilde, and eight digits of the hash. Where such an id is another
-- event's, it has more digits, or random ones. A second call changes nothing.
-- Raises P0002 where there is no such evidence, and 21000 where the digits fit several.
-- Relies on events_pkey and conflicts_pkey. A crash before the commit leaves nothing behind.
create or replace function spine.accept_conflict(
    _event_id text,
    _source text default null,
    _payload_hash text default null)
returns text
language plpgsql
set search_path = spine, pg_temp as $$
declare
    _event constant bigint := id_of(_event_id, _source);
    _conflict conflicts;
    _fitting integer;
    _accepted text;
begin
    -- The event's row is locked first, as ingest does it.
    perform from events e where e.id = _event for no key update;
    select count(*) into _fitting
    from conflicts c
    where c.event = _event
        and (_payload_hash is null or starts_with(encode(c.payload_hash, 'hex'), lower(_payload_hash)));
    if _fitting > 1 and _payload_hash is not null then
        raise exception '% payloads that came under "%" have hashes that begin with "%": give more of it',
            _fitting, _event_id, _payload_hash using errcode = 'cardinality_violation';
    end if;
    select c.* into _conflict
    from conflicts c
    where c.event = _event
        and (_payload_hash is null or starts_with(encode(c.payload_hash, 'hex'), lower(_payload_hash)))
    order by c.created_at desc, c.payload_hash
    limit 1;
    if not found then
        raise exception 'no other payload % came under "%"',
            coalesce('with the hash ' || quote_literal(_payload_hash), 'that is kept'),
            _event_id using errcode = 'no_data_found';
    end if;
    if _conflict.accepted_as is not null then
        return _conflict.accepted_as;
    end if;
    select a.id into _accepted
    from (
        select left(_event_id, 254 - n) || '~' || left(encode(_conflict.payload_hash, 'hex'), n), n
        from unnest(array[8, 16, 32, 64]) n
        union all
        select left(_event_id, 217) || '~' || gen_random_uuid(), 100 -- which no sender can foresee
    ) a(id, n)
    where n = 100 or not exists (
        select
        from events e
        where e.event_id = a.id and e.source = _conflict.source and e.payload_hash <> _conflict.payload_hash)
    order by n
    limit 1;
    -- With headers, if only empty ones, since the payload need not be an object.
    if (ingest_events(
        array[_accepted],
        array[_conflict.event_type],
        array[_conflict.occurred_at],
        array[_conflict.payload::text],
        array[_conflict.source],
        array[_conflict.payload_hash],
        array[_conflict.raw_body],
        array[_conflict.unqueryable],
        array['{}']))[1] = 'conflict'
    then
        raise exception 'there is an event "%" already, with a payload of its own', _accepted
            using errcode = 'unique_violation';
    end if;
    update conflicts c set accepted_as = _accepted
    where c.event = _event and c.payload_hash = _conflict.payload_hash;
    insert into audit_trail (event, event_id, source, action, details)
    values (
        _event,
        _conflict.event_id,
        nullif(_conflict.source, 'default'),
        'conflict_accepted',
        json_strip_nulls(json_build_object(
            'payload_hash', encode(_conflict.payload_hash, 'hex'),
            'accepted_as', _accepted,
            'by', session_user,
            'caller', left(nullif(current_setting('spine.caller', true), ''), 300))));
    return _accepted;
end $$;
comment on function spine.accept_conflict(text, text, text) is
    'Makes an event of a payload that arrived under a known id. Spine then delivers it. Returns its event_id. '
    'Example: select spine.accept_conflict(''test-001'').';
