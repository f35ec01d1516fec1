-- Storing events: one statement, one transaction, any number of events.

-- ingest_events: stores each event once and queues the new ones. It keeps other payloads as evidence, and audits each
-- step. A key may stand in a batch several times. Its first row goes to the table, and the others are compared with
-- what is stored.
--   arrays, one element an event:
--   _event_id, _event_type, _occurred_at   as the sender gave them
--   _payload      exact JSON text; NULL where _raw_body holds the bytes instead
--   _source       who sent it; 'default' where left out
--   _hash         SHA-256 of the canonical payload, or of _raw_body; computed here where left out
--   _raw_body     exact bytes where _payload is not the exact text: it cannot be queried, or was made of the body
--   _unqueryable  why Postgres cannot query the payload
--   _headers      a JSON object for a request without an envelope, whose payload may be any JSON; NULL for an envelope
--   _id_derived   whether Spine made the id from the body
--   _id_unsigned  whether the signature does not cover the id. Then same_body_as names an earlier event with this body.
--                 Two in one batch do not see each other.
-- Returns for each event, by position: accepted (new), deduplicated (known id, same hash), conflict (known id, other
-- hash).
-- Raises 23514 for an event that breaks a rule of the contract. The rules are checked here once for a batch. Postgres
-- would parse a CHECK of the table for each statement and run it for each row. That was a tenth of the cost of storing.
-- Raises 55P03 when somebody else keeps one of the rows locked. The caller then tries that event apart from the others.
-- Locks rows in the order of their key, so that two batches cannot deadlock. The trail gets its time afterwards, once
-- every row is locked. Of two batches with one key, the one that waited for the other is therefore also the later one
-- in the trail.
-- The audit log has every arrival. An event's own trail has the first 1,000, then every 10th, from 10,000 on every
-- 100th, and so on, as spine.trailed() counts them. However often somebody sends an event, reading it stays cheap.
-- Relies on events_event_id_source_key and events_same_body.
-- A crash before the commit leaves nothing behind. When the answer to the commit is lost, the caller may send the same
-- batch again and gets deduplicated.
create or replace function spine.ingest_events(
    _event_id text[],
    _event_type text[],
    _occurred_at timestamptz[],
    _payload text[],
    _source text[] default null,
    _hash bytea[] default null,
    _raw_body bytea[] default null,
    _unqueryable text[] default null,
    _headers text[] default null,
    _id_derived boolean[] default null,
    _id_unsigned boolean[] default null)
returns text[]
language plpgsql
set search_path = spine, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set lock_timeout = '250ms' as $$
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
end $$;
comment on function spine.ingest_events(
    text[], text[], timestamptz[], text[], text[], bytea[], bytea[], text[], text[], boolean[], boolean[]) is
    'Stores each event exactly once and queues it. Keeps other payloads as evidence and audits every step. '
    'Returns accepted, deduplicated or conflict by position.';

-- reject_event: raises 23514, as a check of the table would.
--   _rule  which rule the event breaks
-- It returns boolean so that it can stand in a condition. Reads no table.
create or replace function spine.reject_event(_rule text) returns boolean
language plpgsql
set search_path = spine, pg_temp as $$
begin
    raise exception 'the event is rejected: %', _rule
        using errcode = 'check_violation', schema = 'spine', table = 'events';
end $$;
comment on function spine.reject_event(text) is
    'Internal. Raises 23514 for an event that breaks a rule. spine.ingest_events() calls it.';

-- ingest: stores one event by hand, as ingest_events() does.
--   _event_id, _event_type, _payload  as a sender gives them
--   _occurred_at, _source             now and 'default' where left out
-- Relies on what ingest_events() relies on.
-- A crash before the commit leaves nothing behind.
create or replace function spine.ingest(
    _event_id text,
    _event_type text,
    _payload text,
    _occurred_at timestamptz default now(),
    _source text default 'default')
returns text
language sql
set search_path = spine, pg_temp as $$
    select (ingest_events(
        array[_event_id],
        array[_event_type],
        array[_occurred_at],
        array[_payload],
        array[_source]))[1]
$$;
comment on function spine.ingest(text, text, text, timestamptz, text) is
    'Stores one event by hand. Returns accepted, deduplicated or conflict. '
    'Example: select spine.ingest(''test-001'', ''user.created'', ''{"user_id": 123}''). '
    'More parameters go by name: … , _occurred_at => ''2024-01-30T12:00:00Z'', _source => ''default'').';

-- keep_evidence: keeps another payload, once for each distinct hash and at most ten an event.
--   _event  events.id of the event that stays
--   _hash, _event_id, _source, _event_type, _occurred_at, _payload, _unqueryable, _raw_body  as they came with it
-- Returns kept, known (this payload was kept before) or full.
-- The caller holds the lock on the event's row. This function is volatile, so it sees what others committed before the
-- caller got that lock. Ten is therefore ten under concurrency.
-- Relies on conflicts_pkey.
-- A crash before the commit leaves nothing behind.
create or replace function spine.keep_evidence(
    _event bigint,
    _hash bytea,
    _event_id text,
    _source text,
    _event_type text,
    _occurred_at timestamptz,
    _payload text,
    _unqueryable text,
    _raw_body bytea)
returns text
language plpgsql volatile
set search_path = spine, pg_temp as $$
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
comment on function spine.keep_evidence(bigint, bytea, text, text, text, timestamptz, text, text, bytea) is
    'Internal. Keeps another payload, once for each distinct hash, at most ten an event. '
    'spine.ingest_events() calls it. Returns kept, known or full.';
