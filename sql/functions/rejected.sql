-- Requests that were refused, as far as they are kept.

-- keep_rejected: keeps refused requests and holds their sources to their budgets. Arrays, one element a request, then one element a source:
--   _headers  JSON objects as text; what is none is kept as an empty one, so that one request does not fail the others
--   _of       sources whose budgets follow
--   _rows     requests at most, _bytes of their bodies and headers at most, _age for how long
-- What is over the budget goes: the oldest of the cause that has the most, so that a flood of one kind leaves those of another. Two callers
-- take turns for each source. _again says that some were handed in before and nobody knows what came of it: what is there already is left out. Relies on rejected_requests_source; a budget has some thousand rows, so that counting it is cheap.
create or replace function spine.keep_rejected(
    _source text[], _at timestamptz[], _cause text[], _status integer[], _detail text[], _remote text[], _method text[], _target text[], _headers text[], _body bytea[],
    _of text[], _rows integer[], _bytes bigint[], _age interval[], _again boolean)
returns void
language plpgsql set search_path = spine, pg_temp set jit = off as $$
declare
    _budget record;
    _over record;
begin
    perform pg_advisory_xact_lock(hashtextextended('spine.keep_rejected ' || o.source, 0)) from (select unnest(_of) as source order by 1) o;
    insert into rejected_requests (source, at, cause, status, detail, remote, method, target, headers, body, size)
    select g.source, g.at, g.cause, g.status, g.detail, g.remote, g.method, g.target, h.headers::json, g.body, octet_length(g.body) + octet_length(h.headers)
    from unnest(_source, _at, _cause, _status, _detail, _remote, _method, _target, _headers, _body)
        with ordinality as g(source, at, cause, status, detail, remote, method, target, headers, body, ord)
    cross join lateral (select case when unqueryable(g.headers) is null then g.headers else '{}' end as headers) h
    where exists (select from sources s where s.name = g.source) -- it may have been removed meanwhile
        and not (_again and exists (
            select from rejected_requests r
            where r.source = g.source and r.cause = g.cause and r.at = g.at and r.remote = g.remote and r.target = g.target and r.body = g.body))
    order by g.ord;
    for _budget in select b.* from unnest(_of, _rows, _bytes, _age) as b(source, rows, bytes, age) order by b.source loop
        delete from rejected_requests r where r.source = _budget.source and r.at < clock_timestamp() - _budget.age and r.state <> 'requested';
        loop
            -- How much the most frequent cause has to give: down to the next one, or until all fit.
            with kept as (
                select r.cause, count(*) as rows, sum(r.size) as bytes from rejected_requests r where r.source = _budget.source group by r.cause
            ), total as (
                select sum(k.rows) as rows, sum(k.bytes) as bytes from kept k
            )
            select k.cause, t.rows - _budget.rows as rows, t.bytes - _budget.bytes as bytes, k.rows as has,
                greatest(k.rows - coalesce((select o.rows from kept o where o.cause <> k.cause order by o.rows desc limit 1), 0), 1) as lead
            into _over
            from kept k cross join total t
            where t.rows > _budget.rows or t.bytes > _budget.bytes
            order by k.rows desc, k.bytes desc, k.cause
            limit 1;
            exit when not found;
            delete from rejected_requests r where r.id in (
                select o.id from (
                    select x.id, row_number() over oldest as n, coalesce(sum(x.size) over (oldest rows between unbounded preceding and 1 preceding), 0) as before
                    from rejected_requests x where x.source = _budget.source and x.cause = _over.cause
                    window oldest as (order by x.id)
                ) o
                where o.n <= _over.lead and (o.n <= _over.rows or o.before < _over.bytes));
        end loop;
    end loop;
end $$;
comment on function spine.keep_rejected(text[], timestamptz[], text[], integer[], text[], text[], text[], text[], text[], bytea[], text[], integer[], bigint[], interval[], boolean) is
    'Internal. Keeps refused requests within the budgets of their sources.';

-- request_replay: marks requests as to be looked at again, audits that and tells the API processes. Returns how many. What was taken in is left
-- alone, and so is what is marked already, unless with another _trust.
create or replace function spine.request_replay(_ids bigint[], _trust boolean) returns bigint
language plpgsql set search_path = spine, pg_temp as $$
declare
    _count bigint;
