-- Old days of the audit log are merged into months. A query that has no bound in time opens every partition, and ten
-- years of days are more than a server has locks for. Of months there are 120.
-- It takes two transactions. The first copies days into a table that nobody reads. The second puts that table in their
-- place, at least a minute later. A reader may have taken its snapshot, and then wait for a lock. In a table that is
-- younger than its snapshot it would see nothing.
-- Names of tables are written with their schema. The functions run with the rights of the owner. Without the schema, a
-- caller could have them use his temporary view instead of a table that is gone.

-- copy_audit_days: copies the oldest days of the audit log that can be merged, all of one month (UTC), into one table.
--   _before  cutoff. A month is merged once all of it is before.
--   _bytes   how large a merged partition may become, by the size of its days. Larger months become several, and a day
--            that is larger than half of that may stay as it is. Four gigabytes take some two minutes.
-- Returns the name of the table: the first and the last day. Where an earlier copy still waits for merge_audit_days(),
-- that is the earlier one. NULL where nothing can be merged, can_merge() says no, or another session is at work. NULL
-- also where retention has removed events of the last 400 days: it shall drop each day in its time.
-- It runs with the rights of the table's owner, as spine.ensure_audit_partitions() does. That is safe: the caller must
-- have the right to delete steps, he chooses no name, and no step is lost.
-- Locks: it holds nobody up. A crash before the commit leaves nothing behind.
create or replace function spine.copy_audit_days(_before timestamptz, _bytes bigint default 4294967296)
returns text
language plpgsql
security definer
set search_path = spine, pg_temp
set lock_timeout = '5s'
set timezone = 'UTC'
set datestyle = 'ISO' as $$
declare
    _found record;
    _name text;
    _day text;
begin
    perform require_right('audit_trail', 'DELETE');
    perform make_durable();
    if not try_lock('merge_audit_days') then
        return null;
    end if;
    select m.partition into _name from audit_merge m;
    if found then
        return _name;
    end if;
    if not can_merge()
        or exists (select from retention_state r where r.before > now() - interval '400 days')
    then
        return null;
    end if;
    select * into _found from mergeable_days(least(_before, now()), _bytes);
    if _found.days is null then
        return null;
    end if;
    _name := to_char(_found.since, '"audit_trail_"YYYYMMDD')
        || to_char(_found.until - interval '1 day', '"_"YYYYMMDD');
    execute format(
        'create table spine.%I (
            like audit_trail including defaults including constraints including comments,
            constraint merged_days check (timestamp >= %L and timestamp < %L)
        ) with (autovacuum_freeze_min_age = 0)',
        _name,
        _found.since,
        _found.until);
    execute format('alter table spine.%I replica identity full', _name); -- as ensure_audit_partitions() says
    execute format(
        'comment on table spine.%I is %L',
        _name,
        to_char(_found.since, '"The audit log from "YYYY-MM-DD')
            || to_char(_found.until - interval '1 day', '" to "YYYY-MM-DD" (UTC)."'));
    foreach _day in array _found.days loop
        execute format(
            'insert into spine.%I (timestamp, id, xid, event, action, event_id, source, details)
            select timestamp, id, xid, event, action, event_id, source, details from spine.%I',
            _name,
            _day);
    end loop;
    -- As those of audit_trail, so that the new partition brings all indexes along.
    execute format('create index on spine.%I (event)', _name);
    execute format('create index on spine.%I (timestamp)', _name);
    execute format('create index on spine.%I (xid)', _name);
    insert into audit_merge (partition, days, since, until)
    values (_name, _found.days, _found.since, _found.until);
    return _name;
end $$;
comment on function spine.copy_audit_days(timestamptz, bigint) is
    'Copies the oldest days of the audit log, of one month, into one table. '
    'All of the month is before _before. merge_audit_days() puts the table in their place. '
    'Returns its name, NULL where there are no such days.';

