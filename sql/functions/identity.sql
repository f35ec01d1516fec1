-- Finding an event by the id that its sender gave it, or by the time at which it was stored.

-- id_of: events.id of an event.
--   _event_id  the sender's id
--   _source    who sent it; may be left out where one source alone has the id
-- Raises P0002 for an id that is not stored, with the source's last arrival, near ids, and rejected requests that may
-- have been it: explain_missing() finds them. Raises 21000 for an id that several sources have. Relies on
-- events_event_id_source_key. Reads only.
create or replace function spine.id_of(_event_id text, _source text default null) returns bigint
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off as $$
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
comment on function spine.id_of(text, text) is
    'events.id of an event. An error says so when the id was never stored, or stands in several sources. '
    'Example: select * from spine.processing_state where event = spine.id_of(''test-001'').';

-- last_arrival: when a source last sent a new event. NULL if it never did.
--   _source  the source
-- While a transaction is open anywhere in the cluster, an event that was committed 10,000 events late may be missed.
-- Relies on events_pkey, read from its newest end down to what spine.note_arrivals() has noted. Reads only.
create or replace function spine.last_arrival(_source text) returns timestamptz
language sql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_sort = off as $$
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
comment on function spine.last_arrival(text) is 'When a source last sent a new event. NULL if it never did.';

-- note_arrivals: notes when each source last sent a new event. Readers then need not search the events of all others.
-- It works in turns of 10,000 to 200,000 events. It counts an event only once no transaction can still commit one with
-- a lower number. Any role may hold that up, from any database of the cluster. Events are then noted as they are seen,
-- and counted later. Every process calls it every few seconds, and one of several at once does the work. None does
-- while spine.roll_up() runs, which changes rows of the same table. Relies on events_pkey. A crash before the commit
-- leaves the turn to the next call.
create or replace function spine.note_arrivals() returns void
language plpgsql
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off as $$
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
comment on function spine.note_arrivals() is
    'Internal. Notes when each source last sent a new event. It works in turns of 10,000 to 200,000 events.';

-- arrivals: one sentence on when a source last sent something new.
--   _source  the source; all of them where left out
-- Reads only.
create or replace function spine.arrivals(_source text default null) returns text
language sql stable
set search_path = spine, pg_temp as $$
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
comment on function spine.arrivals(text) is
    'Internal. When a source last sent a new event, in words. All sources where none is named.';

-- event: one event and where it stands, in one row for each destination.
--   _event_id, _source  as for id_of()
-- psql prints above the rows what spine.explain() says of the event. Relies on events_pkey, processing_state_pkey and
-- conflicts_pkey. Reads only.
create or replace function spine.event(_event_id text, _source text default null)
returns table (
    event_id text,
    source text,
    event_type text,
    occurred_at timestamptz,
    created_at timestamptz,
    payload json,
    unqueryable text,
    seen_count bigint,
    conflicts bigint,
    destination text,
    status text,
    attempt_count integer,
    next_attempt_at timestamptz,
    last_attempt_at timestamptz,
    completed_at timestamptz,
    error_message text,
    id bigint)
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off as $$
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
comment on function spine.event(text, text) is
    'One event and where it stands. Notices say why, as spine.explain() does. '
    'Example: select * from spine.event(''test-001'').';

-- trail_start: a time before an event's trail begins: three days before its day (UTC), since clocks are set back. With
-- it a query can leave out older partitions. Without retention there are hundreds, and a plan over all takes 50 ms.
--   _event  events.id
-- Returns '-infinity' where no step stored the event after its created_at, less a minute for transactions. Then
-- somebody chose created_at by hand, or retention has dropped the step. A step that somebody adds by hand with an
-- earlier time is in the log, but not in the trail. The bound is for partitions and not for audit_trail_timestamp, by
-- which a planner might read whole days for one event. Whole days exclude no row of a partition. "or infinity", which
-- is always later, leaves that index to bitmap scans alone, and these are off. Relies on events_pkey and
-- audit_trail_event. Reads only.
create or replace function spine.trail_start(_event bigint) returns timestamptz
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set plan_cache_mode = force_custom_plan as $$
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
comment on function spine.trail_start(bigint) is
    'Internal. A time before all steps of an event. -infinity where that is not known.';

-- delivered_until: a time after the steps of an event's deliveries: a day (UTC) 100 days after the latest time that its
-- row of the queue has. So an event of years ago needs no look at all partitions since. A worker may end a lost attempt
-- late, and clocks are set back. A step that is later still is in the log, but not in the trail.
--   _event  events.id
-- Returns 'infinity' where that time has not come, or the queue has no row of the event. Relies on
-- processing_state_pkey. Reads only.
create or replace function spine.delivered_until(_event bigint) returns timestamptz
language sql stable
set search_path = spine, pg_temp as $$
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
comment on function spine.delivered_until(bigint) is 'Internal. A time after the steps of an event''s deliveries.';

