-- The index has no entry yet, and still all events are read for it: concurrently, so that nothing waits for that.

-- +goose NO TRANSACTION
-- +goose Up

-- What is left of an attempt that was cut short is not valid.
drop index concurrently if exists spine.events_same_body;
create index concurrently events_same_body on spine.events (source, payload_hash) where id_unsigned;
comment on index spine.events_same_body is 'spine.ingest_events(): whether a body came before under another id, only for sources whose ids are not signed.';
