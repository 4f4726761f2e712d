-- +goose Up

-- Retention removes rows of one table in a transaction, and as many as it is told: what takes too
-- long is tried again with fewer, and holds up no other table. The functions without a page are
-- those of earlier releases. What is over is found by an index, also where nothing is old.
--
-- Way back: drop index processor.requests_finished;
--   drop function processor.expire_page(text, text, text, interval, integer, text),
--   processor.expire_timing_page(interval, bigint, bigint, integer);

create index if not exists requests_finished
  on processor.requests (stream, group_name, finished_at);

-- +goose StatementBegin
create or replace function processor.expire_page(
  name text,
  stream text,
  group_name text,
  retention interval,
  page integer,
  who text
) returns bigint
language plpgsql
security definer
set search_path = pg_catalog
as $$
declare
  until constant timestamptz := now() - greatest(expire_page.retention, interval '1 day');
  surplus bigint; -- the newest conflict that a million others follow
  removed bigint;
begin
  case expire_page.name
  when 'requests' then
    delete from processor.requests
    where id in (
      select r.id
      from processor.requests r
      where r.stream = expire_page.stream
        and r.group_name = expire_page.group_name
        and r.finished_at < until
      limit page);
  when 'incidents' then
    delete from processor.incidents
    where id in (
      select i.id
      from processor.incidents i
      where i.stream = expire_page.stream
        and i.group_name = expire_page.group_name
        and i.closed_at < until
      limit page);
  when 'dead_letters' then
    delete from processor.dead_letters
    where id in (
      select l.id
      from processor.dead_letters l
      where l.exported_at < until
        and l.stream = expire_page.stream
        and l.group_name = expire_page.group_name
      limit page);
  when 'audit' then
    delete from processor.audit
    where id in (
      select a.id
      from processor.audit a
      where a.at < until
      order by a.at
      limit page);
  when 'conflicts' then
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
      where c.stream = expire_page.stream
        and c.group_name = expire_page.group_name
        and (c.detected_at < until or c.id <= surplus)
      order by c.detected_at
      limit page);
  when 'losses' then
    with gone as (
      delete from processor.losses
      where id in (
        select l.id
        from processor.losses l
        where l.stream = expire_page.stream
          and l.group_name = expire_page.group_name
          and l.detected_at < until
          and l.detail ->> 'sum' is null
        limit page)
      returning cause, entries, detected_at
    ), summed as (
      insert into processor.losses as s (dedupe_key, stream, group_name, cause, entries, detected_at, detected_by, detail)
      select format('sum|%s|%s|%s|%s', expire_page.stream, expire_page.group_name, g.cause, g.entries is null),
        expire_page.stream, expire_page.group_name, g.cause, sum(g.entries), max(g.detected_at), expire_page.who,
        jsonb_build_object('sum', count(*))
      from gone g
      group by g.cause, g.entries is null
      on conflict (dedupe_key) do update
      set entries = s.entries + excluded.entries,
        detected_at = excluded.detected_at,
        detected_by = excluded.detected_by,
        detail = jsonb_build_object('sum', (s.detail ->> 'sum')::bigint + (excluded.detail ->> 'sum')::bigint)
    )
    select count(*) into removed from gone;
    return removed;
  end case;
  get diagnostics removed = row_count;
  return removed;
end
$$;
-- +goose StatementEnd

comment on function processor.expire_page(text, text, text, interval, integer, text) is
  'Removes up to a page of rows beyond the retention from one of requests, incidents, dead_letters, audit, conflicts and losses, and returns how many; the sums of losses stay.';

revoke all on function processor.expire_page(text, text, text, interval, integer, text) from public;

-- What stays is passed over once, however many devices have nothing but their newest change: a page
-- is what is looked at, and the next one begins where it ended.
-- +goose StatementBegin
create or replace function processor.expire_timing_page(
  retention interval,
  after_tx bigint,
  after_id bigint,
  page integer,
  out removed bigint,
  out again boolean,
  out next_tx bigint,
  out next_id bigint
)
language plpgsql
security definer
set search_path = pg_catalog
as $$
declare
  age constant interval := greatest(expire_timing_page.retention, interval '1 hour');
  unreached constant bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
  shown bigint;
  looked_at bigint;
  foreign_rows bigint;
begin
  delete from processor.timing_shown where tx > unreached or at > clock_timestamp();
  delete from processor.timing_removed where tx >= unreached;

  insert into processor.timing_shown (at, tx)
  select clock_timestamp(), pg_snapshot_xmin(pg_current_snapshot())::text::bigint
  where not exists (select from processor.timing_shown where at > now() - age / 50)
  on conflict do nothing;

  select max(h.tx) into shown
  from processor.timing_shown h
  where h.at < now() - age;

  delete from processor.timing_shown
  where at < (select max(h.at) from processor.timing_shown h where h.at < now() - age);

  with looked as materialized (
    select c.tx, c.id, c.device_id, c.number, c.change
    from processor.timing_changes c
    where (c.tx, c.id) > (after_tx, after_id)
      and c.tx < shown
      and (c.tx, c.id) < (
        select l.tx, l.id
        from processor.timing_changes l
        where l.tx < shown
        order by l.tx desc, l.id desc
        limit 1)
    order by c.tx, c.id
    limit page
  ), gone as (
    delete from processor.timing_changes
    where (tx, id) in (
      select c.tx, c.id
      from looked c
      where c.change = 'erased'
        or exists (select from processor.timing_changes n where n.device_id = c.device_id and n.number > c.number))
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
  select (select count(*) from gone), (select count(*) from looked), coalesce(max(l.tx), after_tx), coalesce(max(l.id), after_id)
  into removed, looked_at, next_tx, next_id
  from (select tx, id from looked order by tx desc, id desc limit 1) l;

  -- By the snapshot of this statement: it sees what was committed since the function began.
  delete from processor.timing_changes
  where (tx, id) in (
    select c.tx, c.id
    from processor.timing_changes c
    where c.tx >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    limit page);
  get diagnostics foreign_rows = row_count;
  if foreign_rows > 0 then
    -- Who has read until before them begins again: what they told is missing.
    insert into processor.timing_removed as r (tx, id, more)
    values (unreached - 1, 9223372036854775807, true)
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
  removed := removed + foreign_rows;
  again := looked_at = page or foreign_rows = page;
end
$$;
-- +goose StatementEnd

comment on function processor.expire_timing_page(interval, bigint, bigint, integer) is
  'Looks at a page of the changes of timing_records behind one, removes those that could be read for longer than the retention, and returns how many, whether to call again, and behind which one then.';

revoke all on function processor.expire_timing_page(interval, bigint, bigint, integer) from public;

-- Roles that may run the earlier functions may run these: an instance that may not is refused.
-- +goose StatementBegin
do $$
declare
  allowed regrole;
begin
  for allowed in
    select a.grantee::regrole
    from pg_proc p
    cross join lateral aclexplode(p.proacl) a
    where p.oid = 'processor.expire(text, text, interval, text)'::regprocedure
      and a.privilege_type = 'EXECUTE'
      and a.grantee <> 0
      and a.grantee <> p.proowner
  loop
    execute format('grant execute on function processor.expire_page(text, text, text, interval, integer, text), '
      'processor.expire_timing_page(interval, bigint, bigint, integer) to %s', allowed);
  end loop;
end
$$;
-- +goose StatementEnd
