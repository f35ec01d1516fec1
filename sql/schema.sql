--
-- PostgreSQL database dump
--

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: spine; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA spine;


--
-- Name: SCHEMA spine; Type: COMMENT; Schema: -; Owner: -
--

COMMENT ON SCHEMA spine IS 'Spine, a webhook inbox: events are stored once, queued, delivered, audited.';


--
-- Name: audit_action; Type: TYPE; Schema: spine; Owner: -
--

CREATE TYPE spine.audit_action AS ENUM (
    'event_received',
    'event_inserted',
    'event_deduped',
    'conflict_detected',
    'event_queued',
    'processing_attempt_started',
    'processing_attempt_failed',
    'retry_scheduled',
    'processing_succeeded',
    'processing_failed_permanently',
    'lease_expired',
    'lease_returned',
    'lease_lost',
    'status_changed',
    'event_replayed',
    'request_rejected',
    'claims_paused',
    'claims_resumed',
    'events_expired',
    'audit_expired',
    'source_added',
    'source_changed',
    'source_disabled',
    'source_enabled',
    'source_removed',
    'request_replayed',
    'conflict_accepted',
    'delivery_deferred'
);


--
-- Name: TYPE audit_action; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TYPE spine.audit_action IS 'What a step of the audit log says. sql/README.md has a line for each, and the transition that it stands for.';


