-- The canonical form of a payload, for callers of spine.ingest_events() that leave the hash out. The receiving process
-- computes the same form itself, in internal/source/payload.go. A property test holds both to be equal.

-- utf16_order: a key that sorts text by its UTF-16 code units, as RFC 8785 sorts names.
--   _text  the name
-- Code-point order (UTF-8) differs only for characters beyond U+FFFF. The key therefore has these as their two
-- surrogates (CESU-8). Reads no table.
create or replace function spine.utf16_order(_text text) returns bytea
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp as $$
declare
    _key bytea := '';
    _char text;
    _code integer;
    _unit integer;
begin
    if _text !~ E'[\\U00010000-\\U0010FFFF]' then
        return convert_to(_text, 'UTF8');
    end if;
    foreach _char in array string_to_array(_text, null) loop
        _code := ascii(_char);
        if _code < 65536 then
            _key := _key || convert_to(_char, 'UTF8');
        else
            foreach _unit in array array[55296 + ((_code - 65536) >> 10), 56320 + ((_code - 65536) & 1023)] loop
                _key := _key || decode(
                    to_hex(
                        (14680064 | ((_unit >> 12) << 16))
                        | 32768 | (((_unit >> 6) & 63) << 8)
                        | 128 | (_unit & 63)),
                    'hex');
            end loop;
        end if;
    end loop;
    return _key;
end $$;
comment on function spine.utf16_order(text) is
    'Internal. Key that sorts text by UTF-16 code units, as RFC 8785 sorts names.';

-- canonical: sorted names, no white space, escapes in their shortest form, numbers as written.
--   _value  the payload
-- It never goes by way of jsonb, which changes numbers. It raises 22030 for a name that stands twice in an object, and
-- 22P05 or 22P02 for text that Postgres cannot hold. Reads no table.
create or replace function spine.canonical(_value json) returns text
language plpgsql immutable strict parallel safe
set search_path = spine, pg_temp as $$
declare
    _result text;
begin
    case json_typeof(_value)
    when 'object' then
        if exists (select from json_object_keys(_value) as k(name) group by k.name having count(*) > 1) then
            raise exception 'a name stands twice in an object' using errcode = 'duplicate_json_object_key_value';
        end if;
        select '{' || coalesce(
            string_agg(to_json(m.key)::text || ':' || canonical(m.value), ',' order by utf16_order(m.key)),
            '') || '}'
        into _result
        from json_each(_value) m;
    when 'array' then
        select '[' || coalesce(string_agg(canonical(m.value), ',' order by m.ord), '') || ']'
        into _result
        from json_array_elements(_value) with ordinality as m(value, ord);
    when 'string' then
        _result := to_json(_value #>> '{}')::text;
    else
        _result := btrim(_value::text, E' \t\r\n');
    end case;
    return _result;
end $$;
comment on function spine.canonical(json) is
    'Canonical text of a payload: sorted names, no white space, numbers as written. '
    'events.payload_hash is its SHA-256.';

-- unqueryable: why Postgres cannot query a payload that JSON allows. NULL where it can.
--   _payload  JSON text; other text raises 22P02
-- Not parallel safe: catching an error takes a subtransaction. Reads no table.
create or replace function spine.unqueryable(_payload text) returns text
language plpgsql immutable strict
set search_path = spine, pg_temp as $$
begin
    perform _payload::json;
    begin
        perform canonical(_payload::json);
    exception when data_exception then
        return sqlerrm;
    end;
    return null;
end $$;
comment on function spine.unqueryable(text) is 'Internal. Why Postgres cannot query a JSON text. NULL where it can.';
