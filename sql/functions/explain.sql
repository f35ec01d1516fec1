-- What an operator must know of an event. psql, the command line, the API and the page get it from spine.explain().

-- exact_time: a time in UTC, to the millisecond.
--   _at  the time
-- Reads no table.
create or replace function spine.exact_time(_at timestamptz) returns text
language sql stable
set search_path = spine, pg_temp as $$
    select case
        when isfinite(_at) then to_char(_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
        else _at::text
    end
$$;
comment on function spine.exact_time(timestamptz) is 'Internal. A time in UTC, to the millisecond.';

-- short_span: a span of time with the digits that matter to a reader, as the command line writes it.
--   _span  the span; its sign does not count
-- Reads no table.
create or replace function spine.short_span(_span interval) returns text
language sql immutable
set search_path = spine, pg_temp as $$
    select case
        when s < 0.01 then trim_scale(round(s * 1000, 2)) || 'ms'
        when s < 1 then round(s * 1000) || 'ms'
        when s < 60 then trim_scale(round(s, 2)) || 's'
        when s < 172800 then
            case when n >= 3600 then n / 3600 || 'h' else '' end
            || case when n % 3600 >= 60 or n >= 3600 and n % 60 > 0 then n % 3600 / 60 || 'm' else '' end
            || case when n % 60 > 0 then n % 60 || 's' else '' end
        else n / 86400 || 'd' || n % 86400 / 3600 || 'h'
    end
    from (select abs(extract(epoch from _span)) as s, round(abs(extract(epoch from _span)))::bigint as n) x
$$;
comment on function spine.short_span(interval) is 'Internal. A span of time with the digits that matter to a reader.';

-- from_now: a time, and how far it is from now.
--   _at  the time
-- Reads no table.
create or replace function spine.from_now(_at timestamptz) returns text
language sql stable
set search_path = spine, pg_temp as $$
    select exact_time(_at) || ' (' || case
        when _at = 'infinity' then 'never'
        when _at = '-infinity' then 'always'
        when _at > clock_timestamp() then 'in ' || short_span(_at - clock_timestamp())
        else short_span(clock_timestamp() - _at) || ' ago'
    end || ')'
$$;
comment on function spine.from_now(timestamptz) is 'Internal. A time, and how far it is from now.';

-- said: a text that somebody else has worded, on one line and short enough for a sentence.
--   _text  the text
--   _most  characters at most
-- Reads no table.
create or replace function spine.said(_text text, _most integer default 160) returns text
language sql immutable
set search_path = spine, pg_temp as $$
    select case when length(t) > _most then left(t, _most - 1) || '…' else t end
    from (select btrim(regexp_replace(left(_text, 2000), '[[:space:]]+', ' ', 'g')) as t) x
$$;
comment on function spine.said(text, integer) is 'Internal. A text of somebody else on one line, cut to a length.';

-- reason: why somebody makes a change, as far as the transaction says: set_config('spine.reason', …, true). Reads no
-- table.
create or replace function spine.reason() returns text
language sql stable
set search_path = spine, pg_temp as $$
    select left(nullif(btrim(current_setting('spine.reason', true)), ''), 300)
$$;
comment on function spine.reason() is 'Internal. Why somebody makes a change, as far as spine.reason says.';

-- command_on: a command line that an operator may paste.
--   _command            such as 'spine replay'
--   _event_id, _source  the event; the command line does not name it where the id needs quotes
-- Reads no table.
create or replace function spine.command_on(_command text, _event_id text, _source text) returns text
language sql immutable
set search_path = spine, pg_temp as $$
    select _command || case
        when _event_id !~ '^[A-Za-z0-9][A-Za-z0-9._:/-]*$' then ''
        when _source = 'default' then ' ' || _event_id
        else format(' %s --source %s', _event_id, _source)
    end
$$;
comment on function spine.command_on(text, text, text) is 'Internal. A command line on an event, to be pasted.';

-- lock_holders: who holds a row that a transaction has locked, changed or deleted and not yet committed.
--   _xmax  xmax of the row: a transaction, or several in one number
-- Anybody sees the pid and the role. Since when the transaction has been open is visible only to its own role and to
-- pg_read_all_stats. A prepared transaction has no pid. A number that is left over from an earlier transaction names
-- nobody, since only a session that has locked something of the table counts. Reads only.
create or replace function spine.lock_holders(_xmax xid) returns table (
    pid integer,
    prepared text,
    role text,
    application text,
    since timestamptz,
    state text)
language plpgsql stable
set search_path = spine, pg_temp as $$
declare
    _holders xid[] := array[_xmax];
begin
    if _xmax = '0'::xid then
        return;
    end if;
    if not exists (select from pg_locks l where l.transactionid = _xmax and l.granted) then
        -- Several sessions that hold one row share a number of another kind, which may be gone by now.
        begin
            _holders := array(select m.xid from pg_get_multixact_members(_xmax) m);
        exception when others then
            return;
        end;
    end if;
    return query
    select distinct
        l.pid,
        x.gid,
        coalesce(a.usename, x.owner)::text,
        nullif(a.application_name, ''),
        coalesce(a.xact_start, x.prepared),
        nullif(a.state, 'active')
    from pg_locks l
    left join pg_stat_activity a on a.pid = l.pid
    left join pg_prepared_xacts x on l.pid is null and x.transaction = l.transactionid
    where l.locktype = 'transactionid'
        and l.transactionid = any (_holders)
        and l.mode = 'ExclusiveLock'
        and l.granted
        and exists (
            select
            from pg_locks r
            where r.virtualtransaction = l.virtualtransaction
                and r.locktype = 'relation'
                and r.relation = 'processing_state'::regclass);
end $$;
comment on function spine.lock_holders(xid) is
    'Internal. Who holds a row that a transaction has locked and not yet committed.';

-- table_lockers: who holds a table so that nothing can be claimed, or stored, in words.
--   _storing  whether also locks count that hinder storing alone
-- Partitions are locked with their table. Reads only: pg_locks.
create or replace function spine.table_lockers(_storing boolean)
returns table (says text, facts jsonb)
language sql stable
set search_path = spine, pg_temp as $$
    select
        format(
            'the table %s is locked (%s) by pid %s%s%s',
            c.relname,
            l.mode,
            coalesce(l.pid::text, 'unknown'),
            coalesce(' of role ' || a.usename, ''),
            coalesce(
                ', since ' || exact_time(a.xact_start),
                ', since when is not known (grant pg_read_all_stats)')),
        jsonb_build_object(
            'table', c.relname,
            'pid', l.pid,
            'role', a.usename,
            'mode', l.mode,
            'since', a.xact_start)
    from pg_locks l
    join pg_class c on c.oid = l.relation
    left join pg_stat_activity a on a.pid = l.pid
    where l.locktype = 'relation'
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
        and c.relnamespace = (select n.oid from pg_namespace n where n.nspname = 'spine')
        and l.granted
        and (
            l.mode = 'AccessExclusiveLock'
                and c.relname in ('events', 'processing_state', 'audit_trail', 'destinations', 'conflicts', 'sources')
            or l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock')
                and (c.relname in ('processing_state', 'audit_trail') or _storing and c.relname = 'events'))
    order by c.relname, l.pid
$$;
comment on function spine.table_lockers(boolean) is
    'Internal. Who holds a table so that nothing can be claimed, or stored, in words.';

-- connected_workers: whether a worker is connected to this database, in words. It goes by the names of sessions, which
-- anybody sees. Reads only.
create or replace function spine.connected_workers() returns text
language sql stable
set search_path = spine, pg_temp as $$
    select case
        when 'spine' = any (a.names) then 'a worker is connected; is it busy with others, or stopping?'
        when 'spine api' = any (a.names)
            then 'no worker seems to be connected: start spine worker, or set DESTINATION_URL'
        -- Every process samples. It may connect under a name of its own.
        when exists (select from depth_state s where s.sampled_at > clock_timestamp() - interval '1 minute')
            then 'is a worker running, has it a destination (DESTINATION_URL), and has it free slots?'
        else 'no process of Spine seems to be connected'
    end
    from (
        select array_agg(s.application_name) as names
        from pg_stat_activity s
        where s.datname = current_database()
            and s.pid <> pg_backend_pid()
            and has_schema_privilege(s.usesysid, 'spine', 'usage') -- others may take any name
    ) a
$$;
comment on function spine.connected_workers() is
    'Internal. Whether a worker is connected to this database, in words.';

-- why_waiting: every cause for which no worker has a row of the queue, or for which it waits. Nothing where a worker
-- may claim it at once.
--   _status, _due, _worker, _xmax  of the row; _due is next_attempt_at
--   _paused_at, _paused_by, _paused_reason  of its destination
-- Causes: paused, locked, table_locked, unclaimed. The views and spine.explain() show all of them. That no worker is
-- connected is said beside any of them. It reads pg_locks only where somebody may hold the row, or where no other cause
-- is known. Reads only.
create or replace function spine.why_waiting(
    _status text,
    _due timestamptz,
    _worker text,
    _xmax xid,
    _paused_at timestamptz,
    _paused_by text,
    _paused_reason text)
returns table (cause text, says text, facts jsonb)
language plpgsql stable
set search_path = spine, pg_temp as $$
declare
    _holder record;
    _known boolean := false;
    _workers text;
begin
    if _status not in ('pending', 'failed', 'processing') then
        return;
    end if;
    if _paused_at is not null and (_status <> 'processing' or _due < clock_timestamp()) then
        _known := true;
        return query select
            'paused',
            'claims are paused since ' || exact_time(_paused_at)
                || coalesce(' by ' || _paused_by, '')
                || coalesce(', because: ' || said(_paused_reason), ', no reason was given')
                || ' (spine resume, or select spine.resume())',
            jsonb_build_object('since', _paused_at, 'by', _paused_by, 'reason', _paused_reason);
    end if;
    for _holder in select * from lock_holders(_xmax) loop
        _known := true;
        -- A process of Spine that claims or settles it at this moment needs nobody's help.
        continue when _holder.application ^@ 'spine' and _holder.since > clock_timestamp() - interval '2 seconds';
        return query select
            'locked',
            case
                when _holder.pid is null then format(
                    'the row is locked by the prepared transaction %L', coalesce(_holder.prepared, 'not known'))
                else format('the row is locked by pid %s', _holder.pid)
                    || case when _holder.pid = pg_backend_pid() then ', your own session,' else '' end
            end
                || coalesce(' of role ' || _holder.role, '')
                || coalesce(' (' || said(_holder.application, 60) || ')', '')
                || coalesce(', ' || _holder.state, '')
                || coalesce(
                    ', since ' || exact_time(_holder.since),
                    ', since when is not known (grant pg_read_all_stats)')
                || case
                    when _holder.pid is null then ': commit or roll it back'
                    else format(': end its transaction there, or select pg_terminate_backend(%s)', _holder.pid)
                end,
            jsonb_build_object(
                'pid', _holder.pid,
                'prepared', _holder.prepared,
                'role', _holder.role,
                'application', _holder.application,
                'since', _holder.since,
                'state', _holder.state);
    end loop;
    if _due > clock_timestamp() - interval '2 seconds' then
        return;
    elsif _known then
        _workers := connected_workers();
        if _workers ^@ 'no ' then
            return query select 'unclaimed', _workers, jsonb_build_object('due', _due, 'worker', _worker);
        end if;
        return;
    end if;
    for _holder in
        select t.says, t.facts from table_lockers(false) t
    loop
        _known := true;
        return query select 'table_locked', _holder.says, _holder.facts;
    end loop;
    if _known then
        return;
    end if;
    return query select
        'unclaimed',
        case
            when _status = 'processing' then
                'the lease of ' || coalesce(said(_worker, 60), 'a worker') || ' ran out and no worker took it back'
            else 'due and not claimed'
        end || ': ' || connected_workers(),
        jsonb_build_object('due', _due, 'worker', _worker);
end $$;
comment on function spine.why_waiting(text, timestamptz, text, xid, timestamptz, text, text) is
    'Internal. Every cause for which a row of the queue waits, in words.';

-- near_ids: stored ids that are like one that is not stored.
--   _event_id  the id that somebody asked for
--   _source    who was said to send it; its ids come first
--   _limit     how many at most
-- Kinds, the likeliest first: the id in another source, as source/event_id, without blanks or quotes; an id with
-- look-alike letters (O and 0, l, I and 1, upper and lower case) in any number of places; one place changed, missing,
-- added or swapped; an id that begins with it.
-- It walks events_event_id_source_key as a tree: it asks which characters follow a prefix that stored ids have, and
-- follows those alone. The walk ends with the longest prefix that is stored. Ten million random ids take some hundred
-- look-ups. It stops after 2,000 of them, half of which are for look-alikes, or after half a second on a slow disk.
-- Relies on events_event_id_source_key. Reads only.
create or replace function spine.near_ids(_event_id text, _source text default null, _limit integer default 5)
returns table (event_id text, source text, kind text)
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = on
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    _until constant timestamptz := clock_timestamp() + interval '500 ms';
    _classes constant text[] := array['0Oo', '1lLIi', '5Ss', '8Bb', '2Zz', '-_'];
    _id constant text := btrim(_event_id, E' \t\r\n"''`,;');
    _length constant integer := length(btrim(_event_id, E' \t\r\n"''`,;'));
    _looks integer := 0;
    _alike text[] := '{}'; -- ids that look alike
    _edited text[] := '{}'; -- ids that may be one edit away
    _open text[] := array['']; -- prefixes that are to be followed
    _prefix text;
    _next text;
    _char text;
    _options text;
    _from text;
    _code integer;
    _found boolean;
begin
    if _length = 0 or length(_event_id) > 300 then
        return;
    end if;

    -- Look-alikes: a depth-first walk, in which each place has the characters that look like it.
    while cardinality(_open) > 0 and clock_timestamp() < _until and _looks < 1000 loop
        _prefix := _open[cardinality(_open)];
        _open := _open[:cardinality(_open) - 1];
        if length(_prefix) = _length then
            _alike := _alike || _prefix;
            exit when cardinality(_alike) >= 20;
            continue;
        end if;
        _char := substr(_id, length(_prefix) + 1, 1);
        select string_agg(distinct o.c, '') into _options
        from (
            select _char as c
            union all
            select lower(_char)
            union all
            select upper(_char)
            union all
            select r.c
            from unnest(_classes) k cross join lateral regexp_split_to_table(k, '') r(c)
            where position(_char in k) > 0
        ) o
        where length(o.c) = 1;
        for _char in select regexp_split_to_table(_options, '') loop
            _looks := _looks + 1;
            select e.event_id into _next
            from events e
            where e.event_id >= _prefix || _char
            order by e.event_id
            limit 1;
            if starts_with(_next, _prefix || _char) then
                _open := _open || (_prefix || _char);
            end if;
        end loop;
    end loop;

    -- One edit: for each prefix that is stored, the characters that follow it. Very short ids are all alike.
    for _place in 0.._length loop
        exit when _length < 3;
        _prefix := left(_id, _place);
        _edited := _edited
            || (_prefix || substr(_id, _place + 2)) -- a character too many
            || (_prefix || substr(_id, _place + 2, 1) || substr(_id, _place + 1, 1) || substr(_id, _place + 3));
        _from := _prefix;
        _found := false;
        loop
            _looks := _looks + 1;
            exit when _looks >= 2000 or clock_timestamp() >= _until;
            _next := null;
            select e.event_id into _next from events e where e.event_id >= _from order by e.event_id limit 1;
            exit when _next is null or not starts_with(_next, _prefix);
            _found := true;
            _char := substr(_next, _place + 1, 1);
            if _char = '' then -- the prefix itself is an id
                _from := _prefix || E'\x01';
                continue;
            end if;
            _edited := _edited
                || (_prefix || _char || substr(_id, _place + 2)) -- another character
                || (_prefix || _char || substr(_id, _place + 1)); -- a character that is missing
            _code := ascii(_char);
            exit when _code >= 1114111;
            _from := _prefix || chr(case when _code = 55295 then 57344 else _code + 1 end);
        end loop;
        exit when not _found; -- no stored id begins so
        exit when _looks >= 2000 or clock_timestamp() >= _until;
    end loop;

    return query
    with candidate as (
        select e.event_id, e.source, 1 as rank, 'other_source' as kind
        from events e
        where e.event_id = _event_id and e.source is distinct from _source
        union all
        select e.event_id, e.source, 2, 'source_and_id'
        from events e
        where e.event_id = substr(_id, position('/' in _id) + 1)
            and e.source = left(_id, position('/' in _id) - 1)
            and position('/' in _id) > 1
        union all
        select e.event_id, e.source, 3, 'looks_alike'
        from events e
        where e.event_id = any (_alike || _id) and e.event_id <> _event_id
        union all
        select e.event_id, e.source, 4, 'one_edit'
        from events e
        where e.event_id = any (_edited) and e.event_id <> _event_id
        union all
        select b.event_id, b.source, 5, 'longer'
        from (
            select e.event_id, e.source
            from events e
            where _length >= 4 and e.event_id > _id and e.event_id < _id || chr(1114111)
            order by e.event_id, e.source
            limit _limit
        ) b
    )
    select n.event_id, n.source, n.kind
    from (
        select distinct on (c.event_id, c.source) c.*
        from candidate c
        order by c.event_id, c.source, c.rank
    ) n
    order by n.rank, n.source is distinct from _source, n.event_id, n.source
    limit _limit;
end $$;
comment on function spine.near_ids(text, text, integer) is
    'Stored ids that are like one that is not stored. Look-alike letters, one edit, another source, or a longer id. '
    'Example: select * from spine.near_ids(''7701'').';

-- disabled_sources: which sources are disabled, since when, by whom and why. Five at most.
--   _source  only this one; all where NULL
-- Relies on sources_pkey. Reads only.
create or replace function spine.disabled_sources(_source text) returns table (says text, facts jsonb)
language sql stable
set search_path = spine, pg_temp as $$
    select
        format(
            'Source "%s" is disabled since %s%s%s',
            s.name,
            exact_time(s.disabled_at),
            coalesce(' by ' || s.disabled_by, ''),
            coalesce(', because: ' || said(s.disabled_reason), ', no reason was given')),
        jsonb_build_object(
            'source', s.name,
            'since', s.disabled_at,
            'by', s.disabled_by,
            'reason', s.disabled_reason)
    from sources s
    where s.disabled_at is not null and (_source is null or s.name = _source)
    order by s.name
    limit 5
$$;
comment on function spine.disabled_sources(text) is
    'Internal. Which sources are disabled, since when, by whom and why.';

-- were_disabled: when sources were disabled that take events again, by whom and why. Five at most, the last first.
--   _source  only this one; all where NULL
-- Relies on sources_pkey. Reads only.
create or replace function spine.were_disabled(_source text) returns table (says text, facts jsonb)
language sql stable
set search_path = spine, pg_temp as $$
    select
        format(
            'Source "%s" was disabled from %s to %s%s%s',
            s.name,
            exact_time(b.since),
            exact_time(b.until),
            coalesce(' by ' || b."by", ''),
            coalesce(', because: ' || said(b.reason), ', no reason was given')),
        jsonb_build_object('source', s.name, 'since', b.since, 'until', b.until, 'by', b."by", 'reason', b.reason)
    from sources s cross join lateral jsonb_to_recordset(s.disabled_before)
        as b(since timestamptz, until timestamptz, "by" text, reason text)
    where _source is null or s.name = _source
    order by b.until desc, s.name
    limit 5
$$;
comment on function spine.were_disabled(text) is
    'Internal. When sources were disabled that take events again, by whom and why.';

-- explain_missing: what is known of an id that is not stored.
--   _event_id, _source  as for explain()
-- Topics: not_stored, near, rejected, disabled, arrivals. Where one stored id is near, it says how far that event is.
-- Of rejected requests it reads five bodies at most. Relies on events_event_id_source_key and rejected_requests_words.
-- Reads only.
create or replace function spine.explain_missing(_event_id text, _source text default null)
returns table (topic text, destination text, says text, facts jsonb)
language plpgsql stable
set search_path = spine, pg_temp
set jit = off as $$
declare
    _expired constant timestamptz := (select r.expired_at from retention_state r);
    _before constant timestamptz := (select r.before from retention_state r);
    _ids text[];
    _sources text[];
    _kinds text[];
begin
    return query select
        'not_stored',
        null,
        format('event "%s" %s%s', _event_id, case
            when _expired is null then 'was never stored'
            else 'is not stored, or retention removed it'
        end, coalesce(' in source "' || _source || '"', '')) || case
            when _expired is not null then format(
                ': it removes finished events from before %s, and did so last at %s. '
                    'Their steps may still be in spine.audit_log',
                exact_time(_before),
                exact_time(_expired))
            else ''
        end,
        jsonb_build_object('event_id', _event_id, 'source', _source, 'expired_at', _expired, 'expired_before', _before);
    select array_agg(n.event_id), array_agg(n.source), array_agg(n.kind) into _ids, _sources, _kinds
    from near_ids(_event_id, _source) n;
    return query select
        'near',
        null,
        case n.kind
            when 'other_source' then format('Source "%s" has an event with this id', n.source)
            when 'source_and_id' then format(
                'Event "%s" of source "%s" is stored: a destination sees it as source/event_id', n.event_id, n.source)
            when 'looks_alike' then format('"%s" of source "%s" looks like it and is stored', n.event_id, n.source)
            when 'one_edit' then format('"%s" of source "%s" differs in one place and is stored', n.event_id, n.source)
            else format('"%s" of source "%s" begins with it and is stored', n.event_id, n.source)
        end || coalesce(', ' || p.status, ''),
        jsonb_build_object('event_id', n.event_id, 'source', n.source, 'kind', n.kind, 'status', p.status)
    from unnest(_ids, _sources, _kinds) with ordinality n(event_id, source, kind, ord)
    left join lateral (
        select string_agg(
            p.status || case p.destination when 'default' then '' else ' at ' || p.destination end,
            ', ' order by p.destination) as status
        from events e join processing_state p on p.event = e.id
        where e.event_id = n.event_id and e.source = n.source
    ) p on true
    order by n.ord;
    if cardinality(_ids) = 1 then -- it is likely to be the one that was meant
        return query select
            'near',
            x.destination,
            format('"%s": %s', _ids[1], x.says),
            x.facts || jsonb_build_object('event_id', _ids[1], 'source', _sources[1], 'topic', x.topic)
        from explain(_ids[1], _sources[1]) x
        where x.topic not in ('stored', 'sampled', 'disabled', 'conflict');
    end if;
    return query select
        'rejected',
        null,
        format(
            'Request %s of source "%s" at %s %s and was rejected: %s %s, %s',
            r.id,
            r.source,
            exact_time(r.at),
            case
                when position(convert_to(btrim(_event_id), 'UTF8') in r.body) > 0
                    or position(btrim(_event_id) in r.headers::text) > 0
                then 'has this id in it'
                else 'may have been it'
            end,
            r.status,
            r.cause,
            rtrim(said(r.detail, 300), '.'))
            || case r.state
                when 'taken_in' then format('; it was replayed and stored as "%s"', r.event_id)
                when 'refused' then '; it was replayed and rejected again'
                when 'requested' then '; it is to be replayed'
                else format(' (spine rejected show %s)', r.id)
            end,
        jsonb_build_object(
            'id', r.id,
            'source', r.source,
            'at', r.at,
            'status', r.status,
            'cause', r.cause,
            'detail', r.detail,
            'state', r.state,
            'event_id', r.event_id)
    from rejected_like(_event_id, _source, 5) l join rejected_requests r on r.id = l.id
    order by r.id desc;
    return query select 'disabled', null, d.says, d.facts from disabled_sources(_source) d;
    return query select 'disabled', null, d.says, d.facts from were_disabled(_source) d;
    return query select 'arrivals', null, rtrim(arrivals(_source), '.'), jsonb_build_object('source', _source);
end $$;
comment on function spine.explain_missing(text, text) is 'Internal. What is known of an id that is not stored.';

-- explain: what an operator must know of an event, in sentences, each with its facts as JSON.
--   _event_id  the sender's id
--   _source    who sent it; may be left out where one source alone has the id
-- Topics of an id that is not stored: those of explain_missing(). Of an id in several sources: ambiguous. Of a stored
-- event: stored, disabled; for each destination attempts, standing, by_hand, and its causes to wait: paused, locked,
-- table_locked, unclaimed, delayed; for each other payload conflict. A standing without a cause to wait needs nobody.
-- Payloads of 200 kB together are compared, larger ones are not. It waits 2 seconds for a table that somebody has
-- locked. Then it says table_locked and no more. Relies on events_event_id_source_key,
-- processing_state_pkey, audit_trail_event and conflicts_pkey. Reads only.
create or replace function spine.explain(_event_id text, _source text default null)
returns table (topic text, destination text, says text, facts jsonb)
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set lock_timeout = '2s'
set plan_cache_mode = force_custom_plan as $$
declare
    _ids bigint[];
    _sources text[];
    _stored events;
    _trail jsonb;
    _row record;
    _last record;
    _open bigint;
    _where text;
    _retry jsonb;
    _delay interval;
begin
    begin -- The tables stay locked for reading until the end, so nothing below waits.
        perform
        from events, processing_state, destinations, only audit_trail, conflicts, sources, rejected_requests,
            retention_state, arrivals_watermark
        where false;
        select array_agg(e.id order by e.source), array_agg(e.source order by e.source) into _ids, _sources
        from events e
        where e.event_id = _event_id and (_source is null or e.source = _source);
        if cardinality(_ids) = 1 then
            select jsonb_agg(jsonb_build_object(
                'timestamp', t.timestamp,
                'id', t.id,
                'action', t.action,
                'details', t.details::text::jsonb)) into _trail
            from steps_of(_ids[1], _ids[1], trail_start(_ids[1]), delivered_until(_ids[1])) t
            where t.action not in ('event_received', 'event_deduped', 'conflict_detected');
        end if;
    exception when lock_not_available then
        return query select 'table_locked', null::text, t.says, t.facts from table_lockers(false) t;
        if not found then
            return query select
                'table_locked',
                null::text,
                'a table of Spine was locked for 2 seconds: ask again',
                jsonb_build_object('table', null);
        end if;
        return;
    end;
    if _ids is null then
        return query select * from explain_missing(_event_id, _source);
        return;
    elsif cardinality(_ids) > 1 then
        return query select
            'ambiguous',
            null::text,
            format('event "%s" exists in the sources %s: name one', _event_id, array_to_string(_sources, ', ')),
            jsonb_build_object('sources', _sources);
        return;
    end if;
    select e.* into _stored from events e where e.id = _ids[1];
    return query select
        'stored',
        null::text,
        format(
            'stored %s in source "%s", received %s',
            from_now(_stored.created_at),
            _stored.source,
            case _stored.seen_count when 1 then 'once' else _stored.seen_count || ' times' end),
        jsonb_build_object(
            'source', _stored.source,
            'stored_at', _stored.created_at,
            'seen_count', _stored.seen_count);
    if _stored.seen_count > 1000 then
        return query select
            'sampled',
            null::text,
            format(
                'the trail has the first 1,000 arrivals and a sample of the others, which are in spine.audit_log '
                    'where event = -%s',
                _stored.id),
            jsonb_build_object('event', -_stored.id, 'trailed', trailed(_stored.seen_count));
    end if;
    return query select 'disabled', null::text, d.says, d.facts from disabled_sources(_stored.source) d;

    select count(*) filter (where c.accepted_as is null) into _open from conflicts c where c.event = _stored.id;
    for _row in
        select p.*, p.xmax as holder, d.paused_at, d.paused_by, d.paused_reason
        from processing_state p left join destinations d on d.name = p.destination
        where p.event = _stored.id
        order by p.destination
    loop
        _where := case when _row.destination = 'default' then '' else ' at ' || _row.destination end;
        with mine as materialized (
            select t.*
            from jsonb_to_recordset(_trail) as t("timestamp" timestamptz, id bigint, action text, details jsonb)
            where coalesce(t.details ->> 'destination', 'default') = _row.destination
        )
        select
            (
                select count(*) from mine m where m.action = 'event_replayed'
            ) as replays,
            (
                select coalesce(sum(case
                    when jsonb_typeof(m.details -> 'attempts') = 'number' then (m.details ->> 'attempts')::numeric
                end), 0)::bigint
                from mine m
                where m.action = 'event_replayed'
            ) as attempts_before,
            (
                select to_jsonb(l)
                from (
                    select m.timestamp, m.action, m.details
                    from mine m
                    where m.action in (
                        'event_inserted', 'event_queued', 'processing_attempt_started', 'processing_succeeded',
                        'processing_failed_permanently', 'retry_scheduled', 'delivery_deferred', 'lease_expired',
                        'lease_returned', 'status_changed', 'event_replayed')
                    order by m.timestamp desc, m.id desc
                    limit 1
                ) l
            ) as last,
            (
                select to_jsonb(l)
                from (
                    select m.timestamp, m.action, m.details
                    from mine m
                    where m.action in ('retry_scheduled', 'delivery_deferred')
                    order by m.timestamp desc, m.id desc
                    limit 1
                ) l
            ) as retry
        into _last;
        return query select
            'attempts',
            _row.destination,
            case
                when _last.replays > 0 then format(
                    '%s since the replay, %s in all',
                    _row.attempt_count || case _row.attempt_count when 1 then ' attempt' else ' attempts' end,
                    _row.attempt_count + _last.attempts_before)
                else _row.attempt_count || case _row.attempt_count when 1 then ' attempt' else ' attempts' end
            end || case when _row.deferrals > 0
                then format(
                    ' counted; %s in a row did not reach the destination, the first at %s: given up 72 hours after it',
                    _row.deferrals,
                    exact_time(_row.deferred_since))
                else ''
            end,
            jsonb_build_object(
                'deferrals', coalesce(_row.deferrals, 0),
                'deferred_since', _row.deferred_since,
                'since_replay', _row.attempt_count,
                'all', _row.attempt_count + _last.attempts_before,
                'replays', _last.replays);
        return query select
            'standing',
            _row.destination,
            case _row.status
                when 'completed' then 'completed' || _where || coalesce(
                    ' ' || exact_time(_row.completed_at) || case
                        when isfinite(_row.completed_at)
                            and isfinite(_row.created_at)
                            and _row.completed_at >= _row.created_at
                        then ', ' || short_span(_row.completed_at - _row.created_at) || ' after it was queued'
                        else ''
                    end,
                    '') || case
                        when _open > 0 then ', but another payload under this id was not delivered'
                        else ', nothing more to do'
                    end
                when 'dead' then 'dead' || _where || ' since ' || exact_time(_row.updated_at)
                    || format(
                        ', not tried again by itself (%s)',
                        command_on('spine replay', _stored.event_id, _stored.source))
                    || coalesce(': ' || said(_row.error_message), '')
                when 'processing' then format(
                    'attempt %s%s is in the hands of %s, whose lease %s %s',
                    _row.attempt_count,
                    _where,
                    coalesce(said(_row.worker, 60), 'a worker'),
                    case when _row.next_attempt_at < clock_timestamp() then 'ended' else 'ends' end,
                    coalesce(from_now(_row.next_attempt_at), 'at no set time'))
                else format(
                    'attempt %s%s is due %s',
                    _row.attempt_count + 1,
                    _where,
                    coalesce(from_now(_row.next_attempt_at), 'at no set time'))
                    || coalesce(': ' || said(_row.error_message), '')
            end,
            jsonb_build_object('status', _row.status, 'next_attempt_at', _row.next_attempt_at);
        if _last.last ->> 'action' in ('status_changed', 'event_queued') then
            return query select
                'by_hand',
                _row.destination,
                case _last.last ->> 'action'
                    when 'status_changed' then format(
                        'the status was set from %s to %s by hand',
                        _last.last -> 'details' ->> 'from',
                        _last.last -> 'details' ->> 'to')
                    else format('it was queued by hand as %s', _last.last -> 'details' ->> 'status')
                end || _where
                    || coalesce(' by ' || (_last.last -> 'details' ->> 'by'), '')
                    || coalesce(' for ' || (_last.last -> 'details' ->> 'caller'), '')
                    || ' at ' || exact_time((_last.last ->> 'timestamp')::timestamptz)
                    || coalesce(', because: ' || said(_last.last -> 'details' ->> 'reason'), ', no reason was given'),
                (_last.last -> 'details') || jsonb_build_object('at', _last.last -> 'timestamp');
        end if;
        return query select w.cause, _row.destination, w.says, w.facts
        from why_waiting(
            _row.status,
            _row.next_attempt_at,
            _row.worker,
            _row.holder,
            _row.paused_at,
            _row.paused_by,
            _row.paused_reason) w;
        if _row.status in ('pending', 'failed') and _row.next_attempt_at > clock_timestamp() then
            _retry := _last.retry -> 'details';
            _delay := case
                when jsonb_typeof(_retry -> 'delay_ms') = 'number'
                then (_retry ->> 'delay_ms')::numeric * interval '1 ms'
            end;
            return query select
                'delayed',
                _row.destination,
                case
                    -- A time that the step does not bear out was set by hand.
                    when _row.status = 'failed'
                        and isfinite(_row.next_attempt_at)
                        and abs(extract(epoch from
                            _row.next_attempt_at - (_last.retry ->> 'timestamp')::timestamptz - _delay)) < 2
                    then format(
                        'it waits for %s, %s',
                        short_span(_delay),
                        case
                            when _last.retry ->> 'action' = 'delivery_deferred'
                                then 'because the destination was not reached'
                            when _retry ->> 'reason' = 'Retry-After'
                                then 'because the destination asked for that (Retry-After)'
                            when _retry ->> 'reason' is null
                                then format(
                                    'as the retry policy or the destination said after attempt %s',
                                    coalesce(_retry ->> 'attempt', '?'))
                            else format(
                                'as the retry policy says after attempt %s', coalesce(_retry ->> 'attempt', '?'))
                        end)
                    when _row.next_attempt_at <= _row.updated_at
                    then 'the clock of the database was set back since it fell due'
                    else 'somebody set next_attempt_at by hand, which the audit log does not note'
                end,
                jsonb_build_object('until', _row.next_attempt_at, 'retry', _retry);
        end if;
    end loop;
    if not found then
        return query select
            'standing',
            null::text,
            'stored, and queued for no destination',
            jsonb_build_object('status', null);
    end if;

    return query
    select
        'conflict',
        null::text,
        format(
            'another payload came %s, first %s; ',
            case c.seen_count when 1 then 'once' else c.seen_count || ' times' end,
            exact_time(c.created_at)) || case
            when _stored.payload is null or c.payload is null then 'one of the two is kept as bytes, not compared'
            when octet_length(_stored.payload::text) + octet_length(c.payload::text) > 200000 or d.too_large
                then 'the two are too large to compare here'
            when d.count = 0 then 'it differs in how it is written, and in no value'
            else 'it differs at ' || d.words || case
                when d.count > 10 then format(' and %s%s more places', d.count - 10, case
                    when d.count >= 100 then ' or'
                    else ''
                end)
                else ''
            end
        end || coalesce(
            '; accepted as "' || c.accepted_as || '"',
            format(
                '; not delivered (%s)',
                command_on('spine conflicts accept', _stored.event_id, _stored.source))),
        jsonb_build_object(
            'payload_hash', encode(c.payload_hash, 'hex'),
            'seen_count', c.seen_count,
            'first_at', c.created_at,
            'accepted_as', c.accepted_as,
            'differences', d.list,
            'places', d.count)
    from conflicts c cross join lateral (
        select
            count(*) as count,
            bool_or(f.too_large) as too_large,
            coalesce(jsonb_agg(f.place order by f.n) filter (where f.n <= 10), '[]') as list,
            string_agg(f.words, ', ' order by f.n) filter (where f.n <= 10) as words
        from (
            select
                row_number() over (order by x.path) as n,
                x.path = '' and x.was is null and x."is" is null as too_large,
                jsonb_build_object('path', x.path)
                    || case when x.was is null then '{}' else jsonb_build_object('was', x.was) end
                    || case when x."is" is null then '{}' else jsonb_build_object('is', x."is") end as place,
                case x.path when '' then '/' else said(x.path, 80) end || ': '
                    || coalesce(said(x.was::text, 40), 'absent') || ' -> '
                    || coalesce(said(x."is"::text, 40), 'absent') as words
            from differences(_stored.payload, c.payload) x
        ) f
        where octet_length(_stored.payload::text) + octet_length(c.payload::text) <= 200000
    ) d
    where c.event = _stored.id
    order by c.created_at, c.payload_hash;
end $$;
comment on function spine.explain(text, text) is
    'What an operator must know of an event, in sentences. Whether it is stored, or what may have become of it; '
    'why it waits and for whom; what a conflict differs in. Example: select says from spine.explain(''test-001'').';

-- tell: raises the sentences of explain() as notices, which psql prints above the rows.
--   _event_id, _source  as for explain()
-- Reads only.
create or replace function spine.tell(_event_id text, _source text) returns void
language plpgsql stable
set search_path = spine, pg_temp as $$
declare
    _sentence text;
begin
    for _sentence in select x.says from explain(_event_id, _source) x loop
        raise notice '%', _sentence;
    end loop;
end $$;
comment on function spine.tell(text, text) is 'Internal. Raises the sentences of spine.explain() as notices.';
