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

-- notify_jam: who holds up commits that notify, in words. NULL where none has waited for half a second.
--   _ours  server processes of the caller's own: their waits are cancelled, with 57014
-- A transaction that notifies takes one lock of the whole cluster for its commit, until its messages are in the queue.
-- A role that may connect to any database can send so many that this takes seconds, again and again. Spine then cancels
-- its commits, and does them again without notifications. Reads only the tables of locks and sessions.
create or replace function spine.notify_jam(_ours integer[]) returns text
language plpgsql
set search_path = spine, pg_temp as $$
declare
    _waiting integer[];
    _holder text;
begin
    -- The lock is that of database 0.
    select
        array_agg(l.pid) filter (where not l.granted and l.waitstart < clock_timestamp() - interval '500 ms'),
        min(format('pid %s%s', l.pid, format(' of role %s in database %s', a.usename, a.datname)))
            filter (where l.granted)
    into _waiting, _holder
    from pg_locks l left join pg_stat_activity a on a.pid = l.pid
    where l.locktype = 'object' and l.database = 0 and l.classid = 'pg_database'::regclass and l.objid = 0;
    if _waiting is null then
        return null;
    end if;
    perform pg_cancel_backend(w) from unnest(_waiting) w where w = any (_ours);
    return coalesce(_holder, 'another session');
end $$;
comment on function spine.notify_jam(integer[]) is
    'Internal. Who holds up commits that notify, in words.';