--
-- Name: accept_conflict(text, text, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.accept_conflict(_event_id text, _source text DEFAULT NULL::text, _payload_hash text DEFAULT NULL::text) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION accept_conflict(_event_id text, _source text, _payload_hash text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.accept_conflict(_event_id text, _source text, _payload_hash text) IS 'Makes an event of a payload that arrived under a known id. Spine then delivers it. Returns its event_id. Example: select spine.accept_conflict(''test-001'').';


--
-- Name: announce(bigint, text[], timestamp with time zone); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.announce(_count bigint, _event_ids text[], _due timestamp with time zone) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    -- NOTIFY takes less than 8000 bytes: five ids of 255 characters come to 5100 at most.
    perform hint('spine_ready', json_build_object('count', _count, 'event_ids', _event_ids, 'due', _due)::text);
end $$;


--
-- Name: FUNCTION announce(_count bigint, _event_ids text[], _due timestamp with time zone); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.announce(_count bigint, _event_ids text[], _due timestamp with time zone) IS 'Internal. Sends NOTIFY spine_ready: a count, up to five event ids, the oldest due time.';


--
-- Name: arrivals(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.arrivals(_source text DEFAULT NULL::text) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select coalesce(
        string_agg(
            format(
                'Source %s: %s.',
                s.name,
                coalesce('last arrival ' || exact_time(last_arrival(s.name)), 'nothing of it is stored yet')),
            ' ' order by s.name),
        format('There is no source named "%s".', _source))
    from sources s
    where _source is null or s.name = _source
$$;


--
-- Name: FUNCTION arrivals(_source text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.arrivals(_source text) IS 'Internal. When a source last sent a new event, in words. All sources where none is named.';


--
-- Name: as_jsonb(json); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.as_jsonb(_value json) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    return _value::jsonb;
exception when data_exception or program_limit_exceeded then
    return null;
end $$;


--
-- Name: FUNCTION as_jsonb(_value json); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.as_jsonb(_value json) IS 'Internal. A JSON value as jsonb; NULL where a number is beyond that.';


--
-- Name: audit_begins(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.audit_begins() RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select coalesce(min(p.since), 'infinity') from audit_partitions() p
$$;


--
-- Name: FUNCTION audit_begins(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.audit_begins() IS 'Internal. A time before which only the default partition of the audit log has steps.';


--
-- Name: audit_partitions(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.audit_partitions() RETURNS TABLE(partition regclass, name name, since timestamp with time zone, until timestamp with time zone)
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO'
    AS $$
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


--
-- Name: FUNCTION audit_partitions(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.audit_partitions() IS 'Internal. The partitions of the audit log with their spans of time.';


--
-- Name: audit_since(xid8); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.audit_since(_position xid8) RETURNS timestamp with time zone
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'spine', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
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


--
-- Name: FUNCTION audit_since(_position xid8); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.audit_since(_position xid8) IS 'Internal. A time before which the audit log has no steps of a position or later ones.';


--
-- Name: audit_stretches(timestamp with time zone, timestamp with time zone); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.audit_stretches(_since timestamp with time zone, _until timestamp with time zone DEFAULT 'infinity'::timestamp with time zone) RETURNS TABLE(since timestamp with time zone, until timestamp with time zone)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION audit_stretches(_since timestamp with time zone, _until timestamp with time zone); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.audit_stretches(_since timestamp with time zone, _until timestamp with time zone) IS 'Internal. Spans of time in which a reader of the audit log takes its locks.';


--
-- Name: audited_beyond(xid8, xid8[]); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.audited_beyond(_next_xid xid8, _in_progress xid8[]) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
declare
    _end constant xid8 := trail_end();
    _since constant timestamptz := unread_since(_next_xid, _in_progress);
begin
    return exists (
            select
            from audit_trail a
            where a.xid >= _next_xid
                and a.xid < _end
                and a.xid <> all (_in_progress)
                and (a.timestamp >= _since or a.timestamp = 'infinity'))
        or _in_progress <> '{}'
            and exists (
                select
                from audit_trail a
                where a.xid = any (_in_progress) and (a.timestamp >= _since or a.timestamp = 'infinity'));
end $$;


--
-- Name: FUNCTION audited_beyond(_next_xid xid8, _in_progress xid8[]); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.audited_beyond(_next_xid xid8, _in_progress xid8[]) IS 'Internal. Whether the audit log has rows that spine.audited_now() did not see.';


--
-- Name: audited_now(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.audited_now(OUT next_xid xid8, OUT in_progress xid8[]) RETURNS record
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
declare
    _shift constant bigint := trail_shift();
    _end constant xid8 := trail_end();
    _mark constant xid8 := last_mark();
    _since constant timestamptz := audit_since(_mark);
begin
    next_xid := greatest(_mark, (
        select ((a.xid::text)::bigint + 1)::text::xid8
        from audit_log a
        where a.xid < _end and (a.timestamp >= _since or a.timestamp = 'infinity')
        order by a.xid desc
        limit 1));
    in_progress := array(
        select (x::text::bigint + _shift)::text::xid8
        from unnest(
            array(select pg_snapshot_xip(pg_current_snapshot())) || pg_current_xact_id_if_assigned()) x
        where x is not null);
end $$;


--
-- Name: FUNCTION audited_now(OUT next_xid xid8, OUT in_progress xid8[]); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.audited_now(OUT next_xid xid8, OUT in_progress xid8[]) IS 'Internal. Transactions whose rows the audit log shows. Those before next_xid, except those in in_progress.';


--
-- Name: can_merge(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.can_merge() RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select pg_table_size('audit_trail_default') <= 8 << 20
        and not exists (
            select from pg_publication_tables p where p.schemaname = 'spine' and p.tablename ^@ 'audit_trail')
$$;


--
-- Name: FUNCTION can_merge(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.can_merge() IS 'Internal. Whether a new partition may come into the audit log.';


--
-- Name: canonical(json); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.canonical(_value json) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
declare
    _result text;
begin
    case json_typeof(_value)
    when 'object' then
        if exists (select from json_object_keys(_value) as k(name) group by k.name having count(*) > 1) then
            raise exception 'a name stands twice in an object' using errcode = 'duplicate_json_object_key_value';
        end if;
        select '{' || coalesce(
            string_agg(to_json(m.key)::text || ':' || canonical(m.value), ',' order by utf16_order(m.key)),
            '') || '}'
        into _result
        from json_each(_value) m;
    when 'array' then
        select '[' || coalesce(string_agg(canonical(m.value), ',' order by m.ord), '') || ']'
        into _result
        from json_array_elements(_value) with ordinality as m(value, ord);
    when 'string' then
        _result := to_json(_value #>> '{}')::text;
    else
        _result := btrim(_value::text, E' \t\r\n');
    end case;
    return _result;
end $$;


--
-- Name: FUNCTION canonical(_value json); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.canonical(_value json) IS 'Canonical text of a payload: sorted names, no white space, numbers as written. events.payload_hash is its SHA-256.';


--
-- Name: claim(text, integer, interval, text, interval[], timestamp with time zone, interval); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.claim(_destination text, _limit integer, _lease interval, _worker text, _delays interval[] DEFAULT ARRAY['00:00:01'::interval, '00:00:02'::interval, '00:00:04'::interval, '00:00:08'::interval], _low timestamp with time zone DEFAULT '-infinity'::timestamp with time zone, _ahead interval DEFAULT NULL::interval) RETURNS TABLE(event bigint, lease bigint, attempt integer, due_at timestamp with time zone, event_id text, source text, event_type text, occurred_at timestamp with time zone, payload json, raw_body bytea)
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET lock_timeout TO '250ms'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
#variable_conflict use_column
declare
    _now timestamptz := clock_timestamp();
    _retries constant integer := coalesce(cardinality(_delays), 0);
    -- The end of each attempt's details. Written as text, as in settle(): half the work and no white space.
    _who constant text := ',"worker":' || coalesce(to_json(_worker)::text, 'null') || case
        when _destination = 'default' then '}'
        else ',"destination":' || to_json(_destination) || '}'
    end;
    _looked_at integer;
    _next_due timestamptz;
begin
    if current_setting('synchronous_commit') = 'off' or current_setting('client_min_messages') = 'error' then
        perform make_durable();
    end if;
    return query
    with due as materialized (
        select p.event, p.destination, p.status = 'processing' as lost, p.next_attempt_at as due_at
        from processing_state p
        where p.destination = _destination
            and p.status in ('pending', 'failed', 'processing')
            and p.next_attempt_at <= _now
            and p.next_attempt_at >= _low
        order by p.next_attempt_at
        limit case
            when exists (select from destinations d where d.name = _destination and d.paused_at is not null) then 0
            else _limit
        end
        for update skip locked
    ), claimed as (
        update processing_state p set
            status = 'processing',
            attempt_count = p.attempt_count + 1,
            lease_token = p.lease_token + 1,
            next_attempt_at = _now + _lease,
            last_attempt_at = _now,
            worker = _worker,
            updated_at = _now
        from due d
        where p.event = d.event and p.destination = d.destination and not d.lost
        returning p.event, p.event_id, p.source, p.destination, p.attempt_count, p.lease_token, d.due_at
    ), expired as (
        update processing_state p set
            status = case when p.attempt_count > _retries then 'dead' else 'failed' end,
            next_attempt_at = case
                when p.attempt_count > _retries then null
                else _now + coalesce(_delays[greatest(p.attempt_count, 1)], '0')
            end,
            lease_token = p.lease_token + 1,
            error_message = 'the lease ran out: ' || coalesce(p.worker, 'no worker') || ' did not report back',
            updated_at = _now
        from due d
        where p.event = d.event and p.destination = d.destination and d.lost
        returning
            p.event,
            p.event_id,
            p.source,
            p.destination,
            p.attempt_count,
            p.lease_token - 1 as lease,
            p.worker,
            p.status,
            p.next_attempt_at,
            p.error_message
    ), audited as (
        insert into audit_trail (timestamp, event, event_id, source, action, details)
        select
            _now,
            c.event,
            c.event_id,
            nullif(c.source, 'default'),
            'processing_attempt_started',
            ('{"attempt":' || c.attempt_count || _who)::json
        from claimed c
    ), audited_expiry as (
        insert into audit_trail (timestamp, event, event_id, source, action, details)
        select _now, a.event, a.event_id, nullif(a.source, 'default'), a.action, a.details::text::json
        from (
            select
                x.event,
                step.n,
                x.event_id,
                x.source,
                case
                    when step.n = 1 then 'lease_expired'::audit_action
                    when x.status = 'dead' then 'processing_failed_permanently'
                    else 'retry_scheduled'
                end as action,
                jsonb_build_object('attempt', x.attempt_count, 'lease', x.lease, 'destination', x.destination) || case
                    when step.n = 1 then jsonb_build_object('worker', x.worker)
                    when x.status = 'dead' then jsonb_build_object('error', x.error_message)
                    else jsonb_build_object(
                        'delay_ms', trim_scale(extract(epoch from x.next_attempt_at - _now) * 1000),
                        'next_attempt_at', x.next_attempt_at,
                        'reason', 'policy')
                end as details
            from expired x cross join (values (1), (2)) as step(n)
            order by x.event, step.n
        ) a
    )
    select
        c.event,
        c.lease_token,
        c.attempt_count,
        greatest(c.due_at, 'epoch'),
        c.event_id,
        c.source,
        e.event_type,
        e.occurred_at,
        e.payload,
        e.raw_body
    from claimed c join events e on e.id = c.event
    union all
    select x.event, null, x.attempt_count, null, x.event_id, x.source, null, null, null, null
    from expired x;
    if _ahead is not null then
        get diagnostics _looked_at = row_count;
        if _looked_at < greatest(_limit, 1) then
            select p.next_attempt_at into _next_due
            from processing_state p
            where p.destination = _destination
                and p.status in ('pending', 'failed', 'processing')
                and p.next_attempt_at > _now
                and p.next_attempt_at <= _now + _ahead
            order by p.next_attempt_at
            limit 1;
        end if;
        return query
        select
            null::bigint,
            null::bigint,
            null::integer,
            _next_due,
            null::text,
            null::text,
            null::text,
            clock_timestamp(),
            null::json,
            null::bytea;
    end if;
end $$;


--
-- Name: FUNCTION claim(_destination text, _limit integer, _lease interval, _worker text, _delays interval[], _low timestamp with time zone, _ahead interval); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.claim(_destination text, _limit integer, _lease interval, _worker text, _delays interval[], _low timestamp with time zone, _ahead interval) IS 'Leases due events to a worker, oldest first, and takes back expired leases. Returns the rows that a delivery needs. With _ahead a last row has the clock after the claim (occurred_at) and the next due time (due_at).';


--
-- Name: clock_ahead(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.clock_ahead() RETURNS timestamp with time zone
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO'
    SET lock_timeout TO '250ms'
    SET enable_seqscan TO 'off'
    AS $$
declare
    _latest timestamptz;
begin
    execute format(
        'select max(timestamp) from audit_trail where timestamp > %L and isfinite(timestamp)',
        clock_timestamp() + interval '10 seconds') into _latest;
    return _latest;
exception when lock_not_available then
    return null; -- somebody has locked the audit log, which is told elsewhere
end $$;


--
-- Name: FUNCTION clock_ahead(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.clock_ahead() IS 'Internal. The latest step of the audit log that is later than now. NULL is normal.';


--
-- Name: command_on(text, text, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.command_on(_command text, _event_id text, _source text) RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $_$
    select _command || case
        when _event_id !~ '^[A-Za-z0-9][A-Za-z0-9._:/-]*$' then ''
        when _source = 'default' then ' ' || _event_id
        else format(' %s --source %s', _event_id, _source)
    end
$_$;


--
-- Name: FUNCTION command_on(_command text, _event_id text, _source text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.command_on(_command text, _event_id text, _source text) IS 'Internal. A command line on an event, to be pasted.';


--
-- Name: commits_waiting(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.commits_waiting() RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select format(
        'commits wait for a synchronous standby that does not confirm (synchronous_standby_names = %L): '
            'bring it back, or change that setting and reload',
        current_setting('synchronous_standby_names'))
    where current_setting('synchronous_standby_names') <> ''
        and current_setting('synchronous_commit') <> 'local'
        and (
            not exists (select from pg_stat_replication)
            or exists (
                select
                from pg_stat_activity a
                where a.wait_event = 'SyncRep' and a.query_start < clock_timestamp() - interval '1 second'))
$$;


--
-- Name: FUNCTION commits_waiting(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.commits_waiting() IS 'Internal. That commits wait for a synchronous standby, in words.';


--
-- Name: comparing(json, json); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.comparing(_was json, _is json) RETURNS bigint
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION comparing(_was json, _is json); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.comparing(_was json, _is json) IS 'Internal. How much work it is to compare two JSON values.';


--
-- Name: connected_workers(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.connected_workers() RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION connected_workers(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.connected_workers() IS 'Internal. Whether a worker is connected to this database, in words.';


--
-- Name: copy_audit_days(timestamp with time zone, bigint); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.copy_audit_days(_before timestamp with time zone, _bytes bigint DEFAULT '4294967296'::bigint) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'spine', 'pg_temp'
    SET lock_timeout TO '5s'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO'
    AS $$
declare
    _found record;
    _name text;
    _day text;
begin
    perform require_right('audit_trail', 'DELETE');
    perform make_durable();
    if not try_lock('merge_audit_days') then
        return null;
    end if;
    select m.partition into _name from audit_merge m;
    if found then
        return _name;
    end if;
    if not can_merge()
        or exists (select from retention_state r where r.before > now() - interval '400 days')
    then
        return null;
    end if;
    select * into _found from mergeable_days(least(_before, now()), _bytes);
    if _found.days is null then
        return null;
    end if;
    _name := to_char(_found.since, '"audit_trail_"YYYYMMDD')
        || to_char(_found.until - interval '1 day', '"_"YYYYMMDD');
    execute format(
        'create table spine.%I (
            like audit_trail including defaults including constraints including comments,
            constraint merged_days check (timestamp >= %L and timestamp < %L)
        ) with (autovacuum_freeze_min_age = 0)',
        _name,
        _found.since,
        _found.until);
    execute format('alter table spine.%I replica identity full', _name); -- as ensure_audit_partitions() says
    execute format(
        'comment on table spine.%I is %L',
        _name,
        to_char(_found.since, '"The audit log from "YYYY-MM-DD')
            || to_char(_found.until - interval '1 day', '" to "YYYY-MM-DD" (UTC)."'));
    foreach _day in array _found.days loop
        execute format(
            'insert into spine.%I (timestamp, id, xid, event, action, event_id, source, details)
            select timestamp, id, xid, event, action, event_id, source, details from spine.%I',
            _name,
            _day);
    end loop;
    -- As those of audit_trail, so that the new partition brings all indexes along.
    execute format('create index on spine.%I (event)', _name);
    execute format('create index on spine.%I (timestamp)', _name);
    execute format('create index on spine.%I (xid)', _name);
    insert into audit_merge (partition, days, since, until)
    values (_name, _found.days, _found.since, _found.until);
    return _name;
end $$;


--
-- Name: FUNCTION copy_audit_days(_before timestamp with time zone, _bytes bigint); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.copy_audit_days(_before timestamp with time zone, _bytes bigint) IS 'Copies the oldest days of the audit log, of one month, into one table. All of the month is before _before. merge_audit_days() puts the table in their place. Returns its name, NULL where there are no such days.';


--
-- Name: delivered_until(bigint); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.delivered_until(_event bigint) RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select coalesce(min(q.until) filter (where q.until < clock_timestamp()), 'infinity')
    from (
        select date_trunc(
            'day',
            max(greatest(p.created_at, p.updated_at, p.last_attempt_at)) + interval '100 days',
            'UTC') as until
        from processing_state p
        where p.event = _event
    ) q
$$;


--
-- Name: FUNCTION delivered_until(_event bigint); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.delivered_until(_event bigint) IS 'Internal. A time after the steps of an event''s deliveries.';


--
-- Name: detail(json, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.detail(_details json, _name text) RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select case when _details::text !~* E'\\\\u(0000|d[89a-f])' then _details ->> _name end
$$;


--
-- Name: FUNCTION detail(_details json, _name text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.detail(_details json, _name text) IS 'Internal. A member of a step''s details as text. NULL where it has none or cannot be text.';


--
-- Name: differences(json, json); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.differences(_was json, _is json) RETURNS TABLE(path text, was json, "is" json)
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION differences(_was json, _is json); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.differences(_was json, _is json) IS 'Where two JSON values differ: JSON pointer, was and is. At most 100 places. It compares numbers by value. NULL stands for a side that is not there. One place with the path '''' and NULL on both sides stands for values that are too large to compare.';


--
-- Name: differences_json(json, json); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.differences_json(_was json, _is json) RETURNS json
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select json_agg(case
        when d.was is null and d."is" is null then json_build_object('path', d.path)
        when d.was is null then json_build_object('path', d.path, 'is', d."is")
        when d."is" is null then json_build_object('path', d.path, 'was', d.was)
        else json_build_object('path', d.path, 'was', d.was, 'is', d."is")
    end)
    from differences(_was, _is) d
$$;


--
-- Name: FUNCTION differences_json(_was json, _is json); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.differences_json(_was json, _is json) IS 'spine.differences() as an array of path, was and is. A side that is not there is left out.';


--
-- Name: disable_source(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.disable_source(_name text) RETURNS boolean
    LANGUAGE sql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select disable_source(_name, null)
$$;


--
-- Name: FUNCTION disable_source(_name text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.disable_source(_name text) IS 'Takes nothing more from a source until spine.enable_source(). Its requests get 503. Spine still delivers what it sent before.';


--
-- Name: disable_source(text, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.disable_source(_name text, _reason text) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    perform require_source(_name);
    update sources s set
        disabled_at = clock_timestamp(),
        disabled_reason = left(nullif(btrim(_reason), ''), 300)
    where s.name = _name and s.disabled_at is null;
    return found;
end $$;


--
-- Name: FUNCTION disable_source(_name text, _reason text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.disable_source(_name text, _reason text) IS 'Takes nothing more from a source until spine.enable_source(), and says why. Example: select spine.disable_source(''github'', ''moved to the other cluster'').';


--
-- Name: disabled_sources(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.disabled_sources(_source text) RETURNS TABLE(says text, facts jsonb)
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION disabled_sources(_source text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.disabled_sources(_source text) IS 'Internal. Which sources are disabled, since when, by whom and why.';


--
-- Name: drop_audit_partition(timestamp with time zone); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.drop_audit_partition(_before timestamp with time zone) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'spine', 'pg_temp'
    SET lock_timeout TO '100ms'
    AS $$
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


--
-- Name: FUNCTION drop_audit_partition(_before timestamp with time zone); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.drop_audit_partition(_before timestamp with time zone) IS 'Drops the oldest partition of the audit log, if all of it is older than _before. Returns its name, NULL where there is none. Raises 55P03 when somebody reads the log for longer than 100 ms.';


--
-- Name: droppable_days(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.droppable_days() RETURNS TABLE(name name, since timestamp with time zone, until timestamp with time zone)
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$
    select p.name, p.since, p.until
    from audit_partitions() p
        join pg_class c on c.oid = p.partition and c.relnamespace = 'spine'::regnamespace
        join pg_class l on l.oid = 'audit_trail'::regclass and l.relowner = c.relowner
    where p.until = p.since + interval '1 day'
        and not exists (
            select
            from pg_depend d
            where d.refclassid = 'pg_class'::regclass and d.refobjid = p.partition and d.deptype = 'n')
    order by p.since
$$;


--
-- Name: FUNCTION droppable_days(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.droppable_days() IS 'Internal. The days of the audit log that its owner can drop.';


--
-- Name: enable_source(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.enable_source(_name text) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    perform require_source(_name);
    update sources s set disabled_at = null where s.name = _name and s.disabled_at is not null;
    return found;
end $$;


--
-- Name: FUNCTION enable_source(_name text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.enable_source(_name text) IS 'Takes events from a source again that spine.disable_source() closed.';


--
-- Name: ensure_audit_partitions(integer); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.ensure_audit_partitions(_days integer DEFAULT 7) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'spine', 'pg_temp'
    SET lock_timeout TO '5s'
    SET "TimeZone" TO 'UTC'
    AS $_$
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
end $_$;


--
-- Name: FUNCTION ensure_audit_partitions(_days integer); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.ensure_audit_partitions(_days integer) IS 'Internal. Makes the daily partitions of the audit log ahead of time. Returns how many it made.';


--
-- Name: event(text, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.event(_event_id text, _source text DEFAULT NULL::text) RETURNS TABLE(event_id text, source text, event_type text, occurred_at timestamp with time zone, created_at timestamp with time zone, payload json, unqueryable text, seen_count bigint, conflicts bigint, destination text, status text, attempt_count integer, next_attempt_at timestamp with time zone, last_attempt_at timestamp with time zone, completed_at timestamp with time zone, error_message text, id bigint)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    AS $$
begin
    return query
    select
        e.event_id,
        e.source,
        e.event_type,
        e.occurred_at,
        e.created_at,
        e.payload,
        e.unqueryable,
        e.seen_count,
        (select count(*) from conflicts c where c.event = e.id),
        p.destination,
        p.status,
        p.attempt_count,
        p.next_attempt_at,
        p.last_attempt_at,
        p.completed_at,
        p.error_message,
        e.id
    from events e left join processing_state p on p.event = e.id
    where e.id = id_of(_event_id, _source)
    order by p.destination;
    perform tell(_event_id, _source);
end $$;


--
-- Name: FUNCTION event(_event_id text, _source text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.event(_event_id text, _source text) IS 'One event and where it stands. Notices say why, as spine.explain() does. Example: select * from spine.event(''test-001'').';


--
-- Name: event_at(timestamp with time zone); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.event_at(_at timestamp with time zone) RETURNS bigint
    LANGUAGE plpgsql STABLE STRICT
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    AS $$
declare
    _low bigint;
    _high bigint;
    _middle bigint;
begin
    select min(e.id), max(e.id) + 1 into _low, _high from events e;
    while _low < _high loop
        _middle := _low + (_high - _low) / 2;
        if (select count(*) filter (where n.created_at < _at) * 2 > count(*)
            from (select e.created_at from events e where e.id >= _middle order by e.id limit 5) n)
        then
            _low := _middle + 1;
        else
            _high := _middle;
        end if;
    end loop;
    return _low;
end $$;


--
-- Name: FUNCTION event_at(_at timestamp with time zone); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.event_at(_at timestamp with time zone) IS 'Internal. The first events.id that was stored at a time or later. It is off by as much as id and created_at do not rise together.';


--
-- Name: events_gone(timestamp with time zone, timestamp with time zone); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.events_gone(_since timestamp with time zone, _until timestamp with time zone) RETURNS TABLE(event_id text, source text, stored_at timestamp with time zone)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
declare
    _from timestamptz;
    _to timestamptz;
begin
    perform from only audit_trail where false;
    for _from, _to in select s.since, s.until from audit_stretches(_since, _until) s loop
        begin
            return query
            select a.event_id, coalesce(a.source, 'default'), a.timestamp
            from audit_trail a
            where a.timestamp >= _from
                and a.timestamp < _to
                and a.action = 'event_inserted'
                and not exists (select from events e where e.id = a.event);
            raise sqlstate 'SP000';
        exception when sqlstate 'SP000' then null;
        end;
    end loop;
end $$;


--
-- Name: FUNCTION events_gone(_since timestamp with time zone, _until timestamp with time zone); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.events_gone(_since timestamp with time zone, _until timestamp with time zone) IS 'Internal. Events that the audit log has stored in a span of time, and that are not there.';


--
-- Name: events_within(timestamp with time zone, timestamp with time zone); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.events_within(_since timestamp with time zone, _until timestamp with time zone, OUT first bigint, OUT last bigint) RETURNS record
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    AS $$
declare
    _margin constant interval := '1 minute';
    _beyond bigint := event_at(_until + _margin);
begin
    first := event_at(_since - _margin);
    -- The neighbours of the last probe may still be older.
    last := (select e.id from events e where e.id >= _beyond order by e.id offset 4 limit 1);
end $$;


--
-- Name: FUNCTION events_within(_since timestamp with time zone, _until timestamp with time zone, OUT first bigint, OUT last bigint); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.events_within(_since timestamp with time zone, _until timestamp with time zone, OUT first bigint, OUT last bigint) IS 'Internal. The ids between which all events of a span of time lie. It has a minute''s margin for transactions that overlapped.';


--
-- Name: exact_time(timestamp with time zone); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.exact_time(_at timestamp with time zone) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select case
        when isfinite(_at) then to_char(_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
        else _at::text
    end
$$;


--
-- Name: FUNCTION exact_time(_at timestamp with time zone); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.exact_time(_at timestamp with time zone) IS 'Internal. A time in UTC, to the millisecond.';


--
-- Name: expire_audit(timestamp with time zone, integer); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.expire_audit(_before timestamp with time zone, _limit integer DEFAULT 500) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET lock_timeout TO '250ms'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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


--
-- Name: FUNCTION expire_audit(_before timestamp with time zone, _limit integer); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.expire_audit(_before timestamp with time zone, _limit integer) IS 'Deletes old rows from the default partition of the audit log. Returns how many.';


--
-- Name: expire_events(timestamp with time zone, bigint, integer); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.expire_events(_before timestamp with time zone, _after bigint DEFAULT 0, _limit integer DEFAULT 500) RETURNS TABLE(looked_at integer, deleted integer, last bigint)
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET lock_timeout TO '250ms'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_material TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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


--
-- Name: FUNCTION expire_events(_before timestamp with time zone, _after bigint, _limit integer); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.expire_events(_before timestamp with time zone, _after bigint, _limit integer) IS 'Deletes a batch of finished events unchanged since _before, but not their trail. Returns how many it read, how many it deleted, and the _after of the next call. That is NULL at the end of the walk.';


--
-- Name: expire_rejected(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.expire_rejected() RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET lock_timeout TO '250ms'
    AS $$
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


--
-- Name: FUNCTION expire_rejected(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.expire_rejected() IS 'Deletes rejected requests that are older than their source keeps them. Returns how many.';


--
-- Name: expired_since(timestamp with time zone); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.expired_since(_since timestamp with time zone) RETURNS tstzmultirange
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
declare
    _from timestamptz;
    _to timestamptz;
    _expired tstzmultirange[];
begin
    perform from only audit_trail where false;
    for _from, _to in select s.since, s.until from audit_stretches(_since) s loop
        begin
            _expired := _expired || (
                select range_agg(tstzrange(
                    (a.details ->> 'oldest')::timestamptz,
                    (a.details ->> 'newest')::timestamptz + interval '1 minute',
                    '[]'))
                from audit_trail a
                where a.event is null and a.action = 'events_expired' and a.timestamp >= _from and a.timestamp < _to);
            raise sqlstate 'SP000';
        exception when sqlstate 'SP000' then null;
        end;
    end loop;
    return (select range_agg(r) from unnest(_expired) m cross join lateral unnest(m) r);
end $$;


--
-- Name: FUNCTION expired_since(_since timestamp with time zone); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.expired_since(_since timestamp with time zone) IS 'Internal. When the events were stored that retention has deleted since a time.';


--
-- Name: explain(text, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.explain(_event_id text, _source text DEFAULT NULL::text) RETURNS TABLE(topic text, destination text, says text, facts jsonb)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET lock_timeout TO '2s'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
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


--
-- Name: FUNCTION explain(_event_id text, _source text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.explain(_event_id text, _source text) IS 'What an operator must know of an event, in sentences. Whether it is stored, or what may have become of it; why it waits and for whom; what a conflict differs in. Example: select says from spine.explain(''test-001'').';


--
-- Name: explain_missing(text, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.explain_missing(_event_id text, _source text DEFAULT NULL::text) RETURNS TABLE(topic text, destination text, says text, facts jsonb)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    AS $$
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


--
-- Name: FUNCTION explain_missing(_event_id text, _source text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.explain_missing(_event_id text, _source text) IS 'Internal. What is known of an id that is not stored.';


--
-- Name: first_id_since(timestamp with time zone); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.first_id_since(_time timestamp with time zone) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
declare
    _low bigint := 0;
    _high bigint := coalesce((select e.id from events e order by e.id desc limit 1), 0) + 1;
    _middle bigint;
begin
    while _low < _high loop
        _middle := _low + (_high - _low) / 2;
        if coalesce((
            select e.created_at >= _time from events e where e.id >= _middle order by e.id limit 1), true)
        then
            _high := _middle;
        else
            _low := _middle + 1;
        end if;
    end loop;
    return _low;
end $$;


--
-- Name: FUNCTION first_id_since(_time timestamp with time zone); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.first_id_since(_time timestamp with time zone) IS 'Internal. The least events.id that may have been stored at a time or later.';


--
-- Name: forget_receiver(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.forget_receiver(_process text) RETURNS void
    LANGUAGE sql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    delete from receivers r where r.process = _process
$$;


--
-- Name: FUNCTION forget_receiver(_process text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.forget_receiver(_process text) IS 'Internal. Removes a process that ends, with all that it told of sources.';


--
-- Name: from_now(timestamp with time zone); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.from_now(_at timestamp with time zone) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select exact_time(_at) || ' (' || case
        when _at = 'infinity' then 'never'
        when _at = '-infinity' then 'always'
        when _at > clock_timestamp() then 'in ' || short_span(_at - clock_timestamp())
        else short_span(clock_timestamp() - _at) || ' ago'
    end || ')'
$$;


--
-- Name: FUNCTION from_now(_at timestamp with time zone); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.from_now(_at timestamp with time zone) IS 'Internal. A time, and how far it is from now.';


--
-- Name: give_back(bigint[], text[], bigint[]); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.give_back(_event bigint[], _destination text[], _lease_token bigint[]) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
declare
    _now timestamptz := clock_timestamp();
    _returned bigint;
begin
    perform make_durable();
    with input as materialized (
        select * from unnest(_event, _destination, _lease_token) as i(event, destination, lease)
    ), held as materialized (
        select i.*
        from input i join processing_state p on p.event = i.event and p.destination = i.destination
        where p.lease_token = i.lease
        for update of p skip locked
    ), returned as (
        update processing_state p set
            status = case when p.attempt_count <= 1 then 'pending' else 'failed' end,
            attempt_count = greatest(p.attempt_count - 1, 0),
            lease_token = p.lease_token + 1,
            next_attempt_at = _now,
            updated_at = _now
        from held i
        where p.event = i.event and p.destination = i.destination
        returning p.event, p.event_id, p.source, p.destination, p.attempt_count, p.worker, i.lease
    ), audited as (
        insert into audit_trail (timestamp, event, event_id, source, action, details)
        select
            _now,
            r.event,
            r.event_id,
            nullif(r.source, 'default'),
            'lease_returned',
            json_build_object(
                'attempt', r.attempt_count + 1,
                'lease', r.lease,
                'worker', r.worker,
                'destination', r.destination)
        from returned r
    )
    select count(*) into _returned from returned;
    return _returned;
end $$;


--
-- Name: FUNCTION give_back(_event bigint[], _destination text[], _lease_token bigint[]); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.give_back(_event bigint[], _destination text[], _lease_token bigint[]) IS 'Returns leases of deliveries that never started, without spending an attempt. Returns how many were held.';


--
-- Name: given_up(bigint[], text[], bigint[]); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.given_up(_event bigint[], _destination text[], _lease_token bigint[]) RETURNS bigint[]
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
begin
    return array(
        select i.ord
        from unnest(_event, _destination, _lease_token) with ordinality as i(event, destination, lease, ord)
            join processing_state p on p.event = i.event and p.destination = i.destination
        where p.status = 'dead' and p.lease_token = i.lease + 1);
end $$;


--
-- Name: FUNCTION given_up(_event bigint[], _destination text[], _lease_token bigint[]); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.given_up(_event bigint[], _destination text[], _lease_token bigint[]) IS 'Internal. Positions of results that were to be deferred and made dead letters.';


--
-- Name: hint(text, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.hint(_channel text, _payload text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    if current_setting('spine.hints', true) is distinct from 'off' then
        perform pg_notify(_channel, _payload);
    end if;
end $$;


--
-- Name: FUNCTION hint(_channel text, _payload text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.hint(_channel text, _payload text) IS 'Internal. Sends a notification with the commit, unless spine.hints is off.';


--
-- Name: id_of(text, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.id_of(_event_id text, _source text DEFAULT NULL::text) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    AS $$
declare
    _ids bigint[];
    _sources text[];
    _sentences text[];
    _hints text[];
begin
    select array_agg(e.id order by e.source), array_agg(e.source order by e.source) into _ids, _sources
    from events e
    where e.event_id = _event_id and (_source is null or e.source = _source);
    if cardinality(_ids) = 1 then
        return _ids[1];
    elsif cardinality(_ids) > 1 then
        raise exception 'event "%" exists in the sources %: name one', _event_id, array_to_string(_sources, ', ')
            using errcode = 'cardinality_violation',
                hint = format('For example: id_of(%L, %L)', _event_id, _sources[1]);
    end if;
    select
        array_agg(m.says) filter (where m.topic in ('not_stored', 'arrivals')),
        array_agg(m.says) filter (where m.topic not in ('not_stored', 'arrivals'))
    into _sentences, _hints
    from explain_missing(_event_id, _source) m;
    if _hints is not null then
        raise exception '%.', array_to_string(_sentences, '. ')
            using errcode = 'no_data_found', detail = array_to_string(_hints, E'.\n') || '.';
    end if;
    raise exception '%.', array_to_string(_sentences, '. ') using errcode = 'no_data_found';
end $$;


--
-- Name: FUNCTION id_of(_event_id text, _source text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.id_of(_event_id text, _source text) IS 'events.id of an event. An error says so when the id was never stored, or stands in several sources. Example: select * from spine.processing_state where event = spine.id_of(''test-001'').';


--
-- Name: ingest(text, text, text, timestamp with time zone, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.ingest(_event_id text, _event_type text, _payload text, _occurred_at timestamp with time zone DEFAULT now(), _source text DEFAULT 'default'::text) RETURNS text
    LANGUAGE sql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select (ingest_events(
        array[_event_id],
        array[_event_type],
        array[_occurred_at],
        array[_payload],
        array[_source]))[1]
$$;


--
-- Name: FUNCTION ingest(_event_id text, _event_type text, _payload text, _occurred_at timestamp with time zone, _source text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.ingest(_event_id text, _event_type text, _payload text, _occurred_at timestamp with time zone, _source text) IS 'Stores one event by hand. Returns accepted, deduplicated or conflict. Example: select spine.ingest(''test-001'', ''user.created'', ''{"user_id": 123}''). More parameters go by name: … , _occurred_at => ''2024-01-30T12:00:00Z'', _source => ''default'').';


--
-- Name: ingest_events(text[], text[], timestamp with time zone[], text[], text[], bytea[], bytea[], text[], text[], boolean[], boolean[]); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.ingest_events(_event_id text[], _event_type text[], _occurred_at timestamp with time zone[], _payload text[], _source text[] DEFAULT NULL::text[], _hash bytea[] DEFAULT NULL::bytea[], _raw_body bytea[] DEFAULT NULL::bytea[], _unqueryable text[] DEFAULT NULL::text[], _headers text[] DEFAULT NULL::text[], _id_derived boolean[] DEFAULT NULL::boolean[], _id_unsigned boolean[] DEFAULT NULL::boolean[]) RETURNS text[]
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET lock_timeout TO '250ms'
    AS $_$
declare
    _now timestamptz := clock_timestamp();
    _outcome text[];
begin
    if current_setting('synchronous_commit') = 'off' or current_setting('client_min_messages') = 'error' then
        perform make_durable();
    end if;
    if array_to_string(_event_id, '') ~ E'[\\u0001-\\u001F\\u007F-\\u009F]' then
        perform reject_event('an event_id has a control character');
    end if;
    with given as (
        select
            g.ord,
            g.event_id,
            coalesce(g.source, 'default') as source,
            g.event_type,
            g.occurred_at,
            g.payload,
            g.hash,
            g.raw_body,
            g.headers,
            g.id_derived,
            g.id_unsigned,
            case
                when g.hash is null and g.unqueryable is null then unqueryable(g.payload)
                else g.unqueryable
            end as unqueryable
        from unnest(
            _event_id,
            _event_type,
            _occurred_at,
            _payload,
            _source,
            _hash,
            _raw_body,
            _unqueryable,
            _headers,
            _id_derived,
            _id_unsigned)
            with ordinality as g(
                event_id,
                event_type,
                occurred_at,
                payload,
                source,
                hash,
                raw_body,
                unqueryable,
                headers,
                id_derived,
                id_unsigned,
                ord)
    ), input as materialized (
        select
            g.ord,
            g.event_id,
            g.source,
            g.event_type,
            g.occurred_at,
            g.unqueryable,
            g.headers,
            g.id_derived,
            g.id_unsigned,
            case when g.unqueryable is null then g.payload end as payload,
            case
                when g.unqueryable is null then g.raw_body
                else coalesce(g.raw_body, convert_to(g.payload, 'UTF8'))
            end as raw_body,
            coalesce(g.hash,
                case
                    when g.unqueryable is null then sha256(convert_to(canonical(g.payload::json), 'UTF8'))
                    else sha256(coalesce(g.raw_body, convert_to(g.payload, 'UTF8')))
                end) as hash,
            row_number() over same_key as copy,
            count(*) over same_key as copies
        from given g
        window same_key as (
            partition by g.event_id, g.source
            order by g.ord
            rows between unbounded preceding and unbounded following)
    ), stored as (
        -- ON CONFLICT updates seen_count and never the hash. It locks the stored row, and RETURNING shows its hash: the
        -- hash of the payload that came first.
        insert into events as e (
            event_id,
            source,
            event_type,
            occurred_at,
            payload,
            unqueryable,
            raw_body,
            payload_hash,
            created_at,
            seen_count,
            headers,
            id_derived,
            id_unsigned,
            same_body_as)
        select
            i.event_id,
            i.source,
            i.event_type,
            i.occurred_at,
            i.payload::json,
            i.unqueryable,
            i.raw_body,
            i.hash,
            _now,
            i.copies,
            i.headers::json,
            i.id_derived,
            i.id_unsigned,
            case when i.id_unsigned then (
                select b.event_id
                from events b
                where b.id_unsigned and b.source = i.source and b.payload_hash = i.hash and b.event_id <> i.event_id
                limit 1) end
        from input i
        where i.copy = 1 and case
            when char_length(i.event_id) not between 1 and 255
                then reject_event('event_id must have 1 to 255 characters')
            when char_length(i.event_type) not between 1 and 100
                then reject_event('event_type must have 1 to 100 characters')
            when i.occurred_at < '0001-01-01Z' or i.occurred_at >= '10000-01-01Z'
                then reject_event('occurred_at must lie in the years 1 to 9999')
            when i.source <> 'default' and i.source !~ '^[a-z0-9][a-z0-9_-]{0,62}$'
                then reject_event('source must be a slug')
            -- Trimming walks the whole text: only where there is something to trim.
            when left(i.payload, 1) <> '{' and i.headers is null and left(ltrim(i.payload, E' \t\r\n'), 1) <> '{'
                then reject_event('the payload must be a JSON object')
            when i.payload is null and i.raw_body is null
                then reject_event('there is no payload')
            else true end
        order by i.event_id, i.source
        on conflict (event_id, source) do update set seen_count = e.seen_count + excluded.seen_count
        returning e.id, e.event_id, e.source, e.payload_hash, e.seen_count, e.same_body_as
    ), locked as materialized (
        select max(clock_timestamp()) as at from stored
    ), judged as materialized (
        select
            i.ord,
            s.id,
            i.event_id,
            i.source,
            s.same_body_as,
            s.seen_count - i.copies + i.copy as nth,
            case
                when i.copy = 1 and s.seen_count = i.copies then 'accepted'
                when i.hash = s.payload_hash then 'deduplicated'
                else 'conflict'
            end as outcome
        from input i join stored s on s.event_id = i.event_id and s.source = i.source
    ), queued as (
        insert into processing_state (event, event_id, source, lease_token, next_attempt_at, created_at, updated_at)
        select j.id, j.event_id, j.source, 0, l.at, l.at, l.at
        from judged j cross join locked l
        where j.outcome = 'accepted'
    ), audited as (
        insert into audit_trail (timestamp, event, event_id, source, action, details)
        select
            (select l.at from locked l),
            case when a.nth <= 1000 or a.nth % (10 ^ (length(a.nth::text) - 3))::bigint = 0 then a.id else -a.id end,
            a.event_id,
            nullif(a.source, 'default'),
            a.action,
            case a.action
                when 'conflict_detected' then (
                    select json_build_object(
                        'payload_hash', encode(i.hash, 'hex'),
                        'evidence', keep_evidence(
                            a.id,
                            i.hash,
                            i.event_id,
                            i.source,
                            i.event_type,
                            i.occurred_at,
                            i.payload,
                            i.unqueryable,
                            i.raw_body))
                    from input i
                    where i.ord = a.ord)
                when 'event_inserted' then case
                    when a.same_body_as is not null then json_build_object('same_body_as', a.same_body_as) end
            end
        from (
            select
                j.ord,
                j.id,
                j.event_id,
                j.source,
                j.same_body_as,
                j.nth,
                unnest(array['event_received', case j.outcome
                    when 'accepted' then 'event_inserted'
                    when 'deduplicated' then 'event_deduped'
                    else 'conflict_detected'
                end]::audit_action[]) as action
            from judged j
        ) a
    )
    select coalesce(array_agg(j.outcome order by j.ord), '{}') into _outcome from judged j;
    return _outcome;
end $_$;


--
-- Name: FUNCTION ingest_events(_event_id text[], _event_type text[], _occurred_at timestamp with time zone[], _payload text[], _source text[], _hash bytea[], _raw_body bytea[], _unqueryable text[], _headers text[], _id_derived boolean[], _id_unsigned boolean[]); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.ingest_events(_event_id text[], _event_type text[], _occurred_at timestamp with time zone[], _payload text[], _source text[], _hash bytea[], _raw_body bytea[], _unqueryable text[], _headers text[], _id_derived boolean[], _id_unsigned boolean[]) IS 'Stores each event exactly once and queues it. Keeps other payloads as evidence and audits every step. Returns accepted, deduplicated or conflict by position.';


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: audit_merge; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.audit_merge (
    only_row boolean DEFAULT true NOT NULL,
    partition text NOT NULL,
    days text[] NOT NULL,
    since timestamp with time zone NOT NULL,
    until timestamp with time zone NOT NULL,
    seen_at timestamp with time zone,
    CONSTRAINT audit_merge_only_row_check CHECK (only_row)
);


--
-- Name: TABLE audit_merge; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.audit_merge IS 'A copy of old days of the audit log, that will take their place. Without a row there is none. See spine.copy_audit_days() and spine.merge_audit_days().';


--
-- Name: COLUMN audit_merge.only_row; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_merge.only_row IS 'Holds the table to one row.';


--
-- Name: COLUMN audit_merge.partition; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_merge.partition IS 'The table with the copy. Nobody reads it yet.';


--
-- Name: COLUMN audit_merge.days; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_merge.days IS 'Partitions of the days.';


--
-- Name: COLUMN audit_merge.since; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_merge.since IS 'Beginning of the first day.';


--
-- Name: COLUMN audit_merge.until; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_merge.until IS 'End of the last day.';


--
-- Name: COLUMN audit_merge.seen_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_merge.seen_at IS 'When spine.merge_audit_days() first saw the copy.';


--
-- Name: is_copied(spine.audit_merge); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.is_copied(_copy spine.audit_merge) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$
declare
    _table text;
    _sums numeric[];
    _days numeric[] := '{0,0}';
begin
    foreach _table in array _copy.days || _copy.partition loop
        if to_regclass(format('spine.%I', _table)) is null then
            return false;
        end if;
        execute format('lock table spine.%I in share mode', _table);
        execute format(
            'select array[
                count(*),
                coalesce(sum(hashtextextended(
                    row(timestamp, id, xid, event, action, event_id, source, details)::text, 0)), 0)]
            from spine.%I',
            _table) into _sums;
        if _table <> _copy.partition then
            _days := array[_days[1] + _sums[1], _days[2] + _sums[2]];
        end if;
    end loop;
    return _sums = _days;
end $$;


--
-- Name: FUNCTION is_copied(_copy spine.audit_merge); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.is_copied(_copy spine.audit_merge) IS 'Internal. Whether a table has the same steps as the days that it was copied from.';


--
-- Name: is_noted(bigint, oid); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.is_noted(_server bigint, _database oid) RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select exists (
        select
        from database_identity i
        where i.database_oid = _database
            and (i.system_identifier = _server or i.system_identifier is null or _server is null))
$$;


--
-- Name: FUNCTION is_noted(_server bigint, _database oid); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.is_noted(_server bigint, _database oid) IS 'Internal. Whether a database is the one that was noted.';


--
-- Name: keep_evidence(bigint, bytea, text, text, text, timestamp with time zone, text, text, bytea); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.keep_evidence(_event bigint, _hash bytea, _event_id text, _source text, _event_type text, _occurred_at timestamp with time zone, _payload text, _unqueryable text, _raw_body bytea) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    update conflicts set seen_count = seen_count + 1 where event = _event and payload_hash = _hash;
    if found then
        return 'known';
    end if;
    if (select count(*) from conflicts where event = _event) >= 10 then
        return 'full';
    end if;
    insert into conflicts (
        event,
        payload_hash,
        event_id,
        source,
        event_type,
        occurred_at,
        payload,
        unqueryable,
        raw_body)
    values (
        _event,
        _hash,
        _event_id,
        _source,
        _event_type,
        _occurred_at,
        _payload::json,
        _unqueryable,
        _raw_body);
    return 'kept';
end $$;


--
-- Name: FUNCTION keep_evidence(_event bigint, _hash bytea, _event_id text, _source text, _event_type text, _occurred_at timestamp with time zone, _payload text, _unqueryable text, _raw_body bytea); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.keep_evidence(_event bigint, _hash bytea, _event_id text, _source text, _event_type text, _occurred_at timestamp with time zone, _payload text, _unqueryable text, _raw_body bytea) IS 'Internal. Keeps another payload, once for each distinct hash, at most ten an event. spine.ingest_events() calls it. Returns kept, known or full.';


--
-- Name: keep_rejected(text[], timestamp with time zone[], text[], integer[], text[], text[], text[], text[], text[], bytea[], bigint[], boolean[], text[], integer[], bigint[], interval[], boolean); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.keep_rejected(_source text[], _at timestamp with time zone[], _cause text[], _status integer[], _detail text[], _remote text[], _method text[], _target text[], _headers text[], _body bytea[], _body_bytes bigint[], _verified boolean[], _of text[], _rows integer[], _bytes bigint[], _age interval[], _again boolean) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    AS $$
declare
    -- Causes that are no fault of the sender's.
    _ours constant text[] := array['source_disabled', 'source_broken', 'source_closed'];
begin
    perform make_durable();
    if _again then
        perform take_lock('keep_rejected');
    else
        perform try_lock('keep_rejected');
    end if;
    insert into rejected_requests (
        source,
        at,
        cause,
        status,
        detail,
        remote,
        method,
        target,
        headers,
        body,
        body_bytes,
        verified,
        size)
    select
        g.source,
        g.at,
        g.cause,
        g.status,
        g.detail,
        g.remote,
        g.method,
        g.target,
        h.headers::json,
        g.body,
        g.body_bytes,
        g.verified,
        octet_length(g.body) + octet_length(h.headers)
    from unnest(
            _source, _at, _cause, _status, _detail, _remote, _method, _target, _headers, _body, _body_bytes, _verified)
        with ordinality as g(
            source, at, cause, status, detail, remote, method, target, headers, body, body_bytes, verified, ord)
    cross join lateral (select case when unqueryable(g.headers) is null then g.headers else '{}' end as headers) h
    where exists (select from sources s where s.name = g.source) -- it may have been removed meanwhile
        and not (_again and exists (
            select
            from rejected_requests r
            where r.source = g.source
                and r.cause = g.cause
                and r.at = g.at
                and r.remote = g.remote
                and r.target = g.target
                and r.body = g.body))
    order by g.ord;
    -- Of each cause the newest come first, one of each cause after the other, until the rows are as many as may be. Of
    -- these, those come first that need the fewest bytes of their cause, until the bytes are.
    with budget as materialized (
        select b.source, least(b.rows, 100000) as rows, b.bytes, clock_timestamp() - b.age as oldest
        from unnest(_of, _rows, _bytes, _age) as b(source, rows, bytes, age)
    ), kept as (
        select
            r.id,
            r.source,
            case when r.cause = any (_ours) then r.verified else false end as class, -- NULL is one too
            r.state = 'requested' as stays,
            r.size,
            row_number() over (
                partition by r.source, r.cause, case when r.cause = any (_ours) then r.verified else false end
                order by r.state <> 'requested', r.id desc) as n,
            r.cause
        from budget b join rejected_requests r on r.source = b.source
        where r.at >= b.oldest or r.state = 'requested'
    ), counted as (
        select k.*, row_number() over (
            partition by k.source, k.class
            order by not k.stays, k.n, k.id desc) as rows
        from kept k
    ), weighed as (
        select c.*, sum(c.size) over (
            partition by c.source, c.cause, c.class
            order by c.n) as own
        from counted c join budget b on b.source = c.source
        where c.stays or c.rows <= b.rows
    ), fitting as materialized (
        select w.id, w.stays, w.source, sum(w.size) over (
            partition by w.source, w.class
            order by not w.stays, w.own, w.id desc) as bytes
        from weighed w
    )
    delete from rejected_requests r
    where r.id in (
        -- It looks at the state again: somebody may have asked for it meanwhile.
        select o.id
        from rejected_requests o
        where o.source = any (_of)
            and o.state <> 'requested'
            and not exists (
                select
                from fitting f join budget b on b.source = f.source
                where f.id = o.id and (f.stays or f.bytes <= b.bytes))
        for update of o skip locked);
end $$;


--
-- Name: FUNCTION keep_rejected(_source text[], _at timestamp with time zone[], _cause text[], _status integer[], _detail text[], _remote text[], _method text[], _target text[], _headers text[], _body bytea[], _body_bytes bigint[], _verified boolean[], _of text[], _rows integer[], _bytes bigint[], _age interval[], _again boolean); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.keep_rejected(_source text[], _at timestamp with time zone[], _cause text[], _status integer[], _detail text[], _remote text[], _method text[], _target text[], _headers text[], _body bytea[], _body_bytes bigint[], _verified boolean[], _of text[], _rows integer[], _bytes bigint[], _age interval[], _again boolean) IS 'Internal. Keeps rejected requests within the budgets of their sources.';


--
-- Name: last_arrival(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.last_arrival(_source text) RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_sort TO 'off'
    AS $$
    -- The newest event may have been removed since it was noted.
    select greatest(
        (
            select e.created_at
            from events e
            where e.source = _source and e.id > (select greatest(w.event, w.seen - 10000) from arrivals_watermark w)
            order by e.id desc
            limit 1),
        (select s.last_arrival_at from sources s where s.name = _source))
$$;


--
-- Name: FUNCTION last_arrival(_source text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.last_arrival(_source text) IS 'When a source last sent a new event. NULL if it never did.';


--
-- Name: last_mark(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.last_mark() RETURNS xid8
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'spine', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
begin
    perform require_right('audit_log', 'SELECT');
    return coalesce((
        select m.position
        from audit_marks m
        where m.position <= (select trail_end())
        order by m.position desc
        limit 1), '0');
end $$;


--
-- Name: FUNCTION last_mark(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.last_mark() IS 'Internal. The newest position in the audit log of which the time is known.';


--
-- Name: latency_percentile(bigint[], double precision); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.latency_percentile(_latency bigint[], _fraction double precision) RETURNS interval
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select make_interval(secs => power(1.2::float8, c.n - 1.5) / 1000)
    from (
        select l.n, sum(l.count) over (order by l.n) as up_to, sum(l.count) over () as total
        from unnest(_latency) with ordinality as l(count, n)
    ) c
    where c.up_to >= greatest(ceil(c.total * _fraction), 1)
    order by c.n
    limit 1
$$;


--
-- Name: FUNCTION latency_percentile(_latency bigint[], _fraction double precision); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.latency_percentile(_latency bigint[], _fraction double precision) IS 'A percentile of a histogram in spine.rollups, to within a tenth. Example, the 95th: spine.latency_percentile(latency, 0.95).';


--
-- Name: lock_audit_log(text[]); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.lock_audit_log(_tables text[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET lock_timeout TO '50ms'
    AS $$
declare
    _names constant text := (select string_agg(format('only spine.%I', t), ', ') from unnest(_tables) t);
begin
    for _time in 1..25 loop
        begin
            perform take_lock('partitions');
            lock table only audit_trail, only audit_trail_default in access exclusive mode;
            execute format('lock table %s in access exclusive mode nowait', _names);
            return;
        exception when lock_not_available then
            if _time = 25
                or exists (
                    select
                    from pg_locks l join pg_class c on c.oid = l.relation
                    where not l.granted
                        and c.relnamespace = 'spine'::regnamespace
                        and c.relname = any (_tables)
                        and l.database = this_database())
            then
                raise;
            end if;
            perform pg_sleep(0.2);
        end;
    end loop;
end $$;


--
-- Name: FUNCTION lock_audit_log(_tables text[]); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.lock_audit_log(_tables text[]) IS 'Internal. Takes the audit log for itself, until the transaction ends.';


--
-- Name: lock_default_partition(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.lock_default_partition() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET lock_timeout TO '50ms'
    AS $$
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


--
-- Name: FUNCTION lock_default_partition(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.lock_default_partition() IS 'Internal. Takes the default partition for itself, until the transaction ends.';


--
-- Name: lock_holders(xid); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.lock_holders(_xmax xid) RETURNS TABLE(pid integer, prepared text, role text, application text, since timestamp with time zone, state text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION lock_holders(_xmax xid); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.lock_holders(_xmax xid) IS 'Internal. Who holds a row that a transaction has locked and not yet committed.';


--
-- Name: locked_by_others(bigint[], text[], bigint[], bigint[]); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.locked_by_others(_event bigint[], _destination text[], _lease_token bigint[], _done bigint[]) RETURNS bigint[]
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
begin
    if cardinality(_done) = cardinality(_event) then
        return '{}';
    end if;
    return array(
        select i.ord
        from unnest(_event, _destination, _lease_token) with ordinality as i(event, destination, lease, ord)
            join processing_state p
            on p.event = i.event and p.destination = i.destination and p.lease_token = i.lease
        where i.ord <> all (_done));
end $$;


--
-- Name: FUNCTION locked_by_others(_event bigint[], _destination text[], _lease_token bigint[], _done bigint[]); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.locked_by_others(_event bigint[], _destination text[], _lease_token bigint[], _done bigint[]) IS 'Internal. Positions of unchanged leases whose rows somebody else has locked.';


--
-- Name: look_alike(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.look_alike(_text text) RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select translate(lower(_text collate "C"), 'oli|sbz_', '0111582-')
$$;


--
-- Name: FUNCTION look_alike(_text text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.look_alike(_text text) IS 'Internal. A text in which letters that look alike are equal.';


--
-- Name: make_durable(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.make_durable() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    if current_setting('client_min_messages') = 'error' then
        perform set_config('client_min_messages', 'warning', true);
    end if;
end $$;


--
-- Name: FUNCTION make_durable(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.make_durable() IS 'Internal. Makes the commit of this transaction wait until it is on disk.';


--
-- Name: mark_audit(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.mark_audit() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'spine', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
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


--
-- Name: FUNCTION mark_audit(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.mark_audit() IS 'Internal. Notes once a day where in time the positions of the audit log are.';


--
-- Name: mend_clock(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.mend_clock() RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
declare
    _now constant timestamptz := clock_timestamp();
    _count bigint;
begin
    perform make_durable();
    with planned as (
        select p.event, p.destination
        from processing_state p
        where p.status in ('pending', 'failed', 'processing')
            and p.next_attempt_at > _now
            and isfinite(p.next_attempt_at)
            and p.updated_at > _now
            and isfinite(p.updated_at)
        for update of p skip locked
    )
    update processing_state p set
        next_attempt_at = _now + greatest(p.next_attempt_at - p.updated_at, interval '0'),
        updated_at = _now
    from planned r
    where p.event = r.event and p.destination = r.destination;
    get diagnostics _count = row_count;
    return _count;
end $$;


--
-- Name: FUNCTION mend_clock(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.mend_clock() IS 'Plans anew what was planned before the database''s clock was set back. Each row keeps its delay, from now on. Returns how many rows.';


--
-- Name: mend_sequences(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.mend_sequences() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'spine', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
declare
    _mark audit_marks;
begin
    perform require_right('audit_trail', 'INSERT');
    -- The mark knows the numbers before it.
    select * into _mark from audit_marks m order by m.position desc limit 1;
    perform setval(s.name, s.newest)
    from (
        select 'events_id_seq'::regclass as name, (select max(e.id) from events e) as newest
        union all
        select 'rejected_requests_id_seq', (select max(r.id) from rejected_requests r)
        union all
        select 'audit_trail_id_seq', greatest(_mark.id, (
            select max(a.id)
            from (
                select t.id
                from audit_trail t
                where t.timestamp >= coalesce(_mark.since, '-infinity')
                order by t.timestamp desc
                limit 1000
            ) a))
    ) s
    where s.newest > coalesce(pg_sequence_last_value(s.name), 0);
end $$;


--
-- Name: FUNCTION mend_sequences(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.mend_sequences() IS 'Internal. Lets the sequences of numbers begin after the rows that are there.';


--
-- Name: merge_audit_days(interval); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.merge_audit_days(_age interval DEFAULT '00:01:00'::interval) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'spine', 'pg_temp'
    SET lock_timeout TO '5s'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO'
    AS $$
declare
    _copy audit_merge;
    _now constant timestamptz := clock_timestamp();
begin
    perform require_right('audit_trail', 'DELETE');
    perform make_durable();
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'days are merged in a transaction that is READ COMMITTED'
            using errcode = 'active_sql_transaction';
    end if;
    if not try_lock('merge_audit_days') then
        return null;
    end if;
    select * into _copy from audit_merge;
    if not found then
        return null;
    end if;
    if _copy.seen_at is null or _copy.seen_at > _now then -- the clock may have been set back
        _copy.seen_at := _now;
        update audit_merge set seen_at = _now;
    end if;
    if _copy.seen_at > _now - _age then
        return null;
    end if;
    -- The comparison locks the days. Only then does it count what they are.
    if not can_merge()
        or not is_copied(_copy)
        or (select count(*) from droppable_days() d where d.name = any (_copy.days)) < cardinality(_copy.days)
    then
        execute format('drop table if exists spine.%I', _copy.partition);
        delete from audit_merge;
        return null;
    end if;
    perform lock_audit_log(_copy.days || _copy.partition);
    execute (select 'drop table ' || string_agg(format('spine.%I', d), ', ') from unnest(_copy.days) d);
    execute format(
        'alter table audit_trail attach partition spine.%I for values from (%L) to (%L)',
        _copy.partition,
        _copy.since,
        _copy.until);
    execute format('alter table spine.%I drop constraint merged_days', _copy.partition);
    delete from audit_merge;
    return _copy.partition;
end $$;


--
-- Name: FUNCTION merge_audit_days(_age interval); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.merge_audit_days(_age interval) IS 'Puts the table that copy_audit_days() has made in the place of its days. Returns its name, NULL where there is none. Raises 55P03 when somebody reads the log all the time.';


--
-- Name: mergeable_days(timestamp with time zone, bigint); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.mergeable_days(_before timestamp with time zone, _bytes bigint, OUT days text[], OUT since timestamp with time zone, OUT until timestamp with time zone) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$
declare
    _day record;
    _size bigint;
begin
    for _day in
        select d.*, date_trunc('month', d.since) as month
        from droppable_days() d
        where date_trunc('month', d.since) + interval '1 month' <= _before
    loop
        _size := _size + pg_table_size(format('spine.%I', _day.name)::regclass);
        if _size <= _bytes and _day.since = until and _day.since <> _day.month then
            days := days || _day.name::text;
        else
            exit when cardinality(days) > 1;
            days := array[_day.name];
            since := _day.since;
            _size := pg_table_size(format('spine.%I', _day.name)::regclass);
        end if;
        until := _day.until;
    end loop;
    if cardinality(days) = 1 then
        days := null;
    end if;
end $$;


--
-- Name: FUNCTION mergeable_days(_before timestamp with time zone, _bytes bigint, OUT days text[], OUT since timestamp with time zone, OUT until timestamp with time zone); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.mergeable_days(_before timestamp with time zone, _bytes bigint, OUT days text[], OUT since timestamp with time zone, OUT until timestamp with time zone) IS 'Internal. The days of the audit log that spine.copy_audit_days() copies next.';


--
-- Name: near_ids(text, text, integer); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.near_ids(_event_id text, _source text DEFAULT NULL::text, _limit integer DEFAULT 5) RETURNS TABLE(event_id text, source text, kind text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'on'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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


--
-- Name: FUNCTION near_ids(_event_id text, _source text, _limit integer); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.near_ids(_event_id text, _source text, _limit integer) IS 'Stored ids that are like one that is not stored. Look-alike letters, one edit, another source, or a longer id. Example: select * from spine.near_ids(''7701'').';


--
-- Name: note_arrivals(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.note_arrivals() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    AS $$
declare
    _mark arrivals_watermark;
    _newest bigint;
    _from bigint;
    _to bigint;
begin
    perform make_durable();
    select max(e.id) into _newest from events e;
    -- A row's lock costs a transaction number and a commit: only where there is something to do.
    if _newest >= (
            select case
                when pg_snapshot_xmin(pg_current_snapshot()) >= w.next_xid then w.next_event
                else greatest(w.next_event, w.seen)
            end + 10000
            from arrivals_watermark w)
        and try_lock('roll_up')
    then
        select w.* into _mark from arrivals_watermark w for update skip locked;
    end if;
    if _mark.only_row is not true then
        return;
    end if;
    if pg_snapshot_xmin(pg_current_snapshot()) >= _mark.next_xid then
        _from := _mark.event;
        _to := _mark.next_event;
        if _newest < _to + 10000 then
            return;
        end if;
        _mark.event := _to;
        _mark.next_event := least(_newest, _to + 200000);
        _mark.next_xid := pg_snapshot_xmax(pg_current_snapshot());
    else
        if _newest < greatest(_mark.next_event, _mark.seen) + 10000 then
            return;
        end if;
        _from := greatest(_mark.event, _mark.seen);
        _to := least(_newest, _from + 200000);
        _mark.seen := _to;
    end if;
    update sources s set last_arrival_at = greatest(s.last_arrival_at, n.at)
    from (
        select e.source, max(e.created_at) as at
        from events e
        where e.id > _from and e.id <= _to
        group by e.source) n
    where s.name = n.source;
    update arrivals_watermark set
        event = _mark.event,
        next_event = _mark.next_event,
        next_xid = _mark.next_xid,
        seen = _mark.seen;
end $$;


--
-- Name: FUNCTION note_arrivals(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.note_arrivals() IS 'Internal. Notes when each source last sent a new event. It works in turns of 10,000 to 200,000 events.';


--
-- Name: note_database(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.note_database() RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'spine', 'pg_temp'
    SET lock_timeout TO '5s'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
declare
    _server constant bigint := this_server();
    _database constant oid := this_database();
    _caller constant text := coalesce(current_setting('spine.caller', true), '');
    _noted database_identity;
    _mark xid8;
    _since timestamptz;
    _newest bigint;
    _copied boolean;
begin
    perform require_right('audit_trail', 'INSERT');
    if is_noted(_server, _database) or current_setting('transaction_read_only') = 'on' then
        return null;
    end if;
    perform make_durable();
    -- The row is there from the migration on. Logical replication may have left it out.
    insert into database_identity (database_oid) values (0) on conflict do nothing;
    select * into _noted from database_identity for update;
    if is_noted(_server, _database) then
        return null; -- another process was quicker
    end if;
    if _noted.database_oid is not null then
        perform mend_sequences();
        select m.position into _mark from audit_marks m order by m.position desc limit 1;
        _since := audit_since(coalesce(_mark, '0'));
        select greatest(_mark, (
            select a.xid
            from audit_trail a
            where a.timestamp >= _since or a.timestamp = 'infinity'
            order by a.xid desc
            limit 1
        ))::text::bigint into _newest;
        if _newest is not null then
            -- Larger than any position that a reader of the original can have.
            _noted.trail_shift := ((_newest >> 32) + 2) << 32;
            execute format(
                'alter table only audit_trail alter column xid
                set default ((pg_current_xact_id()::text::bigint + %s)::text::xid8)',
                _noted.trail_shift);
        end if;
        update arrivals_watermark set next_xid = '0'; -- all transactions of the other server are over
        _copied := exists (select from events);
        if _copied then
            perform set_config('spine.caller', 'Spine itself', true);
            perform pause(null,
                'this database is a copy, or its server is a new one; if it shall deliver, run spine resume');
            perform set_config('spine.caller', _caller, true);
        end if;
    end if;
    update database_identity set
        system_identifier = _server,
        database_oid = _database,
        noted_at = clock_timestamp(),
        trail_shift = _noted.trail_shift;
    if _copied then
        return format(
            'this is another database than the one that was noted%s: it was restored or copied, '
                'or its server is a new one. Claims are paused, so that a copy delivers nothing. '
                'If this database shall deliver, run spine resume',
            coalesce(' at ' || to_char(_noted.noted_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), ''));
    end if;
    return null;
end $$;


--
-- Name: FUNCTION note_database(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.note_database() IS 'Internal. Notes which database this is. Pauses all claims where another one was noted.';


--
-- Name: notify_jam(integer[]); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.notify_jam(_ours integer[]) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
declare
    _waiting integer[];
    _holder text;
begin
    -- The lock is that of database 0.
    select
        array_agg(l.pid) filter (where not l.granted and l.waitstart < clock_timestamp() - interval '500 ms'),
        min(format('pid %s%s', l.pid, format(' of role %s in database %s', a.usename, a.datname)))
            filter (where l.granted)
    into _waiting, _holder
    from pg_locks l left join pg_stat_activity a on a.pid = l.pid
    where l.locktype = 'object' and l.database = 0 and l.classid = 'pg_database'::regclass and l.objid = 0;
    if _waiting is null then
        return null;
    end if;
    perform pg_cancel_backend(w) from unnest(_waiting) w where w = any (_ours);
    return coalesce(_holder, 'another session');
end $$;


--
-- Name: FUNCTION notify_jam(_ours integer[]); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.notify_jam(_ours integer[]) IS 'Internal. Who holds up commits that notify, in words.';


--
-- Name: oldest_ready(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.oldest_ready() RETURNS interval
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
declare
    _now timestamptz := clock_timestamp();
begin
    return coalesce((
        with recursive queued(name) as (
            (
                select p.destination
                from processing_state p
                where p.status in ('pending', 'failed', 'processing')
                order by p.destination
                limit 1
            )
            union all
            select (
                select p.destination
                from processing_state p
                where p.status in ('pending', 'failed', 'processing') and p.destination > q.name
                order by p.destination
                limit 1
            )
            from queued q
            where q.name is not null
        )
        select max(_now - case
            when isfinite(o.next_attempt_at) then o.next_attempt_at
            when isfinite(o.updated_at) then o.updated_at
        end)
        from queued q cross join lateral (
            select p.next_attempt_at, p.updated_at
            from processing_state p
            where p.destination = q.name
                and p.status in ('pending', 'failed', 'processing')
                and p.next_attempt_at <= _now
            order by p.next_attempt_at
            limit 1) o), '0');
end $$;


--
-- Name: FUNCTION oldest_ready(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.oldest_ready() IS 'How long the oldest row has been due that should be claimed. 0 when there is none. Paused destinations and leases that ran out count.';


--
-- Name: pause(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.pause(_destination text DEFAULT NULL::text) RETURNS bigint
    LANGUAGE sql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select pause(_destination, null)
$$;


--
-- Name: FUNCTION pause(_destination text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.pause(_destination text) IS 'Stops claims for a destination until spine.resume(). All destinations where none is named. Nothing is lost: Spine goes on storing and queueing events.';


--
-- Name: pause(text, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.pause(_destination text, _reason text) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION pause(_destination text, _reason text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.pause(_destination text, _reason text) IS 'Stops claims for a destination, or for all where it is NULL, and says why. Example: select spine.pause(''default'', ''deploying billing'').';


--
-- Name: processing_state_changed_by_hand(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.processing_state_changed_by_hand() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    update processing_state p set
        lease_token = p.lease_token + 1,
        deferrals = null,
        deferred_since = null,
        next_attempt_at = case
            when new.status in ('completed', 'dead') then null
            when new.next_attempt_at is not distinct from old.next_attempt_at then clock_timestamp()
            else coalesce(new.next_attempt_at, clock_timestamp())
        end,
        completed_at = case when new.status = 'completed' then coalesce(new.completed_at, clock_timestamp()) end,
        error_message = case when new.status <> 'completed' then new.error_message end,
        updated_at = clock_timestamp()
    where p.event = new.event and p.destination = new.destination;
    insert into audit_trail (event, event_id, source, action, details)
    values (
        new.event,
        new.event_id,
        nullif(new.source, 'default'),
        'status_changed',
        json_strip_nulls(json_build_object(
            'from', old.status,
            'to', new.status,
            'destination', new.destination,
            'by', session_user,
            'caller', left(nullif(current_setting('spine.caller', true), ''), 300),
            'reason', reason(),
            'lease_voided', case when old.status = 'processing' then old.lease_token end)));
    return null;
end $$;


--
-- Name: FUNCTION processing_state_changed_by_hand(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.processing_state_changed_by_hand() IS 'Internal. Trigger: a status changed by hand wins, voids the lease, and is audited.';


--
-- Name: processing_state_claimable(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.processing_state_claimable() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
declare
    _announced integer := coalesce(nullif(current_setting('spine.announced', true), ''), '0')::integer;
    _since timestamptz := nullif(current_setting('spine.announced_since', true), '');
begin
    if _announced < 5 or new.next_attempt_at < _since then
        perform set_config('spine.announced', (_announced + 1)::text, true);
        perform set_config('spine.announced_since', least(new.next_attempt_at, _since)::text, true);
        perform announce(1, array[new.event_id], new.next_attempt_at);
    end if;
    return null;
end $$;


--
-- Name: FUNCTION processing_state_claimable(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.processing_state_claimable() IS 'Internal. Trigger: wakes the workers when an UPDATE makes a row claimable.';


--
-- Name: processing_state_find_event(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.processing_state_find_event() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
declare
    _event bigint;
begin
    select e.id into _event
    from events e
    where e.event_id = new.event_id and e.source = new.source
    for key share;
    if _event is null or new.event <> _event then
        raise exception 'there is no event "%" in source "%"', new.event_id, new.source
            using errcode = 'foreign_key_violation',
                table = 'processing_state',
                schema = 'spine',
                hint = arrivals(new.source);
    end if;
    new.event := _event;
    if new.status in ('pending', 'failed', 'processing') then
        new.next_attempt_at := coalesce(new.next_attempt_at, clock_timestamp());
    else
        new.next_attempt_at := null;
    end if;
    new.completed_at := case when new.status = 'completed' then coalesce(new.completed_at, clock_timestamp()) end;
    return new;
end $$;


--
-- Name: FUNCTION processing_state_find_event(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.processing_state_find_event() IS 'Internal. Trigger: finds the event of a row inserted by hand. 23503 where there is none.';


--
-- Name: processing_state_inserted(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.processing_state_inserted() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    -- announce() and hint(), written out: every event passes here.
    if current_setting('spine.hints', true) = 'off' then
        return null;
    end if;
    perform pg_notify('spine_ready', json_build_object(
        'count', count(*),
        'event_ids', (array_agg(i.event_id))[1:5],
        'due', min(i.next_attempt_at))::text)
    from inserted i
    where i.status in ('pending', 'failed') and i.next_attempt_at <= clock_timestamp() + interval '1 hour'
    having count(*) > 0;
    return null;
end $$;


--
-- Name: FUNCTION processing_state_inserted(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.processing_state_inserted() IS 'Internal. Trigger: wakes the workers after every INSERT that queued something claimable.';


--
-- Name: processing_state_queued(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.processing_state_queued() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    insert into audit_trail (event, event_id, source, action, details)
    values (
        new.event,
        new.event_id,
        nullif(new.source, 'default'),
        'event_queued',
        json_strip_nulls(json_build_object(
            'destination', new.destination,
            'status', new.status,
            'by', session_user,
            'reason', reason())));
    return null;
end $$;


--
-- Name: FUNCTION processing_state_queued(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.processing_state_queued() IS 'Internal. Trigger: audits a row queued by hand.';


--
-- Name: put_source(text, jsonb); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.put_source(_name text, _settings jsonb) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
declare
    _before jsonb;
begin
    insert into sources (name, settings) values (_name, _settings) on conflict (name) do nothing;
    if found then
        return 'added';
    end if;
    select s.settings into _before from sources s where s.name = _name for update;
    if _before = _settings then
        return 'unchanged';
    end if;
    update sources s set settings = _settings where s.name = _name;
    return 'changed';
end $$;


--
-- Name: FUNCTION put_source(_name text, _settings jsonb); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.put_source(_name text, _settings jsonb) IS 'Adds a source or gives it other settings. Returns added, changed or unchanged. Example: select spine.put_source(''github'', ''{"preset": "github", "secrets": ["file:github"]}'').';


--
-- Name: reason(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.reason() RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select left(nullif(btrim(current_setting('spine.reason', true)), ''), 300)
$$;


--
-- Name: FUNCTION reason(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.reason() IS 'Internal. Why somebody makes a change, as far as spine.reason says.';


--
-- Name: reject(text[], text[], integer[], bigint[], timestamp with time zone[], interval[], boolean); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.reject(_source text[], _cause text[], _status integer[], _count bigint[], _since timestamp with time zone[], _age interval[], _again boolean) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
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


--
-- Name: FUNCTION reject(_source text[], _cause text[], _status integer[], _count bigint[], _since timestamp with time zone[], _age interval[], _again boolean); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.reject(_source text[], _cause text[], _status integer[], _count bigint[], _since timestamp with time zone[], _age interval[], _again boolean) IS 'Internal. Writes rejected requests to the audit log, as summaries.';


--
-- Name: reject_event(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.reject_event(_rule text) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    raise exception 'the event is rejected: %', _rule
        using errcode = 'check_violation', schema = 'spine', table = 'events';
end $$;


--
-- Name: FUNCTION reject_event(_rule text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.reject_event(_rule text) IS 'Internal. Raises 23514 for an event that breaks a rule. spine.ingest_events() calls it.';


--
-- Name: rejected_find_words(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.rejected_find_words() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    new.words := rejected_words(new.headers, new.target, new.body);
    return new;
end $$;


--
-- Name: FUNCTION rejected_find_words(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.rejected_find_words() IS 'Internal. Trigger: notes what may be an id in a rejected request.';


--
-- Name: rejected_like(text, text, integer); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.rejected_like(_text text, _source text DEFAULT NULL::text, _limit integer DEFAULT 10) RETURNS TABLE(id bigint, source text, at timestamp with time zone, cause text, status integer, state text)
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_indexscan TO 'off'
    AS $$
    -- Materialized, so that the order does not invite the planner to walk all requests.
    with found as materialized (
        select r.id, r.source, r.at, r.cause, r.status, r.state
        from rejected_requests r
        where r.words && array[
            word_number(encode(convert_to(btrim(_text), 'UTF8'), 'escape')),
            word_number(encode(convert_to(split_part(btrim(_text), '/', 1), 'UTF8'), 'escape'))]
            and btrim(_text) <> ''
            and (_source is null or r.source = _source)
    )
    select f.* from found f order by f.id desc limit _limit
$$;


--
-- Name: FUNCTION rejected_like(_text text, _source text, _limit integer); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.rejected_like(_text text, _source text, _limit integer) IS 'Rejected requests in which an id stands; letters that look alike are equal. Example: select * from spine.rejected_like(''test-001'').';


--
-- Name: rejected_words(json, text, bytea); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.rejected_words(_headers json, _target text, _body bytea) RETURNS bigint[]
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    with part as (
        select 1 as place, encode(substring(convert_to(_headers::text, 'UTF8') from 1 for 8000), 'escape') as text
        union all
        select 2, encode(convert_to(_target, 'UTF8'), 'escape')
        union all
        select 3, encode(substring(_body from 1 for 8000), 'escape')
        union all
        select 4, encode(substring(_body from greatest(8001, octet_length(_body) - 1999)), 'escape')
    ), word as (
        -- A string between quotes that no colon follows: the name of a member is no id.
        select p.place, 1 as kind, m.n, m.match[1] as word
        from part p cross join lateral (
            select r.match, r.n
            from regexp_matches(p.text, '"([^"]+)"([[:space:]]*:)?', 'g') with ordinality r(match, n)
            where r.match[2] is null
            limit 500
        ) m
        where p.place <> 2
        union all
        select p.place, 2, m.n, m.match[1]
        from part p cross join lateral (
            select r.match, r.n
            from regexp_matches(p.text, '([^][[:space:]"'',;:&=?<>{}()/]+)', 'g') with ordinality r(match, n)
            where length(r.match[1]) >= 3
                and regexp_replace(r.match[1], E'\\\\[0-7]{3}', '', 'g') ~ '[0-9]' -- without those of encode()
            limit 500
        ) m
        where p.place <> 1
    ), first as (
        select w.word
        from word w
        where length(w.word) <= 4080 -- an id has 255 characters of up to four bytes, each of which may be octal
        group by w.word
        order by regexp_replace(w.word, E'\\\\[0-7]{3}', '', 'g') !~ '[0-9]', min(array[w.place, w.kind, w.n])
        limit 40
    )
    select array(select distinct word_number(f.word) from first f)
$$;


--
-- Name: FUNCTION rejected_words(_headers json, _target text, _body bytea); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.rejected_words(_headers json, _target text, _body bytea) IS 'Internal. Numbers of 40 words in a rejected request that may be ids.';


--
-- Name: remove_source(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.remove_source(_name text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    perform require_source(_name);
    delete from sources s where s.name = _name;
    delete from rejected_requests r where r.source = _name;
end $$;


--
-- Name: FUNCTION remove_source(_name text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.remove_source(_name text) IS 'Removes a source and its rejected requests. Its events stay.';


--
-- Name: renew(bigint[], text[], bigint[], interval); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.renew(_event bigint[], _destination text[], _lease_token bigint[], _lease interval) RETURNS boolean[]
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
declare
    _now timestamptz := clock_timestamp();
    _held bigint[];
    _locked bigint[];
begin
    perform make_durable();
    with input as materialized (
        select *
        from unnest(_event, _destination, _lease_token) with ordinality as i(event, destination, lease, ord)
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
    return array(
        select case when n = any (_held) then true when n = any (_locked) then null else false end
        from generate_series(1, cardinality(_event)) n
        order by n);
end $$;


--
-- Name: FUNCTION renew(_event bigint[], _destination text[], _lease_token bigint[], _lease interval); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.renew(_event bigint[], _destination text[], _lease_token bigint[], _lease interval) IS 'Prolongs leases. Returns for each, by position, whether it is held. NULL where somebody else has the row locked.';


--
-- Name: replay(text, text, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.replay(_event_id text, _source text DEFAULT NULL::text, _destination text DEFAULT NULL::text) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION replay(_event_id text, _source text, _destination text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.replay(_event_id text, _source text, _destination text) IS 'Delivers an event again and returns how many rows it replayed. It leaves pending and processing rows alone. Example: select spine.replay(''test-001'').';


--
-- Name: replay_dead(timestamp with time zone, timestamp with time zone, text, text, text, bigint); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.replay_dead(_since timestamp with time zone DEFAULT '-infinity'::timestamp with time zone, _until timestamp with time zone DEFAULT 'infinity'::timestamp with time zone, _source text DEFAULT NULL::text, _event_type text DEFAULT NULL::text, _destination text DEFAULT NULL::text, _limit bigint DEFAULT NULL::bigint) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION replay_dead(_since timestamp with time zone, _until timestamp with time zone, _source text, _event_type text, _destination text, _limit bigint); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.replay_dead(_since timestamp with time zone, _until timestamp with time zone, _source text, _event_type text, _destination text, _limit bigint) IS 'Delivers dead events again and returns how many. Example: select spine.replay_dead(now() - interval ''1 hour'').';


--
-- Name: replay_rejected(bigint, boolean); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.replay_rejected(_id bigint, _trust boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
declare
    _request record;
begin
    select r.body_bytes, octet_length(r.body) as kept into _request from rejected_requests r where r.id = _id;
    if not found then
        raise exception 'no rejected request % is kept', _id using errcode = 'no_data_found';
    elsif _request.body_bytes is not null then
        raise exception 'only the first % bytes of the body of rejected request % are kept', _request.kept, _id
            using errcode = 'object_not_in_prerequisite_state';
    end if;
    perform request_replay(array[_id], _trust);
end $$;


--
-- Name: FUNCTION replay_rejected(_id bigint, _trust boolean); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.replay_rejected(_id bigint, _trust boolean) IS 'Marks one rejected request to be read again. An API process does that, and notes the result in state and note. Example: select spine.replay_rejected(12).';


--
-- Name: replay_rejected(text, text, timestamp with time zone, timestamp with time zone, boolean); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.replay_rejected(_source text, _cause text DEFAULT NULL::text, _since timestamp with time zone DEFAULT '-infinity'::timestamp with time zone, _until timestamp with time zone DEFAULT 'infinity'::timestamp with time zone, _trust boolean DEFAULT false) RETURNS bigint
    LANGUAGE sql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select request_replay(array(
        select r.id
        from rejected_requests r
        where (_source is null or r.source = _source)
            and (_cause is null or r.cause = _cause)
            and r.at >= _since
            and r.at < _until
        order by r.id), _trust)
$$;


--
-- Name: FUNCTION replay_rejected(_source text, _cause text, _since timestamp with time zone, _until timestamp with time zone, _trust boolean); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.replay_rejected(_source text, _cause text, _since timestamp with time zone, _until timestamp with time zone, _trust boolean) IS 'Marks the rejected requests of a source to be read again and returns how many. Example: select spine.replay_rejected(''github'', ''signature_wrong'').';


--
-- Name: replay_rows(bigint[], text[]); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.replay_rows(_event bigint[], _destination text[]) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_material TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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


--
-- Name: FUNCTION replay_rows(_event bigint[], _destination text[]); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.replay_rows(_event bigint[], _destination text[]) IS 'Internal. Puts completed, failed and dead rows back to pending with attempt_count 0. Returns how many.';


--
-- Name: replayed(bigint, timestamp with time zone, timestamp with time zone, json); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.replayed(_event bigint, _created_at timestamp with time zone, _at timestamp with time zone, _details json) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $_$
declare
    _excess constant bigint :=
        substring(detail(_details, 'lease') from '^[0-9]{1,18}$')::bigint
        - 2 * substring(detail(_details, 'attempt') from '^[0-9]{1,9}$')::bigint + 1;
    -- The epoch, since a minute before the first time there is none.
    _since constant timestamptz := date_trunc('day', greatest(_created_at, 'epoch') - interval '1 minute', 'UTC');
begin
    if _excess = 0 then
        return false;
    elsif _excess % 2 <> 0 then
        return true;
    end if;
    return exists (
        select
        from steps_of(_event, _event, _since) t
        where t.timestamp <= _at
            and t.action in ('event_replayed', 'status_changed', 'event_queued')
            and coalesce(detail(t.details, 'destination'), 'default')
                = coalesce(detail(_details, 'destination'), 'default'));
end $_$;


--
-- Name: FUNCTION replayed(_event bigint, _created_at timestamp with time zone, _at timestamp with time zone, _details json); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.replayed(_event bigint, _created_at timestamp with time zone, _at timestamp with time zone, _details json) IS 'Internal. Whether an event had been replayed before its delivery, or queued by hand.';


--
-- Name: request_replay(bigint[], boolean); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.request_replay(_ids bigint[], _trust boolean) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
declare
    _count bigint;
begin
    perform from (
        select from rejected_requests r where r.id = any (_ids) order by r.id for no key update
    ) locked;
    with requested as (
        update rejected_requests r set state = 'requested', trust = _trust, taken_until = null
        where r.id = any (_ids)
            and r.body_bytes is null
            and (r.state in ('kept', 'refused') or r.state = 'requested' and r.trust <> _trust)
        returning r.id, r.source, r.cause
    ), audited as (
        insert into audit_trail (source, action, details)
        select
            q.source,
            'request_replayed',
            json_strip_nulls(json_build_object(
                'request', q.id,
                'cause', q.cause,
                'trust', nullif(_trust, false),
                'by', session_user,
                'caller', left(nullif(current_setting('spine.caller', true), ''), 300)))
        from requested q
    )
    select count(*) into _count from requested;
    if _count > 0 then
        perform hint('spine_sources', json_build_object('requested', _count)::text);
    end if;
    return _count;
end $$;


--
-- Name: FUNCTION request_replay(_ids bigint[], _trust boolean); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.request_replay(_ids bigint[], _trust boolean) IS 'Internal. Marks rejected requests to be read again. Audits that and tells the API processes.';


--
-- Name: require_destination(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.require_destination(_destination text) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    if _destination is not null and not exists (select from destinations d where d.name = _destination) then
        raise exception 'there is no destination named %', quote_literal(_destination)
            using errcode = 'no_data_found',
                hint = 'Known: ' || (select string_agg(d.name, ', ' order by d.name) from destinations d);
    end if;
end $$;


--
-- Name: FUNCTION require_destination(_destination text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.require_destination(_destination text) IS 'Internal. Raises P0002 where a named destination does not exist.';


--
-- Name: require_right(text, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.require_right(_table text, _right text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
declare
    _role name := coalesce(nullif(current_setting('role'), 'none'), session_user);
begin
    if not has_table_privilege(_role, format('spine.%I', _table), _right) then
        raise exception 'the role "%" lacks the right % on the table spine.%', _role, _right, _table
            using errcode = 'insufficient_privilege';
    end if;
end $$;


--
-- Name: FUNCTION require_right(_table text, _right text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.require_right(_table text, _right text) IS 'Internal. Raises 42501 where the calling role lacks a right of its own.';


--
-- Name: require_source(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.require_source(_name text) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    if not exists (select from sources s where s.name = _name) then
        raise exception 'there is no source named %', quote_literal(_name)
            using errcode = 'no_data_found',
                hint = 'Known: ' || (select string_agg(s.name, ', ' order by s.name) from sources s);
    end if;
end $$;


--
-- Name: FUNCTION require_source(_name text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.require_source(_name text) IS 'Internal. Raises P0002 where there is no such source.';


--
-- Name: resume(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.resume(_destination text DEFAULT NULL::text) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION resume(_destination text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.resume(_destination text) IS 'Takes up claims again that spine.pause() stopped.';


--
-- Name: roll_up(integer); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.roll_up(_limit integer DEFAULT 50000) RETURNS interval
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    SET enable_mergejoin TO 'off'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $_$
#variable_conflict use_column
declare
    _state rollup_state;
    _since timestamptz; -- all rows that are left have a time from then on
    _now timestamptz;
    _seen record;
    _end xid8;
    _late xid8[];
    _next_at timestamptz;
begin
    perform mark_audit();
    -- Without a lock, which costs a transaction number: an idle database is asked every second.
    select * into _state from rollup_state;
    if _state.next_xid <= trail_end()
        and not audited_beyond(_state.next_xid, _state.in_progress)
    then
        return '0';
    end if;
    if not try_lock('roll_up') then
        return null;
    end if;
    select * into _state from rollup_state;
    if _state.next_xid > trail_end() then
        update rollup_state s set
            next_xid = n.next_xid,
            in_progress = n.in_progress,
            covered_from = clock_timestamp(),
            covered_to = clock_timestamp()
        from audited_now() n;
        return '0';
    end if;

    _since := unread_since(_state.next_xid, _state.in_progress);
    _now := clock_timestamp();
    select greatest(n.next_xid, _state.next_xid) as next_xid, n.in_progress into _seen from audited_now() n;
    -- Not those from next_xid on: their rows are read with all others of theirs.
    _late := array(
        select x from unnest(_state.in_progress) x where x < _state.next_xid and x <> all (_seen.in_progress));
    select a.xid into _end
    from audit_trail a
    where a.xid >= _state.next_xid
        and a.xid < _seen.next_xid
        and a.xid <> all (_seen.in_progress)
        and (a.timestamp >= _since or a.timestamp = 'infinity')
    order by a.xid
    offset _limit
    limit 1;
    if _end is not null then
        if not exists (
            select
            from audit_trail a
            where a.xid >= _state.next_xid
                and a.xid < _end
                and a.xid <> all (_seen.in_progress)
                and (a.timestamp >= _since or a.timestamp = 'infinity'))
        then
            _end := ((_end::text)::bigint + 1)::text::xid8;
        end if;
        -- The time of the first row that is left.
        select a.timestamp into _next_at
        from audit_trail a
        where a.xid >= _end
            and a.xid < _seen.next_xid
            and a.xid <> all (_seen.in_progress)
            and (a.timestamp >= _since or a.timestamp = 'infinity')
        order by a.xid
        limit 1;
    end if;
    if _next_at is null then
        _end := _seen.next_xid;
    end if;

    -- First, since nothing may be counted twice: a call of an earlier version takes another lock.
    update rollup_state s set
        next_xid = _end,
        in_progress = array(select x from unnest(_seen.in_progress) x where x < _end),
        covered_to = case when _next_at is null then _now else greatest(s.covered_to, least(_next_at, _now)) end
    where s.next_xid = _state.next_xid and s.in_progress = _state.in_progress;
    if not found then
        return null;
    end if;

    with counted as materialized (
        select
            date_bin('10 s', r.at, 'epoch') as at,
            r.source,
            r.action,
            r.bucket,
            sum(r.n) as n,
            max(r.at) as last
        from (
            select
                least(a.timestamp, _now) as at,
                a.action,
                coalesce(a.source, case when a.event_id is null then '' else 'default' end) as source,
                case
                    when a.action = 'request_rejected'
                        then coalesce(substring(detail(a.details, 'count') from '^[0-9]{1,15}$')::bigint, 1)
                    else 1
                end as n,
                case when a.action = 'processing_succeeded' then (
                    -- Seconds, since times may be infinite or too far apart for an interval.
                    select case when isfinite(a.timestamp) and isfinite(e.created_at) then
                        least(
                            1 + ceil(
                                ln(greatest(
                                    (date_part('epoch', a.timestamp) - date_part('epoch', e.created_at)) * 1000,
                                    1))
                                / ln(1.2::float8)),
                            130)::integer end
                    from events e
                    where e.id = a.event
                        and (
                            date_part('epoch', a.timestamp) - date_part('epoch', e.created_at) < 10
                            or not replayed(a.event, e.created_at, a.timestamp, a.details))
                ) end as bucket
            from (
                select a.timestamp, a.event, a.action, a.event_id, a.source, a.details
                from audit_trail a
                where a.xid >= _state.next_xid
                    and a.xid < _end
                    and a.xid <> all (_seen.in_progress)
                    and (a.timestamp >= _since or a.timestamp = 'infinity')
                union all
                select a.timestamp, a.event, a.action, a.event_id, a.source, a.details
                from audit_trail a
                where a.xid = any (_late) and (a.timestamp >= _since or a.timestamp = 'infinity')
            ) a
            where a.action in (
                'event_received',
                'event_inserted',
                'event_deduped',
                'conflict_detected',
                'request_rejected',
                'processing_attempt_started',
                'processing_attempt_failed',
                'lease_expired',
                'delivery_deferred',
                'processing_succeeded',
                'processing_failed_permanently')
        ) r
        where r.at >= _state.covered_from
        group by 1, 2, 3, 4
    ), stepped as materialized (
        select
            s.step,
            date_bin(s.step * interval '1 s', c.at, 'epoch') as at,
            c.source,
            c.action,
            c.bucket,
            sum(c.n)::bigint as n
        from counted c join rollup_steps() s on c.at >= _now - s.kept
        group by 1, 2, 3, 4, 5
    ), summed as (
        select
            s.step,
            s.at,
            s.source,
            coalesce(sum(s.n) filter (where s.action = 'event_received'), 0) as received,
            coalesce(sum(s.n) filter (where s.action = 'event_inserted'), 0) as accepted,
            coalesce(sum(s.n) filter (where s.action = 'event_deduped'), 0) as deduplicated,
            coalesce(sum(s.n) filter (where s.action = 'conflict_detected'), 0) as conflicts,
            coalesce(sum(s.n) filter (where s.action = 'request_rejected'), 0) as rejected,
            coalesce(sum(s.n) filter (where s.action = 'processing_attempt_started'), 0) as attempts,
            coalesce(
                sum(s.n) filter (
                    where s.action in ('processing_attempt_failed', 'lease_expired', 'delivery_deferred')),
                0) as attempts_failed,
            coalesce(sum(s.n) filter (where s.action = 'processing_succeeded'), 0) as delivered,
            coalesce(sum(s.n) filter (where s.action = 'processing_failed_permanently'), 0) as died,
            max(s.bucket) as slowest
        from stepped s
        group by 1, 2, 3
    ), histograms as (
        select s.step, s.at, s.source, array_agg(coalesce(b.n, 0) order by i) as latency
        from summed s cross join generate_series(1, s.slowest) i
            left join stepped b on b.step = s.step and b.at = s.at and b.source = s.source and b.bucket = i
        group by 1, 2, 3
    ), added as (
        insert into rollups as r (
            step,
            at,
            source,
            received,
            accepted,
            deduplicated,
            conflicts,
            rejected,
            attempts,
            attempts_failed,
            delivered,
            died,
            latency)
        select
            s.step,
            s.at,
            s.source,
            s.received,
            s.accepted,
            s.deduplicated,
            s.conflicts,
            s.rejected,
            s.attempts,
            s.attempts_failed,
            s.delivered,
            s.died,
            coalesce(h.latency, '{}')
        from summed s left join histograms h on h.step = s.step and h.at = s.at and h.source = s.source
        on conflict (step, at, source) do update set
            received = r.received + excluded.received,
            accepted = r.accepted + excluded.accepted,
            deduplicated = r.deduplicated + excluded.deduplicated,
            conflicts = r.conflicts + excluded.conflicts,
            rejected = r.rejected + excluded.rejected,
            attempts = r.attempts + excluded.attempts,
            attempts_failed = r.attempts_failed + excluded.attempts_failed,
            delivered = r.delivered + excluded.delivered,
            died = r.died + excluded.died,
            latency = case when excluded.latency = '{}' then r.latency else (
                select array_agg(coalesce(l.before, 0) + coalesce(l.more, 0) order by l.n)
                from unnest(r.latency, excluded.latency) with ordinality as l(before, more, n)) end
    )
    update sources s set last_arrival_at = greatest(s.last_arrival_at, n.at)
    from (
        select c.source, max(c.last) as at
        from counted c
        where c.action = 'event_inserted'
        group by c.source) n
    where s.name = n.source;

    if _state.tidied_at < _now - interval '1 minute' then
        delete from rollups r
        where r.ctid = any (array(
            select o.ctid
            from rollup_steps() s cross join lateral (
                select r.ctid
                from rollups r
                where r.step = s.step and r.at < _now - s.kept - s.step * interval '1 s'
                order by r.at
                limit 2000) o));
        update rollup_state set tidied_at = _now;
    end if;
    return (select greatest(_now - s.covered_to, '0') from rollup_state s);
end $_$;


--
-- Name: FUNCTION roll_up(_limit integer); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.roll_up(_limit integer) IS 'Internal. Counts new steps of the audit log in spine.rollups. Returns how far the rollups lag behind, NULL when another call is at work.';


--
-- Name: rolled_up_to(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.rolled_up_to() RETURNS timestamp with time zone
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
declare
    _now timestamptz := clock_timestamp();
begin
    return (
        select case when audited_beyond(s.next_xid, s.in_progress) then s.covered_to else _now end
        from rollup_state s);
end $$;


--
-- Name: FUNCTION rolled_up_to(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.rolled_up_to() IS 'Up to when spine.rollups has all that was committed.';


--
-- Name: rollup_steps(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.rollup_steps() RETURNS TABLE(step integer, kept interval)
    LANGUAGE sql IMMUTABLE ROWS 4
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    values (10, interval '2 hours'), (60, interval '12 hours'), (300, interval '2 days'), (3600, interval '90 days')
$$;


--
-- Name: FUNCTION rollup_steps(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.rollup_steps() IS 'Internal. The lengths of time steps in seconds, and how long Spine keeps them.';


--
-- Name: rotate_source(text, text, interval); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.rotate_source(_name text, _secret text, _keep interval DEFAULT '24:00:00'::interval) RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$
declare
    _until constant timestamptz := clock_timestamp() + _keep;
    _settings jsonb;
begin
    perform require_source(_name);
    select s.settings into _settings from sources s where s.name = _name for update;
    -- A secret that is named anew is valid without an end from now on. Those whose time is over go.
    _settings := _settings || jsonb_build_object('secrets', to_jsonb(array[_secret]) || coalesce((
        select jsonb_agg(
            o.secret || jsonb_build_object(
                'until',
                to_char(least((o.secret ->> 'until')::timestamptz, _until), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            order by o.n)
        from (
            select
                case jsonb_typeof(g.secret)
                    when 'object' then g.secret
                    else jsonb_build_object('ref', g.secret)
                end as secret,
                g.n
            from jsonb_array_elements(_settings -> 'secrets') with ordinality g(secret, n)
        ) o
        where o.secret ->> 'ref' <> _secret
            and coalesce((o.secret ->> 'until')::timestamptz > clock_timestamp(), true)
            and _keep > '0'
    ), '[]'));
    update sources s set settings = _settings where s.name = _name;
    return _settings;
end $$;


--
-- Name: FUNCTION rotate_source(_name text, _secret text, _keep interval); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.rotate_source(_name text, _secret text, _keep interval) IS 'Gives a source a new secret, by reference. Those before stay valid for a while longer. Returns its settings. Example: select spine.rotate_source(''github'', ''file:github-2'', ''1 hour'').';


--
-- Name: said(text, integer); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.said(_text text, _most integer DEFAULT 160) RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select case when length(t) > _most then left(t, _most - 1) || '…' else t end
    from (select btrim(regexp_replace(left(_text, 2000), '[[:space:]]+', ' ', 'g')) as t) x
$$;


--
-- Name: FUNCTION said(_text text, _most integer); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.said(_text text, _most integer) IS 'Internal. A text of somebody else on one line, cut to a length.';


--
-- Name: sample_depth(double precision); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.sample_depth(_rest double precision DEFAULT 20) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
#variable_conflict use_column
declare
    _state depth_state;
    _now timestamptz := clock_timestamp();
    _sample record;
begin
    select * into _state from depth_state;
    -- A sample of the future was taken before the clock was set back.
    if _now < _state.sampled_at + _state.took * _rest and _state.sampled_at <= _now then
        return;
    end if;
    -- The lock of a row would cost a transaction number each second. Autovacuum of the one row waits meanwhile.
    begin
        lock table depth_state in share update exclusive mode nowait;
    exception when lock_not_available then
        return; -- another process is counting
    end;
    -- It may have ended between the look and the lock.
    if exists (select from depth_state d where d.sampled_at is distinct from _state.sampled_at) then
        return;
    end if;
    -- One statement, so that all of it is of one moment.
    select n.next_xid, n.in_progress, oldest_ready() as oldest_ready, d.* into _sample
    from audited_now() n cross join (
        select
            coalesce(
                jsonb_agg(
                    jsonb_build_object(
                        'destination', d.destination,
                        'status', d.status,
                        'count', d.count,
                        'oldest_created_at', d.oldest_created_at,
                        'next_attempt_at', d.next_attempt_at)
                    order by d.destination, d.status),
                '[]') as rows,
            coalesce(sum(d.count) filter (where d.status = 'pending'), 0) as pending,
            coalesce(sum(d.count) filter (where d.status = 'processing'), 0) as processing,
            coalesce(sum(d.count) filter (where d.status = 'failed'), 0) as failed,
            coalesce(sum(d.count) filter (where d.status = 'dead'), 0) as dead
        from depth d
    ) d;
    if _sample.rows = _state.rows and (_sample.oldest_ready > '0') = (_state.oldest_ready > '0')
        and _state.sampled_at between date_bin('10 s', _now, 'epoch') and _now
    then
        return;
    end if;

    insert into depth_samples (step, at, pending, processing, failed, dead, oldest_ready)
    select
        s.step,
        date_bin(s.step * interval '1 s', _now, 'epoch'),
        _sample.pending,
        _sample.processing,
        _sample.failed,
        _sample.dead,
        _sample.oldest_ready
    from rollup_steps() s
    on conflict (step, at) do update set
        pending = excluded.pending,
        processing = excluded.processing,
        failed = excluded.failed,
        dead = excluded.dead,
        oldest_ready = excluded.oldest_ready;
    update depth_state set
        sampled_at = _now,
        took = clock_timestamp() - _now,
        rows = _sample.rows,
        oldest_ready = _sample.oldest_ready,
        next_xid = _sample.next_xid,
        in_progress = _sample.in_progress;

    if _state.tidied_at < _now - interval '1 minute' then
        delete from depth_samples d
        where d.ctid = any (array(
            select o.ctid
            from rollup_steps() s cross join lateral (
                select d.ctid
                from depth_samples d
                where d.step = s.step and d.at < _now - s.kept - s.step * interval '1 s'
                order by d.at
                limit 1000) o));
        update depth_state set tidied_at = _now;
    end if;
end $$;


--
-- Name: FUNCTION sample_depth(_rest double precision); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.sample_depth(_rest double precision) IS 'Internal. Counts the unfinished rows of the queue. Keeps the result in spine.depth_state and spine.depth_samples.';


--
-- Name: settle(bigint[], text[], bigint[], text[], interval[], text[], text[]); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.settle(_event bigint[], _destination text[], _lease_token bigint[], _outcome text[], _delay interval[], _error text[], _details text[]) RETURNS boolean[]
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
declare
    _now timestamptz := clock_timestamp();
    _patience constant interval := '72 hours';
    _given_up bigint[] := '{}';
    _counted bigint[];
    _locked bigint[];
    _known bigint[];
begin
    if current_setting('synchronous_commit') = 'off' or current_setting('client_min_messages') = 'error' then
        perform make_durable();
    end if;
    -- The log must hold JSON objects that a reader can query.
    if exists (select from unnest(_details) d where jsonb_typeof(d::jsonb) is distinct from 'object') then
        raise exception 'details must be JSON objects' using errcode = 'invalid_parameter_value';
    end if;
    -- The log has many partitions, and results that reached the destination shall not pay for them.
    if 'deferred' = any (_outcome) then
        _given_up := array(
            select i.ord
            from unnest(_event, _destination, _outcome) with ordinality as i(event, destination, outcome, ord)
                join processing_state p on p.event = i.event and p.destination = i.destination
            where i.outcome = 'deferred'
                and p.deferred_since <= _now - _patience
                and exists (
                    select
                    from steps_of(i.event, i.event, date_trunc('day', _now - _patience / 6, 'UTC')) a
                    where a.action = 'delivery_deferred'
                        and a.timestamp > _now - _patience / 6
                        and coalesce(a.details ->> 'destination', 'default') = i.destination));
    end if;
    with input as materialized (
        select *
        from unnest(_event, _destination, _lease_token, _outcome, _delay, _error, _details)
            with ordinality as i(event, destination, lease, outcome, delay, error, details, ord)
    ), held as materialized (
        select
            i.ord,
            i.event,
            i.destination,
            i.lease,
            case
                when i.outcome is distinct from 'deferred' then i.outcome
                when i.ord = any (_given_up) then 'dead'
                else 'failed'
            end as outcome,
            case
                when i.outcome is distinct from 'deferred' then i.delay
                else least(
                    i.delay * (1 << least(coalesce(p.deferrals, 0), 16)),
                    interval '54 s' + random() * interval '6 s')
            end as delay,
            case
                when i.outcome = 'deferred' and i.ord <> all (_given_up) then coalesce(p.deferrals, 0) + 1
            end as deferrals, -- NULL where the attempt counts
            case
                when i.outcome is distinct from 'deferred' or i.ord = any (_given_up) then null
                when p.deferred_since > _now - _patience then p.deferred_since
                else _now
            end as deferred_since,
            case
                when i.outcome = 'deferred' and i.ord = any (_given_up)
                then i.error || ' (the destination was not reached for 72 hours)'
                else i.error
            end as error,
            i.details
        from input i join processing_state p on p.event = i.event and p.destination = i.destination
        where p.lease_token = i.lease
        for update of p skip locked
    ), settled as (
        update processing_state p set
            status = i.outcome,
            attempt_count = case
                when i.deferrals is null then p.attempt_count
                else greatest(p.attempt_count - 1, 0)
            end,
            deferrals = i.deferrals,
            deferred_since = i.deferred_since,
            lease_token = p.lease_token + 1,
            next_attempt_at = case when i.outcome = 'failed' then _now + i.delay end,
            completed_at = case when i.outcome = 'completed' then _now end,
            error_message = i.error,
            updated_at = _now
        from held i
        where p.event = i.event and p.destination = i.destination
        returning
            i.ord,
            p.event,
            p.event_id,
            p.source,
            p.destination,
            p.attempt_count + case when i.deferrals is null then 0 else 1 end as attempt,
            p.next_attempt_at,
            i.lease,
            case when i.deferrals is null then i.outcome else 'deferred' end as outcome,
            i.delay,
            i.error,
            i.details
    ), audited as (
        insert into audit_trail (timestamp, event, event_id, source, action, details)
        select _now, a.event, a.event_id, nullif(a.source, 'default'), a.action, a.details::json
        from (
            select
                s.ord,
                step.n,
                s.event,
                s.event_id,
                s.source,
                case
                    when s.outcome = 'completed' then 'processing_succeeded'::audit_action
                    when s.outcome = 'deferred' then 'delivery_deferred'
                    when step.n = 1 then 'processing_attempt_failed'
                    when s.outcome = 'failed' then 'retry_scheduled'
                    else 'processing_failed_permanently'
                end as action,
                case
                    when step.n = 1 then
                        -- Of two members of one name the last one counts: _details cannot speak for these.
                        case
                            when s.details ~ E'^\\s*{\\s*}' then '{'
                            else left(rtrim(s.details, E' \t\r\n'), -1) || ','
                        end
                        || '"attempt":' || s.attempt
                        || ',"lease":' || s.lease
                        || case
                            when s.destination = 'default' then ''
                            else ',"destination":' || to_json(s.destination)
                        end
                        || case when s.error is null then '' else ',"error":' || to_json(s.error) end
                        || case
                            when s.outcome <> 'deferred' then ''
                            else ',"delay_ms":' || trim_scale(extract(epoch from s.delay) * 1000)
                                || ',"next_attempt_at":' || to_json(s.next_attempt_at)
                        end
                        || '}'
                    else (
                        case
                            when s.outcome = 'failed' then jsonb_build_object(
                                'attempt', s.attempt,
                                'delay_ms', trim_scale(extract(epoch from s.delay) * 1000),
                                'next_attempt_at', s.next_attempt_at,
                                'reason', case
                                    when s.details::json ->> 'retry_after_ms' is null then 'policy'
                                    else 'Retry-After'
                                end)
                            else jsonb_build_object('attempt', s.attempt, 'error', s.error)
                        end
                        || case
                            when s.destination = 'default' then '{}'
                            else jsonb_build_object('destination', s.destination)
                        end)::text
                end as details
            from settled s join (values (1), (2)) as step(n) on step.n = 1 or s.outcome in ('failed', 'dead')
            order by s.ord, step.n
        ) a
    )
    select coalesce(array_agg(s.ord), '{}') into _counted from settled s;

    if cardinality(_counted) < cardinality(_event) then
        _locked := locked_by_others(_event, _destination, _lease_token, _counted);
        _now := clock_timestamp(); -- later than the step that took the lease
        with late as materialized (
            select i.*
            from unnest(_event, _destination, _lease_token, _outcome)
                with ordinality as i(event, destination, lease, outcome, ord)
            where i.ord <> all (_counted || _locked)
        ), known as materialized (
            select l.ord
            from late l
            where exists (
                select
                from steps_of(l.event, l.event, date_trunc('day', _now - interval '3 days', 'UTC')) a
                where (
                        a.action = case l.outcome
                            when 'completed' then 'processing_succeeded'::audit_action
                            when 'deferred' then 'delivery_deferred'
                            else 'processing_attempt_failed'
                        end
                        -- it was deferred for too long
                        or l.outcome = 'deferred' and a.action = 'processing_attempt_failed')
                    and a.details ->> 'lease' = l.lease::text
                    and coalesce(a.details ->> 'destination', 'default') = l.destination)
        ), audited as (
            insert into audit_trail (timestamp, event, event_id, source, action, details)
            select
                _now,
                p.event,
                p.event_id,
                nullif(p.source, 'default'),
                'lease_lost',
                json_build_object('lease', l.lease, 'destination', l.destination, 'outcome', l.outcome)
            from late l join processing_state p on p.event = l.event and p.destination = l.destination
            where l.ord not in (select k.ord from known k)
        )
        select coalesce(array_agg(k.ord), '{}') into _known from known k;
        _counted := _counted || _known;
    end if;
    return array(
        select case when n = any (_counted) then true when n = any (_locked) then null else false end
        from generate_series(1, cardinality(_event)) n
        order by n);
end $$;


--
-- Name: FUNCTION settle(_event bigint[], _destination text[], _lease_token bigint[], _outcome text[], _delay interval[], _error text[], _details text[]); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.settle(_event bigint[], _destination text[], _lease_token bigint[], _outcome text[], _delay interval[], _error text[], _details text[]) IS 'Records the results of delivery attempts, fenced by their lease tokens. Returns for each, by position, whether it counts. NULL where somebody else has the row locked.';


--
-- Name: settle_rejected(bigint, text, text, text, boolean); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.settle_rejected(_id bigint, _state text, _note text, _event_id text, _trust boolean) RETURNS void
    LANGUAGE sql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    update rejected_requests r set
        state = _state,
        note = _note,
        event_id = _event_id,
        settled_at = clock_timestamp(),
        taken_until = null
    where r.id = _id and r.state = 'requested' and (r.trust = _trust or _state = 'taken_in')
$$;


--
-- Name: FUNCTION settle_rejected(_id bigint, _state text, _note text, _event_id text, _trust boolean); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.settle_rejected(_id bigint, _state text, _note text, _event_id text, _trust boolean) IS 'Internal. Notes the result of reading a rejected request again.';


--
-- Name: short_span(interval); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.short_span(_span interval) RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION short_span(_span interval); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.short_span(_span interval) IS 'Internal. A span of time with the digits that matter to a reader.';


--
-- Name: sources_changed(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.sources_changed() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
declare
    _name constant text := case when tg_op = 'DELETE' then old.name else new.name end;
    _before constant jsonb := case when tg_op = 'INSERT' then '{}' else old.settings end;
    _after constant jsonb := case when tg_op = 'DELETE' then '{}' else new.settings end;
    _who constant jsonb := jsonb_strip_nulls(jsonb_build_object(
        'by', session_user,
        'caller', left(nullif(current_setting('spine.caller', true), ''), 300)));
    _changes jsonb;
begin
    if _before <> _after or tg_op <> 'UPDATE' then
        -- A side that was not there is left out; one that was null is null.
        select coalesce(
            jsonb_object_agg(
                k,
                case when _before ? k then jsonb_build_object('from', _before -> k) else '{}' end
                || case when _after ? k then jsonb_build_object('to', _after -> k) else '{}' end),
            '{}')
        into _changes
        from (select jsonb_object_keys(_before) union select jsonb_object_keys(_after)) keys(k)
        where _before -> k is distinct from _after -> k;
        insert into audit_trail (source, action, details)
        values (
            _name,
            case tg_op
                when 'INSERT' then 'source_added'
                when 'DELETE' then 'source_removed'
                else 'source_changed'
            end::audit_action,
            (_who || jsonb_build_object('changes', _changes))::text::json);
    end if;
    if tg_op <> 'DELETE'
        and (case when tg_op = 'UPDATE' then old.disabled_at end is null) <> (new.disabled_at is null)
    then
        insert into audit_trail (source, action, details)
        values (
            _name,
            case when new.disabled_at is null then 'source_enabled' else 'source_disabled' end::audit_action,
            (_who || jsonb_strip_nulls(jsonb_build_object('reason', new.disabled_reason)))::text::json);
    end if;
    perform hint('spine_sources', json_build_object('source', _name)::text);
    return null;
end $$;


--
-- Name: FUNCTION sources_changed(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.sources_changed() IS 'Internal. Trigger: audits a change of a source and sends NOTIFY spine_sources.';


--
-- Name: sources_check(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.sources_check() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $_$
declare
    _wrong text;
begin
    if jsonb_typeof(new.settings) <> 'object' or jsonb_typeof(new.settings -> 'preset') is distinct from 'string' then
        raise exception 'the settings of a source must be a JSON object with a preset'
            using errcode = 'check_violation', schema = 'spine', table = 'sources';
    end if;
    select k into _wrong
    from jsonb_object_keys(new.settings) k
    where k not in (
        'preset',
        'secrets',
        'verify',
        'format',
        'id',
        'type',
        'time',
        'id_signed',
        'volatile',
        'conflicts',
        'handshake',
        'verify_token',
        'url',
        'limits',
        'rejected')
    limit 1;
    if _wrong is not null then
        raise exception 'there is no setting % of a source', quote_ident(left(_wrong, 100))
            using errcode = 'check_violation', schema = 'spine', table = 'sources';
    end if;
    -- The message does not repeat the wrong value: it may be a secret.
    if exists (
        select
        from (
            select case jsonb_typeof(s) when 'object' then s ->> 'ref' else s #>> '{}' end as ref
            from jsonb_array_elements(
                case jsonb_typeof(new.settings -> 'secrets')
                    when 'array' then new.settings -> 'secrets'
                    else '[null]'
                end) s
            where new.settings ? 'secrets'
            union all
            select new.settings ->> 'verify_token' where new.settings ? 'verify_token'
        ) given
        where coalesce(given.ref !~ '^(env:[A-Za-z_][A-Za-z0-9_]*|file:([A-Za-z0-9_.-]+|/.+))$', true))
    then
        raise exception
            'a secret must be named by reference, never by value: env:NAME, file:NAME or file:/absolute/path'
            using errcode = 'check_violation', schema = 'spine', table = 'sources';
    end if;
    -- What is shown and kept with the settings holds no secret either. The messages do not repeat it.
    if new.settings ->> 'url' ~ '^[^/?#]*//[^/?#]*@' then
        raise exception 'the url of a source must not hold a user or password'
            using errcode = 'check_violation', schema = 'spine', table = 'sources';
    end if;
    if exists (
        select
        from jsonb_path_query(new.settings, 'lax $.verify[*].secret_prefix[*]') p(prefix)
        where jsonb_typeof(p.prefix) not in ('string', 'null')
            or p.prefix #>> '{}' <> '' and p.prefix #>> '{}' !~ '^.{0,15}_$'
        union all
        select
        from jsonb_path_query(new.settings, 'lax $.verify[*].secret_not[*]') p(prefix)
        where jsonb_typeof(p.prefix) not in ('string', 'null')
            or p.prefix #>> '{}' <> '' and p.prefix #>> '{}' !~ '^.{0,15}_$')
    then
        raise exception 'secret_prefix and secret_not must end in _ and have at most 16 bytes'
            using errcode = 'check_violation', schema = 'spine', table = 'sources';
    end if;
    if tg_op = 'UPDATE' then
        if new.name <> old.name then
            raise exception 'the name of a source cannot be changed'
                using errcode = 'check_violation', schema = 'spine', table = 'sources';
        end if;
        if new.settings is not distinct from old.settings and new.disabled_at is not distinct from old.disabled_at then
            return new;
        end if;
    end if;
    new.updated_at := clock_timestamp();
    new.updated_by := spine.who();
    if new.disabled_at is null then
        new.disabled_by := null;
        if tg_op = 'UPDATE' and old.disabled_at is not null then
            new.disabled_before := (
                select jsonb_agg(b.one order by b.n)
                from (
                    select x.one, x.n
                    from jsonb_array_elements(
                        coalesce(old.disabled_before, '[]') || jsonb_build_array(
                            jsonb_build_object(
                                'since', old.disabled_at,
                                'until', new.updated_at,
                                'by', old.disabled_by,
                                'reason', old.disabled_reason))) with ordinality as x(one, n)
                    order by x.n desc
                    limit 5) b);
        end if;
    elsif tg_op = 'INSERT' or old.disabled_at is null then
        new.disabled_by := new.updated_by;
    end if;
    new.disabled_reason := case when new.disabled_at is not null then coalesce(new.disabled_reason, spine.reason()) end;
    return new;
end $_$;


--
-- Name: FUNCTION sources_check(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.sources_check() IS 'Internal. Trigger: rejects wrong settings and secrets by value. Notes who changed a source.';


--
-- Name: sources_kept(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.sources_kept() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    raise exception 'the source default cannot be removed; it can be disabled: select spine.disable_source(''default'')'
        using errcode = 'check_violation', schema = 'spine', table = 'sources';
end $$;


--
-- Name: FUNCTION sources_kept(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.sources_kept() IS 'Internal. Trigger: does not let the source default be removed.';


--
-- Name: steps_of(bigint, bigint, timestamp with time zone, timestamp with time zone); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.steps_of(_first bigint, _last bigint, _since timestamp with time zone, _until timestamp with time zone DEFAULT 'infinity'::timestamp with time zone) RETURNS TABLE(event bigint, "timestamp" timestamp with time zone, id bigint, xid xid8, action spine.audit_action, details json)
    LANGUAGE plpgsql STABLE ROWS 100000
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
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


--
-- Name: FUNCTION steps_of(_first bigint, _last bigint, _since timestamp with time zone, _until timestamp with time zone); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.steps_of(_first bigint, _last bigint, _since timestamp with time zone, _until timestamp with time zone) IS 'Internal. The steps of events in a span of time, in no order.';


--
-- Name: table_lockers(boolean); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.table_lockers(_storing boolean) RETURNS TABLE(says text, facts jsonb)
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION table_lockers(_storing boolean); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.table_lockers(_storing boolean) IS 'Internal. Who holds a table so that nothing can be claimed, or stored, in words.';


--
-- Name: take_lock(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.take_lock(_name text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    perform from locks l where l.name = _name for update;
    if not found then
        raise exception 'the table spine.locks has no row "%"', _name
            using hint = 'Run spine migrate, which puts it back.';
    end if;
end $$;


--
-- Name: FUNCTION take_lock(_name text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.take_lock(_name text) IS 'Internal. Takes one of spine.locks until the end of the transaction, and waits for it.';


--
-- Name: rejected_requests; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.rejected_requests (
    id bigint NOT NULL,
    source text NOT NULL COLLATE pg_catalog."C",
    at timestamp with time zone NOT NULL,
    cause text NOT NULL,
    status integer NOT NULL,
    detail text NOT NULL,
    remote text NOT NULL,
    method text NOT NULL,
    target text NOT NULL,
    headers json NOT NULL,
    body bytea NOT NULL,
    size bigint NOT NULL,
    state text DEFAULT 'kept'::text NOT NULL,
    trust boolean DEFAULT false NOT NULL,
    note text,
    event_id text COLLATE pg_catalog."C",
    settled_at timestamp with time zone,
    taken_until timestamp with time zone,
    words bigint[],
    body_bytes bigint,
    verified boolean,
    CONSTRAINT rejected_requests_state_check CHECK ((state = ANY (ARRAY['kept'::text, 'requested'::text, 'taken_in'::text, 'refused'::text])))
)
WITH (autovacuum_vacuum_scale_factor='0.1');


--
-- Name: TABLE rejected_requests; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.rejected_requests IS 'Rejected requests, within the budget of their source. settings -> rejected limits rows, bytes and age. spine.replay_rejected() marks one to be read again.';


--
-- Name: COLUMN rejected_requests.id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.id IS 'Ascending number.';


--
-- Name: COLUMN rejected_requests.source; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.source IS 'Source that it was sent to.';


--
-- Name: COLUMN rejected_requests.at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.at IS 'When it arrived.';


--
-- Name: COLUMN rejected_requests.cause; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.cause IS 'A short word for why it was rejected.';


--
-- Name: COLUMN rejected_requests.status; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.status IS 'HTTP status of the answer.';


--
-- Name: COLUMN rejected_requests.detail; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.detail IS 'Sentence of the answer.';


--
-- Name: COLUMN rejected_requests.remote; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.remote IS 'Address of the client.';


--
-- Name: COLUMN rejected_requests.method; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.method IS 'HTTP method.';


--
-- Name: COLUMN rejected_requests.target; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.target IS 'Path and query, without secrets.';


--
-- Name: COLUMN rejected_requests.headers; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.headers IS 'Headers without secrets: names with arrays of values.';


--
-- Name: COLUMN rejected_requests.body; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.body IS 'The body as it arrived, compressed where it was. Its beginning where body_bytes is set.';


--
-- Name: COLUMN rejected_requests.size; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.size IS 'Bytes of body and headers, as the budget counts them.';


--
-- Name: COLUMN rejected_requests.state; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.state IS 'kept, requested (to be read again), taken_in or refused (again). kept|refused -> requested: spine.replay_rejected(). requested -> taken_in|refused: an API process has read it again (spine.settle_rejected).';


--
-- Name: COLUMN rejected_requests.trust; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.trust IS 'Whether to take it in without verifying it.';


--
-- Name: COLUMN rejected_requests.note; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.note IS 'Result of the last reading.';


--
-- Name: COLUMN rejected_requests.event_id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.event_id IS 'The event that it became.';


--
-- Name: COLUMN rejected_requests.settled_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.settled_at IS 'When it was last read again.';


--
-- Name: COLUMN rejected_requests.taken_until; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.taken_until IS 'Until when an API process holds it.';


--
-- Name: COLUMN rejected_requests.words; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.words IS 'Numbers of words that may be ids, by spine.word_number(). NULL for a request that was kept before schema version 6.';


--
-- Name: COLUMN rejected_requests.body_bytes; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.body_bytes IS 'Size of a body of which only the beginning is kept. NULL where all is kept. It is the announced size, or how much came at least. Such a request cannot be read again.';


--
-- Name: COLUMN rejected_requests.verified; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rejected_requests.verified IS 'Whether its source sent it, of one that came while it was disabled or closed. NULL where nobody can tell, and for all others: the source was broken, or takes requests from anyone.';


--
-- Name: take_requested(integer); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.take_requested(_limit integer) RETURNS SETOF spine.rejected_requests
    LANGUAGE sql
    SET search_path TO 'spine', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
    update rejected_requests r set taken_until = clock_timestamp() + interval '30 seconds'
    from (
        select q.id
        from rejected_requests q
        where q.state = 'requested' and (q.taken_until is null or q.taken_until < clock_timestamp())
        order by q.id
        limit _limit
        for update skip locked
    ) t
    where r.id = t.id
    returning r.*
$$;


--
-- Name: FUNCTION take_requested(_limit integer); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.take_requested(_limit integer) IS 'Internal. Hands out rejected requests to be read again.';


--
-- Name: tell(text, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.tell(_event_id text, _source text) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
declare
    _sentence text;
begin
    for _sentence in select x.says from explain(_event_id, _source) x loop
        raise notice '%', _sentence;
    end loop;
end $$;


--
-- Name: FUNCTION tell(_event_id text, _source text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.tell(_event_id text, _source text) IS 'Internal. Raises the sentences of spine.explain() as notices.';


--
-- Name: tell_sources(text, jsonb); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.tell_sources(_process text, _reports jsonb) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    perform make_durable();
    insert into receivers as r (process) values (_process)
    on conflict (process) do update set told_at = clock_timestamp();
    delete from source_reports s
    where s.process = _process
        and s.source not in (
            select t.source from jsonb_to_recordset(_reports) t(source text) where t.source is not null);
    insert into source_reports as s (process, source, settings_at, state, problems)
    select _process, t.source, t.settings_at, t.state, array(select jsonb_array_elements_text(t.problems))
    from jsonb_to_recordset(_reports) t(source text, settings_at timestamptz, state text, problems jsonb)
    on conflict (process, source) do update set
        settings_at = excluded.settings_at,
        state = excluded.state,
        problems = excluded.problems
    where (s.settings_at, s.state, s.problems)
        is distinct from (excluded.settings_at, excluded.state, excluded.problems);
    delete from receivers r
    where r.process in (
        select g.process
        from receivers g
        where g.told_at < clock_timestamp() - interval '10 minutes'
        for update skip locked);
end $$;


--
-- Name: FUNCTION tell_sources(_process text, _reports jsonb); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.tell_sources(_process text, _reports jsonb) IS 'Internal. Notes what a process makes of all sources, and that it is alive.';


--
-- Name: this_database(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.this_database() RETURNS oid
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select d.oid from pg_database d where d.datname = current_database()
$$;


--
-- Name: FUNCTION this_database(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.this_database() IS 'Internal. The oid of the database.';


--
-- Name: this_server(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.this_server() RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    if has_function_privilege('pg_catalog.pg_control_system()', 'execute') then
        return (select c.system_identifier from pg_control_system() c);
    end if;
    return null;
end $$;


--
-- Name: FUNCTION this_server(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.this_server() IS 'Internal. The system identifier of the server. NULL where the caller may not know it.';


--
-- Name: trace(text, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.trace(_event_id text, _source text DEFAULT NULL::text) RETURNS TABLE("timestamp" timestamp with time zone, action text, success text, details jsonb, id bigint)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    AS $$
begin
    return query
    select t.timestamp, t.action, t.success, t.details, t.id
    from trail_of(id_of(_event_id, _source)) t
    order by t.timestamp, t.id;
    perform tell(_event_id, _source);
end $$;


--
-- Name: FUNCTION trace(_event_id text, _source text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.trace(_event_id text, _source text) IS 'What happened to one event, step by step. Notices say where it stands and why, as spine.explain() does. Example: select * from spine.trace(''test-001'').';


--
-- Name: trail_end(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.trail_end() RETURNS xid8
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + trail_shift())::text::xid8
$$;


--
-- Name: FUNCTION trail_end(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.trail_end() IS 'Internal. The position in the audit log after all transactions that have begun.';


--
-- Name: trail_of(bigint); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.trail_of(_event bigint) RETURNS TABLE("timestamp" timestamp with time zone, id bigint, xid xid8, event bigint, event_id text, source text, action text, success text, details jsonb)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
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


--
-- Name: FUNCTION trail_of(_event bigint); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.trail_of(_event bigint) IS 'Internal. The steps of one event as people read them, in no order.';


--
-- Name: trail_shift(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.trail_shift() RETURNS bigint
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    perform require_right('audit_log', 'SELECT');
    return coalesce((select i.trail_shift from database_identity i), 0);
end $$;


--
-- Name: FUNCTION trail_shift(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.trail_shift() IS 'Internal. Added to a transaction''s number, it is a position in the audit log.';


--
-- Name: trail_start(bigint); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.trail_start(_event bigint) RETURNS timestamp with time zone
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
declare
    _day constant timestamptz := (
        select date_trunc('day', e.created_at - interval '1 minute', 'UTC') from events e where e.id = _event);
    _later constant timestamptz := _day + interval '3 days'; -- computed here, since the planner does not
begin
    if exists (
        select
        from audit_trail a
        where a.event = _event
            and (a.timestamp >= _day and a.timestamp < _later or a.timestamp = 'infinity')
            and a.action in ('event_received', 'event_inserted'))
    then
        return _day - interval '3 days';
    end if;
    return '-infinity';
end $$;


--
-- Name: FUNCTION trail_start(_event bigint); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.trail_start(_event bigint) IS 'Internal. A time before all steps of an event. -infinity where that is not known.';


--
-- Name: trail_until(bigint); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.trail_until(_event bigint) RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select case
        when (select e.seen_count from events e where e.id = _event) = 1 then delivered_until(_event)
        else 'infinity'
    end
$$;


--
-- Name: FUNCTION trail_until(_event bigint); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.trail_until(_event bigint) IS 'Internal. A time after an event''s trail. infinity where that is not known.';


--
-- Name: trailed(bigint); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.trailed(_seen bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select case
        when _seen <= 1000 then _seen
        else 900 * (length(_seen::text) - 3) + _seen / (10 ^ (length(_seen::text) - 3))::bigint
    end
$$;


--
-- Name: FUNCTION trailed(_seen bigint); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.trailed(_seen bigint) IS 'Internal. How many of an event''s arrivals its trail has.';


--
-- Name: troubles(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.troubles() RETURNS TABLE(topic text, says text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
declare
    _day constant date := (clock_timestamp() at time zone 'UTC')::date + 2;
    _ahead timestamptz;
begin
    if pg_is_in_recovery() then
        return query select
            'read_only',
            'the database takes no writes, since it is a standby: set DATABASE_URL to the primary, or promote it';
        return;
    end if;
    return query select 'standby', w from commits_waiting() w where w is not null;
    return query select 'locked', t.says || ': nothing can be stored meanwhile'
    from table_lockers(true) t
    -- Of another role's session the beginning is often not known.
    where coalesce((t.facts ->> 'since')::timestamptz < clock_timestamp() - interval '1 second', true);
    if to_regclass('spine.audit_trail_' || to_char(_day, 'YYYYMMDD')) is null
        and not exists (
            select
            from audit_partitions() p
            where p.since <= _day::timestamp at time zone 'UTC' and p.until > _day::timestamp at time zone 'UTC')
    then
        return query select
            'partitions',
            format(
                'the audit log has no partition for %s: nothing is lost, but steps go to the default partition; '
                    'a process says in its log why it makes none, and spine migrate makes them',
                to_char(_day, 'YYYY-MM-DD'));
    end if;
    _ahead := clock_ahead();
    if _ahead is not null then
        return query select
            'clock',
            format(
                'the database''s clock was set back: the audit log has a step of %s, %s from now, and retries planned '
                    'then wait until that time comes again; select spine.mend_clock() plans them anew',
                exact_time(_ahead),
                short_span(_ahead - clock_timestamp()));
    end if;
end $$;


--
-- Name: FUNCTION troubles(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.troubles() IS 'What hinders Spine as a whole now, and what to do. Normally empty. Example: select says from spine.troubles().';


--
-- Name: try_lock(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.try_lock(_name text) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    perform from locks l where l.name = _name for update skip locked;
    if found then
        return true;
    end if;
    if not exists (select from locks l where l.name = _name) then
        raise exception 'the table spine.locks has no row "%"', _name
            using hint = 'Run spine migrate, which puts it back.';
    end if;
    return false;
end $$;


--
-- Name: FUNCTION try_lock(_name text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.try_lock(_name text) IS 'Internal. Takes one of spine.locks until the end of the transaction, if it is free.';


--
-- Name: try_storing(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.try_storing() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'spine', 'pg_temp'
    SET lock_timeout TO '1s'
    AS $$
begin
    if current_setting('transaction_read_only') <> 'off' then
        raise exception 'the database takes no writes' using errcode = 'read_only_sql_transaction';
    end if;
    perform make_durable();
    lock table events, processing_state, only audit_trail in row exclusive mode;
    perform pg_logical_emit_message(true, 'spine', '');
end $$;


--
-- Name: FUNCTION try_storing(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.try_storing() IS 'Internal. Fails where no event can be stored now, and waits as its commit would.';


--
-- Name: unqueryable(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.unqueryable(_payload text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT
    SET search_path TO 'spine', 'pg_temp'
    AS $$
begin
    perform _payload::json;
    begin
        perform canonical(_payload::json);
    exception when data_exception then
        return sqlerrm;
    end;
    return null;
end $$;


--
-- Name: FUNCTION unqueryable(_payload text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.unqueryable(_payload text) IS 'Internal. Why Postgres cannot query a JSON text. NULL where it can.';


--
-- Name: unread_since(xid8, xid8[]); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.unread_since(_next_xid xid8, _in_progress xid8[]) RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select audit_since(least(_next_xid, (select x from unnest(_in_progress) x order by x limit 1)))
$$;


--
-- Name: FUNCTION unread_since(_next_xid xid8, _in_progress xid8[]); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.unread_since(_next_xid xid8, _in_progress xid8[]) IS 'Internal. A time before which there are no rows that spine.audited_now() did not see.';


--
-- Name: utf16_order(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.utf16_order(_text text) RETURNS bytea
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    _key bytea := '';
    _char text;
    _code integer;
    _unit integer;
begin
    if _text !~ E'[\\U00010000-\\U0010FFFF]' then
        return convert_to(_text, 'UTF8');
    end if;
    foreach _char in array string_to_array(_text, null) loop
        _code := ascii(_char);
        if _code < 65536 then
            _key := _key || convert_to(_char, 'UTF8');
        else
            foreach _unit in array array[55296 + ((_code - 65536) >> 10), 56320 + ((_code - 65536) & 1023)] loop
                _key := _key || decode(
                    to_hex(
                        (14680064 | ((_unit >> 12) << 16))
                        | 32768 | (((_unit >> 6) & 63) << 8)
                        | 128 | (_unit & 63)),
                    'hex');
            end loop;
        end if;
    end loop;
    return _key;
end $$;


--
-- Name: FUNCTION utf16_order(_text text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.utf16_order(_text text) IS 'Internal. Key that sorts text by UTF-16 code units, as RFC 8785 sorts names.';


--
-- Name: verify(timestamp with time zone, timestamp with time zone, integer); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.verify(_since timestamp with time zone DEFAULT (now() - '01:00:00'::interval), _until timestamp with time zone DEFAULT 'infinity'::timestamp with time zone, _examples integer DEFAULT 5) RETURNS TABLE(invariant text, meaning text, checked bigint, violations bigint, examples jsonb)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
#variable_conflict use_column
declare
    _overlap constant bigint := 100000; -- ids by which batches that are stored at once may overlap
    _from constant bigint := first_id_since(_since);
    _next constant bigint := first_id_since(_until);
    -- Where no event is younger, every id above belongs to the span: also of rows whose event is gone.
    _to constant bigint := case
        when exists (select from events e where e.id >= _next) then _next
        else 1::bigint << 62
    end;
    _steps_since constant timestamptz := _since - interval '1 day';
    -- Its first step, as far as that is in its first forty days.
    _beginning constant timestamptz := audit_begins() + interval '40 days';
    _trail_begins constant timestamptz := coalesce(
        (select a.timestamp from audit_trail a where a.timestamp < _beginning order by a.timestamp limit 1),
        _beginning);
    _expired constant tstzmultirange := expired_since(_since);
begin
    return query
    with scope as materialized (
        select e.id, e.event_id, e.source, e.seen_count,
            e.created_at > _trail_begins as trailed
        from events e
        where e.id >= _from - _overlap and e.id < _to + _overlap and e.created_at >= _since and e.created_at < _until
    ), rows as materialized (
        select s.event_id as its_id, s.source as its_source, s.trailed, p.*
        from scope s join processing_state p on p.event = s.id
    ), trail as materialized (
        select
            s.id as event,
            s.event_id,
            s.source,
            a.id,
            a.action,
            coalesce(
                a.details ->> 'destination',
                -- Where the second of the two steps that end an attempt names no destination, the first one's counts.
                case when a.action in ('retry_scheduled', 'processing_failed_permanently') then
                    lag(a.details ->> 'destination') over (partition by s.id, a.xid order by a.id) end,
                'default') as destination,
            (a.details ->> 'attempt')::bigint as attempt,
            coalesce(a.details ->> 'lease', a.details ->> 'lease_voided')::bigint as lease,
            a.details ->> 'from' as was,
            coalesce(a.details ->> 'to', a.details ->> 'status') as becomes,
            a.details ->> 'evidence' as evidence
        -- A full join is never a loop within a loop, whatever the planner guesses. It stays one, since the condition
        -- holds for no NULL and does not show it. Steps of other events between the two may be read, and are left out.
        from scope s full join steps_of(
            (select min(s.id) from scope s),
            (select max(s.id) from scope s),
            _steps_since) a on a.event = s.id
        where coalesce(s.trailed and a.id is not null, false)
    ), steps as materialized (
        select t.*,
            case t.action
                when 'event_inserted' then 'pending'
                when 'event_replayed' then 'pending'
                when 'event_queued' then coalesce(t.becomes, 'pending')
                when 'status_changed' then t.becomes
                when 'processing_attempt_started' then 'processing'
                when 'processing_attempt_failed' then 'ending' -- the next step says how
                when 'lease_expired' then 'ending'
                when 'retry_scheduled' then 'failed'
                when 'processing_failed_permanently' then 'dead'
                when 'processing_succeeded' then 'completed'
                when 'lease_returned' then case when t.attempt <= 1 then 'pending' else 'failed' end
                when 'delivery_deferred' then 'failed'
            end as status,
            -- NULL where a hand may have set it.
            case when t.action in ('event_inserted', 'event_replayed') then 0
                when t.action in ('lease_returned', 'delivery_deferred') then t.attempt - 1
                when t.action not in ('event_queued', 'status_changed') then t.attempt end as attempts
        from trail t
        where t.action in (
            'event_inserted',
            'event_replayed',
            'event_queued',
            'status_changed',
            'processing_attempt_started',
            'processing_attempt_failed',
            'lease_expired',
            'retry_scheduled',
            'processing_failed_permanently',
            'processing_succeeded',
            'lease_returned',
            'delivery_deferred')
    ), path as materialized (
        select
            s.*,
            lag(s.status) over w as before,
            lag(s.attempts) over w as attempts_before,
            lead(s.id) over w is null as last
        from steps s
        window w as (partition by s.event, s.destination order by s.id)
    ), told as materialized (
        -- Rows beside what their trail says of them. Grouping puts them together: a join would go by the planner's
        -- guess.
        select
            u.event,
            u.destination,
            min(u.event_id) as event_id,
            min(u.source) as source,
            bool_and(u.trailed) as trailed,
            min(u.status) as status,
            min(u.attempt_count) as attempt_count,
            min(u.lease_token) as lease_token,
            min(u.becomes) as becomes,
            min(u.attempts) as attempts,
            max(u.lease) as lease
        from (
            select
                r.event,
                r.destination,
                r.its_id as event_id,
                r.its_source as source,
                r.trailed,
                r.status::text as status,
                r.attempt_count,
                r.lease_token,
                null::text as becomes,
                null::bigint as attempts,
                null::bigint as lease
            from rows r
            union all
            select p.event, p.destination, p.event_id, p.source, true, null, null, null, p.status, p.attempts, null
            from path p
            where p.last
            union all
            select t.event, t.destination, t.event_id, t.source, true, null, null, null, null, null, t.lease
            from trail t
            where t.lease is not null and t.action <> 'lease_lost'
        ) u
        group by u.event, u.destination
    ), counted as materialized (
        select
            u.id,
            min(u.event_id) as event_id,
            min(u.source) as source,
            max(u.seen_count) as seen_count,
            count(*) filter (where u.action = 'event_received') as received,
            count(*) filter (where u.action = 'event_inserted') as inserted,
            count(*) filter (where u.action in ('event_deduped', 'conflict_detected')) as again,
            count(*) filter (where u.evidence = 'kept') as kept,
            count(*) filter (where u.evidence in ('kept', 'known')) as evidence
        from (
            select s.id, s.event_id, s.source, s.seen_count, null::audit_action as action, null::text as evidence
            from scope s
            where s.trailed
            union all
            select t.event, t.event_id, t.source, null, t.action, t.evidence
            from trail t
        ) u
        group by u.id
    ), found (name, event_id, source, detail) as (
        select 'event_kept', g.event_id, g.source, 'stored at ' || g.stored_at || ', and not there'
        from events_gone(_since, _until) g
        where not coalesce(g.stored_at <@ _expired, false)
        union all
        select 'event_queued', s.event_id, s.source, 'no row in processing_state'
        from scope s
        where not exists (select from processing_state p where p.event = s.id)
        union all
        select
            'row_has_event',
            p.event_id,
            p.source,
            'a row of processing_state for ' || p.destination || ' without its event'
        from processing_state p
        where p.event >= _from and p.event < _to and not exists (select from events e where e.id = p.event)
        union all
        select 'row_has_event', c.event_id, c.source, 'a row of conflicts without its event'
        from conflicts c
        where c.event >= _from and c.event < _to and not exists (select from events e where e.id = c.event)
        union all
        select
            'row_names_event',
            r.its_id,
            r.its_source,
            'processing_state calls it ' || quote_literal(r.event_id) || ' of ' || quote_literal(r.source)
        from rows r
        where (r.event_id, r.source) is distinct from (r.its_id, r.its_source)
        union all
        select
            'row_names_event',
            s.event_id,
            s.source,
            'conflicts calls it ' || quote_literal(c.event_id) || ' of ' || quote_literal(c.source)
        from scope s join conflicts c on c.event = s.id
        where (c.event_id, c.source) is distinct from (s.event_id, s.source)
        union all
        select 'row_claimable', r.its_id, r.its_source, r.status || ' at ' || r.destination || ' and never due'
        from rows r
        where r.status in ('pending', 'failed', 'processing') and r.next_attempt_at is null
        union all
        select
            'row_claimable',
            r.its_id,
            r.its_source,
            r.status || ' at ' || quote_literal(r.destination) || ', which is no destination'
        from rows r
        where r.status in ('pending', 'failed', 'processing')
            and not exists (select from destinations d where d.name = r.destination)
        union all
        select
            'row_at_rest',
            r.its_id,
            r.its_source,
            r.status || ' at ' || r.destination
            || ', next_attempt_at ' || coalesce(r.next_attempt_at::text, 'NULL')
            || ', completed_at ' || coalesce(r.completed_at::text, 'NULL')
        from rows r
        where r.status in ('completed', 'dead') and r.next_attempt_at is not null
            or (r.status = 'completed') <> (r.completed_at is not null)
        union all
        select
            'lease_current',
            t.event_id,
            t.source,
            'lease ' || t.lease || ' at ' || t.destination || ' is over, and the row''s token is ' || t.lease_token
        from told t
        where t.lease >= t.lease_token
        union all
        select
            'lease_spent_once',
            t.event_id,
            t.source,
            'lease ' || t.lease || ' at ' || t.destination || ' ended ' || count(*) || ' times: '
            || string_agg(t.action::text, ', ' order by t.id)
        from trail t
        where t.lease is not null
            and t.action in (
                'processing_succeeded',
                'processing_attempt_failed',
                'lease_expired',
                'lease_returned',
                'delivery_deferred',
                'status_changed')
        group by t.event, t.event_id, t.source, t.destination, t.lease
        having count(*) > 1
        union all
        select
            'path_legal',
            p.event_id,
            p.source,
            p.action || ' at ' || p.destination || ' after ' || coalesce(p.before, 'nothing')
        from path p
        where not coalesce(case p.action
            when 'event_inserted' then p.before is null
            when 'event_queued' then true -- a hand may have deleted the row before it
            when 'processing_attempt_started' then p.before in ('pending', 'failed')
            when 'processing_attempt_failed' then p.before = 'processing'
            when 'lease_expired' then p.before = 'processing'
            when 'processing_succeeded' then p.before = 'processing'
            when 'lease_returned' then p.before = 'processing'
            when 'delivery_deferred' then p.before = 'processing'
            when 'retry_scheduled' then p.before = 'ending'
            when 'processing_failed_permanently' then p.before = 'ending'
            when 'event_replayed' then p.before in ('completed', 'failed', 'dead')
            when 'status_changed' then p.before = p.was
        end, false)
        union all
        select
            'attempts_counted',
            p.event_id,
            p.source,
            p.action || ' at ' || p.destination || ' of attempt ' || p.attempt || ' after ' || p.attempts_before
        from path p
        where p.action not in ('event_inserted', 'event_replayed', 'event_queued', 'status_changed')
            and p.attempt <> p.attempts_before + case when p.action = 'processing_attempt_started' then 1 else 0 end
        union all
        select
            'row_as_told',
            t.event_id,
            t.source,
            coalesce(
                'the trail at ' || t.destination || ' ends with ' || t.becomes,
                'there is no trail at ' || t.destination)
            || coalesce(', the row is ' || t.status, ', and there is no row')
        from told t
        where t.trailed and t.status is distinct from t.becomes
        union all
        select
            'row_as_told',
            t.event_id,
            t.source,
            'the trail at ' || t.destination || ' ends with attempt ' || t.attempts
            || ', the row has ' || t.attempt_count
        from told t
        where t.status = t.becomes and t.attempts <> t.attempt_count
        union all
        select
            'receipts_counted',
            c.event_id,
            c.source,
            'seen ' || c.seen_count || ' times; the trail has it received ' || c.received
            || ' times, stored ' || c.inserted || ' times and known ' || c.again || ' times'
        from counted c
        -- Before schema version 6 the trail had all.
        where c.received not between trailed(c.seen_count) and c.seen_count
            or c.inserted <> 1
            or c.again <> c.received - 1
        union all
        select
            'evidence_counted',
            c.event_id,
            c.source,
            'the trail has ' || c.kept || ' payloads kept, seen ' || c.evidence
            || ' times; conflicts has ' || k.kept || ', seen ' || k.seen || ' times'
        from counted c cross join lateral (
            select count(*) as kept, coalesce(sum(k.seen_count), 0) as seen from conflicts k where k.event = c.id
        ) k
        where (k.kept <> c.kept or k.seen <> c.evidence) and c.received = c.seen_count
    ), numbered as (
        select f.*, row_number() over (partition by f.name order by f.event_id, f.source, f.detail) as n from found f
    )
    select
        i.name,
        i.meaning,
        (select count(*) from scope),
        count(n.n),
        coalesce(
            jsonb_agg(
                jsonb_build_object('event_id', n.event_id, 'source', n.source, 'detail', n.detail)
                order by n.n) filter (where n.n <= _examples),
            '[]')
    from (values
        (1, 'event_kept', 'Every stored event is there, or the audit log says that retention deleted it.'),
        (2, 'event_queued', 'Every event has its rows in processing_state.'),
        (3, 'row_has_event', 'Every row of processing_state and conflicts has its event.'),
        (4, 'row_names_event', 'Rows call their event by its event_id and source.'),
        (5, 'row_claimable', 'Every unfinished row has a due time and a destination that exists.'),
        (6, 'row_at_rest', 'Finished rows have no due time, and completed ones say when.'),
        (7, 'lease_current', 'A row''s lease token is above every lease that has ended.'),
        (8, 'lease_spent_once', 'A lease ends once: no result counts twice, and none counts for a lost lease.'),
        (9, 'path_legal', 'The trail of every event is a path of the state machine.'),
        (10, 'attempts_counted', 'Attempts are counted one by one, and each step names its own.'),
        (11, 'row_as_told', 'Every row agrees with the end of its trail.'),
        (12, 'receipts_counted', 'The trail has the receipts that seen_count counts: stored once, then known.'),
        (13, 'evidence_counted', 'Evidence is kept and counted as the trail says, where it has all receipts.')
    ) as i(ord, name, meaning) left join numbered n on n.name = i.name
    group by i.name, i.meaning, i.ord
    order by i.ord;
end $$;


--
-- Name: FUNCTION verify(_since timestamp with time zone, _until timestamp with time zone, _examples integer); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.verify(_since timestamp with time zone, _until timestamp with time zone, _examples integer) IS 'Checks the promises for events that were stored in a span of time. Returns a row for each invariant, with its violations. Example: select invariant, violations, examples from spine.verify(now() - interval ''1 hour''). Reads only.';


--
-- Name: weigh_conflicts(bigint[], bytea[], bigint, bigint, bigint); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.weigh_conflicts(_event bigint[], _payload_hash bytea[], _most bigint, _budget bigint, _unpack bigint) RETURNS TABLE(n bigint, verdict text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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


--
-- Name: FUNCTION weigh_conflicts(_event bigint[], _payload_hash bytea[], _most bigint, _budget bigint, _unpack bigint); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.weigh_conflicts(_event bigint[], _payload_hash bytea[], _most bigint, _budget bigint, _unpack bigint) IS 'Internal. Which rows of a page of conflicts are compared.';


--
-- Name: were_disabled(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.were_disabled(_source text) RETURNS TABLE(says text, facts jsonb)
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION were_disabled(_source text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.were_disabled(_source text) IS 'Internal. When sources were disabled that take events again, by whom and why.';


--
-- Name: who(); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.who() RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select session_user || coalesce(' for ' || left(nullif(current_setting('spine.caller', true), ''), 300), '')
$$;


--
-- Name: FUNCTION who(); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.who() IS 'Internal. The database role, and on whose behalf it acts (spine.caller), in words.';


--
-- Name: why_waiting(text, timestamp with time zone, text, xid, timestamp with time zone, text, text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.why_waiting(_status text, _due timestamp with time zone, _worker text, _xmax xid, _paused_at timestamp with time zone, _paused_by text, _paused_reason text) RETURNS TABLE(cause text, says text, facts jsonb)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
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


--
-- Name: FUNCTION why_waiting(_status text, _due timestamp with time zone, _worker text, _xmax xid, _paused_at timestamp with time zone, _paused_by text, _paused_reason text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.why_waiting(_status text, _due timestamp with time zone, _worker text, _xmax xid, _paused_at timestamp with time zone, _paused_by text, _paused_reason text) IS 'Internal. Every cause for which a row of the queue waits, in words.';


--
-- Name: word_number(text); Type: FUNCTION; Schema: spine; Owner: -
--

CREATE FUNCTION spine.word_number(_word text) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'spine', 'pg_temp'
    AS $$
    select ('x' || encode(substring(sha256(convert_to(look_alike(_word), 'UTF8')) for 8), 'hex'))::bit(64)::bigint
$$;


--
-- Name: FUNCTION word_number(_word text); Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON FUNCTION spine.word_number(_word text) IS 'Internal. The number under which a word is found again.';


--
-- Name: arrivals_watermark; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.arrivals_watermark (
    only_row boolean DEFAULT true NOT NULL,
    event bigint DEFAULT 0 NOT NULL,
    next_event bigint DEFAULT 0 NOT NULL,
    next_xid xid8 DEFAULT '0'::xid8 NOT NULL,
    seen bigint DEFAULT 0 NOT NULL,
    CONSTRAINT arrivals_watermark_only_row_check CHECK (only_row)
);


--
-- Name: TABLE arrivals_watermark; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.arrivals_watermark IS 'Up to which event sources.last_arrival_at is known. spine.note_arrivals() raises it.';


--
-- Name: COLUMN arrivals_watermark.only_row; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.arrivals_watermark.only_row IS 'Holds the table to one row.';


--
-- Name: COLUMN arrivals_watermark.event; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.arrivals_watermark.event IS 'events.id up to which all arrivals are noted.';


--
-- Name: COLUMN arrivals_watermark.next_event; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.arrivals_watermark.next_event IS 'events.id up to which the next turn notes them. It waits until every transaction that began before is over.';


--
-- Name: COLUMN arrivals_watermark.next_xid; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.arrivals_watermark.next_xid IS 'First transaction that may have begun after next_event was taken.';


--
-- Name: COLUMN arrivals_watermark.seen; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.arrivals_watermark.seen IS 'events.id up to which they were noted before they could be counted.';


--
-- Name: audit_trail; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.audit_trail (
    "timestamp" timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    id bigint NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    event bigint,
    action spine.audit_action NOT NULL,
    event_id text COLLATE pg_catalog."C",
    source text COLLATE pg_catalog."C",
    details json
)
PARTITION BY RANGE ("timestamp");

ALTER TABLE ONLY spine.audit_trail REPLICA IDENTITY FULL;


--
-- Name: TABLE audit_trail; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.audit_trail IS 'The rows of the audit log, one partition a day (UTC). Each step is written in the transaction of the step itself. Read them as the view spine.audit_log.';


--
-- Name: COLUMN audit_trail."timestamp"; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_trail."timestamp" IS 'When the step was made. The order of an event''s trail is timestamp, id.';


--
-- Name: COLUMN audit_trail.id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_trail.id IS 'Ascending number. Orders the steps of one moment.';


--
-- Name: COLUMN audit_trail.xid; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_trail.xid IS 'Position of the transaction that wrote the row. It is the transaction''s number plus database_identity.trail_shift. Followers of the log go by it: rows become visible in the order of commits, not of ids.';


--
-- Name: COLUMN audit_trail.event; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_trail.event IS 'events.id. NULL where the step concerns no event. After the thousandth arrival of an event its trail has a sample. The other arrivals have the negative number.';


--
-- Name: COLUMN audit_trail.action; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_trail.action IS 'What was done.';


--
-- Name: COLUMN audit_trail.event_id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_trail.event_id IS 'The sender''s id. NULL where the step concerns no event, such as a pause.';


--
-- Name: COLUMN audit_trail.source; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_trail.source IS 'Who sent it. NULL stands for default.';


--
-- Name: COLUMN audit_trail.details; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_trail.details IS 'JSON object with what applies, NULL where empty. Members: attempt, lease, worker, status, answer, error, duration_ms, retry_after_ms, delay_ms, reason (of the delay) and others. The destination of an attempt stands there only where it is not default. The worker of an attempt stands in the step that started it.';


--
-- Name: audit_log; Type: VIEW; Schema: spine; Owner: -
--

CREATE VIEW spine.audit_log AS
 SELECT a."timestamp",
    a.id,
    a.xid,
    a.event,
    a.event_id,
    COALESCE(a.source,
        CASE
            WHEN (a.event_id IS NOT NULL) THEN 'default'::text
            ELSE NULL::text
        END) AS source,
    (a.action)::text AS action,
        CASE
            WHEN (a.action = ANY (ARRAY['processing_attempt_started'::spine.audit_action, 'retry_scheduled'::spine.audit_action])) THEN 'pending'::text
            WHEN (a.action = ANY (ARRAY['conflict_detected'::spine.audit_action, 'processing_attempt_failed'::spine.audit_action, 'processing_failed_permanently'::spine.audit_action, 'request_rejected'::spine.audit_action])) THEN 'failure'::text
            ELSE 'success'::text
        END AS success,
    COALESCE(((a.details)::text)::jsonb, '{}'::jsonb) AS details
   FROM spine.audit_trail a;


--
-- Name: VIEW audit_log; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON VIEW spine.audit_log IS 'Every step of every event, written in the transaction of the step itself. A view over the table spine.audit_trail, which has the rows in a compact form, one partition a day (UTC).';


--
-- Name: COLUMN audit_log."timestamp"; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_log."timestamp" IS 'When the step was made. The order of an event''s trail is timestamp, id.';


--
-- Name: COLUMN audit_log.id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_log.id IS 'Ascending number. Orders the steps of one moment.';


--
-- Name: COLUMN audit_log.xid; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_log.xid IS 'Position of the transaction that wrote the row. Followers of the log go by it: rows become visible in the order of commits, not of ids.';


--
-- Name: COLUMN audit_log.event; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_log.event IS 'events.id. NULL where the step concerns no event. After the thousandth arrival of an event its trail has a sample. The other arrivals have the negative number.';


--
-- Name: COLUMN audit_log.event_id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_log.event_id IS 'The sender''s id. NULL where the step concerns no event, such as a pause.';


--
-- Name: COLUMN audit_log.source; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_log.source IS 'Who sent it.';


--
-- Name: COLUMN audit_log.action; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_log.action IS 'What was done: a label of the type spine.audit_action.';


--
-- Name: COLUMN audit_log.success; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_log.success IS 'pending, failure or success. pending: processing_attempt_started and retry_scheduled. failure: conflict_detected, *_failed* and rejections. success: all others.';


--
-- Name: COLUMN audit_log.details; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_log.details IS 'JSON object with what applies. Members: attempt, lease, worker, status, answer, error, duration_ms, delay_ms and others. The destination of an attempt stands there only where it is not default. The worker of an attempt stands in the step that started it.';


--
-- Name: audit_marks; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.audit_marks (
    "position" xid8 NOT NULL,
    since timestamp with time zone NOT NULL,
    id bigint NOT NULL
);


--
-- Name: TABLE audit_marks; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.audit_marks IS 'From which time on the steps of the audit log stand that a follower has not read yet. Spine adds a row a day with spine.mark_audit(), and spine.audit_since() reads them.';


--
-- Name: COLUMN audit_marks."position"; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_marks."position" IS 'A position in the log, as in audit_trail.xid.';


--
-- Name: COLUMN audit_marks.since; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_marks.since IS 'Three days before the mark was made. Until the next mark, steps have this time or a later one.';


--
-- Name: COLUMN audit_marks.id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.audit_marks.id IS 'Largest audit_trail.id that was given out before.';


--
-- Name: audit_trail_default; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.audit_trail_default (
    "timestamp" timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    id bigint NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    event bigint,
    action spine.audit_action NOT NULL,
    event_id text COLLATE pg_catalog."C",
    source text COLLATE pg_catalog."C",
    details json
)
WITH (autovacuum_vacuum_insert_scale_factor='0', autovacuum_vacuum_insert_threshold='100000', autovacuum_freeze_min_age='0');

ALTER TABLE ONLY spine.audit_trail_default REPLICA IDENTITY FULL;


--
-- Name: TABLE audit_trail_default; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.audit_trail_default IS 'Steps outside of all daily partitions. A missing partition therefore never fails an ingest. Normally empty.';


--
-- Name: audit_trail_id_seq; Type: SEQUENCE; Schema: spine; Owner: -
--

ALTER TABLE spine.audit_trail ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME spine.audit_trail_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: conflicts; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.conflicts (
    event bigint NOT NULL,
    payload_hash bytea NOT NULL,
    event_id text NOT NULL COLLATE pg_catalog."C",
    source text NOT NULL COLLATE pg_catalog."C",
    event_type text NOT NULL,
    occurred_at timestamp with time zone NOT NULL,
    payload json,
    unqueryable text,
    raw_body bytea,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_count bigint DEFAULT 1 NOT NULL,
    accepted_as text COLLATE pg_catalog."C"
);


--
-- Name: TABLE conflicts; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.conflicts IS 'Evidence: other payloads that arrived under a known event_id. One row for each distinct hash, at most ten an event.';


--
-- Name: COLUMN conflicts.event; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicts.event IS 'events.id of the event that stays.';


--
-- Name: COLUMN conflicts.payload_hash; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicts.payload_hash IS 'Hash of this payload, made as in events.';


--
-- Name: COLUMN conflicts.event_id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicts.event_id IS 'Copy of the event''s id, for the reader.';


--
-- Name: COLUMN conflicts.source; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicts.source IS 'Copy of the event''s source, for the reader.';


--
-- Name: COLUMN conflicts.event_type; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicts.event_type IS 'Type that came with this payload.';


--
-- Name: COLUMN conflicts.occurred_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicts.occurred_at IS 'Time that came with this payload.';


--
-- Name: COLUMN conflicts.payload; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicts.payload IS 'The other payload''s exact text. NULL as in events.';


--
-- Name: COLUMN conflicts.unqueryable; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicts.unqueryable IS 'Why payload is NULL. NULL where it is not.';


--
-- Name: COLUMN conflicts.raw_body; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicts.raw_body IS 'The other payload''s exact bytes where payload cannot hold them.';


--
-- Name: COLUMN conflicts.created_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicts.created_at IS 'When it first arrived.';


--
-- Name: COLUMN conflicts.seen_count; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicts.seen_count IS 'How often it arrived.';


--
-- Name: COLUMN conflicts.accepted_as; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicts.accepted_as IS 'event_id of the event that spine.accept_conflict() made of it. NULL where it made none.';


--
-- Name: events; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.events (
    id bigint NOT NULL,
    event_id text NOT NULL COLLATE pg_catalog."C",
    source text DEFAULT 'default'::text NOT NULL COLLATE pg_catalog."C",
    event_type text NOT NULL,
    occurred_at timestamp with time zone NOT NULL,
    payload json,
    payload_hash bytea NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_count bigint DEFAULT 1 NOT NULL,
    unqueryable text,
    raw_body bytea,
    headers json,
    id_derived boolean,
    id_unsigned boolean,
    same_body_as text COLLATE pg_catalog."C"
)
WITH (autovacuum_vacuum_insert_scale_factor='0', autovacuum_vacuum_insert_threshold='100000', autovacuum_freeze_min_age='0', autovacuum_vacuum_scale_factor='0.05');


--
-- Name: TABLE events; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.events IS 'Each webhook once, as it first arrived. spine.ingest_events() writes it. Afterwards only seen_count changes.';


--
-- Name: COLUMN events.id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.id IS 'Key by which other tables refer to the event, in their column event.';


--
-- Name: COLUMN events.event_id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.event_id IS 'The sender''s id: 1 to 255 characters, no control characters. Unique within the source.';


--
-- Name: COLUMN events.source; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.source IS 'Who sent it.';


--
-- Name: COLUMN events.event_type; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.event_type IS 'What happened, in the sender''s words: 1 to 100 characters.';


--
-- Name: COLUMN events.occurred_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.occurred_at IS 'When it happened, as the sender says. Years 1 to 9999, the range of RFC 3339.';


--
-- Name: COLUMN events.payload; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.payload IS 'The payload''s exact text, a form''s fields, or a CloudEvent as one JSON object. Where it was made of a body, raw_body has the exact bytes of that. NULL where Postgres cannot query the payload: unqueryable says why, and raw_body has the bytes.';


--
-- Name: COLUMN events.payload_hash; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.payload_hash IS 'SHA-256 of the canonical payload, see spine.canonical(). SHA-256 of raw_body where payload is NULL or a form''s fields. Values that do not count are left out, and a CloudEvent''s attributes are taken as text.';


--
-- Name: COLUMN events.created_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.created_at IS 'When Spine stored it.';


--
-- Name: COLUMN events.seen_count; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.seen_count IS 'How often this id arrived, duplicates and conflicts included.';


--
-- Name: COLUMN events.unqueryable; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.unqueryable IS 'Why payload is NULL. NULL where it is not.';


--
-- Name: COLUMN events.raw_body; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.raw_body IS 'The exact bytes where payload is not the exact text.';


--
-- Name: COLUMN events.headers; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.headers IS 'Headers of the request without secrets: names with arrays of values. NULL for an envelope.';


--
-- Name: COLUMN events.id_derived; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.id_derived IS 'True where the sender gave no id and Spine made event_id from the body.';


--
-- Name: COLUMN events.id_unsigned; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.id_unsigned IS 'True where the signature does not cover the id. Anyone who has seen such a request could send its body again under another id.';


--
-- Name: COLUMN events.same_body_as; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.events.same_body_as IS 'event_id of an earlier event with the same payload, where id_unsigned. It is of the same source. Perhaps somebody sent the body again under another id.';


--
-- Name: conflicting; Type: VIEW; Schema: spine; Owner: -
--

CREATE VIEW spine.conflicting AS
 SELECT c.event_id,
    c.source,
    c.created_at,
    c.seen_count,
    encode(c.payload_hash, 'hex'::text) AS payload_hash,
    e.event_type,
    e.created_at AS stored_at,
    e.payload AS first_payload,
    c.payload AS other_payload,
    spine.differences_json(e.payload, c.payload) AS differences,
    c.accepted_as,
    c.event
   FROM (spine.conflicts c
     JOIN spine.events e ON ((e.id = c.event)))
  ORDER BY c.created_at DESC, c.event DESC, c.payload_hash DESC;


--
-- Name: VIEW conflicting; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON VIEW spine.conflicting IS 'Other payloads that arrived under a known event_id, beside the first. Newest first. spine.accept_conflict() makes an event of one.';


--
-- Name: COLUMN conflicting.event_id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicting.event_id IS 'The sender''s id.';


--
-- Name: COLUMN conflicting.source; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicting.source IS 'Who sent it.';


--
-- Name: COLUMN conflicting.created_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicting.created_at IS 'When the other payload first arrived.';


--
-- Name: COLUMN conflicting.seen_count; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicting.seen_count IS 'How often it arrived.';


--
-- Name: COLUMN conflicting.payload_hash; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicting.payload_hash IS 'Its hash, in hex.';


--
-- Name: COLUMN conflicting.event_type; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicting.event_type IS 'Type of the event that stays.';


--
-- Name: COLUMN conflicting.stored_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicting.stored_at IS 'When the event that stays was stored.';


--
-- Name: COLUMN conflicting.first_payload; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicting.first_payload IS 'Payload that stays. NULL where Postgres cannot query it.';


--
-- Name: COLUMN conflicting.other_payload; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicting.other_payload IS 'The other payload. NULL where Postgres cannot query it.';


--
-- Name: COLUMN conflicting.differences; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicting.differences IS 'Where they differ: an array of path (JSON pointer), was and is. See spine.differences_json(). NULL where Postgres cannot query one of the two.';


--
-- Name: COLUMN conflicting.accepted_as; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicting.accepted_as IS 'event_id of the event that was made of the other payload. NULL if none was.';


--
-- Name: COLUMN conflicting.event; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.conflicting.event IS 'events.id of the event that stays.';


--
-- Name: database_identity; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.database_identity (
    only_row boolean DEFAULT true NOT NULL,
    system_identifier bigint,
    database_oid oid,
    noted_at timestamp with time zone,
    trail_shift bigint DEFAULT 0 NOT NULL,
    CONSTRAINT database_identity_only_row_check CHECK (only_row)
);


--
-- Name: TABLE database_identity; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.database_identity IS 'Which database Spine is in. spine.note_database() writes it, and pauses all claims where it finds another one.';


--
-- Name: COLUMN database_identity.only_row; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.database_identity.only_row IS 'Holds the table to one row.';


--
-- Name: COLUMN database_identity.system_identifier; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.database_identity.system_identifier IS 'That of the server, as in pg_control_system(). NULL where Spine''s role may not know it.';


--
-- Name: COLUMN database_identity.database_oid; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.database_identity.database_oid IS 'pg_database.oid. NULL until the first process of Spine has started.';


--
-- Name: COLUMN database_identity.noted_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.database_identity.noted_at IS 'When it was noted.';


--
-- Name: COLUMN database_identity.trail_shift; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.database_identity.trail_shift IS 'The default of audit_trail.xid adds it to the number of a transaction. 0 in a database that never moved.';


--
-- Name: processing_state; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.processing_state (
    event bigint NOT NULL,
    event_id text NOT NULL COLLATE pg_catalog."C",
    source text DEFAULT 'default'::text NOT NULL COLLATE pg_catalog."C",
    destination text DEFAULT 'default'::text NOT NULL COLLATE pg_catalog."C",
    status text DEFAULT 'pending'::text NOT NULL,
    attempt_count integer DEFAULT 0 NOT NULL,
    next_attempt_at timestamp with time zone DEFAULT now(),
    last_attempt_at timestamp with time zone,
    completed_at timestamp with time zone,
    error_message text,
    worker text,
    lease_token bigint DEFAULT (EXTRACT(epoch FROM clock_timestamp()) * (1000000)::numeric) NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    deferrals integer,
    deferred_since timestamp with time zone,
    CONSTRAINT processing_state_attempt_count_check CHECK (((attempt_count >= 0) AND (attempt_count <= 1000000))),
    CONSTRAINT processing_state_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'processing'::text, 'completed'::text, 'failed'::text, 'dead'::text])))
)
WITH (fillfactor='85', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='10000', autovacuum_analyze_scale_factor='0.05', autovacuum_vacuum_cost_delay='0', autovacuum_freeze_min_age='0');


--
-- Name: TABLE processing_state; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.processing_state IS 'The queue: where each event stands on its way to each destination. Rows stay after completion.';


--
-- Name: COLUMN processing_state.event; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.event IS 'events.id. An INSERT by hand may leave it out: a trigger finds it by event_id and source.';


--
-- Name: COLUMN processing_state.event_id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.event_id IS 'Copy of the event''s id, for the reader.';


--
-- Name: COLUMN processing_state.source; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.source IS 'Copy of the event''s source, for the reader.';


--
-- Name: COLUMN processing_state.destination; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.destination IS 'Where it goes.';


--
-- Name: COLUMN processing_state.status; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.status IS 'pending, processing, completed, failed (to be tried again) or dead.
Transitions, the function that makes each, and the actions that it writes to the audit log:
new -> pending: ingest_events() writes event_inserted
pending|failed -> processing: claim() writes processing_attempt_started
processing -> completed: settle() writes processing_succeeded
processing -> failed: settle() writes processing_attempt_failed, retry_scheduled
processing -> failed: settle() writes delivery_deferred
processing -> dead: settle() writes processing_attempt_failed, processing_failed_permanently
processing -> failed: claim() writes lease_expired, retry_scheduled
processing -> dead: claim() writes lease_expired, processing_failed_permanently
processing -> pending|failed: give_back() writes lease_returned
completed|failed|dead -> pending: replay_rows() writes event_replayed
An INSERT by hand writes event_queued. Any other change of status by hand writes status_changed and voids a lease.';


--
-- Name: COLUMN processing_state.attempt_count; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.attempt_count IS 'Attempts since it was stored or replayed. The claim counts them. An attempt that did not reach the destination is taken off again.';


--
-- Name: COLUMN processing_state.next_attempt_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.next_attempt_at IS 'When a worker turns to it next. pending and failed: when it may be claimed. processing: the end of the lease. Otherwise NULL.';


--
-- Name: COLUMN processing_state.last_attempt_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.last_attempt_at IS 'When it was last claimed.';


--
-- Name: COLUMN processing_state.completed_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.completed_at IS 'When the destination had accepted it.';


--
-- Name: COLUMN processing_state.error_message; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.error_message IS 'Why the last attempt failed. NULL once completed.';


--
-- Name: COLUMN processing_state.worker; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.worker IS 'Worker that claimed it last.';


--
-- Name: COLUMN processing_state.lease_token; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.lease_token IS 'Fencing token: every change of status raises it. Nothing lowers it, so a write under an older lease matches no row. Rows of spine.ingest_events() start with 0, rows by hand with the time in microseconds. A row that is deleted and inserted again therefore does not repeat its tokens.';


--
-- Name: COLUMN processing_state.created_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.created_at IS 'When it was queued.';


--
-- Name: COLUMN processing_state.updated_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.updated_at IS 'When it last changed.';


--
-- Name: COLUMN processing_state.deferrals; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.deferrals IS 'Attempts in a row that did not reach the destination. They are not in attempt_count. NULL for none.';


--
-- Name: COLUMN processing_state.deferred_since; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.processing_state.deferred_since IS 'When the first of these attempts ended. NULL for none. Spine tries for 72 hours from then on.';


--
-- Name: dead_letters; Type: VIEW; Schema: spine; Owner: -
--

CREATE VIEW spine.dead_letters AS
 SELECT p.event_id,
    p.source,
    e.event_type,
    p.destination,
    p.updated_at AS died_at,
    p.attempt_count,
    p.error_message,
    p.created_at,
    p.event
   FROM (spine.processing_state p
     JOIN spine.events e ON ((e.id = p.event)))
  WHERE (p.status = 'dead'::text)
  ORDER BY p.updated_at DESC;


--
-- Name: VIEW dead_letters; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON VIEW spine.dead_letters IS 'Dead rows, last died first. Spine does not try them again by itself. spine.replay() and spine.replay_dead() deliver them again.';


--
-- Name: COLUMN dead_letters.event_id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.dead_letters.event_id IS 'The sender''s id.';


--
-- Name: COLUMN dead_letters.source; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.dead_letters.source IS 'Who sent it.';


--
-- Name: COLUMN dead_letters.event_type; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.dead_letters.event_type IS 'What happened, in the sender''s words.';


--
-- Name: COLUMN dead_letters.destination; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.dead_letters.destination IS 'Where it was to go.';


--
-- Name: COLUMN dead_letters.died_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.dead_letters.died_at IS 'When it became dead.';


--
-- Name: COLUMN dead_letters.attempt_count; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.dead_letters.attempt_count IS 'Attempts that it had.';


--
-- Name: COLUMN dead_letters.error_message; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.dead_letters.error_message IS 'Why the last one failed.';


--
-- Name: COLUMN dead_letters.created_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.dead_letters.created_at IS 'When it was queued.';


--
-- Name: COLUMN dead_letters.event; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.dead_letters.event IS 'events.id.';


--
-- Name: destinations; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.destinations (
    name text NOT NULL COLLATE pg_catalog."C",
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    paused_at timestamp with time zone,
    paused_by text,
    paused_reason text,
    CONSTRAINT destinations_name_check CHECK ((name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'::text))
);


--
-- Name: TABLE destinations; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.destinations IS 'Where events go. While a destination is paused, its events are stored and queued, but not claimed.';


--
-- Name: COLUMN destinations.name; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.destinations.name IS 'Immutable slug.';


--
-- Name: COLUMN destinations.created_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.destinations.created_at IS 'When the destination was added.';


--
-- Name: COLUMN destinations.paused_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.destinations.paused_at IS 'Since when claims are paused. NULL while they are not. See spine.pause() and spine.resume().';


--
-- Name: COLUMN destinations.paused_by; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.destinations.paused_by IS 'Who paused it: a database role, and on whose behalf it acted.';


--
-- Name: COLUMN destinations.paused_reason; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.destinations.paused_reason IS 'Why, as far as somebody said. See spine.pause().';


--
-- Name: depth; Type: VIEW; Schema: spine; Owner: -
--

CREATE VIEW spine.depth AS
 SELECT p.destination,
    p.status,
    count(*) AS count,
    min(p.next_attempt_at) AS next_attempt_at,
    min(p.created_at) AS oldest_created_at,
    d.paused_at
   FROM (spine.processing_state p
     LEFT JOIN spine.destinations d ON ((d.name = p.destination)))
  WHERE (p.status = ANY (ARRAY['pending'::text, 'failed'::text, 'processing'::text]))
  GROUP BY p.destination, p.status, d.paused_at
UNION ALL
 SELECT p.destination,
    p.status,
    count(*) AS count,
    NULL::timestamp with time zone AS next_attempt_at,
    min(p.created_at) AS oldest_created_at,
    NULL::timestamp with time zone AS paused_at
   FROM spine.processing_state p
  WHERE (p.status = 'dead'::text)
  GROUP BY p.destination, p.status;


--
-- Name: VIEW depth; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON VIEW spine.depth IS 'How long the queue is, by destination and status. It does not count completed rows.';


--
-- Name: COLUMN depth.destination; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth.destination IS 'Where it goes.';


--
-- Name: COLUMN depth.status; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth.status IS 'pending, failed (to be tried again), processing or dead.';


--
-- Name: COLUMN depth.count; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth.count IS 'How many rows.';


--
-- Name: COLUMN depth.next_attempt_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth.next_attempt_at IS 'When the first of them falls due. For processing: when the first lease ends.';


--
-- Name: COLUMN depth.oldest_created_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth.oldest_created_at IS 'When the oldest of them was queued.';


--
-- Name: COLUMN depth.paused_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth.paused_at IS 'Since when claims are paused. NULL while they are not.';


--
-- Name: depth_samples; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.depth_samples (
    step integer NOT NULL,
    at timestamp with time zone NOT NULL,
    pending bigint NOT NULL,
    processing bigint NOT NULL,
    failed bigint NOT NULL,
    dead bigint NOT NULL,
    oldest_ready interval NOT NULL,
    CONSTRAINT depth_samples_step_check CHECK ((step = ANY (ARRAY[10, 60, 300, 3600])))
)
WITH (fillfactor='50');


--
-- Name: TABLE depth_samples; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.depth_samples IS 'How long the queue was: its last sample in each time step. spine.sample_depth() writes them. They stay as long as spine.rollups. A time step without a sample has no row.';


--
-- Name: COLUMN depth_samples.step; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_samples.step IS 'Length of the time step in seconds: 10, 60, 300 or 3600.';


--
-- Name: COLUMN depth_samples.at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_samples.at IS 'Beginning of the time step.';


--
-- Name: COLUMN depth_samples.pending; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_samples.pending IS 'Pending rows of all destinations.';


--
-- Name: COLUMN depth_samples.processing; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_samples.processing IS 'Rows that workers held.';


--
-- Name: COLUMN depth_samples.failed; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_samples.failed IS 'Rows that waited for a retry.';


--
-- Name: COLUMN depth_samples.dead; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_samples.dead IS 'Dead rows.';


--
-- Name: COLUMN depth_samples.oldest_ready; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_samples.oldest_ready IS 'How long the oldest claimable row had been due. 0 when there was none. Paused destinations do not count.';


--
-- Name: depth_state; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.depth_state (
    only_row boolean DEFAULT true NOT NULL,
    sampled_at timestamp with time zone,
    took interval DEFAULT '00:00:00'::interval NOT NULL,
    rows jsonb DEFAULT '[]'::jsonb NOT NULL,
    oldest_ready interval DEFAULT '00:00:00'::interval NOT NULL,
    next_xid xid8 DEFAULT '0'::xid8 NOT NULL,
    in_progress xid8[] DEFAULT '{}'::xid8[] NOT NULL,
    tidied_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT depth_state_only_row_check CHECK (only_row)
);


--
-- Name: TABLE depth_state; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.depth_state IS 'The last depth sample. spine.sample_depth() writes it when it differs from the one before, and every ten seconds.';


--
-- Name: COLUMN depth_state.only_row; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_state.only_row IS 'Holds the table to one row.';


--
-- Name: COLUMN depth_state.sampled_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_state.sampled_at IS 'When it was taken. NULL before the first.';


--
-- Name: COLUMN depth_state.took; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_state.took IS 'How long the count took.';


--
-- Name: COLUMN depth_state.rows; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_state.rows IS 'The view spine.depth at that time, as an array of objects. Their members: destination, status, count, oldest_created_at and next_attempt_at.';


--
-- Name: COLUMN depth_state.oldest_ready; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_state.oldest_ready IS 'How long the oldest claimable row had been due.';


--
-- Name: COLUMN depth_state.next_xid; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_state.next_xid IS 'The sample saw all transactions before this one, except those in in_progress. While the audit log has no other steps, the sample holds.';


--
-- Name: COLUMN depth_state.in_progress; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_state.in_progress IS 'Transactions that were in progress at the sample.';


--
-- Name: COLUMN depth_state.tidied_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.depth_state.tidied_at IS 'When old samples were last deleted.';


--
-- Name: events_id_seq; Type: SEQUENCE; Schema: spine; Owner: -
--

ALTER TABLE spine.events ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME spine.events_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: locks; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.locks (
    name text NOT NULL
);


--
-- Name: TABLE locks; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.locks IS 'Locks between processes of Spine. Who works locks a row; strangers cannot, as they could an advisory lock.';


--
-- Name: COLUMN locks.name; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.locks.name IS 'What the lock is for: migrate, or a task of spine.reject() and upkeep.';


--
-- Name: rollups; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.rollups (
    step integer NOT NULL,
    at timestamp with time zone NOT NULL,
    source text NOT NULL COLLATE pg_catalog."C",
    received bigint DEFAULT 0 NOT NULL,
    accepted bigint DEFAULT 0 NOT NULL,
    deduplicated bigint DEFAULT 0 NOT NULL,
    conflicts bigint DEFAULT 0 NOT NULL,
    rejected bigint DEFAULT 0 NOT NULL,
    attempts bigint DEFAULT 0 NOT NULL,
    attempts_failed bigint DEFAULT 0 NOT NULL,
    delivered bigint DEFAULT 0 NOT NULL,
    died bigint DEFAULT 0 NOT NULL,
    latency bigint[] DEFAULT '{}'::bigint[] NOT NULL,
    CONSTRAINT rollups_step_check CHECK ((step = ANY (ARRAY[10, 60, 300, 3600])))
)
WITH (fillfactor='50');


--
-- Name: TABLE rollups; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.rollups IS 'Counts from the audit log, by time step and source. spine.roll_up() adds to them. Time steps of 10 seconds stay for 2 hours, those of a minute for 12 hours. Time steps of 5 minutes stay for 2 days, those of an hour for 90 days. A time step without events has no row. The view spine.rates shows the last hour.';


--
-- Name: COLUMN rollups.step; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollups.step IS 'Length of the time step in seconds: 10, 60, 300 or 3600. Each step of the log counts once in each length.';


--
-- Name: COLUMN rollups.at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollups.at IS 'Beginning of the time step.';


--
-- Name: COLUMN rollups.source; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollups.source IS 'Who sent it. Empty for rejected requests that belong to no source.';


--
-- Name: COLUMN rollups.received; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollups.received IS 'Events that arrived: accepted, deduplicated and conflicts.';


--
-- Name: COLUMN rollups.accepted; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollups.accepted IS 'New events.';


--
-- Name: COLUMN rollups.deduplicated; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollups.deduplicated IS 'Events of a known id with the same payload.';


--
-- Name: COLUMN rollups.conflicts; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollups.conflicts IS 'Events of a known id with another payload.';


--
-- Name: COLUMN rollups.rejected; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollups.rejected IS 'Rejected requests.';


--
-- Name: COLUMN rollups.attempts; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollups.attempts IS 'Delivery attempts that started.';


--
-- Name: COLUMN rollups.attempts_failed; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollups.attempts_failed IS 'Attempts that failed, expired leases and deferred ones included.';


--
-- Name: COLUMN rollups.delivered; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollups.delivered IS 'Events that a destination accepted.';


--
-- Name: COLUMN rollups.died; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollups.died IS 'Events that became dead.';


--
-- Name: COLUMN rollups.latency; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollups.latency IS 'Histogram of the time from stored to delivered, retries included. Element 1 counts up to 1 ms, element n up to 1.2 ^ (n - 1) ms, element 130 all above. The array ends with its last element that is not 0. Replayed events are left out, unless the whole took less than ten seconds. See spine.latency_percentile().';


--
-- Name: rates; Type: VIEW; Schema: spine; Owner: -
--

CREATE VIEW spine.rates AS
 SELECT r.at AS minute,
    r.source,
    r.received,
    r.accepted,
    r.deduplicated,
    r.conflicts,
    r.rejected,
    r.attempts,
    r.attempts_failed,
    r.delivered,
    r.died,
    spine.latency_percentile(r.latency, (0.5)::double precision) AS latency_p50,
    spine.latency_percentile(r.latency, (0.95)::double precision) AS latency_p95,
    spine.latency_percentile(r.latency, (0.99)::double precision) AS latency_p99
   FROM spine.rollups r
  WHERE ((r.step = 60) AND (r.at > (now() - '01:00:00'::interval)))
  ORDER BY r.at DESC, r.source;


--
-- Name: VIEW rates; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON VIEW spine.rates IS 'Counts for each minute of the last hour, by source, newest first. A minute without events has no row. Older counts are in spine.rollups.';


--
-- Name: COLUMN rates.minute; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rates.minute IS 'Beginning of the minute. The first one is still under way.';


--
-- Name: COLUMN rates.source; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rates.source IS 'Who sent it. Empty for rejected requests that belong to no source.';


--
-- Name: COLUMN rates.received; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rates.received IS 'Events that arrived: accepted, deduplicated and conflicts.';


--
-- Name: COLUMN rates.accepted; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rates.accepted IS 'New events.';


--
-- Name: COLUMN rates.deduplicated; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rates.deduplicated IS 'Events of a known id with the same payload.';


--
-- Name: COLUMN rates.conflicts; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rates.conflicts IS 'Events of a known id with another payload.';


--
-- Name: COLUMN rates.rejected; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rates.rejected IS 'Rejected requests.';


--
-- Name: COLUMN rates.attempts; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rates.attempts IS 'Delivery attempts that started.';


--
-- Name: COLUMN rates.attempts_failed; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rates.attempts_failed IS 'Attempts that failed, expired leases and deferred ones included.';


--
-- Name: COLUMN rates.delivered; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rates.delivered IS 'Events that a destination accepted.';


--
-- Name: COLUMN rates.died; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rates.died IS 'Events that became dead.';


--
-- Name: COLUMN rates.latency_p50; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rates.latency_p50 IS 'Median time from stored to delivered, retries included, to within a tenth. Replayed events are left out, unless the whole took less than ten seconds.';


--
-- Name: COLUMN rates.latency_p95; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rates.latency_p95 IS 'The same for 95 of 100.';


--
-- Name: COLUMN rates.latency_p99; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rates.latency_p99 IS 'The same for 99 of 100.';


--
-- Name: receivers; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.receivers (
    process text NOT NULL,
    told_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);


--
-- Name: TABLE receivers; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.receivers IS 'Processes that receive webhooks. Each tells every minute that it is alive. See source_reports.';


--
-- Name: COLUMN receivers.process; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.receivers.process IS 'Name of the process, such as web-1-a2c1: its host and something random.';


--
-- Name: COLUMN receivers.told_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.receivers.told_at IS 'When it last told. Readers take a process for gone that has told nothing for 150 s.';


--
-- Name: rejected_requests_id_seq; Type: SEQUENCE; Schema: spine; Owner: -
--

ALTER TABLE spine.rejected_requests ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME spine.rejected_requests_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: retention_state; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.retention_state (
    only_row boolean DEFAULT true NOT NULL,
    expired_at timestamp with time zone,
    before timestamp with time zone,
    CONSTRAINT retention_state_only_row_check CHECK (only_row)
);


--
-- Name: TABLE retention_state; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.retention_state IS 'How far retention has gone, so that an id that is gone is told from one that never came.';


--
-- Name: COLUMN retention_state.only_row; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.retention_state.only_row IS 'Holds the table to one row.';


--
-- Name: COLUMN retention_state.expired_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.retention_state.expired_at IS 'When spine.expire_events() last removed something.';


--
-- Name: COLUMN retention_state.before; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.retention_state.before IS 'Latest cutoff with which it removed something.';


--
-- Name: rollup_state; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.rollup_state (
    only_row boolean DEFAULT true NOT NULL,
    next_xid xid8 NOT NULL,
    in_progress xid8[] NOT NULL,
    covered_from timestamp with time zone NOT NULL,
    covered_to timestamp with time zone NOT NULL,
    tidied_at timestamp with time zone NOT NULL,
    CONSTRAINT rollup_state_only_row_check CHECK (only_row)
);


--
-- Name: TABLE rollup_state; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.rollup_state IS 'Which steps of the audit log spine.rollups has counted. Both change in one transaction.';


--
-- Name: COLUMN rollup_state.only_row; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollup_state.only_row IS 'Holds the table to one row.';


--
-- Name: COLUMN rollup_state.next_xid; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollup_state.next_xid IS 'All transactions before this one are counted, except those in in_progress.';


--
-- Name: COLUMN rollup_state.in_progress; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollup_state.in_progress IS 'Transactions that were in progress at the last count. They are counted once they have ended.';


--
-- Name: COLUMN rollup_state.covered_from; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollup_state.covered_from IS 'Steps from this time on are counted.';


--
-- Name: COLUMN rollup_state.covered_to; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollup_state.covered_to IS 'Up to this time all committed steps were counted. spine.rolled_up_to() says up to when that is so now.';


--
-- Name: COLUMN rollup_state.tidied_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.rollup_state.tidied_at IS 'When old rollups were last deleted.';


--
-- Name: schema_functions; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.schema_functions (
    only_row boolean DEFAULT true NOT NULL,
    digest text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL,
    compatible_from bigint,
    CONSTRAINT schema_functions_only_row_check CHECK (only_row)
);


--
-- Name: TABLE schema_functions; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.schema_functions IS 'Which set of functions, triggers and views is in place.';


--
-- Name: COLUMN schema_functions.only_row; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.schema_functions.only_row IS 'Holds the table to one row.';


--
-- Name: COLUMN schema_functions.digest; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.schema_functions.digest IS 'SHA-256, in hex, of the script that spine migrate runs.';


--
-- Name: COLUMN schema_functions.applied_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.schema_functions.applied_at IS 'When they were last put in place.';


--
-- Name: COLUMN schema_functions.compatible_from; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.schema_functions.compatible_from IS 'Oldest schema version whose binaries work with this database. They leave it as it is.';


--
-- Name: schema_version; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.schema_version (
    id integer NOT NULL,
    version_id bigint NOT NULL,
    is_applied boolean NOT NULL,
    tstamp timestamp without time zone DEFAULT now() NOT NULL
);


--
-- Name: TABLE schema_version; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.schema_version IS 'Migrations that were applied, as goose notes them.';


--
-- Name: COLUMN schema_version.id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.schema_version.id IS 'Ascending number.';


--
-- Name: COLUMN schema_version.version_id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.schema_version.version_id IS 'Number of the migration: sql/migrations/NNNN_*.sql. 0 stands for the beginning.';


--
-- Name: COLUMN schema_version.is_applied; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.schema_version.is_applied IS 'Always true.';


--
-- Name: COLUMN schema_version.tstamp; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.schema_version.tstamp IS 'When it was applied.';


--
-- Name: schema_version_id_seq; Type: SEQUENCE; Schema: spine; Owner: -
--

ALTER TABLE spine.schema_version ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME spine.schema_version_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: source_reports; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.source_reports (
    process text NOT NULL,
    source text NOT NULL COLLATE pg_catalog."C",
    settings_at timestamp with time zone NOT NULL,
    state text NOT NULL,
    problems text[] DEFAULT '{}'::text[] NOT NULL
);


--
-- Name: TABLE source_reports; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.source_reports IS 'What each process that receives webhooks makes of each source. Whether a source can be used depends on secrets, which only these processes can read. No secret stands here. spine.tell_sources() writes it.';


--
-- Name: COLUMN source_reports.process; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.source_reports.process IS 'The process, as in receivers.';


--
-- Name: COLUMN source_reports.source; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.source_reports.source IS 'The source.';


--
-- Name: COLUMN source_reports.settings_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.source_reports.settings_at IS 'updated_at of the source, as the process has read it.';


--
-- Name: COLUMN source_reports.state; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.source_reports.state IS 'open, verified, closed, disabled or broken.';


--
-- Name: COLUMN source_reports.problems; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.source_reports.problems IS 'Why it is broken, or warnings about one that works.';


--
-- Name: sources; Type: TABLE; Schema: spine; Owner: -
--

CREATE TABLE spine.sources (
    name text NOT NULL COLLATE pg_catalog."C",
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    last_arrival_at timestamp with time zone,
    settings jsonb DEFAULT '{"preset": "envelope"}'::jsonb NOT NULL,
    preset text GENERATED ALWAYS AS ((settings ->> 'preset'::text)) STORED,
    disabled_at timestamp with time zone,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_by text,
    disabled_reason text,
    disabled_by text,
    disabled_before jsonb,
    CONSTRAINT sources_name_check CHECK ((name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'::text))
);


--
-- Name: TABLE sources; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TABLE spine.sources IS 'The sources that may send, and how Spine verifies each. POST /webhook feeds the source default, POST /webhook/NAME the others. Every change is audited and takes effect at once (NOTIFY spine_sources).';


--
-- Name: COLUMN sources.name; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.sources.name IS 'Immutable slug.';


--
-- Name: COLUMN sources.created_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.sources.created_at IS 'When the source was added.';


--
-- Name: COLUMN sources.last_arrival_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.sources.last_arrival_at IS 'When it last sent a new event, as far as that was noted. spine.last_arrival() also knows the events above spine.arrivals_watermark that no rollup has counted.';


--
-- Name: COLUMN sources.settings; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.sources.settings IS 'JSON object: a preset, and what differs from it. spine source presets lists the members. Secrets stand here by reference alone: env:NAME or file:/path.';


--
-- Name: COLUMN sources.preset; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.sources.preset IS 'The preset named in settings.';


--
-- Name: COLUMN sources.disabled_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.sources.disabled_at IS 'Since when Spine takes nothing from it. NULL while it is enabled.';


--
-- Name: COLUMN sources.updated_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.sources.updated_at IS 'When it last changed: its settings, or whether it is disabled.';


--
-- Name: COLUMN sources.updated_by; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.sources.updated_by IS 'Who made that change. A database role, and on whose behalf it acted.';


--
-- Name: COLUMN sources.disabled_reason; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.sources.disabled_reason IS 'Why, as far as somebody said. See spine.disable_source().';


--
-- Name: COLUMN sources.disabled_by; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.sources.disabled_by IS 'Who disabled it: a database role, and on whose behalf it acted.';


--
-- Name: COLUMN sources.disabled_before; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.sources.disabled_before IS 'The last five times it was disabled and enabled again. Members: since, until, by, reason.';


--
-- Name: stuck; Type: VIEW; Schema: spine; Owner: -
--

CREATE VIEW spine.stuck AS
 SELECT s.event_id,
    s.source,
    s.destination,
    s.status,
    s.attempt_count,
    s.due_at,
    (statement_timestamp() -
        CASE
            WHEN isfinite(s.due_at) THEN s.due_at
            WHEN isfinite(s.updated_at) THEN s.updated_at
            ELSE NULL::timestamp with time zone
        END) AS overdue,
        CASE
            WHEN s.is_ahead THEN (('planned at '::text || spine.exact_time(s.updated_at)) || ', which is later than now: the database''s clock was set back (select spine.mend_clock())'::text)
            ELSE COALESCE(( SELECT string_agg(w.says, '; '::text) AS string_agg
               FROM spine.why_waiting(s.status, s.due_at, s.worker, s.holder, s.paused_at, s.paused_by, s.paused_reason) w(cause, says, facts)), 'due and not claimed'::text)
        END AS reason,
    s.event
   FROM ( SELECT p.event_id,
            p.source,
            p.destination,
            p.status,
            p.attempt_count,
            p.next_attempt_at AS due_at,
            p.updated_at,
            p.worker,
            p.xmax AS holder,
            d.paused_at,
            d.paused_by,
            d.paused_reason,
            false AS is_ahead,
            p.event
           FROM (spine.processing_state p
             LEFT JOIN spine.destinations d ON ((d.name = p.destination)))
          WHERE ((p.status = ANY (ARRAY['pending'::text, 'failed'::text, 'processing'::text])) AND (p.next_attempt_at < (clock_timestamp() - '00:00:10'::interval)))
        UNION ALL
         SELECT p.event_id,
            p.source,
            p.destination,
            p.status,
            p.attempt_count,
            p.next_attempt_at,
            p.updated_at,
            NULL::text,
            NULL::xid,
            NULL::timestamp with time zone,
            NULL::text,
            NULL::text,
            true,
            p.event
           FROM spine.processing_state p
          WHERE ((( SELECT spine.clock_ahead() AS clock_ahead) IS NOT NULL) AND (p.status = ANY (ARRAY['pending'::text, 'failed'::text, 'processing'::text])) AND (p.next_attempt_at > now()) AND isfinite(p.next_attempt_at) AND (p.updated_at > (clock_timestamp() + '00:00:10'::interval)))
  ORDER BY 6) s;


--
-- Name: VIEW stuck; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON VIEW spine.stuck IS 'Rows that have been due for 10 seconds or longer, and every cause for which no worker claims them. After the clock was set back it also lists rows that were planned by the old clock. Normally empty.';


--
-- Name: COLUMN stuck.event_id; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.stuck.event_id IS 'The sender''s id.';


--
-- Name: COLUMN stuck.source; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.stuck.source IS 'Who sent it.';


--
-- Name: COLUMN stuck.destination; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.stuck.destination IS 'Where it goes.';


--
-- Name: COLUMN stuck.status; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.stuck.status IS 'pending, failed (to be tried again) or processing (its lease ran out).';


--
-- Name: COLUMN stuck.attempt_count; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.stuck.attempt_count IS 'Attempts so far.';


--
-- Name: COLUMN stuck.due_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.stuck.due_at IS 'When it fell due. For processing: when the lease ran out.';


--
-- Name: COLUMN stuck.overdue; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.stuck.overdue IS 'How long it has been due. Negative for what waits because the clock was set back.';


--
-- Name: COLUMN stuck.reason; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.stuck.reason IS 'Every cause, in the words of spine.explain().';


--
-- Name: COLUMN stuck.event; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON COLUMN spine.stuck.event IS 'events.id.';


--
-- Name: audit_trail_default; Type: TABLE ATTACH; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.audit_trail ATTACH PARTITION spine.audit_trail_default DEFAULT;


--
-- Name: arrivals_watermark arrivals_watermark_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.arrivals_watermark
    ADD CONSTRAINT arrivals_watermark_pkey PRIMARY KEY (only_row);


--
-- Name: audit_marks audit_marks_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.audit_marks
    ADD CONSTRAINT audit_marks_pkey PRIMARY KEY ("position");


--
-- Name: audit_merge audit_merge_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.audit_merge
    ADD CONSTRAINT audit_merge_pkey PRIMARY KEY (only_row);


--
-- Name: conflicts conflicts_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.conflicts
    ADD CONSTRAINT conflicts_pkey PRIMARY KEY (event, payload_hash);


--
-- Name: database_identity database_identity_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.database_identity
    ADD CONSTRAINT database_identity_pkey PRIMARY KEY (only_row);


--
-- Name: depth_samples depth_samples_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.depth_samples
    ADD CONSTRAINT depth_samples_pkey PRIMARY KEY (step, at);


--
-- Name: depth_state depth_state_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.depth_state
    ADD CONSTRAINT depth_state_pkey PRIMARY KEY (only_row);


--
-- Name: destinations destinations_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.destinations
    ADD CONSTRAINT destinations_pkey PRIMARY KEY (name);


--
-- Name: events events_event_id_source_key; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.events
    ADD CONSTRAINT events_event_id_source_key UNIQUE (event_id, source);


--
-- Name: CONSTRAINT events_event_id_source_key ON events; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON CONSTRAINT events_event_id_source_key ON spine.events IS 'The idempotency key. ON CONFLICT in spine.ingest_events() relies on it.';


--
-- Name: events events_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (id);


--
-- Name: locks locks_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.locks
    ADD CONSTRAINT locks_pkey PRIMARY KEY (name);


--
-- Name: processing_state processing_state_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.processing_state
    ADD CONSTRAINT processing_state_pkey PRIMARY KEY (event, destination) WITH (fillfactor='65');


--
-- Name: receivers receivers_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.receivers
    ADD CONSTRAINT receivers_pkey PRIMARY KEY (process);


--
-- Name: rejected_requests rejected_requests_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.rejected_requests
    ADD CONSTRAINT rejected_requests_pkey PRIMARY KEY (id);


--
-- Name: retention_state retention_state_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.retention_state
    ADD CONSTRAINT retention_state_pkey PRIMARY KEY (only_row);


--
-- Name: rollup_state rollup_state_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.rollup_state
    ADD CONSTRAINT rollup_state_pkey PRIMARY KEY (only_row);


--
-- Name: rollups rollups_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.rollups
    ADD CONSTRAINT rollups_pkey PRIMARY KEY (step, at, source);


--
-- Name: schema_functions schema_functions_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.schema_functions
    ADD CONSTRAINT schema_functions_pkey PRIMARY KEY (only_row);


--
-- Name: schema_version schema_version_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.schema_version
    ADD CONSTRAINT schema_version_pkey PRIMARY KEY (id);


--
-- Name: source_reports source_reports_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.source_reports
    ADD CONSTRAINT source_reports_pkey PRIMARY KEY (process, source);


--
-- Name: sources sources_pkey; Type: CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.sources
    ADD CONSTRAINT sources_pkey PRIMARY KEY (name);


--
-- Name: INDEX arrivals_watermark_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.arrivals_watermark_pkey IS 'Holds the table to one row.';


--
-- Name: INDEX audit_marks_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.audit_marks_pkey IS 'spine.audit_since(): the mark before a position.';


--
-- Name: INDEX audit_merge_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.audit_merge_pkey IS 'Holds the table to one row.';


--
-- Name: audit_trail_event; Type: INDEX; Schema: spine; Owner: -
--

CREATE INDEX audit_trail_event ON ONLY spine.audit_trail USING btree (event) WITH (fillfactor='75');


--
-- Name: INDEX audit_trail_event; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.audit_trail_event IS 'spine.trace(): the trail of one event.';


--
-- Name: audit_trail_default_event_idx; Type: INDEX; Schema: spine; Owner: -
--

CREATE INDEX audit_trail_default_event_idx ON spine.audit_trail_default USING btree (event) WITH (fillfactor='75');


--
-- Name: audit_trail_timestamp; Type: INDEX; Schema: spine; Owner: -
--

CREATE INDEX audit_trail_timestamp ON ONLY spine.audit_trail USING btree ("timestamp") WITH (fillfactor='100');


--
-- Name: INDEX audit_trail_timestamp; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.audit_trail_timestamp IS 'Newest first, in psql and in GET /api/audit.';


--
-- Name: audit_trail_default_timestamp_idx; Type: INDEX; Schema: spine; Owner: -
--

CREATE INDEX audit_trail_default_timestamp_idx ON spine.audit_trail_default USING btree ("timestamp") WITH (fillfactor='100');


--
-- Name: audit_trail_xid; Type: INDEX; Schema: spine; Owner: -
--

CREATE INDEX audit_trail_xid ON ONLY spine.audit_trail USING btree (xid) WITH (fillfactor='100');


--
-- Name: INDEX audit_trail_xid; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.audit_trail_xid IS 'spine tail: the steps committed since it last read.';


--
-- Name: audit_trail_default_xid_idx; Type: INDEX; Schema: spine; Owner: -
--

CREATE INDEX audit_trail_default_xid_idx ON spine.audit_trail_default USING btree (xid) WITH (fillfactor='100');


--
-- Name: conflicts_created_at; Type: INDEX; Schema: spine; Owner: -
--

CREATE INDEX conflicts_created_at ON spine.conflicts USING btree (created_at, event, payload_hash);


--
-- Name: INDEX conflicts_created_at; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.conflicts_created_at IS 'Newest first: spine conflicts, GET /api/conflicts.';


--
-- Name: INDEX conflicts_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.conflicts_pkey IS 'Evidence of one event, one row for each distinct hash.';


--
-- Name: INDEX database_identity_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.database_identity_pkey IS 'Holds the table to one row.';


--
-- Name: INDEX depth_samples_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.depth_samples_pkey IS 'The time steps of a span.';


--
-- Name: INDEX depth_state_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.depth_state_pkey IS 'Holds the table to one row.';


--
-- Name: INDEX destinations_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.destinations_pkey IS 'spine.claim(): whether a destination is paused.';


--
-- Name: INDEX events_event_id_source_key; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.events_event_id_source_key IS 'Idempotency, and every look-up by event_id (spine.id_of).';


--
-- Name: INDEX events_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.events_pkey IS 'Joins from other tables, and newest first in the API.';


--
-- Name: events_same_body; Type: INDEX; Schema: spine; Owner: -
--

CREATE INDEX events_same_body ON spine.events USING btree (source, payload_hash) WHERE id_unsigned;


--
-- Name: INDEX events_same_body; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.events_same_body IS 'spine.ingest_events(): whether a body arrived before under another id. Only for sources whose ids are unsigned.';


--
-- Name: INDEX locks_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.locks_pkey IS 'Names of locks.';


--
-- Name: processing_state_dead; Type: INDEX; Schema: spine; Owner: -
--

CREATE INDEX processing_state_dead ON spine.processing_state USING btree (updated_at) WHERE (status = 'dead'::text);


--
-- Name: INDEX processing_state_dead; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.processing_state_dead IS 'The view dead_letters and spine.replay_dead(): dead rows by the time they died.';


--
-- Name: processing_state_due; Type: INDEX; Schema: spine; Owner: -
--

CREATE INDEX processing_state_due ON spine.processing_state USING btree (destination, next_attempt_at) WHERE (status = ANY (ARRAY['pending'::text, 'failed'::text, 'processing'::text]));


--
-- Name: INDEX processing_state_due; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.processing_state_due IS 'spine.claim(), the views depth and stuck. Rows by due time, for each destination.';


--
-- Name: INDEX processing_state_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.processing_state_pkey IS 'spine.settle(), spine.renew() and joins. One row for each event and destination.';


--
-- Name: INDEX receivers_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.receivers_pkey IS 'spine.tell_sources(): the row of one process.';


--
-- Name: INDEX rejected_requests_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.rejected_requests_pkey IS 'Newest first, and one request by its number.';


--
-- Name: rejected_requests_requested; Type: INDEX; Schema: spine; Owner: -
--

CREATE INDEX rejected_requests_requested ON spine.rejected_requests USING btree (id) WHERE (state = 'requested'::text);


--
-- Name: INDEX rejected_requests_requested; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.rejected_requests_requested IS 'spine.take_requested(): requests to be read again.';


--
-- Name: rejected_requests_source; Type: INDEX; Schema: spine; Owner: -
--

CREATE INDEX rejected_requests_source ON spine.rejected_requests USING btree (source, cause, id);


--
-- Name: INDEX rejected_requests_source; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.rejected_requests_source IS 'spine.keep_rejected(): the oldest of a source and cause. Lists of one source.';


--
-- Name: rejected_requests_words; Type: INDEX; Schema: spine; Owner: -
--

CREATE INDEX rejected_requests_words ON spine.rejected_requests USING gin (words) WITH (gin_pending_list_limit='256');


--
-- Name: INDEX rejected_requests_words; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.rejected_requests_words IS 'spine.rejected_like(): requests in which an id stands.';


--
-- Name: INDEX retention_state_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.retention_state_pkey IS 'Holds the table to one row.';


--
-- Name: INDEX rollup_state_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.rollup_state_pkey IS 'Holds the table to one row.';


--
-- Name: INDEX rollups_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.rollups_pkey IS 'The time steps of a span, and where spine.roll_up() adds to them.';


--
-- Name: INDEX schema_functions_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.schema_functions_pkey IS 'Holds the table to one row.';


--
-- Name: INDEX schema_version_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.schema_version_pkey IS 'Order of the migrations.';


--
-- Name: INDEX source_reports_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.source_reports_pkey IS 'spine.tell_sources(): what one process says of one source.';


--
-- Name: INDEX sources_pkey; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON INDEX spine.sources_pkey IS 'Look-ups by name.';


--
-- Name: audit_trail_default_event_idx; Type: INDEX ATTACH; Schema: spine; Owner: -
--

ALTER INDEX spine.audit_trail_event ATTACH PARTITION spine.audit_trail_default_event_idx;


--
-- Name: audit_trail_default_timestamp_idx; Type: INDEX ATTACH; Schema: spine; Owner: -
--

ALTER INDEX spine.audit_trail_timestamp ATTACH PARTITION spine.audit_trail_default_timestamp_idx;


--
-- Name: audit_trail_default_xid_idx; Type: INDEX ATTACH; Schema: spine; Owner: -
--

ALTER INDEX spine.audit_trail_xid ATTACH PARTITION spine.audit_trail_default_xid_idx;


--
-- Name: processing_state processing_state_changed_by_hand; Type: TRIGGER; Schema: spine; Owner: -
--

CREATE TRIGGER processing_state_changed_by_hand AFTER UPDATE ON spine.processing_state FOR EACH ROW WHEN (((old.status IS DISTINCT FROM new.status) AND (old.lease_token = new.lease_token))) EXECUTE FUNCTION spine.processing_state_changed_by_hand();


--
-- Name: TRIGGER processing_state_changed_by_hand ON processing_state; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TRIGGER processing_state_changed_by_hand ON spine.processing_state IS 'A status changed by hand wins, voids the lease, and is audited.';


--
-- Name: processing_state processing_state_claimable; Type: TRIGGER; Schema: spine; Owner: -
--

CREATE TRIGGER processing_state_claimable AFTER UPDATE ON spine.processing_state FOR EACH ROW WHEN (((new.status = ANY (ARRAY['pending'::text, 'failed'::text])) AND (new.next_attempt_at <= (clock_timestamp() +
        CASE
            WHEN (old.status = new.status) THEN '01:00:00'::interval
            ELSE '00:00:00'::interval
        END)) AND ((old.status IS DISTINCT FROM new.status) OR (old.next_attempt_at IS DISTINCT FROM new.next_attempt_at)))) EXECUTE FUNCTION spine.processing_state_claimable();


--
-- Name: TRIGGER processing_state_claimable ON processing_state; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TRIGGER processing_state_claimable ON spine.processing_state IS 'Wakes the workers when an UPDATE makes a row claimable.';


--
-- Name: processing_state processing_state_find_event; Type: TRIGGER; Schema: spine; Owner: -
--

CREATE TRIGGER processing_state_find_event BEFORE INSERT ON spine.processing_state FOR EACH ROW WHEN ((new.lease_token > 0)) EXECUTE FUNCTION spine.processing_state_find_event();


--
-- Name: TRIGGER processing_state_find_event ON processing_state; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TRIGGER processing_state_find_event ON spine.processing_state IS 'Finds the event of a row inserted by hand.';


--
-- Name: processing_state processing_state_inserted; Type: TRIGGER; Schema: spine; Owner: -
--

CREATE TRIGGER processing_state_inserted AFTER INSERT ON spine.processing_state REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION spine.processing_state_inserted();


--
-- Name: TRIGGER processing_state_inserted ON processing_state; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TRIGGER processing_state_inserted ON spine.processing_state IS 'Wakes the workers (NOTIFY spine_ready).';


--
-- Name: processing_state processing_state_queued; Type: TRIGGER; Schema: spine; Owner: -
--

CREATE TRIGGER processing_state_queued AFTER INSERT ON spine.processing_state FOR EACH ROW WHEN ((new.lease_token > 0)) EXECUTE FUNCTION spine.processing_state_queued();


--
-- Name: TRIGGER processing_state_queued ON processing_state; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TRIGGER processing_state_queued ON spine.processing_state IS 'Audits a row queued by hand.';


--
-- Name: rejected_requests rejected_find_words; Type: TRIGGER; Schema: spine; Owner: -
--

CREATE TRIGGER rejected_find_words BEFORE INSERT ON spine.rejected_requests FOR EACH ROW EXECUTE FUNCTION spine.rejected_find_words();


--
-- Name: TRIGGER rejected_find_words ON rejected_requests; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TRIGGER rejected_find_words ON spine.rejected_requests IS 'Notes what may be an id in a rejected request.';


--
-- Name: sources sources_changed; Type: TRIGGER; Schema: spine; Owner: -
--

CREATE TRIGGER sources_changed AFTER INSERT OR DELETE OR UPDATE OF settings, disabled_at ON spine.sources FOR EACH ROW EXECUTE FUNCTION spine.sources_changed();


--
-- Name: TRIGGER sources_changed ON sources; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TRIGGER sources_changed ON spine.sources IS 'Audits a change and tells all processes of it (NOTIFY spine_sources).';


--
-- Name: sources sources_check; Type: TRIGGER; Schema: spine; Owner: -
--

CREATE TRIGGER sources_check BEFORE INSERT OR UPDATE OF name, settings, disabled_at ON spine.sources FOR EACH ROW EXECUTE FUNCTION spine.sources_check();


--
-- Name: TRIGGER sources_check ON sources; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TRIGGER sources_check ON spine.sources IS 'Rejects wrong settings and secrets by value, and notes who changed a source.';


--
-- Name: sources sources_kept; Type: TRIGGER; Schema: spine; Owner: -
--

CREATE TRIGGER sources_kept BEFORE DELETE ON spine.sources FOR EACH ROW WHEN ((old.name = 'default'::text)) EXECUTE FUNCTION spine.sources_kept();


--
-- Name: TRIGGER sources_kept ON sources; Type: COMMENT; Schema: spine; Owner: -
--

COMMENT ON TRIGGER sources_kept ON spine.sources IS 'The source default stays.';


--
-- Name: source_reports source_reports_process_fkey; Type: FK CONSTRAINT; Schema: spine; Owner: -
--

ALTER TABLE ONLY spine.source_reports
    ADD CONSTRAINT source_reports_process_fkey FOREIGN KEY (process) REFERENCES spine.receivers(process) ON DELETE CASCADE;


--
-- PostgreSQL database dump complete
--

