-- Views for the operator. All of them stay cheap on large tables. They read partial indexes of unfinished rows, or
-- rollups, or the part of the audit log that an index of spine.audit_trail finds.

-- The audit log as people read it. The rows are in the partitioned table spine.audit_trail, in a compact form. The view
-- spells out what that form leaves implicit: the source default, the outcome of an action, and empty details.
create or replace view spine.audit_log as
select
    a.timestamp,
    a.id,
    a.xid,
    a.event,
    a.event_id,
    coalesce(a.source, case when a.event_id is not null then 'default' end) as source,
    a.action::text as action,
    case
        when a.action in ('processing_attempt_started', 'retry_scheduled') then 'pending'
        when a.action in (
            'conflict_detected',
            'processing_attempt_failed',
            'processing_failed_permanently',
            'request_rejected') then 'failure'
        else 'success'
    end as success,
    coalesce(a.details::text::jsonb, '{}') as details
from spine.audit_trail a;
comment on view spine.audit_log is
    'Every step of every event, written in the transaction of the step itself. '
    'A view over the table spine.audit_trail, which has the rows in a compact form, one partition a day (UTC).';
comment on column spine.audit_log.timestamp is
    'When the step was made. The order of an event''s trail is timestamp, id.';
comment on column spine.audit_log.id is 'Ascending number. Orders the steps of one moment.';
comment on column spine.audit_log.xid is
    'Position of the transaction that wrote the row. Followers of the log go by it: '
    'rows become visible in the order of commits, not of ids.';
comment on column spine.audit_log.event is
    'events.id. NULL where the step concerns no event. '
    'After the thousandth arrival of an event its trail has a sample. The other arrivals have the negative number.';
comment on column spine.audit_log.event_id is
    'The sender''s id. NULL where the step concerns no event, such as a pause.';
comment on column spine.audit_log.source is 'Who sent it.';
comment on column spine.audit_log.action is 'What was done: a label of the type spine.audit_action.';
comment on column spine.audit_log.success is
    'pending, failure or success. pending: processing_attempt_started and retry_scheduled. '
    'failure: conflict_detected, *_failed* and rejections. success: all others.';
comment on column spine.audit_log.details is
    'JSON object with what applies. Members: attempt, lease, worker, status, answer, error, duration_ms, delay_ms and '
    'others. The destination of an attempt stands there only where it is not default. '
    'The worker of an attempt stands in the step that started it.';

create or replace view spine.depth as
select
    p.destination,
    p.status,
    count(*) as count,
    min(p.next_attempt_at) as next_attempt_at,
    min(p.created_at) as oldest_created_at,
    d.paused_at
from spine.processing_state p left join spine.destinations d on d.name = p.destination
where p.status in ('pending', 'failed', 'processing')
group by p.destination, p.status, d.paused_at
union all
select p.destination, p.status, count(*), null, min(p.created_at), null
from spine.processing_state p
where p.status = 'dead'
group by p.destination, p.status;
comment on view spine.depth is
    'How long the queue is, by destination and status. It does not count completed rows.';
comment on column spine.depth.destination is 'Where it goes.';
comment on column spine.depth.status is 'pending, failed (to be tried again), processing or dead.';
comment on column spine.depth.count is 'How many rows.';
comment on column spine.depth.next_attempt_at is
    'When the first of them falls due. For processing: when the first lease ends.';
comment on column spine.depth.oldest_created_at is 'When the oldest of them was queued.';
comment on column spine.depth.paused_at is 'Since when claims are paused. NULL while they are not.';

create or replace view spine.dead_letters as
select
    p.event_id,
    p.source,
    e.event_type,
    p.destination,
    p.updated_at as died_at,
    p.attempt_count,
    p.error_message,
    p.created_at,
    p.event
from spine.processing_state p join spine.events e on e.id = p.event
where p.status = 'dead'
order by p.updated_at desc;
comment on view spine.dead_letters is
    'Dead rows, last died first. Spine does not try them again by itself. '
    'spine.replay() and spine.replay_dead() deliver them again.';
comment on column spine.dead_letters.event_id is 'The sender''s id.';
comment on column spine.dead_letters.source is 'Who sent it.';
comment on column spine.dead_letters.event_type is 'What happened, in the sender''s words.';
comment on column spine.dead_letters.destination is 'Where it was to go.';
comment on column spine.dead_letters.died_at is 'When it became dead.';
comment on column spine.dead_letters.attempt_count is 'Attempts that it had.';
comment on column spine.dead_letters.error_message is 'Why the last one failed.';
comment on column spine.dead_letters.created_at is 'When it was queued.';
comment on column spine.dead_letters.event is 'events.id.';