-- trail_until: a time after an event's trail ends, as delivered_until() says.
--   _event  events.id
-- Returns 'infinity' where it came again, since the time of that is not known. Relies on events_pkey and
-- processing_state_pkey. Reads only.
create or replace function spine.trail_until(_event bigint) returns timestamptz
language sql stable
set search_path = spine, pg_temp as $$
    select case
        when (select e.seen_count from events e where e.id = _event) = 1 then delivered_until(_event)
        else 'infinity'
    end
$$;
comment on function spine.trail_until(bigint) is
    'Internal. A time after an event''s trail. infinity where that is not known.';

-- mend_sequences: lets the sequences of numbers begin after the rows that are there. After a logical switch-over they
-- may lag behind, and give out numbers again. Runs with the rights of its owner, since setval() needs more than INSERT.
-- It only ever raises a sequence. Whoever may write to the audit log may call it.
-- Relies on events_pkey, rejected_requests_pkey, audit_trail_timestamp and audit_marks_pkey. A crash leaves the
-- sequences as they are, or raised.
create or replace function spine.mend_sequences() returns void
language plpgsql
security definer
set search_path = spine, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_custom_plan as $$
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
comment on function spine.mend_sequences() is
    'Internal. Lets the sequences of numbers begin after the rows that are there.';

-- trailed: how many of an event's arrivals its trail has.
--   _seen  events.seen_count, 1 or more
-- Each arrival is in the audit log. spine.ingest_events() puts the first 1,000 into the event's trail. After them it
-- puts in every 10th, from the 10,000th on every 100th, and so on. Reads no table.
create or replace function spine.trailed(_seen bigint) returns bigint
language sql immutable
set search_path = spine, pg_temp as $$
    select case
        when _seen <= 1000 then _seen
        else 900 * (length(_seen::text) - 3) + _seen / (10 ^ (length(_seen::text) - 3))::bigint
    end
$$;
comment on function spine.trailed(bigint) is
    'Internal. How many of an event''s arrivals its trail has.';

-- trace: the trail of one event, in the order in which it happened.
--   _event_id, _source  as for id_of()
-- psql prints above the steps what spine.explain() says of the event. Relies on audit_trail_event. Reads only.
create or replace function spine.trace(_event_id text, _source text default null)
returns table ("timestamp" timestamptz, action text, success text, details jsonb, id bigint)
language plpgsql stable
set search_path = spine, pg_temp
set jit = off as $$
begin
    return query
    select t.timestamp, t.action, t.success, t.details, t.id
    from trail_of(id_of(_event_id, _source)) t
    order by t.timestamp, t.id;
    perform tell(_event_id, _source);
end $$;
comment on function spine.trace(text, text) is
    'What happened to one event, step by step. Notices say where it stands and why, as spine.explain() does. '
    'Example: select * from spine.trace(''test-001'').';

-- event_at: the first events.id that was stored at a time or later, by binary search. NULL for NULL, and without
-- events.
--   _at  the time
-- It assumes that id and created_at rise together. Transactions that overlap break that, and so do rows that somebody
-- inserts with a time of their own. Each probe therefore goes by the majority of five neighbours, so that a single odd
-- row does not mislead it. Ten million events take some 25 probes. Relies on events_pkey. Reads only.
create or replace function spine.event_at(_at timestamptz) returns bigint
language plpgsql stable strict
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off as $$
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
comment on function spine.event_at(timestamptz) is
    'Internal. The first events.id that was stored at a time or later. '
    'It is off by as much as id and created_at do not rise together.';

-- events_within: the ids between which all events of a span of time lie.
--   _since, _until  the span: from (inclusive), to (exclusive); NULL for no bound
-- first or last is NULL where there is no bound. Other events lie between them too: the caller adds a condition on
-- created_at. It misses nothing while transactions take at most a minute between their created_at and their ids. Events
-- of a longer transaction, or with a created_at set by hand, may lie outside.
-- Relies on events_pkey. Reads only.
create or replace function spine.events_within(
    _since timestamptz,
    _until timestamptz,
    out first bigint,
    out last bigint)
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off as $$
declare
    _margin constant interval := '1 minute';
    _beyond bigint := event_at(_until + _margin);
begin
    first := event_at(_since - _margin);
    -- The neighbours of the last probe may still be older.
    last := (select e.id from events e where e.id >= _beyond order by e.id offset 4 limit 1);
end $$;
comment on function spine.events_within(timestamptz, timestamptz) is
    'Internal. The ids between which all events of a span of time lie. '
    'It has a minute''s margin for transactions that overlapped.';
