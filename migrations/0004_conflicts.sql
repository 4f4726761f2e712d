-- +goose Up

-- Records that lost their device and time to a record with other content. Of two
-- with the same key the first eligible one is the row of public.positions, else the
-- first; the other is kept here, whole.
--
-- Way back: drop table processor.conflicts;
--   drop function processor.expire_conflicts(text, text, interval);

create table if not exists processor.conflicts (
  id bigint generated always as identity primary key,
  stream text not null,
  group_name text not null,
  device_id text not null,
  ts timestamptz not null,
  digest text not null,
  entry_id text,
  ingested_at timestamptz not null,
  priority smallint not null,
  differs text[] not null,
  record jsonb not null,
  detected_at timestamptz not null default now()
);

create unique index if not exists conflicts_key
  on processor.conflicts (device_id, ts, stream, group_name, digest);

create index if not exists conflicts_detected_at
  on processor.conflicts (detected_at);

comment on table processor.conflicts is
  'Records that lost their device and time to one with other content: the first eligible one counts, else the first.';
comment on column processor.conflicts.id is
  'Surrogate key.';
comment on column processor.conflicts.stream is
  'Name of the source stream.';
comment on column processor.conflicts.group_name is
  'Name of the consumer group.';
comment on column processor.conflicts.device_id is
  'The device.';
comment on column processor.conflicts.ts is
  'Device time of both records.';
comment on column processor.conflicts.digest is
  'MD5 of the record: one that is delivered again is listed once.';
comment on column processor.conflicts.entry_id is
  'Entry of the record; null for one that was a row and was replaced, whose entry no table tells.';
comment on column processor.conflicts.ingested_at is
  'Stream time of the record.';
comment on column processor.conflicts.priority is
  'Priority of the record: 2 is panic.';
comment on column processor.conflicts.differs is
  'Columns of positions in which it differs from the row.';
comment on column processor.conflicts.record is
  'The whole record, by the columns of positions.';
comment on column processor.conflicts.detected_at is
  'When it lost.';

-- Retention: what is older, and what a million newer ones follow.
-- +goose StatementBegin
create or replace function processor.expire_conflicts(
  stream text,
  group_name text,
  retention interval
) returns bigint
language plpgsql
security definer
set search_path = pg_catalog
as $$
declare
  removed bigint;
begin
  delete from processor.conflicts
  where id in (
    select c.id
    from processor.conflicts c
    where c.stream = expire_conflicts.stream
      and c.group_name = expire_conflicts.group_name
      and (c.detected_at < now() - greatest(expire_conflicts.retention, interval '1 day')
        or c.id <= (select max(n.id) from processor.conflicts n) - 1000000)
    order by c.detected_at
    limit 5000);
  get diagnostics removed = row_count;
  return removed;
end
$$;
-- +goose StatementEnd

comment on function processor.expire_conflicts(text, text, interval) is
  'Removes conflicts beyond the retention or a million, some at a time, and returns how many.';

revoke all on function processor.expire_conflicts(text, text, interval) from public;