-- merge_audit_days: puts the table of copy_audit_days() in the place of its days.
--   _age  how long ago a call has seen it first, at least. It counts from there, since nobody sees when a commit ends
-- Returns the name of the table, a partition from now on. NULL where no table is that old, or another session is at
-- work. If somebody has changed, detached or dropped one of the days since, or made something depend on it, it drops
-- the table and returns NULL. They are copied anew then.
-- It runs with the rights of the table's owner, as copy_audit_days() does.
-- Raises 55P03 where somebody has locked a day or the copy for 5 s, or reads the log all the time. The caller tries
-- again later.
-- Raises 25001 in a transaction that is not READ COMMITTED, which would not see late changes.
-- Locks: while it compares, nobody can change these days. Four gigabytes take a minute or two. All may read them, and
-- nothing else is held up. Then it needs the audit log for itself, as spine.drop_audit_partition() does. It waits for
-- that for 100 ms at a time. Then it holds the log for milliseconds, or for 100 ms among thousands of days.
-- A crash before the commit leaves all as it was.
create or replace function spine.merge_audit_days(_age interval default '1 minute') returns text
language plpgsql
security definer
set search_path = spine, pg_temp
set lock_timeout = '5s'
set timezone = 'UTC'
set datestyle = 'ISO' as $$
declare
    _copy audit_merge;
    _now constant timestamptz := clock_timestamp();
begin
    perform require_right('audit_trail', 'DELETE');
    perform make_durable();
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'days are merged in a transaction that is READ COMMITTED'
            using errcode = 'active_sql_transaction';
    end if;
    if not try_lock('merge_audit_days') then
        return null;
    end if;
    select * into _copy from audit_merge;
    if not found then
        return null;
    end if;
    if _copy.seen_at is null or _copy.seen_at > _now then -- the clock may have been set back
        _copy.seen_at := _now;
        update audit_merge set seen_at = _now;
    end if;
    if _copy.seen_at > _now - _age then
        return null;
    end if;
    -- The comparison locks the days. Only then does it count what they are.
    if not can_merge()
        or not is_copied(_copy)
        or (select count(*) from droppable_days() d where d.name = any (_copy.days)) < cardinality(_copy.days)
    then
        execute format('drop table if exists spine.%I', _copy.partition);
        delete from audit_merge;
        return null;
    end if;
    perform lock_audit_log(_copy.days || _copy.partition);
    execute (select 'drop table ' || string_agg(format('spine.%I', d), ', ') from unnest(_copy.days) d);
    execute format(
        'alter table audit_trail attach partition spine.%I for values from (%L) to (%L)',
        _copy.partition,
        _copy.since,
        _copy.until);
    execute format('alter table spine.%I drop constraint merged_days', _copy.partition);
    delete from audit_merge;
    return _copy.partition;
end $$;
comment on function spine.merge_audit_days(interval) is
    'Puts the table that copy_audit_days() has made in the place of its days. '
    'Returns its name, NULL where there is none. Raises 55P03 when somebody reads the log all the time.';

-- can_merge: whether a new partition may come into the audit log. It may not in two cases:
--   * A publication has the log. A subscriber would lack the partition.
--   * The default partition has more than eight megabytes. Postgres reads all of it, and holds the log up meanwhile.
-- Reads only the catalog, and the sizes of files.
create or replace function spine.can_merge() returns boolean
language sql stable
set search_path = spine, pg_temp as $$
    select pg_table_size('audit_trail_default') <= 8 << 20
        and not exists (
            select from pg_publication_tables p where p.schemaname = 'spine' and p.tablename ^@ 'audit_trail')
$$;
comment on function spine.can_merge() is 'Internal. Whether a new partition may come into the audit log.';

-- droppable_days: the days of the audit log that its owner can drop, the oldest first. Of another one the owner is
-- another, or something depends on it, such as a view. Reads only the catalog.
create or replace function spine.droppable_days() returns table (name name, since timestamptz, until timestamptz)
language sql stable
set search_path = spine, pg_temp
set timezone = 'UTC' as $$
    select p.name, p.since, p.until
    from audit_partitions() p
        join pg_class c on c.oid = p.partition and c.relnamespace = 'spine'::regnamespace
        join pg_class l on l.oid = 'audit_trail'::regclass and l.relowner = c.relowner
    where p.until = p.since + interval '1 day'
        and not exists (
            select
            from pg_depend d
            where d.refclassid = 'pg_class'::regclass and d.refobjid = p.partition and d.deptype = 'n')
    order by p.since
