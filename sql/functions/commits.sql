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

-- try_storing: fails where no event can be stored now, and otherwise waits for its commit as an event would.
-- It writes a message into the WAL, which takes a transaction number, and no row. So it also fails where Postgres gives
-- out no more numbers, and waits for a synchronous standby. Whoever calls it limits that wait.
-- Raises 25006 on a standby or in a session that may not write. Raises 55P03 where somebody holds one of the tables for
-- longer than a second.
-- Locks: those of an insert. A crash leaves nothing behind.
create or replace function spine.try_storing() returns void
language plpgsql
set search_path = spine, pg_temp
set lock_timeout = '1s' as $$
begin
    if current_setting('transaction_read_only') <> 'off' then
        raise exception 'the database takes no writes' using errcode = 'read_only_sql_transaction';
    end if;
    perform make_durable();
    lock table events, processing_state, only audit_trail in row exclusive mode;
    perform pg_logical_emit_message(true, 'spine', '');
end $$;
comment on function spine.try_storing() is
    'Internal. Fails where no event can be stored now, and waits as its commit would.';

-- commits_waiting: that commits wait for a synchronous standby, in words. NULL where they do not seem to.
-- It knows so where no standby is connected, or where a commit has waited for a second. The second it sees of other
-- roles' sessions only with pg_read_all_stats. Reads only.
create or replace function spine.commits_waiting() returns text
language sql stable
set search_path = spine, pg_temp as $$
    select format(
        'commits wait for a synchronous standby that does not confirm (synchronous_standby_names = %L): '
            'bring it back, or change that setting and reload',
        current_setting('synchronous_standby_names'))
    where current_setting('synchronous_standby_names') <> ''
        and current_setting('synchronous_commit') <> 'local'
        and (
            not exists (select from pg_stat_replication)
            or exists (
                select
                from pg_stat_activity a
                where a.wait_event = 'SyncRep' and a.query_start < clock_timestamp() - interval '1 second'))
$$;
comment on function spine.commits_waiting() is
    'Internal. That commits wait for a synchronous standby, in words.';
