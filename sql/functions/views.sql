-- Views for the operator. All of them stay cheap on large tables: they read partial indexes that hold only what is not done, or, the
-- audit log, what an index of spine.audit_trail finds, or rollups.

create or replace view spine.audit_log as
select a.timestamp, a.id, a.xid, a.event, a.event_id, coalesce(a.source, case when a.event_id is not null then 'default' end) as source,
    a.action::text as action,
    case
        when a.action in ('processing_attempt_started', 'retry_scheduled') then 'pending'
        when a.action in ('conflict_detected', 'processing_attempt_failed', 'processing_failed_permanently', 'request_rejected') then 'failure'
        else 'success'
    end as success,
    coalesce(a.details::text::jsonb, '{}') as details
from spine.audit_trail a;
comment on view spine.audit_log is 'Every step of every event, written in the transaction of the step itself. A view of spine.audit_trail, which is partitioned by day (UTC).';
comment on column spine.audit_log.timestamp is 'When the step was made. The order of an event''s trail is timestamp, id.';
comment on column spine.audit_log.id is 'Ascending number; orders steps of one moment.';
comment on column spine.audit_log.xid is 'Transaction that wrote the row. Who follows the log goes by it, since rows become visible in the order of commits and not of ids.';
comment on column spine.audit_log.event is 'events.id, NULL where no event is concerned.';
comment on column spine.audit_log.event_id is 'The sender''s id, NULL where no event is concerned (rejected requests, pauses).';
comment on column spine.audit_log.source is 'Who sent it.';
comment on column spine.audit_log.action is
    'event_received, event_inserted, event_deduped, conflict_detected, event_queued (by hand), processing_attempt_started, processing_attempt_failed, '
    'retry_scheduled, processing_succeeded, processing_failed_permanently, lease_expired, lease_returned, lease_lost, status_changed (by hand), '
    'event_replayed, request_rejected, claims_paused, claims_resumed, events_expired, audit_expired, source_added, source_changed, source_disabled, '
    'source_enabled, source_removed, request_replayed, conflict_accepted.';
comment on column spine.audit_log.success is
    'pending for processing_attempt_started and retry_scheduled; failure for conflict_detected, *_failed* and rejections; otherwise success.';
comment on column spine.audit_log.details is
    'A JSON object: attempt, lease, worker, status, answer, error, duration_ms, delay_ms and others, as they apply; the destination of an attempt only where it is not default. The worker of an attempt stands where it started.';

create or replace view spine.depth as
select p.destination, p.status, count(*) as count,
    min(p.next_attempt_at) as next_attempt_at, min(p.created_at) as oldest_created_at, d.paused_at
from spine.processing_state p left join spine.destinations d on d.name = p.destination
where p.status in ('pending', 'failed', 'processing')
group by p.destination, p.status, d.paused_at
union all
select p.destination, p.status, count(*), null, min(p.created_at), null
from spine.processing_state p
where p.status = 'dead'
group by p.destination, p.status;
comment on view spine.depth is 'How much of the queue is not done, by destination and status. Completed rows are not counted.';
comment on column spine.depth.destination is 'Where it goes.';
comment on column spine.depth.status is 'pending, failed (to be tried again), processing or dead.';
comment on column spine.depth.count is 'How many rows.';
comment on column spine.depth.next_attempt_at is 'The earliest time at which one of them falls due; for processing, the first lease to end.';
comment on column spine.depth.oldest_created_at is 'When the oldest of them was queued.';
comment on column spine.depth.paused_at is 'Since when claims are paused; NULL while they are not.';

