-- What a commit promises, and the hints that go with it. Sessions, roles, databases and poolers have settings of their
-- own, so each transaction says what it needs. A function's header would not do: it ends before the commit.

-- make_durable: makes the commit of this transaction wait until it is on disk.
-- Postgres then also tells, by a WARNING, that a wait for a synchronous standby was cut short. Each function that
-- writes for Spine calls it. Reads no table.
create or replace function spine.make_durable() returns void
language plpgsql
set search_path = spine, pg_temp as $$
begin
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    if current_setting('client_min_messages') = 'error' then
        perform set_config('client_min_messages', 'warning', true);
    end if;
end $$;
comment on function spine.make_durable() is
    'Internal. Makes the commit of this transaction wait until it is on disk.';

-- hint: sends a notification with the commit, unless the setting spine.hints is off.
--   _channel, _payload  as for pg_notify()
-- All databases of a cluster share one queue of notifications. A commit that notifies fails where the queue is full.
-- Spine turns the setting off for its transactions while the queue fills up, and polls. Reads no table.
create or replace function spine.hint(_channel text, _payload text) returns void
language plpgsql
set search_path = spine, pg_temp as $$
begin
    if current_setting('spine.hints', true) is distinct from 'off' then
        perform pg_notify(_channel, _payload);
    end if;
end $$;
comment on function spine.hint(text, text) is
    'Internal. Sends a notification with the commit, unless spine.hints is off.';
