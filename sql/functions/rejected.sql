-- Rejected requests, as far as Spine keeps them, and how they are read again.

-- keep_rejected: keeps rejected requests and holds their sources to their budgets. Over the budget, the oldest of the
-- cause go first that has most: most rows over the budget of rows, most bytes over that of bytes. A flood of one kind
-- therefore leaves those of another. While a source is disabled, closed or broken, its requests have two budgets more,
-- of the same size. One is for those that the source sent. The other is for those of which nobody can tell. Those that
-- it did not send are among the other causes. What is to be read again stays, and counts.
--   arrays, one element a request:
--   _source, _at, _cause, _status, _detail, _remote, _method, _target, _body, _verified  as in rejected_requests
--   _headers  JSON objects as text. Other text becomes an empty object, so that one request does not fail the others.
--   _body_bytes  size of a body of which only the beginning is kept; NULL for one that is whole
--   arrays, one element a source:
--   _of       the sources whose budgets follow
--   _rows     requests at most; 100,000 however large it is, since each call counts them
--   _bytes    bytes of bodies and headers at most
--   _age      how long to keep them
--   _again    true where the caller handed in some before and does not know the outcome: known ones are left out
-- Locks: it waits for nobody, so that an open transaction elsewhere delays no sources. A row that another transaction
-- holds stays until the next call. With _again it waits for the call before, which may still be running.
-- Relies on rejected_requests_source.
-- A crash before the commit leaves nothing behind.
create or replace function spine.keep_rejected(
    _source text[],
    _at timestamptz[],
    _cause text[],
    _status integer[],
    _detail text[],
    _remote text[],
    _method text[],
    _target text[],
    _headers text[],
    _body bytea[],
    _body_bytes bigint[],
    _verified boolean[],
    _of text[],
    _rows integer[],
    _bytes bigint[],
    _age interval[],
    _again boolean)
returns void
language plpgsql
set search_path = spine, pg_temp
set jit = off as $$
declare
    -- Causes that are no fault of the sender's.
    _ours constant text[] := array['source_disabled', 'source_broken', 'source_closed'];
begin
    perform make_durable();
    if _again then
        perform take_lock('keep_rejected');
    else
        perform try_lock('keep_rejected');
    end if;
    insert into rejected_requests (
        source,
        at,
        cause,
        status,
        detail,
        remote,
        method,
        target,
        headers,
        body,
        body_bytes,
        verified,
        size)
    select
        g.source,
        g.at,
        g.cause,
        g.status,
        g.detail,
        g.remote,
        g.method,
        g.target,
        h.headers::json,
        g.body,
        g.body_bytes,
        g.verified,
        octet_length(g.body) + octet_length(h.headers)
    from unnest(
            _source, _at, _cause, _status, _detail, _remote, _method, _target, _headers, _body, _body_bytes, _verified)
        with ordinality as g(
            source, at, cause, status, detail, remote, method, target, headers, body, body_bytes, verified, ord)
    cross join lateral (select case when unqueryable(g.headers) is null then g.headers else '{}' end as headers) h
    where exists (select from sources s where s.name = g.source) -- it may have been removed meanwhile
        and not (_again and exists (
            select
            from rejected_requests r
            where r.source = g.source
                and r.cause = g.cause
                and r.at = g.at
                and r.remote = g.remote
                and r.target = g.target
                and r.body = g.body))
    order by g.ord;
    -- Of each cause the newest come first, one of each cause after the other, until the rows are as many as may be. Of
    -- these, those come first that need the fewest bytes of their cause, until the bytes are.
    with budget as materialized (
        select b.source, least(b.rows, 100000) as rows, b.bytes, clock_timestamp() - b.age as oldest
        from unnest(_of, _rows, _bytes, _age) as b(source, rows, bytes, age)
    ), kept as (
        select
            r.id,
            r.source,
            case when r.cause = any (_ours) then r.verified else false end as class, -- NULL is one too
            r.state = 'requested' as stays,
            r.size,
            row_number() over (
                partition by r.source, r.cause, case when r.cause = any (_ours) then r.verified else false end
                order by r.state <> 'requested', r.id desc) as n,
            r.cause
        from budget b join rejected_requests r on r.source = b.source
        where r.at >= b.oldest or r.state = 'requested'
    ), counted as (
        select k.*, row_number() over (
            partition by k.source, k.class
            order by not k.stays, k.n, k.id desc) as rows
        from kept k
    ), weighed as (
        select c.*, sum(c.size) over (
            partition by c.source, c.cause, c.class
            order by c.n) as own
        from counted c join budget b on b.source = c.source
        where c.stays or c.rows <= b.rows
    ), fitting as materialized (
        select w.id, w.stays, w.source, sum(w.size) over (
            partition by w.source, w.class
            order by not w.stays, w.own, w.id desc) as bytes
        from weighed w
    )
    delete from rejected_requests r
    where r.id in (
        -- It looks at the state again: somebody may have asked for it meanwhile.
        select o.id
        from rejected_requests o
        where o.source = any (_of)
            and o.state <> 'requested'
            and not exists (
                select
                from fitting f join budget b on b.source = f.source
                where f.id = o.id and (f.stays or f.bytes <= b.bytes))
        for update of o skip locked);