begin
    with requested as (
        update rejected_requests r set state = 'requested', trust = _trust, taken_until = null
        where r.id = any (_ids) and (r.state in ('kept', 'refused') or r.state = 'requested' and r.trust <> _trust)
        returning r.id, r.source, r.cause
    ), audited as (
        insert into audit_trail (source, action, details)
        select q.source, 'request_replayed', json_strip_nulls(json_build_object('request', q.id, 'cause', q.cause, 'trust', nullif(_trust, false),
            'by', session_user, 'caller', left(nullif(current_setting('spine.caller', true), ''), 300)))
        from requested q
    )
    select count(*) into _count from requested;
    if _count > 0 then
        perform pg_notify('spine_sources', json_build_object('requested', _count)::text);
    end if;
    return _count;
end $$;
comment on function spine.request_replay(bigint[], boolean) is 'Internal. Marks rejected requests as to be looked at again, audits that and tells the API processes.';

-- replay_rejected: has a request that was refused looked at again, as if it came now but with the time at which it came: after a secret was
-- corrected, for example. _trust takes it in without verifying it. An API process does it (NOTIFY spine_sources) and notes what came of it.
-- What was taken in is left alone. Raises P0002 where there is no such request.
create or replace function spine.replay_rejected(_id bigint, _trust boolean default false) returns void
language plpgsql set search_path = spine, pg_temp as $$
begin
    if not exists (select from rejected_requests r where r.id = _id) then
        raise exception 'no rejected request % is kept', _id using errcode = 'no_data_found';
    end if;
    perform request_replay(array[_id], _trust);
end $$;
comment on function spine.replay_rejected(bigint, boolean) is
    'Has a rejected request looked at again: select spine.replay_rejected(12). An API process does it; state and note in spine.rejected_requests say what came of it.';

-- replay_rejected of many: those of a source, cause and time. Returns how many. What was taken in is left alone.
create or replace function spine.replay_rejected(
    _source text, _cause text default null, _since timestamptz default '-infinity', _until timestamptz default 'infinity', _trust boolean default false)
returns bigint
language sql set search_path = spine, pg_temp as $$
    select request_replay(array(
        select r.id from rejected_requests r
        where (_source is null or r.source = _source) and (_cause is null or r.cause = _cause) and r.at >= _since and r.at < _until
        order by r.id), _trust)
$$;
comment on function spine.replay_rejected(text, text, timestamptz, timestamptz, boolean) is
    'Has the rejected requests of a source looked at again: select spine.replay_rejected(''github'', ''signature_wrong''). Returns how many.';

-- take_requested: hands out up to _limit requests that are to be looked at again, for 30 seconds. Relies on rejected_requests_requested.
create or replace function spine.take_requested(_limit integer)
returns setof spine.rejected_requests
language sql set search_path = spine, pg_temp set enable_seqscan = off as $$
    update rejected_requests r set taken_until = clock_timestamp() + interval '30 seconds'
    from (
        select q.id from rejected_requests q
        where q.state = 'requested' and (q.taken_until is null or q.taken_until < clock_timestamp())
        order by q.id limit _limit for update skip locked
    ) t
    where r.id = t.id
    returning r.*
$$;
comment on function spine.take_requested(integer) is 'Internal. Hands out rejected requests that are to be looked at again.';

-- settle_rejected: notes what came of looking at a request again: taken_in, with the event it is, or refused. _trust is how it was looked at:
-- that it was refused does not count where somebody has asked for it with another one meanwhile.
create or replace function spine.settle_rejected(_id bigint, _state text, _note text, _event_id text, _trust boolean) returns void
language sql set search_path = spine, pg_temp as $$
    update rejected_requests r set state = _state, note = _note, event_id = _event_id, settled_at = clock_timestamp(), taken_until = null
    where r.id = _id and r.state = 'requested' and (r.trust = _trust or _state = 'taken_in')
$$;
comment on function spine.settle_rejected(bigint, text, text, text, boolean) is 'Internal. Notes what came of looking at a rejected request again.';

-- rejected_like: rejected requests in which a text stands, in the body or a header: perhaps the event of that id was among them. Bodies that
-- are compressed cannot be searched. It reads the newest thousand that are kept. Newest first.
create or replace function spine.rejected_like(_text text, _source text default null, _limit integer default 10)
returns table (id bigint, source text, at timestamptz, cause text, status integer, state text)
language sql stable set search_path = spine, pg_temp as $$
    select r.id, r.source, r.at, r.cause, r.status, r.state
    from (select n.* from rejected_requests n where _source is null or n.source = _source order by n.id desc limit 1000) r
    where (position(convert_to(_text, 'UTF8') in r.body) > 0 or position(_text in r.headers::text) > 0 or position(_text in r.target) > 0)
    order by r.id desc limit _limit
$$;
comment on function spine.rejected_like(text, text, integer) is 'Rejected requests, of the newest thousand, in which a text stands: select * from spine.rejected_like(''test-001'').';
