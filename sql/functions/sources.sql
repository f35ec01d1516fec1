-- Sources: who may send. Each change is audited and announced to every process, by whichever way it was made.

-- sources_check: holds the settings of a source to their rules, and notes who changed them.
-- Secrets stand in settings by reference alone, so that none is ever in the database, a dump or the audit log. The
-- processes know the presets and check all other members. A crash before the commit leaves nothing behind.
create or replace function spine.sources_check() returns trigger
language plpgsql
set search_path = spine, pg_temp as $$
declare
    _wrong text;
begin
    if jsonb_typeof(new.settings) <> 'object' or jsonb_typeof(new.settings -> 'preset') is distinct from 'string' then
        raise exception 'the settings of a source must be a JSON object with a preset'
            using errcode = 'check_violation', schema = 'spine', table = 'sources';
    end if;
    select k into _wrong
    from jsonb_object_keys(new.settings) k
    where k not in (
        'preset',
        'secrets',
        'verify',
        'format',
        'id',
        'type',
        'time',
        'id_signed',
        'volatile',
        'conflicts',
        'handshake',
        'verify_token',
        'url',
        'limits',
        'rejected')
    limit 1;
    if _wrong is not null then
        raise exception 'there is no setting % of a source', quote_ident(left(_wrong, 100))
            using errcode = 'check_violation', schema = 'spine', table = 'sources';
    end if;
    -- The message does not repeat the wrong value: it may be a secret.
    if exists (
        select
        from (
            select case jsonb_typeof(s) when 'object' then s ->> 'ref' else s #>> '{}' end as ref
            from jsonb_array_elements(
                case jsonb_typeof(new.settings -> 'secrets')
                    when 'array' then new.settings -> 'secrets'
                    else '[null]'
                end) s
            where new.settings ? 'secrets'
            union all
            select new.settings ->> 'verify_token' where new.settings ? 'verify_token'
        ) given
        where coalesce(given.ref !~ '^(env:[A-Za-z_][A-Za-z0-9_]*|file:([A-Za-z0-9_.-]+|/.+))$', true))
    then
        raise exception
            'a secret must be named by reference, never by value: env:NAME, file:NAME or file:/absolute/path'
            using errcode = 'check_violation', schema = 'spine', table = 'sources';
    end if;
    -- What is shown and kept with the settings holds no secret either. The messages do not repeat it.
    if new.settings ->> 'url' ~ '^[^/?#]*//[^/?#]*@' then
        raise exception 'the url of a source must not hold a user or password'
            using errcode = 'check_violation', schema = 'spine', table = 'sources';
    end if;
    if exists (
        select
        from jsonb_path_query(new.settings, 'lax $.verify[*].secret_prefix[*]') p(prefix)
        where jsonb_typeof(p.prefix) not in ('string', 'null')
            or p.prefix #>> '{}' <> '' and p.prefix #>> '{}' !~ '^.{0,15}_$'
        union all
        select
        from jsonb_path_query(new.settings, 'lax $.verify[*].secret_not[*]') p(prefix)
        where jsonb_typeof(p.prefix) not in ('string', 'null')
            or p.prefix #>> '{}' <> '' and p.prefix #>> '{}' !~ '^.{0,15}_$')
    then
        raise exception 'secret_prefix and secret_not must end in _ and have at most 16 bytes'
            using errcode = 'check_violation', schema = 'spine', table = 'sources';
    end if;
    if tg_op = 'UPDATE' then
        if new.name <> old.name then
            raise exception 'the name of a source cannot be changed'
                using errcode = 'check_violation', schema = 'spine', table = 'sources';
        end if;
        if new.settings is not distinct from old.settings and new.disabled_at is not distinct from old.disabled_at then
            return new;
        end if;
    end if;
    new.updated_at := clock_timestamp();
    new.updated_by := spine.who();
    if new.disabled_at is null then
        new.disabled_by := null;
        if tg_op = 'UPDATE' and old.disabled_at is not null then
            new.disabled_before := (
                select jsonb_agg(b.one order by b.n)
                from (
                    select x.one, x.n
                    from jsonb_array_elements(
                        coalesce(old.disabled_before, '[]') || jsonb_build_array(
                            jsonb_build_object(
                                'since', old.disabled_at,
                                'until', new.updated_at,
                                'by', old.disabled_by,
                                'reason', old.disabled_reason))) with ordinality as x(one, n)
                    order by x.n desc
                    limit 5) b);
        end if;
    elsif tg_op = 'INSERT' or old.disabled_at is null then
        new.disabled_by := new.updated_by;
    end if;
    new.disabled_reason := case when new.disabled_at is not null then coalesce(new.disabled_reason, spine.reason()) end;
    return new;
end $$;
comment on function spine.sources_check() is
    'Internal. Trigger: rejects wrong settings and secrets by value. Notes who changed a source.';

create or replace trigger sources_check
    before insert or update of name, settings, disabled_at on spine.sources
    for each row
    execute function spine.sources_check();
comment on trigger sources_check on spine.sources is
    'Rejects wrong settings and secrets by value, and notes who changed a source.';

-- who: names who makes a change, in words for a column. That is the database role, and on whose behalf it acts, where
-- the transaction says so. Reads no table.
create or replace function spine.who() returns text
language sql stable
set search_path = spine, pg_temp as $$
    select session_user || coalesce(' for ' || left(nullif(current_setting('spine.caller', true), ''), 300), '')
$$;
comment on function spine.who() is 'Internal. The database role, and on whose behalf it acts (spine.caller), in words.';

-- sources_changed: audits a change of a source and tells all processes. A crash before the commit leaves nothing
-- behind.
create or replace function spine.sources_changed() returns trigger
language plpgsql
set search_path = spine, pg_temp as $$
declare
    _name constant text := case when tg_op = 'DELETE' then old.name else new.name end;
    _before constant jsonb := case when tg_op = 'INSERT' then '{}' else old.settings end;
    _after constant jsonb := case when tg_op = 'DELETE' then '{}' else new.settings end;
    _who constant jsonb := jsonb_strip_nulls(jsonb_build_object(
        'by', session_user,
        'caller', left(nullif(current_setting('spine.caller', true), ''), 300)));
    _changes jsonb;
begin
    if _before <> _after or tg_op <> 'UPDATE' then
        -- A side that was not there is left out; one that was null is null.
        select coalesce(
            jsonb_object_agg(
                k,
                case when _before ? k then jsonb_build_object('from', _before -> k) else '{}' end
                || case when _after ? k then jsonb_build_object('to', _after -> k) else '{}' end),
            '{}')
        into _changes
        from (select jsonb_object_keys(_before) union select jsonb_object_keys(_after)) keys(k)
        where _before -> k is distinct from _after -> k;
        insert into audit_trail (source, action, details)
        values (
            _name,
            case tg_op
                when 'INSERT' then 'source_added'
                when 'DELETE' then 'source_removed'
                else 'source_changed'
            end::audit_action,
            (_who || jsonb_build_object('changes', _changes))::text::json);
    end if;
    if tg_op <> 'DELETE'
        and (case when tg_op = 'UPDATE' then old.disabled_at end is null) <> (new.disabled_at is null)
    then
        insert into audit_trail (source, action, details)
        values (
            _name,
            case when new.disabled_at is null then 'source_enabled' else 'source_disabled' end::audit_action,
            (_who || jsonb_strip_nulls(jsonb_build_object('reason', new.disabled_reason)))::text::json);
    end if;
    perform hint('spine_sources', json_build_object('source', _name)::text);
    return null;
end $$;
comment on function spine.sources_changed() is
    'Internal. Trigger: audits a change of a source and sends NOTIFY spine_sources.';

create or replace trigger sources_changed
    after insert or delete or update of settings, disabled_at on spine.sources
    for each row
    execute function spine.sources_changed();
comment on trigger sources_changed on spine.sources is
    'Audits a change and tells all processes of it (NOTIFY spine_sources).';

-- sources_kept: keeps the source default. To close it, disable it: without the row, events stored by hand would have no
-- source.
create or replace function spine.sources_kept() returns trigger
language plpgsql
set search_path = spine, pg_temp as $$
begin
    raise exception 'the source default cannot be removed; it can be disabled: select spine.disable_source(''default'')'
        using errcode = 'check_violation', schema = 'spine', table = 'sources';
end $$;
comment on function spine.sources_kept() is 'Internal. Trigger: does not let the source default be removed.';

create or replace trigger sources_kept
    before delete on spine.sources
    for each row when (old.name = 'default')
    execute function spine.sources_kept();
comment on trigger sources_kept on spine.sources is 'The source default stays.';

-- require_source: raises P0002 where there is no such source, and names those that exist.
--   _name  the source
-- Relies on sources_pkey. Reads only.
create or replace function spine.require_source(_name text) returns void
language plpgsql stable
set search_path = spine, pg_temp as $$
begin
    if not exists (select from sources s where s.name = _name) then
        raise exception 'there is no source named %', quote_literal(_name)
            using errcode = 'no_data_found',
                hint = 'Known: ' || (select string_agg(s.name, ', ' order by s.name) from sources s);
    end if;
end $$;
comment on function spine.require_source(text) is 'Internal. Raises P0002 where there is no such source.';

-- put_source: adds a source or gives it other settings. Returns added, changed or unchanged.
--   _name, _settings  as in sources
-- Raises 23514 for wrong settings. Relies on sources_pkey. A crash before the commit leaves the source as it was.
create or replace function spine.put_source(_name text, _settings jsonb) returns text
language plpgsql
set search_path = spine, pg_temp as $$
declare
    _before jsonb;
begin
    insert into sources (name, settings) values (_name, _settings) on conflict (name) do nothing;
    if found then
        return 'added';
    end if;
    select s.settings into _before from sources s where s.name = _name for update;
    if _before = _settings then
        return 'unchanged';
    end if;
    update sources s set settings = _settings where s.name = _name;
    return 'changed';
end $$;
comment on function spine.put_source(text, jsonb) is
    'Adds a source or gives it other settings. Returns added, changed or unchanged. '
    'Example: select spine.put_source(''github'', ''{"preset": "github", "secrets": ["file:github"]}'').';

-- disable_source: takes nothing more from a source. Returns whether that changed something.
--   _name    the source
--   _reason  why, for those who ask later; may be NULL
-- Spine still delivers what it sent before. Relies on sources_pkey. A crash before the commit leaves it as it was.
create or replace function spine.disable_source(_name text, _reason text) returns boolean
language plpgsql
set search_path = spine, pg_temp as $$
begin
    perform require_source(_name);
    update sources s set
        disabled_at = clock_timestamp(),
        disabled_reason = left(nullif(btrim(_reason), ''), 300)
    where s.name = _name and s.disabled_at is null;
    return found;
end $$;
comment on function spine.disable_source(text, text) is
    'Takes nothing more from a source until spine.enable_source(), and says why. '
    'Example: select spine.disable_source(''github'', ''moved to the other cluster'').';

-- disable_source: takes nothing more from a source, without a reason. Returns whether that changed something.
--   _name  the source
-- Relies on sources_pkey. A crash before the commit leaves it as it was.
create or replace function spine.disable_source(_name text) returns boolean
language sql
set search_path = spine, pg_temp as $$
    select disable_source(_name, null)
$$;
comment on function spine.disable_source(text) is
    'Takes nothing more from a source until spine.enable_source(). Its requests get 503. '
    'Spine still delivers what it sent before.';

-- enable_source: takes events from a source again. Returns whether that changed something.
--   _name  the source
-- Relies on sources_pkey. A crash before the commit leaves it as it was.
create or replace function spine.enable_source(_name text) returns boolean
language plpgsql
set search_path = spine, pg_temp as $$
begin
    perform require_source(_name);
    update sources s set disabled_at = null where s.name = _name and s.disabled_at is not null;
    return found;
end $$;
comment on function spine.enable_source(text) is
    'Takes events from a source again that spine.disable_source() closed.';

-- remove_source: removes a source and its rejected requests. Its events stay.
--   _name  the source
-- Relies on sources_pkey and rejected_requests_source. A crash before the commit leaves both as they were.
create or replace function spine.remove_source(_name text) returns void
language plpgsql
set search_path = spine, pg_temp as $$
begin
    perform require_source(_name);
    delete from sources s where s.name = _name;
    delete from rejected_requests r where r.source = _name;
end $$;
comment on function spine.remove_source(text) is 'Removes a source and its rejected requests. Its events stay.';

-- rotate_source: puts a new secret before the others. Returns the settings.
--   _name    the source
--   _secret  the new secret, by reference
--   _keep    how much longer the others stay valid; an earlier end of theirs stays
-- Relies on sources_pkey. A crash before the commit leaves the source as it was.
create or replace function spine.rotate_source(
    _name text,
    _secret text,
    _keep interval default '24 hours')
returns jsonb
language plpgsql
set search_path = spine, pg_temp
set timezone = 'UTC' as $$
declare
    _until constant timestamptz := clock_timestamp() + _keep;
    _settings jsonb;
begin
    perform require_source(_name);
    select s.settings into _settings from sources s where s.name = _name for update;
    -- A secret that is named anew is valid without an end from now on. Those whose time is over go.
    _settings := _settings || jsonb_build_object('secrets', to_jsonb(array[_secret]) || coalesce((
        select jsonb_agg(
            o.secret || jsonb_build_object(
                'until',
                to_char(least((o.secret ->> 'until')::timestamptz, _until), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            order by o.n)
        from (
            select
                case jsonb_typeof(g.secret)
                    when 'object' then g.secret
                    else jsonb_build_object('ref', g.secret)
                end as secret,
                g.n
            from jsonb_array_elements(_settings -> 'secrets') with ordinality g(secret, n)
        ) o
        where o.secret ->> 'ref' <> _secret
            and coalesce((o.secret ->> 'until')::timestamptz > clock_timestamp(), true)
            and _keep > '0'
    ), '[]'));
    update sources s set settings = _settings where s.name = _name;
    return _settings;
end $$;
comment on function spine.rotate_source(text, text, interval) is
    'Gives a source a new secret, by reference. Those before stay valid for a while longer. Returns its settings. '
    'Example: select spine.rotate_source(''github'', ''file:github-2'', ''1 hour'').';

-- tell_sources: notes what a process makes of all sources, and that it is alive. It also clears away the processes that
-- have told nothing for ten minutes.
--   _process  name of the process
--   _reports  array of objects with source, settings_at, state and problems, as in source_reports
-- It writes only what differs. Relies on receivers_pkey and source_reports_pkey. A crash before the commit leaves what
-- the process told before; it tells all again within a minute.
create or replace function spine.tell_sources(_process text, _reports jsonb) returns void
language plpgsql
set search_path = spine, pg_temp as $$
begin
    perform make_durable();
    insert into receivers as r (process) values (_process)
    on conflict (process) do update set told_at = clock_timestamp();
    delete from source_reports s
    where s.process = _process
        and s.source not in (
            select t.source from jsonb_to_recordset(_reports) t(source text) where t.source is not null);
    insert into source_reports as s (process, source, settings_at, state, problems)
    select _process, t.source, t.settings_at, t.state, array(select jsonb_array_elements_text(t.problems))
    from jsonb_to_recordset(_reports) t(source text, settings_at timestamptz, state text, problems jsonb)
    on conflict (process, source) do update set
        settings_at = excluded.settings_at,
        state = excluded.state,
        problems = excluded.problems
    where (s.settings_at, s.state, s.problems)
        is distinct from (excluded.settings_at, excluded.state, excluded.problems);
    delete from receivers r
    where r.process in (
        select g.process
        from receivers g
        where g.told_at < clock_timestamp() - interval '10 minutes'
        for update skip locked);
end $$;
comment on function spine.tell_sources(text, jsonb) is
    'Internal. Notes what a process makes of all sources, and that it is alive.';

-- forget_receiver: removes a process that ends, with all that it told.
--   _process  name of the process
-- Relies on receivers_pkey and source_reports_pkey. After a crash the row stays until others clear it away.
create or replace function spine.forget_receiver(_process text) returns void
language sql
set search_path = spine, pg_temp as $$
    delete from receivers r where r.process = _process
$$;
comment on function spine.forget_receiver(text) is
    'Internal. Removes a process that ends, with all that it told of sources.';
