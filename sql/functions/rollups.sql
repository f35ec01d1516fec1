-- Numbers over time. Everything counted stands in the audit log. Storing and delivering therefore need not count: Spine
-- reads the log a second later, out of their way.

-- audited_now: the transactions whose rows the audit log shows. They are those before next_xid, except those in
-- in_progress. in_progress has all transactions in progress, and the caller's own. A reader that goes by both misses no
-- row and reads none twice, in whichever order transactions commit. All numbers are positions in the log: see
-- trail_shift(). Rows of the future are passed over.
-- It ends with the newest row, although pg_current_snapshot() knows higher numbers. After a crash Postgres gives out
-- those numbers again that had not reached the disk. These are the numbers of transactions that failed, and of those
-- that only notified: nobody waits for their commit. The commit of the newest row was waited for, so no number up to it
-- comes again. That holds for the newest mark, too. So nobody need look for a row that is older than that.
-- Relies on audit_trail_xid and audit_marks_pkey. Reads only.
create or replace function spine.audited_now(out next_xid xid8, out in_progress xid8[])
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set plan_cache_mode = force_custom_plan as $$
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
comment on function spine.audited_now() is
    'Internal. Transactions whose rows the audit log shows. Those before next_xid, except those in in_progress.';

-- unread_since: a time that is not later than any row that audited_now() did not see.
--   _next_xid, _in_progress  as audited_now() returned them
-- Relies on audit_marks_pkey. Reads only.
create or replace function spine.unread_since(_next_xid xid8, _in_progress xid8[]) returns timestamptz
language sql stable
set search_path = spine, pg_temp as $$
    select audit_since(least(_next_xid, (select x from unnest(_in_progress) x order by x limit 1)))
$$;
comment on function spine.unread_since(xid8, xid8[]) is
    'Internal. A time before which there are no rows that spine.audited_now() did not see.';

-- audited_beyond: whether the audit log has rows that audited_now() did not see when it returned these values.
--   _next_xid, _in_progress  as audited_now() returned them
-- Relies on audit_trail_xid. Reads only.
create or replace function spine.audited_beyond(_next_xid xid8, _in_progress xid8[]) returns boolean
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set plan_cache_mode = force_custom_plan as $$
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
comment on function spine.audited_beyond(xid8, xid8[]) is
    'Internal. Whether the audit log has rows that spine.audited_now() did not see.';

-- rolled_up_to: up to when spine.rollups has all that is committed. That is now, where nothing is left to count.
-- Relies on audit_trail_xid. Reads only.
create or replace function spine.rolled_up_to() returns timestamptz
language plpgsql stable
set search_path = spine, pg_temp as $$
declare
    _now timestamptz := clock_timestamp();
begin
    return (
        select case when audited_beyond(s.next_xid, s.in_progress) then s.covered_to else _now end
        from rollup_state s);
end $$;
comment on function spine.rolled_up_to() is 'Up to when spine.rollups has all that was committed.';

-- roll_up: counts in spine.rollups the steps that the audit log has got since the last call. Every process calls it
-- once a second, and one of several at once does the work.
--   _limit   how many rows of the log at most. It counts each transaction as a whole, so the last one, and those that
--            ended late, may go beyond the limit. 50,000 rows take some 0.1 s.
-- Returns how far the rollups lag behind: 0 when they have all that is committed, NULL when another call is at work.
-- Locks: roll_up. Where there is nothing to count, it takes no lock, writes nothing and takes no transaction number.
-- Relies on audit_trail_xid and events_pkey. It asks whether an event was replayed only where delivery took longer than
-- 10 seconds.
-- A crash loses counts and cursor or neither, since both change in one transaction. Each row therefore counts once. The
-- caller may turn synchronous_commit off: Spine counts again what a crash takes back.
-- Where the cursor is of a future that the log has not reached, it begins anew at the present. Older rows stay
-- uncounted, so that none counts twice when the server's numbers reach theirs.
create or replace function spine.roll_up(_limit integer default 50000) returns interval
language plpgsql
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_mergejoin = off
set plan_cache_mode = force_custom_plan as $$
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
end $$;
comment on function spine.roll_up(integer) is
    'Internal. Counts new steps of the audit log in spine.rollups. '
    'Returns how far the rollups lag behind, NULL when another call is at work.';

