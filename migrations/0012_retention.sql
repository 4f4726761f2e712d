-- +goose Up

-- Retention removes what it is meant to and no more. Conflicts are counted: their numbers have
-- gaps, since each conflict that is delivered again takes one.
--
-- Way back: the function as in 0004_conflicts.sql.

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
