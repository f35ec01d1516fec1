-- Locks between processes of Spine: rows of the table locks. An advisory lock would not do: any role that may connect
-- can take one, and hold it for ever.

-- take_lock: takes a lock until the end of the transaction, and waits for it.
--   _name  a row of locks
-- lock_timeout bounds the wait. The lock of a row leaves no dead row behind. A crash releases it.
create or replace function spine.take_lock(_name text) returns void
language plpgsql
set search_path = spine, pg_temp as $$
begin
    perform from locks l where l.name = _name for update;
    if not found then
        raise exception 'the table spine.locks has no row "%"', _name
            using hint = 'Run spine migrate, which puts it back.';
    end if;
end $$;
comment on function spine.take_lock(text) is
    'Internal. Takes one of spine.locks until the end of the transaction, and waits for it.';

-- try_lock: takes a lock until the end of the transaction, if it is free. Returns whether it did.
--   _name  a row of locks
-- A crash releases it.
create or replace function spine.try_lock(_name text) returns boolean
language plpgsql
set search_path = spine, pg_temp as $$
begin
    perform from locks l where l.name = _name for update skip locked;
    if found then
        return true;
    end if;
    if not exists (select from locks l where l.name = _name) then
        raise exception 'the table spine.locks has no row "%"', _name
            using hint = 'Run spine migrate, which puts it back.';
    end if;
    return false;
end $$;
comment on function spine.try_lock(text) is
    'Internal. Takes one of spine.locks until the end of the transaction, if it is free.';
