-- Old days of the audit log are merged into months. A query that has no bound in time opens every partition, and ten
-- years of days are more than a server has locks for. Of months there are 120.

-- merge_audit_days: merges the oldest days of the audit log that can be merged, all of one month (UTC), into one
-- partition.
--   _before  cutoff. A month is merged once all of it is before.
--   _bytes   how large a merged partition may become, by the size of its days. Larger months become several partitions,
--            and a day that is larger stays as it is. A gigabyte takes about half a minute.
-- Returns the name of the new partition: the first and the last day. NULL where nothing can be merged. NULL also where
-- another session merges, and in two more cases. Where a publication has the log, a subscriber would lack the new
-- partition. Where retention has removed events of the last 400 days, it shall drop each day in its time.
-- It runs with the rights of the table's owner, as spine.ensure_audit_partitions() does. That is safe: the caller must
-- have the right to delete steps, he chooses no name, and no step is lost.
-- Raises 55P03 where somebody has locked a day for 5 s, or reads the log all the time. The caller tries again later.
-- Locks: while it copies, nobody can change the old days. All may read them, and nothing else is held up. Then it needs
-- the audit log for itself, as spine.drop_audit_partition() does. It asks for that a hundred times at most, and waits
-- 50 ms each time. It has it until the commit: for milliseconds, and for a tenth of a second among thousands of days.
-- A crash before the commit leaves the days as they were.
create or replace function spine.merge_audit_days(_before timestamptz, _bytes bigint default 1073741824)
returns text
language plpgsql
security definer
set search_path = spine, pg_temp
set lock_timeout = '5s'
set timezone = 'UTC'
set datestyle = 'ISO' as $$
declare
    _days regclass[];
    _since timestamptz;
    _until timestamptz;
    _name text;
    _day regclass;
begin
    perform require_right('audit_trail', 'DELETE');
    perform make_durable();
    if not try_lock('merge_audit_days')
        or exists (
            select from pg_publication_tables p where p.schemaname = 'spine' and p.tablename ^@ 'audit_trail')
        or exists (select from retention_state r where r.before > now() - interval '400 days')
    then
        return null;
    end if;
    select d.days, d.since, d.until into _days, _since, _until from mergeable_days(_before, _bytes) d;
    if _days is null then
        return null;
    end if;
    foreach _day in array _days loop
        execute format('lock table %s in share mode', _day);
    end loop;

    _name := to_char(_since, '"audit_trail_"YYYYMMDD') || to_char(_until - interval '1 day', '"_"YYYYMMDD');
    execute format(
        'create table %I (
            like audit_trail including defaults including constraints including comments,
            constraint merged_days check (timestamp >= %L and timestamp < %L)
        ) with (autovacuum_freeze_min_age = 0)',
        _name,
        _since,
        _until);
    execute format('alter table %I replica identity full', _name); -- as ensure_audit_partitions() says
    execute format(
        'comment on table %I is %L',
        _name,
        to_char(_since, '"The audit log from "YYYY-MM-DD')
            || to_char(_until - interval '1 day', '" to "YYYY-MM-DD" (UTC)."'));
    foreach _day in array _days loop
        execute format('insert into %I select * from %s', _name, _day);
    end loop;
    -- As those of audit_trail, so that the new partition brings all indexes along.
    execute format('create index on %I (event)', _name);
    execute format('create index on %I (timestamp)', _name);
    execute format('create index on %I (xid)', _name);

    perform take_lock('partitions');
    perform lock_audit_log();
    execute 'drop table ' || array_to_string(_days, ', ');
    execute format('alter table audit_trail attach partition %I for values from (%L) to (%L)', _name, _since, _until);
    execute format('alter table %I drop constraint merged_days', _name);
    return _name;
end $$;
comment on function spine.merge_audit_days(timestamptz, bigint) is
    'Merges the oldest days of the audit log, of one month, into one partition. '
    'All of the month is before _before. Returns the name of the partition, NULL where there are no such days. '
    'Raises 55P03 when somebody reads the log all the time.';

-- mergeable_days: the days that merge_audit_days() merges next: two or more that follow each other, of the oldest month
-- that has such days.
--   _before, _bytes  as merge_audit_days() takes them
-- Returns them with their span of time. NULL where there are none. Reads only the catalog, and the sizes of files.
create or replace function spine.mergeable_days(
    _before timestamptz,
    _bytes bigint,
    out days regclass[],
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
        where p.until = p.since + interval '1 day' and date_trunc('month', p.since) + interval '1 month' <= _before
        order by p.since
    loop
        _size := _size + pg_table_size(_day.partition);
        if _size <= _bytes and _day.since = until and _day.since <> _day.month then
            days := days || _day.partition;
        else
            exit when cardinality(days) > 1;
            days := array[_day.partition];
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
    'Internal. The days of the audit log that spine.merge_audit_days() merges next.';

-- lock_audit_log: takes the audit log for itself, until the end of the transaction. It asks often and waits briefly:
-- whoever comes meanwhile waits behind it.
-- Raises 55P03 after a hundred times. A crash lets go of it.
create or replace function spine.lock_audit_log() returns void
language plpgsql
set search_path = spine, pg_temp
set lock_timeout = '50ms' as $$
begin
    for _time in 1..100 loop
        begin
            lock table only audit_trail, only audit_trail_default in access exclusive mode;
            return;
        exception when lock_not_available then
            if _time = 100 then
                raise;
            end if;
            perform pg_sleep(0.2);
        end;
    end loop;
end $$;
comment on function spine.lock_audit_log() is
    'Internal. Takes the audit log for itself, until the transaction ends.';