$$;
comment on function spine.droppable_days() is 'Internal. The days of the audit log that its owner can drop.';

-- mergeable_days: the days that copy_audit_days() copies next. They are two or more that follow each other, of the
-- oldest month that has such days.
--   _before, _bytes  as copy_audit_days() takes them
-- Returns their names and their span of time. NULL where there are none. Reads only the catalog, and the sizes of
-- files.
create or replace function spine.mergeable_days(
    _before timestamptz,
    _bytes bigint,
    out days text[],
    out since timestamptz,
    out until timestamptz)
language plpgsql
set search_path = spine, pg_temp
set timezone = 'UTC' as $$
declare
    _day record;
    _size bigint;
begin
    for _day in
        select d.*, date_trunc('month', d.since) as month
        from droppable_days() d
        where date_trunc('month', d.since) + interval '1 month' <= _before
    loop
        _size := _size + pg_table_size(format('spine.%I', _day.name)::regclass);
        if _size <= _bytes and _day.since = until and _day.since <> _day.month then
            days := days || _day.name::text;
        else
            exit when cardinality(days) > 1;
            days := array[_day.name];
            since := _day.since;
            _size := pg_table_size(format('spine.%I', _day.name)::regclass);
        end if;
        until := _day.until;
    end loop;
    if cardinality(days) = 1 then
        days := null;
    end if;
end $$;
comment on function spine.mergeable_days(timestamptz, bigint) is
    'Internal. The days of the audit log that spine.copy_audit_days() copies next.';

-- is_copied: whether a table has the same steps as its days, and all of them are there. Sums of hashes tell.
--   _copy  the row of audit_merge
-- Locks: nobody can change the days until the end of the transaction. Relies on no index: it reads all of both.
create or replace function spine.is_copied(_copy spine.audit_merge) returns boolean
language plpgsql
set search_path = spine, pg_temp
set timezone = 'UTC' as $$
declare
    _table text;
    _sums numeric[];
    _days numeric[] := '{0,0}';
begin
    foreach _table in array _copy.days || _copy.partition loop
        if to_regclass(format('spine.%I', _table)) is null then
            return false;
        end if;
        execute format('lock table spine.%I in share mode', _table);
        execute format(
            'select array[
                count(*),
                coalesce(sum(hashtextextended(
                    row(timestamp, id, xid, event, action, event_id, source, details)::text, 0)), 0)]
            from spine.%I',
            _table) into _sums;
        if _table <> _copy.partition then
            _days := array[_days[1] + _sums[1], _days[2] + _sums[2]];
        end if;
    end loop;
    return _sums = _days;
end $$;
comment on function spine.is_copied(spine.audit_merge) is
    'Internal. Whether a table has the same steps as the days that it was copied from.';

-- lock_audit_log: takes the audit log for itself, until the end of the transaction. It asks often and waits briefly,
-- since others wait behind it.
--   _tables  tables of the schema. It takes them too, and does not wait for them.
-- Raises 55P03 after 25 times. It does so at once where somebody waits for one of the tables, since he may hold up the
-- log. A crash releases the locks.
create or replace function spine.lock_audit_log(_tables text[]) returns void
language plpgsql
set search_path = spine, pg_temp
set lock_timeout = '50ms' as $$
declare
    _names constant text := (select string_agg(format('only spine.%I', t), ', ') from unnest(_tables) t);
begin
    for _time in 1..25 loop
        begin
            perform take_lock('partitions');
            lock table only audit_trail, only audit_trail_default in access exclusive mode;
            execute format('lock table %s in access exclusive mode nowait', _names);
            return;
        exception when lock_not_available then
            if _time = 25
                or exists (
                    select
                    from pg_locks l join pg_class c on c.oid = l.relation
                    where not l.granted
                        and c.relnamespace = 'spine'::regnamespace
                        and c.relname = any (_tables)
                        and l.database = this_database())
            then
                raise;
            end if;
            perform pg_sleep(0.2);
        end;
    end loop;
end $$;
comment on function spine.lock_audit_log(text[]) is
    'Internal. Takes the audit log for itself, until the transaction ends.';
