-- +goose Up

-- Retention removes what it is meant to and no more. Conflicts are counted: their numbers have
-- gaps, since each conflict that is delivered again takes one. Readers of timing_feed begin again
-- once after a restore, and not at each page that is removed.
--
-- Way back: the functions as in 0004_conflicts.sql and 0011_foreign_timing_changes.sql;
--   alter table processor.timing_removed drop column more.

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
  surplus bigint; -- the newest that a million others follow
  removed bigint;
begin
  -- All are counted only where there may be as many.
  select n.id into surplus
  from processor.conflicts n
  where (select max(m.id) - min(m.id) from processor.conflicts m) >= 1000000
  order by n.id desc
  offset 1000000
  limit 1;

  delete from processor.conflicts
  where id in (
    select c.id
    from processor.conflicts c
    where c.stream = expire_conflicts.stream
      and c.group_name = expire_conflicts.group_name
      and (c.detected_at < now() - greatest(expire_conflicts.retention, interval '1 day')
        or c.id <= surplus)
    order by c.detected_at
    limit 5000);
  get diagnostics removed = row_count;
  return removed;
end
$$;
-- +goose StatementEnd

alter table processor.timing_removed
  add column if not exists more boolean not null default false;

comment on column processor.timing_removed.more is
  'Whether changes that came with data of another server are being removed, some at a time.';

-- Who has read until before the changes of another server begins again once, as the first of them are
-- removed: who begins after that has all that they told.
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
  delete from processor.timing_changes
  where (tx, id) in (
    select c.tx, c.id
    from processor.timing_changes c
    where c.tx >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    limit 5000);
  get diagnostics foreign_rows = row_count;
  if foreign_rows > 0 then
    -- Who has read until before them begins again: what they told is missing.
    insert into processor.timing_removed as r (tx, id, more)
    values (next_tx - 1, 9223372036854775807, true)
    on conflict (single) do update
    set tx = excluded.tx,
      id = excluded.id,
      more = true
    where not r.more
      and (excluded.tx, excluded.id) >= (r.tx, r.id);
  end if;

  update processor.timing_removed
  set more = false
  where more
    and not exists (
      select
      from processor.timing_changes c
      where c.tx >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint);
  return removed + foreign_rows;
end
$$;
-- +goose StatementEnd
