-- Copies of a database. A dump restored elsewhere has the queue of the original, and numbers of the original's
-- transactions. Spine notes which database it is in, and so finds itself in another one.

-- this_server: the system identifier of the server. NULL where the caller may not know it.
-- It differs between any two clusters that initdb made. A physical copy has that of its original. Reads no table.
create or replace function spine.this_server() returns bigint
language plpgsql stable
set search_path = spine, pg_temp as $$
begin
    if has_function_privilege('pg_catalog.pg_control_system()', 'execute') then
        return (select c.system_identifier from pg_control_system() c);
    end if;
    return null;
end $$;
comment on function spine.this_server() is
    'Internal. The system identifier of the server. NULL where the caller may not know it.';

-- this_database: the oid of the database. Reads no table.
create or replace function spine.this_database() returns oid
language sql stable
set search_path = spine, pg_temp as $$
    select d.oid from pg_database d where d.datname = current_database()
$$;
comment on function spine.this_database() is 'Internal. The oid of the database.';

-- note_database: notes which database this is, and pauses all claims where another one was noted. Every process calls
-- it as it starts, and for each server that it connects to later. Returns what it found, in words. That is NULL where
-- all is as noted, in a new database, in a copy that has no events, and where nothing can be written.
-- In another database it does three things.
--   * It pauses all destinations, with a reason. A copy must not deliver what waits in the original.
--   * It moves new positions in the audit log far above all that the log has (trail_shift). The transaction numbers of
--     this server may be lower, and readers would take old steps for new ones.
--   * It raises sequences that lag behind, before anybody uses a number of theirs.
-- It runs as the owner of the table, because it changes a column's default. That is safe: the caller must have the
-- right to insert steps, and chooses nothing.
-- Locks: where the database is as noted, none. Otherwise callers take turns by the row of database_identity, and the
-- first locks audit_trail. It gives up with 55P03 after 5 s, and a later call does the work.
-- Relies on audit_trail_xid and audit_marks_pkey. A crash before the commit leaves everything as it was.
create or replace function spine.note_database() returns text
language plpgsql
security definer
set search_path = spine, pg_temp
set lock_timeout = '5s'
set enable_seqscan = off
set enable_bitmapscan = off
set plan_cache_mode = force_custom_plan as $$
declare
    _server constant bigint := this_server();
    _database constant oid := this_database();
    _caller constant text := coalesce(current_setting('spine.caller', true), '');
    _noted database_identity;
    _mark xid8;
    _since timestamptz;
    _newest bigint;
    _copied boolean;
begin
    perform require_right('audit_trail', 'INSERT');
    if is_noted(_server, _database) or current_setting('transaction_read_only') = 'on' then
        return null;
    end if;
    perform make_durable();
    -- The row is there from the migration on. Logical replication may have left it out.
    insert into database_identity (database_oid) values (0) on conflict do nothing;
    select * into _noted from database_identity for update;
    if is_noted(_server, _database) then
        return null; -- another process was quicker
    end if;
    if _noted.database_oid is not null then
        perform mend_sequences();
        select m.position into _mark from audit_marks m order by m.position desc limit 1;
        _since := audit_since(coalesce(_mark, '0'));
        select greatest(_mark, (
            select a.xid
            from audit_trail a
            where a.timestamp >= _since or a.timestamp = 'infinity'
            order by a.xid desc
            limit 1
        ))::text::bigint into _newest;
        if _newest is not null then
            -- Larger than any position that a reader of the original can have.
            _noted.trail_shift := ((_newest >> 32) + 2) << 32;
            execute format(
                'alter table only audit_trail alter column xid
                set default ((pg_current_xact_id()::text::bigint + %s)::text::xid8)',
                _noted.trail_shift);
        end if;
        update arrivals_watermark set next_xid = '0'; -- all transactions of the other server are over
        _copied := exists (select from events);
        if _copied then
            perform set_config('spine.caller', 'Spine itself', true);
            perform pause(null,
                'this database is a copy, or its server is a new one; if it shall deliver, run spine resume');
            perform set_config('spine.caller', _caller, true);
        end if;
    end if;
    update database_identity set
        system_identifier = _server,
        database_oid = _database,
        noted_at = clock_timestamp(),
        trail_shift = _noted.trail_shift;
    if _copied then
        return format(
            'this is another database than the one that was noted%s: it was restored or copied, '
                'or its server is a new one. Claims are paused, so that a copy delivers nothing. '
                'If this database shall deliver, run spine resume',
            coalesce(' at ' || to_char(_noted.noted_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), ''));
    end if;
    return null;
end $$;
comment on function spine.note_database() is
    'Internal. Notes which database this is. Pauses all claims where another one was noted.';

-- is_noted: whether a database is the one that was noted.
--   _server    its system identifier. Where one of the two is not known, the oid decides.
--   _database  its oid
-- Relies on database_identity_pkey. Reads only.
create or replace function spine.is_noted(_server bigint, _database oid) returns boolean
language sql stable
set search_path = spine, pg_temp as $$
    select exists (
        select
        from database_identity i
        where i.database_oid = _database
            and (i.system_identifier = _server or i.system_identifier is null or _server is null))
$$;
comment on function spine.is_noted(bigint, oid) is 'Internal. Whether a database is the one that was noted.';

-- trail_shift: how much is added to the number of a transaction for its position in the audit log: 0 in a database that
-- never moved.
-- It runs with the rights of the table's owner, so that readers of the audit log need no right on another table. That
-- is safe: it returns one number.
-- Relies on database_identity_pkey. Reads only.
create or replace function spine.trail_shift() returns bigint
language plpgsql stable
security definer
set search_path = spine, pg_temp as $$
begin
    perform require_right('audit_log', 'SELECT');
    return coalesce((select i.trail_shift from database_identity i), 0);
end $$;
comment on function spine.trail_shift() is
    'Internal. Added to a transaction''s number, it is a position in the audit log.';

-- trail_end: the position in the audit log after all transactions that have begun. Reads only.
create or replace function spine.trail_end() returns xid8
language sql stable
set search_path = spine, pg_temp as $$
    select (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + trail_shift())::text::xid8
$$;
comment on function spine.trail_end() is
    'Internal. The position in the audit log after all transactions that have begun.';