end $$;
comment on function spine.keep_rejected(
    text[], timestamptz[], text[], integer[], text[], text[], text[], text[], text[], bytea[], bigint[], boolean[],
    text[], integer[], bigint[], interval[], boolean) is
    'Internal. Keeps rejected requests within the budgets of their sources.';

-- request_replay: marks rejected requests to be read again, audits that, and tells the API processes. Returns how many.
--   _ids    the requests
--   _trust  whether to accept them without verifying them
-- It leaves those alone that were accepted since, and those of which only the beginning is kept. It leaves marked ones
-- alone too, unless _trust differs.
-- It locks the rows in the order of their numbers, so that two callers do not wait for each other.
-- Relies on rejected_requests_pkey.
-- A crash before the commit leaves nothing behind. Where the notification is lost, the poll of an API process finds the
-- requests.
create or replace function spine.request_replay(_ids bigint[], _trust boolean) returns bigint
language plpgsql
set search_path = spine, pg_temp as $$
declare
    _count bigint;
begin
    perform from (
        select from rejected_requests r where r.id = any (_ids) order by r.id for no key update
    ) locked;
    with requested as (
        update rejected_requests r set state = 'requested', trust = _trust, taken_until = null
        where r.id = any (_ids)
            and r.body_bytes is null
            and (r.state in ('kept', 'refused') or r.state = 'requested' and r.trust <> _trust)
        returning r.id, r.source, r.cause
    ), audited as (
        insert into audit_trail (source, action, details)
        select
            q.source,
            'request_replayed',
            json_strip_nulls(json_build_object(
                'request', q.id,
                'cause', q.cause,
                'trust', nullif(_trust, false),
                'by', session_user,
                'caller', left(nullif(current_setting('spine.caller', true), ''), 300)))
        from requested q
    )
    select count(*) into _count from requested;
    if _count > 0 then
        perform hint('spine_sources', json_build_object('requested', _count)::text);
    end if;
    return _count;
end $$;
comment on function spine.request_replay(bigint[], boolean) is
    'Internal. Marks rejected requests to be read again. Audits that and tells the API processes.';

-- replay_rejected: marks one rejected request to be read again, for example after a secret was corrected.
--   _id     the request
--   _trust  whether to accept it without verifying it
-- An API process (NOTIFY spine_sources) reads it as if it came now, with the time at which it came. It notes the result
-- in the row. A request that was accepted since stays as it is. Raises P0002 where there is no such request, and 55000
-- where only the beginning of its body is kept.
-- Relies on rejected_requests_pkey.
-- A crash before the commit leaves nothing behind.
create or replace function spine.replay_rejected(_id bigint, _trust boolean default false) returns void
language plpgsql
set search_path = spine, pg_temp as $$
declare
    _request record;
begin
    select r.body_bytes, octet_length(r.body) as kept into _request from rejected_requests r where r.id = _id;
    if not found then
        raise exception 'no rejected request % is kept', _id using errcode = 'no_data_found';
    elsif _request.body_bytes is not null then
        raise exception 'only the first % bytes of the body of rejected request % are kept', _request.kept, _id
            using errcode = 'object_not_in_prerequisite_state';
    end if;
    perform request_replay(array[_id], _trust);
end $$;
comment on function spine.replay_rejected(bigint, boolean) is
    'Marks one rejected request to be read again. An API process does that, and notes the result in state and note. '
    'Example: select spine.replay_rejected(12).';