-- The reason is asked for after the order, so only for the rows that a reader fetches: it takes a millisecond a row. No
-- column is volatile, or a reader's own order would come after all reasons.
create or replace view spine.stuck as
select
    s.event_id,
    s.source,
    s.destination,
    s.status,
    s.attempt_count,
    s.due_at,
    statement_timestamp() - case
        when isfinite(s.due_at) then s.due_at
        when isfinite(s.updated_at) then s.updated_at
    end as overdue,
    case
        when s.is_ahead then
            'planned at ' || spine.exact_time(s.updated_at)
            || ', which is later than now: the database''s clock was set back (select spine.mend_clock())'
        else coalesce((
            select string_agg(w.says, '; ')
            from spine.why_waiting(
                s.status,
                s.due_at,
                s.worker,
                s.holder,
                s.paused_at,
                s.paused_by,
                s.paused_reason) w
        ), 'due and not claimed')
    end as reason,
    s.event
from (
    select
        p.event_id,
        p.source,
        p.destination,
        p.status,
        p.attempt_count,
        p.next_attempt_at as due_at,
        p.updated_at,
        p.worker,
        p.xmax as holder,
        d.paused_at,
        d.paused_by,
        d.paused_reason,
        false as is_ahead,
        p.event
    from spine.processing_state p left join spine.destinations d on d.name = p.destination
    where p.status in ('pending', 'failed', 'processing')
        and p.next_attempt_at < clock_timestamp() - interval '10 seconds'
    union all
    select
        p.event_id,
        p.source,
        p.destination,
        p.status,
        p.attempt_count,
        p.next_attempt_at,
        p.updated_at,
        null,
        null,
        null,
        null,
        null,
        true,
        p.event
    from spine.processing_state p
    where (select spine.clock_ahead()) is not null
        and p.status in ('pending', 'failed', 'processing')
        and p.next_attempt_at > now()
        and isfinite(p.next_attempt_at)
        and p.updated_at > clock_timestamp() + interval '10 seconds'
    order by due_at
) s;
comment on view spine.stuck is
    'Rows that have been due for 10 seconds or longer, and every cause for which no worker claims them. '
    'After the clock was set back it also lists rows that were planned by the old clock. '
    'Normally empty.';
comment on column spine.stuck.event_id is 'The sender''s id.';
comment on column spine.stuck.source is 'Who sent it.';
comment on column spine.stuck.destination is 'Where it goes.';
comment on column spine.stuck.status is 'pending, failed (to be tried again) or processing (its lease ran out).';
comment on column spine.stuck.attempt_count is 'Attempts so far.';
comment on column spine.stuck.due_at is 'When it fell due. For processing: when the lease ran out.';
comment on column spine.stuck.overdue is
    'How long it has been due. Negative for what waits because the clock was set back.';
comment on column spine.stuck.reason is 'Every cause, in the words of spine.explain().';
comment on column spine.stuck.event is 'events.id.';

create or replace view spine.rates as
select
    r.at as minute,
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
    spine.latency_percentile(r.latency, 0.5) as latency_p50,
    spine.latency_percentile(r.latency, 0.95) as latency_p95,
    spine.latency_percentile(r.latency, 0.99) as latency_p99
from spine.rollups r
where r.step = 60 and r.at > now() - interval '1 hour'
order by r.at desc, r.source;
comment on view spine.rates is
    'Counts for each minute of the last hour, by source, newest first. '
    'A minute without events has no row. Older counts are in spine.rollups.';
comment on column spine.rates.minute is 'Beginning of the minute. The first one is still under way.';
comment on column spine.rates.source is 'Who sent it. Empty for rejected requests that belong to no source.';
comment on column spine.rates.received is 'Events that arrived: accepted, deduplicated and conflicts.';
comment on column spine.rates.accepted is 'New events.';
comment on column spine.rates.deduplicated is 'Events of a known id with the same payload.';
comment on column spine.rates.conflicts is 'Events of a known id with another payload.';
comment on column spine.rates.rejected is 'Rejected requests.';
comment on column spine.rates.attempts is 'Delivery attempts that started.';
comment on column spine.rates.attempts_failed is 'Attempts that failed, expired leases and deferred ones included.';
comment on column spine.rates.delivered is 'Events that a destination accepted.';
comment on column spine.rates.died is 'Events that became dead.';
comment on column spine.rates.latency_p50 is
    'Median time from stored to delivered, retries included, to within a tenth. '
    'Replayed events are left out, unless the whole took less than ten seconds.';
comment on column spine.rates.latency_p95 is 'The same for 95 of 100.';
comment on column spine.rates.latency_p99 is 'The same for 99 of 100.';
