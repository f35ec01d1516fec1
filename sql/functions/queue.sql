-- The queue: claim, renew, settle, give back. Every write after the claim goes by primary key and lease token, and by
-- nothing else. A predicate on status would invite the planner onto a partial index full of dead entries. No function
-- waits for a row that somebody else has locked. A transaction left open in psql therefore holds up its own rows alone,
-- and nothing here can deadlock.

-- claim: leases due rows, oldest first, and takes back leases that ran out. Such a lease has spent its attempt: the row
-- backs off or dies. Rows due at a paused destination stay.
--   _destination  whose events
--   _limit        how many at most: the caller's free slots
--   _lease        how long the lease lasts
--   _worker       who claims, as audited
--   _delays       the retry policy: element n is the delay after failed attempt n. There are cardinality + 1 attempts.
--   _low          low watermark: rows due before it are not read. This spares a walk over dead index entries. No row is
--                 lost as long as the caller now and then claims without it.
--   _ahead        how far to look for the next due time; NULL for not at all. With it a last row comes back whose event
--                 is NULL. Its occurred_at is the clock after the claim. Its due_at is when the next row falls due: a
--                 retry, or the end of a lease. It is NULL where that is not within _ahead, or where the claim was
--                 full. To look further would mean walking the dead entries of all leases that were settled before
--                 their end.
-- Returns the rows that a delivery needs. A lease that ran out counts against _limit too. It comes back with lease
-- NULL, so that the caller knows how many rows were read.
-- Locks: it waits for nobody's rows. It waits up to 250 ms for a table, such as destinations while somebody alters it.
-- The transaction that stored the events may claim them too, and this must not hold it up.
-- Relies on processing_state_due, processing_state_pkey and events_pkey.
-- A crash before the commit leaves nothing behind. A crash after it leaves leases that run out.
-- An older claim() has no _ahead. It is dropped at once, since a call by hand that leaves out the defaults would fit
-- both.
drop function if exists spine.claim(text, integer, interval, text, interval[], timestamptz);
create or replace function spine.claim(
    _destination text,
    _limit integer,
    _lease interval,
    _worker text,
    _delays interval[] default array['1 s', '2 s', '4 s', '8 s']::interval[],
    _low timestamptz default '-infinity',
    _ahead interval default null)
returns table (
    event bigint,
    lease bigint,
    attempt integer,
    due_at timestamptz,
    event_id text,
    source text,
    event_type text,
    occurred_at timestamptz,
    payload json,
    raw_body bytea)
language plpgsql
set search_path = spine, pg_temp
set lock_timeout = '250ms'
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
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
comment on function spine.claim(text, integer, interval, text, interval[], timestamptz, interval) is
    'Leases due events to a worker, oldest first, and takes back expired leases. '
    'Returns the rows that a delivery needs. '
    'With _ahead a last row has the clock after the claim (occurred_at) and the next due time (due_at).';

-- oldest_ready: how long the oldest row that should be claimed has been due, over all destinations. New events, retries
-- and leases that ran out count. 0 without one. Rows of paused destinations count too, so that nobody forgets a pause.
-- A row that was made due in the infinite past counts from its last change, as in the view stuck. Relies on
-- processing_state_due, of which it reads the beginning for each destination. Reads only.
create or replace function spine.oldest_ready() returns interval
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan as $$
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
comment on function spine.oldest_ready() is
    'How long the oldest row has been due that should be claimed. 0 when there is none. '
    'Paused destinations and leases that ran out count.';

-- renew: prolongs leases to _lease from now.
--   arrays, one element a lease: _event, _destination, _lease_token
-- Returns for each, by position, whether it is still held. On false the caller must stop at once. NULL means that
-- somebody else has the row locked. The lease is held then, by all that can be seen, but it could not be prolonged.
-- Relies on processing_state_pkey.
-- A crash before the commit leaves the leases as they were.
create or replace function spine.renew(
    _event bigint[],
    _destination text[],
    _lease_token bigint[],
    _lease interval)
