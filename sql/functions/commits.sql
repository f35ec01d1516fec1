-- What a commit promises, and the hints that go with it. Sessions, roles, databases and poolers have settings of their
-- own, so each transaction says what it needs. A function's header would not do: it ends before the commit.

-- make_durable: makes the commit of this transaction wait until it is on disk, and on a synchronous standby as far as
-- synchronous_commit asks for one. A wait for the standby that is cut short is then told, as a WARNING. Functions call
-- it that write what Spine acknowledges. Reads no table.
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

-- hint: sends a notification with the commit, unless this transaction is to send none.
--   _channel, _payload  as for pg_notify()
-- A commit fails where Postgres's notify queue is full, and the queue is one for all databases of the cluster. So Spine
-- sets spine.hints to off for its transactions while the queue fills up. What a hint tells is found without it, later.
-- Reads no table.
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
