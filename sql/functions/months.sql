-- Old days of the audit log are merged into months. A query that has no bound in time opens every partition, and ten
-- years of days are more than a server has locks for. Of months there are 120.
-- It takes two transactions. The first copies days into a table that nobody reads. The second puts that table in their
-- place, at least a minute later. A reader may have taken its snapshot, and then wait for a lock. In a table that is
-- younger than its snapshot it would see nothing.

-- copy_audit_days: copies the oldest days of the audit log that can be merged, all of one month (UTC), into one table.
--   _before  cutoff. A month is merged once all of it is before.
--   _bytes   how large a merged partition may become, by the size of its days. Larger months become several, and a day
--            that is larger than half of that may stay as it is. Four gigabytes take some two minutes.
-- Returns the name of the table: the first and the last day. NULL where nothing can be merged, where a copy waits for
-- merge_audit_days(), or where another session is at work. NULL also in two more cases:
--   * A publication has the log. A subscriber would lack the new partition.
--   * Retention has removed events of the last 400 days. It shall drop each day in its time.
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
    if not try_lock('merge_audit_days')
        or exists (select from audit_merge)
        or audit_is_published()
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
        'create table %I (
            like audit_trail including defaults including constraints including comments,
            constraint merged_days check (timestamp >= %L and timestamp < %L)
        ) with (autovacuum_freeze_min_age = 0)',
        _name,
        _found.since,
        _found.until);
    execute format('alter table %I replica identity full', _name); -- as ensure_audit_partitions() says
    execute format(
        'comment on table %I is %L',
        _name,
        to_char(_found.since, '"The audit log from "YYYY-MM-DD')
            || to_char(_found.until - interval '1 day', '" to "YYYY-MM-DD" (UTC)."'));
    foreach _day in array _found.days loop
        execute format(
            'insert into %I (timestamp, id, xid, event, action, event_id, source, details)
            select timestamp, id, xid, event, action, event_id, source, details from %I',
            _name,
            _day);
    end loop;
    -- As those of audit_trail, so that the new partition brings all indexes along.
    execute format('create index on %I (event)', _name);
    execute format('create index on %I (timestamp)', _name);
    execute format('create index on %I (xid)', _name);
    insert into audit_merge (partition, days, since, until)
    values (_name, _found.days, _found.since, _found.until);
    return _name;
end $$;
comment on function spine.copy_audit_days(timestamptz, bigint) is
    'Copies the oldest days of the audit log, of one month, into one table. '
    'All of the month is before _before. merge_audit_days() puts the table in their place. '
    'Returns its name, NULL where there are no such days.';

-- merge_audit_days: puts the table of copy_audit_days() in the place of its days.
--   _age  how long ago it was made at least
-- Returns the name of the table, a partition from now on. NULL where no table is that old, or another session is at
-- work. If somebody has changed or dropped one of the days since, it drops the table and returns NULL. They are copied
-- anew then.
-- It runs with the rights of the table's owner, as copy_audit_days() does.
-- Raises 55P03 where somebody has locked a day for 5 s, or reads the log all the time: the caller tries again later.
-- Raises 25001 in a transaction that is not READ COMMITTED, which would not see late changes.
-- Locks: while it compares, nobody can change these days. Four gigabytes take a minute or two. All may read them, and
-- nothing else is held up. Then it needs the audit log for itself, as spine.drop_audit_partition() does: for
-- milliseconds, and for a tenth of a second among thousands of days.
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
    if not found or _copy.copied_at between _now - _age and _now then
        return null;
    end if;
    if to_regclass(_copy.partition) is null
        or exists (select from unnest(_copy.days) d where to_regclass(d) is null)
        or audit_is_published()
        or not is_copied(_copy)
    then
        execute format('drop table if exists %I', _copy.partition);
        delete from audit_merge;
        return null;
    end if;
    perform lock_audit_log(_copy.days);
    execute (select 'drop table ' || string_agg(quote_ident(d), ', ') from unnest(_copy.days) d);
    execute format(
        'alter table audit_trail attach partition %I for values from (%L) to (%L)',
        _copy.partition,
        _copy.since,
        _copy.until);
    execute format('alter table %I drop constraint merged_days', _copy.partition);
    delete from audit_merge;
    return _copy.partition;
end $$;
comment on function spine.merge_audit_days(interval) is
    'Puts the table that copy_audit_days() has made in the place of its days. '
    'Returns its name, NULL where there is none. Raises 55P03 when somebody reads the log all the time.';

-- audit_is_published: whether a publication has a part of the audit log. Reads only the catalog.
create or replace function spine.audit_is_published() returns boolean
language sql stable
set search_path = spine, pg_temp as $$
    select exists (select from pg_publication_tables p where p.schemaname = 'spine' and p.tablename ^@ 'audit_trail')
$$;
comment on function spine.audit_is_published() is 'Internal. Whether a publication has a part of the audit log.';

-- mergeable_days: the days that copy_audit_days() copies next. They are two or more that follow each other, of the
-- oldest month that has such days. A day that cannot be dropped is left out: it has another owner, or a view depends on
-- it.
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
        select p.*, date_trunc('month', p.since) as month
        from audit_partitions() p
            join pg_class c on c.oid = p.partition
            join pg_class l on l.oid = 'audit_trail'::regclass and l.relowner = c.relowner
        where p.until = p.since + interval '1 day'
            and date_trunc('month', p.since) + interval '1 month' <= _before
            and not exists (
                select
                from pg_depend d
                where d.refclassid = 'pg_class'::regclass
                    and d.refobjid = p.partition
                    and d.classid = 'pg_rewrite'::regclass)
        order by p.since
    loop
        _size := _size + pg_table_size(_day.partition);
        if _size <= _bytes and _day.since = until and _day.since <> _day.month then
            days := days || _day.name::text;
        else
            exit when cardinality(days) > 1;
            days := array[_day.name];
            since := _day.since;
            _size := pg_table_size(_day.partition);
        end if;
        until := _day.until;
    end loop;
    if cardinality(days) = 1 then
        days := null;
    end if;
end $$;
comment on function spine.mergeable_days(timestamptz, bigint) is
    'Internal. The days of the audit log that spine.copy_audit_days() copies next.';

-- is_copied: whether a table has the same steps as its days. Sums of hashes tell.
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
        execute format('lock table %I in share mode', _table);
        execute format(
            'select array[
                count(*),
                coalesce(sum(hashtextextended(
                    row(timestamp, id, xid, event, action, event_id, source, details)::text, 0)), 0)]
            from %I',
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
--   _days  partitions that it takes, too
-- Raises 55P03 after 25 times. It does so at once where somebody waits for one of the days, since he may hold up the
-- log. A crash releases the locks.
create or replace function spine.lock_audit_log(_days text[]) returns void
language plpgsql
set search_path = spine, pg_temp
set lock_timeout = '50ms' as $$
declare
    _names constant text := (select string_agg('only ' || quote_ident(d), ', ') from unnest(_days) d);
begin
    for _time in 1..25 loop
        begin
            perform take_lock('partitions');
            lock table only audit_trail, only audit_trail_default in access exclusive mode;
            execute format('lock table %s in access exclusive mode', _names);
            return;
        exception when lock_not_available then
            if _time = 25
                or exists (
                    select
                    from pg_locks l join pg_class c on c.oid = l.relation
                    where not l.granted
                        and c.relnamespace = 'spine'::regnamespace
                        and c.relname = any (_days)
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