-- replay_rejected: marks the rejected requests of a source to be read again. Returns how many.
--   _source, _cause  only these; NULL for all
--   _since, _until   when they arrived: from (inclusive), to (exclusive)
--   _trust           whether to accept them without verifying them
-- Requests that were accepted since, and those of which only the beginning is kept, stay as they are.
-- Relies on rejected_requests_source.
-- A crash before the commit leaves nothing behind.
create or replace function spine.replay_rejected(
    _source text,
    _cause text default null,
    _since timestamptz default '-infinity',
    _until timestamptz default 'infinity',
    _trust boolean default false)
returns bigint
language sql
set search_path = spine, pg_temp as $$
    select request_replay(array(
        select r.id
        from rejected_requests r
        where (_source is null or r.source = _source)
            and (_cause is null or r.cause = _cause)
            and r.at >= _since
            and r.at < _until
        order by r.id), _trust)
$$;
comment on function spine.replay_rejected(text, text, timestamptz, timestamptz, boolean) is
    'Marks the rejected requests of a source to be read again and returns how many. '
    'Example: select spine.replay_rejected(''github'', ''signature_wrong'').';

-- take_requested: hands out rejected requests to be read again, for 30 seconds.
--   _limit  how many at most
-- Relies on rejected_requests_requested. A crash after the commit leaves requests that are handed out again later.
create or replace function spine.take_requested(_limit integer)
returns setof spine.rejected_requests
language sql
set search_path = spine, pg_temp
set enable_seqscan = off as $$
    update rejected_requests r set taken_until = clock_timestamp() + interval '30 seconds'
    from (
        select q.id
        from rejected_requests q
        where q.state = 'requested' and (q.taken_until is null or q.taken_until < clock_timestamp())
        order by q.id
        limit _limit
        for update skip locked
    ) t
    where r.id = t.id
    returning r.*
$$;
comment on function spine.take_requested(integer) is 'Internal. Hands out rejected requests to be read again.';

-- settle_rejected: notes the result of reading a rejected request again.
--   _id        the request
--   _state     taken_in, or refused
--   _note      the result in words
--   _event_id  the event that it became
--   _trust     how it was read. Somebody may have asked with another _trust meanwhile: then a rejection does not count.
-- Relies on rejected_requests_pkey.
-- A crash before the commit leaves the request to be handed out again.
create or replace function spine.settle_rejected(
    _id bigint,
    _state text,
    _note text,
    _event_id text,
    _trust boolean)
returns void
language sql
set search_path = spine, pg_temp as $$
    update rejected_requests r set
        state = _state,
        note = _note,
        event_id = _event_id,
        settled_at = clock_timestamp(),
        taken_until = null
    where r.id = _id and r.state = 'requested' and (r.trust = _trust or _state = 'taken_in')
$$;
comment on function spine.settle_rejected(bigint, text, text, text, boolean) is
    'Internal. Notes the result of reading a rejected request again.';

-- look_alike: a text in which letters that look alike are equal: O and 0, l, I and 1, upper and lower case.
--   _text  the text
-- Two ids that a person may take for one another have one look-alike. Reads no table.
create or replace function spine.look_alike(_text text) returns text
language sql immutable
set search_path = spine, pg_temp as $$
    select translate(lower(_text collate "C"), 'oli|sbz_', '0111582-')
$$;
comment on function spine.look_alike(text) is 'Internal. A text in which letters that look alike are equal.';

-- word_number: the number under which a word is found again: of the SHA-256 of its look_alike(), the first 8 bytes. Two
-- words with one number are less likely than a fault of the disk.
--   _word  the word. Bytes that are not ASCII stand as octal numbers, as encode() writes them.
-- Reads no table.
create or replace function spine.word_number(_word text) returns bigint
language sql immutable
set search_path = spine, pg_temp as $$
    select ('x' || encode(substring(sha256(convert_to(look_alike(_word), 'UTF8')) for 8), 'hex'))::bit(64)::bigint
$$;
comment on function spine.word_number(text) is 'Internal. The number under which a word is found again.';

