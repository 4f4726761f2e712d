-- +goose Up

-- Several streams in one database: a device belongs to the stream it came from last. Each
-- move to another one is a row, so that owners of the stream that was left forget its state
-- and those of the new one derive its crossings again, whenever the move was committed and
-- however many followed it.
--
-- Way back: drop trigger device_moved on processor.devices; drop function processor.note_move();
--   drop table processor.device_moves; drop index processor.devices_stream.

create index if not exists devices_stream
  on processor.devices (stream, device_id);

create table if not exists processor.device_moves (
  id bigint generated always as identity primary key,
  device_id text not null,
  moved_from text not null,
  moved_to text not null,
  moved_at timestamptz not null default now(),
  forgotten boolean not null default false,
  recomputed boolean not null default false
);

create index if not exists device_moves_device
  on processor.device_moves (device_id);

create index if not exists device_moves_at
  on processor.device_moves (moved_at);

create index if not exists device_moves_left
  on processor.device_moves (moved_from, id)
  where not forgotten;

create index if not exists device_moves_arrived
  on processor.device_moves (moved_to, device_id)
  where not recomputed;

create index if not exists device_moves_followed
  on processor.device_moves (moved_at)
  where forgotten and recomputed;

comment on table processor.device_moves is
  'A row each time that a device comes from another stream than before; kept for a week once both streams have followed it, else for 90 days.';
comment on column processor.device_moves.id is
  'Surrogate key; the moves of a device are in its order.';
comment on column processor.device_moves.device_id is
  'Identity of the tracker.';
comment on column processor.device_moves.moved_from is
  'Stream it came from until then.';
comment on column processor.device_moves.moved_to is
  'Stream it came from then.';
comment on column processor.device_moves.moved_at is
  'When the transaction of its first record of that stream began.';
comment on column processor.device_moves.forgotten is
  'Whether the owners of the stream that was left have been asked to forget its state.';
comment on column processor.device_moves.recomputed is
  'Whether the recompute of its crossings has been requested.';

-- Streams that take the same device at the same time do it in the order of its row.
-- +goose StatementBegin
create or replace function processor.note_move()
returns trigger
language plpgsql
set search_path = pg_catalog
as $$
begin
  insert into processor.device_moves (device_id, moved_from, moved_to)
  values (new.device_id, old.stream, new.stream);
  return null;
end
$$;
-- +goose StatementEnd

comment on function processor.note_move() is
  'Writes to device_moves that a device came from another stream.';

revoke all on function processor.note_move() from public;

create or replace trigger device_moved
  after update of stream on processor.devices
  for each row
  when (old.stream is distinct from new.stream)
  execute function processor.note_move();