-- replayed: whether an event was replayed before its delivery, or queued by hand.
--   _event       events.id
--   _created_at  when it was stored
--   _at          when it was delivered
--   _details     the details of the step processing_succeeded
-- The fencing token tells it in most cases. Each attempt, counted or deferred, and each returned lease raises it by 2.
-- Each replay and each change by hand raises it by 1, and the attempts then begin anew. Otherwise the trail tells it.
-- It is read from the day (UTC) on which the event was stored, with a minute for clocks that are set back.
-- trail_start() says why the bound is a whole day with an "or".
-- Relies on audit_trail_event. Reads only.
create or replace function spine.replayed(
    _event bigint,
    _created_at timestamptz,
    _at timestamptz,
    _details json)
returns boolean
language plpgsql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan as $$
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
end $$;
comment on function spine.replayed(bigint, timestamptz, timestamptz, json) is
    'Internal. Whether an event had been replayed before its delivery, or queued by hand.';

-- detail: a member of a step's details as text. NULL where it has none.
--   _details, _name  the details, and the member
-- Also NULL where the details hold \u0000 or half of a character: json takes these, and ->> raises an error.
-- Reads no table.
create or replace function spine.detail(_details json, _name text) returns text
language sql immutable
set search_path = spine, pg_temp as $$
    select case when _details::text !~* E'\\\\u(0000|d[89a-f])' then _details ->> _name end
$$;
comment on function spine.detail(json, text) is
    'Internal. A member of a step''s details as text. NULL where it has none or cannot be text.';

-- rollup_steps: the lengths of time steps in seconds, and how long Spine keeps them. Reads no table.
create or replace function spine.rollup_steps() returns table (step integer, kept interval)
language sql immutable rows 4
set search_path = spine, pg_temp as $$
    values (10, interval '2 hours'), (60, interval '12 hours'), (300, interval '2 days'), (3600, interval '90 days')
$$;
comment on function spine.rollup_steps() is
    'Internal. The lengths of time steps in seconds, and how long Spine keeps them.';

-- latency_percentile: within which time the fastest _fraction of the deliveries in a histogram were done.
--   _latency   a histogram of spine.rollups; elements of several may be added up
--   _fraction  0.95 for the 95th percentile
-- Returns it to within a tenth. NULL where the histogram counts none. Reads no table.
create or replace function spine.latency_percentile(_latency bigint[], _fraction double precision) returns interval
language sql immutable
set search_path = spine, pg_temp as $$
    select make_interval(secs => power(1.2::float8, c.n - 1.5) / 1000)
    from (
        select l.n, sum(l.count) over (order by l.n) as up_to, sum(l.count) over () as total
        from unnest(_latency) with ordinality as l(count, n)
    ) c
    where c.up_to >= greatest(ceil(c.total * _fraction), 1)
    order by c.n
    limit 1
$$;
comment on function spine.latency_percentile(bigint[], double precision) is
    'A percentile of a histogram in spine.rollups, to within a tenth. '
    'Example, the 95th: spine.latency_percentile(latency, 0.95).';

-- sample_depth: counts the unfinished rows of the queue exactly, and keeps the result in depth_state and depth_samples.
-- Every process calls it every second, and one of several at once does the work.
--   _rest  how many times as long as the last count to wait until the next. A million rows take about a second.
-- It writes a sample that equals the one before only every ten seconds.
-- Relies on processing_state_due and processing_state_dead, which it reads as a whole, and on audit_trail_xid.
-- A crash loses one sample, and the next call takes another.
create or replace function spine.sample_depth(_rest double precision default 20) returns void
language plpgsql
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan as $$
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
comment on function spine.sample_depth(double precision) is
    'Internal. Counts the unfinished rows of the queue. Keeps the result in spine.depth_state and spine.depth_samples.';
