-- Attempts that do not reach the destination are deferred, and not counted.

-- +goose Up

set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '2s';

alter type spine.audit_action add value 'delivery_deferred';
/*
    'delivery_deferred' -- processing -> failed: the destination was not reached, the attempt is not counted
*/

alter table spine.processing_state
    add column deferrals integer,
    add column deferred_since timestamptz;
comment on column spine.processing_state.deferrals is
    'Attempts in a row that did not reach the destination. They are not in attempt_count. NULL for none.';
comment on column spine.processing_state.deferred_since is
    'When the first of these attempts ended. NULL for none. Spine tries for 72 hours from then on.';
comment on column spine.processing_state.status is
    'pending, processing, completed, failed (to be tried again) or dead.
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
comment on column spine.processing_state.attempt_count is
    'Attempts since it was stored or replayed. The claim counts them. '
    'An attempt that did not reach the destination is taken off again.';
comment on column spine.rollups.attempts_failed is
    'Attempts that failed, expired leases and deferred ones included.';
comment on column spine.audit_trail.details is
    'JSON object with what applies, NULL where empty. Members: attempt, lease, worker, status, answer, error, '
    'duration_ms, retry_after_ms, delay_ms, reason (of the delay) and others. '
    'The destination of an attempt stands there only where it is not default. '
    'The worker of an attempt stands in the step that started it.';
