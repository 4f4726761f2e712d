-- +goose Up

-- What became of each crossing, for readers that must not miss one: a row for each
-- that was inserted, revised or withdrawn, written by the same transaction.
--
-- Way back: drop view processor.timing_feed; drop trigger timing_inserted on processor.timing_records;
--   drop trigger timing_revised on processor.timing_records; drop trigger timing_withdrawn on processor.timing_records;
--   drop function processor.tell_timing(), processor.expire_timing_changes(interval);
--   drop table processor.timing_removed, processor.timing_shown, processor.timing_changes;

create table if not exists processor.timing_changes (
  tx bigint not null default pg_current_xact_id()::text::bigint,
  id bigint generated always as identity,
  device_id text not null,
  number bigint not null,
  change text not null check (change in ('inserted', 'revised', 'withdrawn', 'erased')),
  crossing jsonb,
  old jsonb,
  changed_at timestamptz not null default now(),
  primary key (tx, id),
  check ((crossing is not null) = (change in ('inserted', 'revised'))),
  check ((old is not null) = (change in ('revised', 'withdrawn'))),
  check ((number = 0) = (change = 'erased'))
);

create unique index if not exists timing_changes_number
  on processor.timing_changes (device_id, number);

comment on table processor.timing_changes is
  'One row for each crossing that was inserted, revised or withdrawn, and for each device that was erased. Read it through processor.timing_feed.';
comment on column processor.timing_changes.tx is
  'Number of the transaction.';
comment on column processor.timing_changes.id is
  'Order within the transaction; tx and id are the position of the row in the feed.';
comment on column processor.timing_changes.device_id is
  'The device.';
comment on column processor.timing_changes.number is
  'Number of the change among those of its device, from 1 and without gaps; 0 is an erasure, after which they are counted anew.';
comment on column processor.timing_changes.change is
  'inserted, revised, withdrawn; erased is everything of the device.';
comment on column processor.timing_changes.crossing is
  'The row of timing_records after the change; null when it went.';
comment on column processor.timing_changes.old is
  'The row of timing_records before the change; null when it came.';
comment on column processor.timing_changes.changed_at is
  'When the transaction began.';

-- One owner at a time commits for a device, so its changes have one order: the next
-- number is looked up, and two that took the same one could not both commit.
-- +goose StatementBegin
create or replace function processor.tell_timing()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog
set timezone = 'UTC'
set extra_float_digits = 1
as $$
begin
  if tg_op = 'INSERT' then
    insert into processor.timing_changes (device_id, number, change, crossing)
    select n.device_id, d.last + row_number() over (partition by n.device_id order by n.id), 'inserted', to_jsonb(n)
    from new_rows n
    join (
      select k.device_id, coalesce((select max(c.number) from processor.timing_changes c where c.device_id = k.device_id), 0) as last
      from (select distinct r.device_id from new_rows r) k
    ) d using (device_id)
    order by n.id;
  elsif tg_op = 'UPDATE' then
    insert into processor.timing_changes (device_id, number, change, crossing, old)
    select n.device_id, d.last + row_number() over (partition by n.device_id order by n.id), 'revised', to_jsonb(n), to_jsonb(o)
    from new_rows n
    join old_rows o using (id)
    join (
      select k.device_id, coalesce((select max(c.number) from processor.timing_changes c where c.device_id = k.device_id), 0) as last
      from (select distinct r.device_id from new_rows r) k
    ) d on d.device_id = n.device_id
    order by n.id;
  else
    insert into processor.timing_changes (device_id, number, change, old)
    select o.device_id, d.last + row_number() over (partition by o.device_id order by o.id), 'withdrawn', to_jsonb(o)
    from old_rows o
    join (
      select k.device_id, coalesce((select max(c.number) from processor.timing_changes c where c.device_id = k.device_id), 0) as last
      from (select distinct r.device_id from old_rows r) k
    ) d using (device_id)
    order by o.id;
  end if;
  return null;
end
$$;
-- +goose StatementEnd

comment on function processor.tell_timing() is
  'Writes what a statement changed in timing_records to timing_changes.';

revoke all on function processor.tell_timing() from public;

create or replace trigger timing_inserted
  after insert on processor.timing_records
  referencing new table as new_rows
  for each statement
  execute function processor.tell_timing();

