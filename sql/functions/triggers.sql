-- The wake-up, and what happens when somebody changes the queue by hand.
-- Row triggers carry a WHEN that is false on the hot path, so that they cost nothing there.

-- announce: sends NOTIFY spine_ready, a hint that work has arrived.
--   _count      rows that became claimable
--   _event_ids  up to five of their event ids
--   _due        since when the oldest of them has been due. Workers do not always read rows that fell due long ago, and
--               _due tells them to.
-- Postgres sends it with the commit. Reads no table.
-- A crash before the commit sends nothing, and the sweep finds the rows.
create or replace function spine.announce(_count bigint, _event_ids text[], _due timestamptz) returns void
language plpgsql
set search_path = spine, pg_temp as $$
begin
    -- NOTIFY takes less than 8000 bytes: five ids of 255 characters come to 5100 at most.
    perform hint('spine_ready', json_build_object('count', _count, 'event_ids', _event_ids, 'due', _due)::text);
end $$;
comment on function spine.announce(bigint, text[], timestamptz) is
    'Internal. Sends NOTIFY spine_ready: a count, up to five event ids, the oldest due time.';

-- processing_state_inserted: one notification for each INSERT statement that queued something claimable.
-- A row counts if it falls due within the hour: it may be due by the time the INSERT is committed. Reads no table.
create or replace function spine.processing_state_inserted() returns trigger
language plpgsql
set search_path = spine, pg_temp as $$
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
comment on function spine.processing_state_inserted() is
    'Internal. Trigger: wakes the workers after every INSERT that queued something claimable.';

create or replace trigger processing_state_inserted
    after insert on spine.processing_state
    referencing new table as inserted
    for each statement
    execute function spine.processing_state_inserted();
comment on trigger processing_state_inserted on spine.processing_state is 'Wakes the workers (NOTIFY spine_ready).';

-- processing_state_claimable: wakes the workers when an UPDATE makes a row claimable, by hand or by a returned lease. A
-- transaction announces its first five rows one by one. More would say nothing new, unless they have been due for
-- longer. Reads no table.
create or replace function spine.processing_state_claimable() returns trigger
language plpgsql
set search_path = spine, pg_temp as $$
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
comment on function spine.processing_state_claimable() is
    'Internal. Trigger: wakes the workers when an UPDATE makes a row claimable.';

create or replace trigger processing_state_claimable
    after update on spine.processing_state
    for each row when (
        new.status in ('pending', 'failed')
        -- A time that is set by hand may have passed when it commits, so up to an hour ahead is announced. A change of
        -- status is announced only if the row is due now: for later ones the worker that settles sets itself a timer.
        and new.next_attempt_at
            <= clock_timestamp() + case when old.status = new.status then interval '1 hour' else '0' end
        and (old.status is distinct from new.status or old.next_attempt_at is distinct from new.next_attempt_at))
    execute function spine.processing_state_claimable();
comment on trigger processing_state_claimable on spine.processing_state is
    'Wakes the workers when an UPDATE makes a row claimable.';

-- processing_state_find_event: gives a row inserted by hand its key, by event_id and source.
-- Rows of spine.ingest_events() start with lease token 0, and rows by hand with a higher default. That tells them
-- apart. Raises 23503 where there is no such event.
-- Locks the event until the commit, so that it does not expire meanwhile.
-- Relies on events_event_id_source_key.
-- A crash before the commit leaves nothing behind.
create or replace function spine.processing_state_find_event() returns trigger
language plpgsql
set search_path = spine, pg_temp as $$
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
comment on function spine.processing_state_find_event() is
    'Internal. Trigger: finds the event of a row inserted by hand. 23503 where there is none.';

create or replace trigger processing_state_find_event
    before insert on spine.processing_state
    for each row when (new.lease_token > 0)
    execute function spine.processing_state_find_event();
comment on trigger processing_state_find_event on spine.processing_state is
    'Finds the event of a row inserted by hand.';

-- processing_state_queued: audits a row queued by hand. A crash before the commit leaves nothing behind.
create or replace function spine.processing_state_queued() returns trigger
language plpgsql
set search_path = spine, pg_temp as $$
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
comment on function spine.processing_state_queued() is 'Internal. Trigger: audits a row queued by hand.';

create or replace trigger processing_state_queued
    after insert on spine.processing_state
    for each row when (new.lease_token > 0)
    execute function spine.processing_state_queued();
comment on trigger processing_state_queued on spine.processing_state is 'Audits a row queued by hand.';

-- processing_state_changed_by_hand: a status that somebody changes by hand wins, and is audited.
-- The functions of the queue raise lease_token with every change of status, and a hand does not. That tells them apart.
-- The audit log says who it was, and why where the transaction does: set_config('spine.reason', …, true).
-- The trigger raises the token, so that a worker that still holds the row finds its lease void. A row set to pending or
-- failed with its next_attempt_at left alone is due at once.
-- Relies on processing_state_pkey.
-- A crash before the commit leaves the row as it was.
create or replace function spine.processing_state_changed_by_hand() returns trigger
language plpgsql
set search_path = spine, pg_temp as $$
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
comment on function spine.processing_state_changed_by_hand() is
    'Internal. Trigger: a status changed by hand wins, voids the lease, and is audited.';

create or replace trigger processing_state_changed_by_hand
    after update on spine.processing_state
    for each row when (old.status is distinct from new.status and old.lease_token = new.lease_token)
    execute function spine.processing_state_changed_by_hand();
comment on trigger processing_state_changed_by_hand on spine.processing_state is
    'A status changed by hand wins, voids the lease, and is audited.';