-- rejected_words: what may be an id in a rejected request: the word_number() of at most 40 words. Each
-- costs some 130 bytes of WAL, which ingest.Keeper counts.
--   _headers, _target, _body  as in rejected_requests
-- A word has a digit in it, or stands between quotes as a value. Those with a digit come first. Values of headers come
-- before words of the target, and these before strings and words of the body: of its first 8,000 bytes and its last
-- 2,000. Of the headers it reads 8,000 bytes, and of each part 500 words of each kind. A compressed body has none.
-- Senders choose all of these, so the work is bounded. Reads no table.
create or replace function spine.rejected_words(_headers json, _target text, _body bytea) returns bigint[]
language sql immutable
set search_path = spine, pg_temp as $$
    with part as (
        select 1 as place, encode(substring(convert_to(_headers::text, 'UTF8') from 1 for 8000), 'escape') as text
        union all
        select 2, encode(convert_to(_target, 'UTF8'), 'escape')
        union all
        select 3, encode(substring(_body from 1 for 8000), 'escape')
        union all
        select 4, encode(substring(_body from greatest(8001, octet_length(_body) - 1999)), 'escape')
    ), word as (
        -- A string between quotes that no colon follows: the name of a member is no id.
        select p.place, 1 as kind, m.n, m.match[1] as word
        from part p cross join lateral (
            select r.match, r.n
            from regexp_matches(p.text, '"([^"]+)"([[:space:]]*:)?', 'g') with ordinality r(match, n)
            where r.match[2] is null
            limit 500
        ) m
        where p.place <> 2
        union all
        select p.place, 2, m.n, m.match[1]
        from part p cross join lateral (
            select r.match, r.n
            from regexp_matches(p.text, '([^][[:space:]"'',;:&=?<>{}()/]+)', 'g') with ordinality r(match, n)
            where length(r.match[1]) >= 3
                and regexp_replace(r.match[1], E'\\\\[0-7]{3}', '', 'g') ~ '[0-9]' -- without those of encode()
            limit 500
        ) m
        where p.place <> 1
    ), first as (
        select w.word
        from word w
        where length(w.word) <= 4080 -- an id has 255 characters of up to four bytes, each of which may be octal
        group by w.word
        order by regexp_replace(w.word, E'\\\\[0-7]{3}', '', 'g') !~ '[0-9]', min(array[w.place, w.kind, w.n])
        limit 40
    )
    select array(select distinct word_number(f.word) from first f)
$$;
comment on function spine.rejected_words(json, text, bytea) is
    'Internal. Numbers of 40 words in a rejected request that may be ids.';

-- rejected_find_words: notes what may be an id in a request that is kept, so that a search reads no body. A crash
-- before the commit leaves nothing behind.
create or replace function spine.rejected_find_words() returns trigger
language plpgsql
set search_path = spine, pg_temp as $$
begin
    new.words := rejected_words(new.headers, new.target, new.body);
    return new;
end $$;
comment on function spine.rejected_find_words() is
    'Internal. Trigger: notes what may be an id in a rejected request.';

create or replace trigger rejected_find_words
    before insert on spine.rejected_requests
    for each row
    execute function spine.rejected_find_words();
comment on trigger rejected_find_words on spine.rejected_requests is
    'Notes what may be an id in a rejected request.';

-- rejected_like: rejected requests in which an id stands, newest first. Perhaps the event of that id was among them.
--   _text    the id; letters that look alike are equal
--   _source  only this one; all where left out
--   _limit   how many at most
-- It finds the id as a value of a header or of a JSON member, or as a word with a digit in it. A compressed body cannot
-- be searched. An id of several parts, such as GitHub's delivery/hook, is found by its first part too. It reads no
-- body. Relies on rejected_requests_words. Reads only.
create or replace function spine.rejected_like(_text text, _source text default null, _limit integer default 10)
returns table (id bigint, source text, at timestamptz, cause text, status integer, state text)
language sql stable
set search_path = spine, pg_temp
set jit = off
set enable_seqscan = off
set enable_indexscan = off as $$
    -- Materialized, so that the order does not invite the planner to walk all requests.
    with found as materialized (
        select r.id, r.source, r.at, r.cause, r.status, r.state
        from rejected_requests r
        where r.words && array[
            word_number(encode(convert_to(btrim(_text), 'UTF8'), 'escape')),
            word_number(encode(convert_to(split_part(btrim(_text), '/', 1), 'UTF8'), 'escape'))]
            and btrim(_text) <> ''
            and (_source is null or r.source = _source)
    )
    select f.* from found f order by f.id desc limit _limit
$$;
comment on function spine.rejected_like(text, text, integer) is
    'Rejected requests in which an id stands; letters that look alike are equal. '
    'Example: select * from spine.rejected_like(''test-001'').';