create or replace trigger timing_revised
  after update on processor.timing_records
  referencing old table as old_rows new table as new_rows
  for each statement
  execute function processor.tell_timing();

create or replace trigger timing_withdrawn
  after delete on processor.timing_records
  referencing old table as old_rows
  for each statement
  execute function processor.tell_timing();

-- A transaction gets its number when it first writes and may commit after those with
-- higher ones. Below the oldest that still runs, none can be added any more.
create or replace view processor.timing_feed as
select tx, id, device_id, number, change, crossing, old, changed_at
from processor.timing_changes
where tx < pg_snapshot_xmin(pg_current_snapshot())::text::bigint;

comment on view processor.timing_feed is
  'The changes of timing_records in an order to which only the end is added: by tx and id.';

-- What retention may remove is what could be read for as long: a transaction that runs for longer
-- holds the feed back, and its changes are old before anyone has seen them. So it notes now and then where
-- the feed ends, and what it removed last, which tells a reader that was away for too long.
create table if not exists processor.timing_shown (
  at timestamptz primary key,
  tx bigint not null
);

comment on table processor.timing_shown is
  'Where processor.timing_feed ended at some times, for its retention.';
comment on column processor.timing_shown.at is
  'The time.';
comment on column processor.timing_shown.tx is
  'Changes with lower numbers could be read from then on.';

create table if not exists processor.timing_removed (
  single boolean primary key default true check (single),
  tx bigint not null,
  id bigint not null
);

comment on table processor.timing_removed is
  'The last change in the order of the feed that retention removed: a reader before it has missed some.';
comment on column processor.timing_removed.single is
  'True: there is one row.';
comment on column processor.timing_removed.tx is
  'As in timing_changes.';
comment on column processor.timing_removed.id is
  'As in timing_changes.';

-- Retention. The newest change of a device stays, which keeps its count; so does, an erasure too,
-- the last row that could be read for that long: who has read all that may go is there. What this
-- server has not reached came with data of another, and would hide what follows.
-- +goose StatementBegin
create or replace function processor.expire_timing_changes(retention interval)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog
as $$
declare
  age constant interval := greatest(expire_timing_changes.retention, interval '1 hour');
  next_tx constant bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
  shown bigint;
  removed bigint;
  foreign_rows bigint;
begin
  delete from processor.timing_shown where tx > next_tx or at > clock_timestamp();
  delete from processor.timing_removed where tx >= next_tx;

  insert into processor.timing_shown (at, tx)
  select clock_timestamp(), pg_snapshot_xmin(pg_current_snapshot())::text::bigint
  where not exists (select from processor.timing_shown where at > now() - age / 50)
  on conflict do nothing;

  select max(h.tx) into shown
  from processor.timing_shown h
  where h.at < now() - age;

  delete from processor.timing_shown
  where at < (select max(h.at) from processor.timing_shown h where h.at < now() - age);

  with gone as (
    delete from processor.timing_changes
    where (tx, id) in (
      select c.tx, c.id
      from processor.timing_changes c
      where c.tx < shown
        and (c.change = 'erased' or exists (
          select from processor.timing_changes n where n.device_id = c.device_id and n.number > c.number))
        and (c.tx, c.id) < (
          select l.tx, l.id
          from processor.timing_changes l
          where l.tx < shown
          order by l.tx desc, l.id desc
          limit 1)
      order by c.tx, c.id
      limit 5000)
    returning tx, id
  ), last_one as (
    insert into processor.timing_removed as r (tx, id)
    select g.tx, g.id
    from gone g
    order by g.tx desc, g.id desc
    limit 1
    on conflict (single) do update
    set tx = excluded.tx,
      id = excluded.id
    where (excluded.tx, excluded.id) > (r.tx, r.id)
  )
  select count(*) into removed from gone;

  -- By the snapshot of this statement: it sees what was committed since the function began.
  delete from processor.timing_changes where tx >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
  get diagnostics foreign_rows = row_count;
  return removed + foreign_rows;
end
$$;
-- +goose StatementEnd

comment on function processor.expire_timing_changes(interval) is
  'Removes changes of timing_records that could be read for longer than the retention, some at a time, and returns how many.';

revoke all on function processor.expire_timing_changes(interval) from public;
