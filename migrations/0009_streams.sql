-- +goose Up

-- Several streams in one database: a device belongs to the stream it came from last. Where
-- that changes, the row says from which one and when, so that owners of the stream left
-- forget its state and those of the new one derive its crossings again.
--
-- Way back: drop index processor.devices_stream, processor.devices_moved; alter table processor.devices
--   drop column moved_from, drop column moved_at;

alter table processor.devices
  add column if not exists moved_from text,
  add column if not exists moved_at timestamptz;

create index if not exists devices_stream
  on processor.devices (stream, device_id);

create index if not exists devices_moved
  on processor.devices (moved_at)
  where moved_at is not null;

comment on column processor.devices.moved_from is
  'Stream it came from before this one; null if it never came from another.';
comment on column processor.devices.moved_at is
  'When it first came from this stream after another one.';
