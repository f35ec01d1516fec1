-- Rights of roles. Functions run with the rights of their callers, but for the few that make or drop tables. Those run
-- with the rights of the owner, and ask here first whether the caller may have it done.

-- require_right: raises 42501 where the calling role lacks a right of its own.
--   _table  table of the schema
--   _right  such as INSERT
-- In a function that runs with its owner's rights, current_user is the owner. The caller is the role that he has set,
-- or else the one that logged in. Postgres lets no function like that change either.
-- Reads only the catalog.
create or replace function spine.require_right(_table text, _right text) returns void
language plpgsql
set search_path = spine, pg_temp as $$
declare
    _role name := coalesce(nullif(current_setting('role'), 'none'), session_user);
begin
    if not has_table_privilege(_role, format('spine.%I', _table), _right) then
        raise exception 'the role "%" lacks the right % on the table spine.%', _role, _right, _table
            using errcode = 'insufficient_privilege';
    end if;
end $$;
comment on function spine.require_right(text, text) is
    'Internal. Raises 42501 where the calling role lacks a right of its own.';
