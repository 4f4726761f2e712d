-- +goose Up

-- After a restore from a dump of a server that was ahead, its changes of timing_records are
-- removed some at a time, as the others are, and a reader that had not read them begins again.
--
-- Way back: the function as in 0006_timing_changes.sql.

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
    insert into processor.timing_removed as r (tx, id)
    values (next_tx - 1, 9223372036854775807)
    on conflict (single) do update
    set tx = excluded.tx,
      id = excluded.id
    where (excluded.tx, excluded.id) > (r.tx, r.id);
  end if;
  return removed + foreign_rows;
end
$$;
-- +goose StatementEnd