returns boolean[]
language plpgsql
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
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
comment on function spine.renew(bigint[], text[], bigint[], interval) is
    'Prolongs leases. Returns for each, by position, whether it is held. NULL where somebody else has the row locked.';

-- locked_by_others: which leases are unchanged and were still passed over, because somebody else had the row locked.
--   _event, _destination, _lease_token  the leases, one element each
--   _done  positions of the leases that were not passed over
-- renew() and settle() call it after their update. It is volatile, so it sees what was committed meanwhile.
-- Relies on processing_state_pkey. Reads only.
create or replace function spine.locked_by_others(
    _event bigint[],
    _destination text[],
    _lease_token bigint[],
    _done bigint[])
returns bigint[]
language plpgsql volatile
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
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
comment on function spine.locked_by_others(bigint[], text[], bigint[], bigint[]) is
    'Internal. Positions of unchanged leases whose rows somebody else has locked.';

-- settle: records the results of delivery attempts.
--   arrays, one element an attempt:
--   _event, _destination, _lease_token   the lease under which it was made
--   _outcome   completed, failed (to be tried again after _delay), dead, or deferred: the destination was not reached
--   _delay     until the next attempt; only for failed and deferred
--   _error     why it was not completed
--   _details   a JSON object for the audit log: status, answer, duration_ms; retry_after_ms where _delay goes by it
-- A deferred attempt is not counted. The row is tried again after _delay, doubled for each deferred attempt in a row
-- before it, 54 to 60 seconds at most: rows deferred together shall not come together. 72 hours after the first
-- deferred attempt in a row it is dead instead, and the attempt counts. Where none was made in the last 12 hours of
-- them, such as after a long pause, the 72 hours begin anew.
-- Returns for each, by position, whether it counts. It counts if its lease was still held. It counts too if the same
-- result was settled under it in the last three days, and the answer to that commit was lost. A result of a lost lease
-- changes nothing and is audited as lease_lost. NULL means that somebody else has the row locked: nothing is decided,
-- and the caller repeats the call. Relies on processing_state_pkey, and on audit_trail_event for results that come late
-- and for the end of 72 hours. A crash before the commit leaves the leases as they were.
create or replace function spine.settle(
    _event bigint[],
    _destination text[],
    _lease_token bigint[],
    _outcome text[],
    _delay interval[],
    _error text[],
    _details text[])
returns boolean[]
language plpgsql
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
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
comment on function spine.settle(bigint[], text[], bigint[], text[], interval[], text[], text[]) is
    'Records the results of delivery attempts, fenced by their lease tokens. '
    'Returns for each, by position, whether it counts. NULL where somebody else has the row locked.';

-- given_up: which results that settle() has just recorded as deferred made dead letters instead, by position.
--   arrays, one element a result: _event, _destination, _lease_token
-- settle() does not return it, since a process of an earlier version reads what it returns.
-- Relies on processing_state_pkey. Reads only.
create or replace function spine.given_up(_event bigint[], _destination text[], _lease_token bigint[]) returns bigint[]
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
begin
    return array(
        select i.ord
        from unnest(_event, _destination, _lease_token) with ordinality as i(event, destination, lease, ord)
            join processing_state p on p.event = i.event and p.destination = i.destination
        where p.status = 'dead' and p.lease_token = i.lease + 1);
end $$;
comment on function spine.given_up(bigint[], text[], bigint[]) is
    'Internal. Positions of results that were to be deferred and made dead letters.';

-- give_back: returns leases of deliveries that never started, and with each its attempt. Returns how many were held.
--   arrays, one element a lease: _event, _destination, _lease_token
-- A row that somebody else has locked keeps its lease until it runs out.
-- Relies on processing_state_pkey.
-- A crash before the commit leaves leases that run out.
create or replace function spine.give_back(_event bigint[], _destination text[], _lease_token bigint[]) returns bigint
language plpgsql
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
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
comment on function spine.give_back(bigint[], text[], bigint[]) is
    'Returns leases of deliveries that never started, without spending an attempt. Returns how many were held.';
