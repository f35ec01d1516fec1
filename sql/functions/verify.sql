-- Whether Spine has kept its promises. verify() compares what is stored with its trail, and changes nothing.

-- first_id_since: the least id that an event stored at a time or later may have, by binary search.
--   _time  the time
-- Ids ascend with time, except in batches that overlap. The result is one above the ids of older events. Spans of time
-- that follow each other therefore leave no id out, whether it has an event or not. Relies on events_pkey. Reads only.
create or replace function spine.first_id_since(_time timestamptz) returns bigint
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan as $$
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
comment on function spine.first_id_since(timestamptz) is
    'Internal. The least events.id that may have been stored at a time or later.';

-- events_gone: events that are not there, although the audit log says that they were stored in a span of time.
--   _since, _until  as for verify().
-- It reads as steps_of() does. Relies on audit_trail_timestamp and events_pkey. Reads only.
create or replace function spine.events_gone(_since timestamptz, _until timestamptz)
returns table (event_id text, source text, stored_at timestamptz)
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
comment on function spine.events_gone(timestamptz, timestamptz) is
    'Internal. Events that the audit log has stored in a span of time, and that are not there.';

-- expired_since: when the events were stored that retention has deleted since a time. NULL where there are none.
-- Their trail is later by the time that it waited for a lock: a minute is added.
--   _since  the time
-- It reads as steps_of() does. Relies on audit_trail_event. Reads only.
create or replace function spine.expired_since(_since timestamptz) returns tstzmultirange
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set plan_cache_mode = force_custom_plan as $$
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
comment on function spine.expired_since(timestamptz) is
    'Internal. When the events were stored that retention has deleted since a time.';

-- verify: checks the events that were stored in a span of time, with all rows that belong to them.
--   _since, _until  when the event was stored: from (inclusive), to (exclusive)
--   _examples       how many violations of each invariant to return
-- Returns a row an invariant. It reads all as of one moment, and costs some 60 µs an event. Give a day in short spans,
-- as the command does (internal/store/verify.go). It checks the trails of events whose first steps the log still has,
-- in the order of its ids. Each step is written under the row's lock. This is therefore the order of a row's steps,
-- whatever the clock does.
-- Locks no row. It delays only the drop of a partition of the audit log, which waits 100 ms and is tried again later.
-- Reads only. Relies on events_pkey, processing_state_pkey, conflicts_pkey, audit_trail_event and
-- audit_trail_timestamp.
create or replace function spine.verify(
    _since timestamptz default now() - interval '1 hour',
    _until timestamptz default 'infinity',
    _examples integer default 5)
returns table (invariant text, meaning text, checked bigint, violations bigint, examples jsonb)
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set plan_cache_mode = force_custom_plan as $$
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
comment on function spine.verify(timestamptz, timestamptz, integer) is
    'Checks the promises for events that were stored in a span of time. '
    'Returns a row for each invariant, with its violations. '
    'Example: select invariant, violations, examples from spine.verify(now() - interval ''1 hour''). Reads only.';