create or replace view spine.dead_letters as
select p.event_id, p.source, e.event_type, p.destination, p.updated_at as died_at, p.attempt_count, p.error_message, p.created_at, p.event
from spine.processing_state p join spine.events e on e.id = p.event
where p.status = 'dead'
order by p.updated_at desc;
comment on view spine.dead_letters is 'What will not be tried again by itself, last died first. spine.replay() and spine.replay_dead() deliver it again.';
comment on column spine.dead_letters.event_id is 'The sender''s id.';
comment on column spine.dead_letters.source is 'Who sent it.';
comment on column spine.dead_letters.event_type is 'What happened, in the sender''s words.';
comment on column spine.dead_letters.destination is 'Where it was to go.';
comment on column spine.dead_letters.died_at is 'When it was given up.';
comment on column spine.dead_letters.attempt_count is 'Attempts that were spent on it.';
comment on column spine.dead_letters.error_message is 'Why the last one failed.';
comment on column spine.dead_letters.created_at is 'When it was queued.';
comment on column spine.dead_letters.event is 'events.id.';

create or replace view spine.stuck as
select p.event_id, p.source, p.destination, p.status, p.attempt_count, p.next_attempt_at as due_at, clock_timestamp() - greatest(p.next_attempt_at, p.updated_at) as overdue,
    case
        when d.paused_at is not null then 'claims are paused since ' || d.paused_at::text || ': select spine.resume()'
        when p.status = 'processing' then 'the lease of ' || coalesce(p.worker, 'a worker') || ' ran out and no worker took it back: is a worker running?'
        else 'due and not claimed: is a worker running, and has it free slots?'
    end as reason,
    p.event
from spine.processing_state p left join spine.destinations d on d.name = p.destination
where p.status in ('pending', 'failed', 'processing') and p.next_attempt_at < clock_timestamp() - interval '10 seconds'
order by p.next_attempt_at;
comment on view spine.stuck is 'What should have been claimed ten seconds ago or longer, and why it may not have been. Normally empty.';
comment on column spine.stuck.event_id is 'The sender''s id.';
comment on column spine.stuck.source is 'Who sent it.';
comment on column spine.stuck.destination is 'Where it goes.';
comment on column spine.stuck.status is 'pending, failed (to be tried again) or processing (its lease ran out).';
comment on column spine.stuck.attempt_count is 'Attempts so far.';
comment on column spine.stuck.due_at is 'When it fell due; for processing, when the lease ran out.';
comment on column spine.stuck.overdue is 'For how long it has been due.';
comment on column spine.stuck.reason is 'Where to look.';
comment on column spine.stuck.event is 'events.id.';

create or replace view spine.rates as
select r.at as minute, r.source, r.received, r.accepted, r.deduplicated, r.conflicts, r.rejected, r.attempts, r.attempts_failed, r.delivered, r.died,
    spine.latency_percentile(r.latency, 0.5) as latency_p50, spine.latency_percentile(r.latency, 0.95) as latency_p95,
    spine.latency_percentile(r.latency, 0.99) as latency_p99
from spine.rollups r
where r.step = 60 and r.at > now() - interval '1 hour'
order by r.at desc, r.source;
comment on view spine.rates is 'What came and went in each minute of the last hour, newest first. Minutes in which nothing happened have no row. Older numbers are in spine.rollups.';
comment on column spine.rates.minute is 'Beginning of the minute. The first one is still under way.';
comment on column spine.rates.source is 'Who sent it. Empty for requests that were rejected and are of no source.';
comment on column spine.rates.received is 'Requests that were stored: accepted, deduplicated and conflicts.';
comment on column spine.rates.accepted is 'New events.';
comment on column spine.rates.deduplicated is 'Events of a known id with the same payload.';
comment on column spine.rates.conflicts is 'Events of a known id with another payload.';
comment on column spine.rates.rejected is 'Requests that were refused.';
comment on column spine.rates.attempts is 'Attempts to deliver that started.';
comment on column spine.rates.attempts_failed is 'Attempts that came to nothing, those whose lease ran out among them.';
comment on column spine.rates.delivered is 'Events that a destination took.';
comment on column spine.rates.died is 'Events that were given up.';
comment on column spine.rates.latency_p50 is 'From stored to delivered, retries included, to within a tenth: half of them were faster. Events that were replayed are left out, unless all of that took less than ten seconds.';
comment on column spine.rates.latency_p95 is 'The same for 95 of 100.';
comment on column spine.rates.latency_p99 is 'The same for 99 of 100.';
