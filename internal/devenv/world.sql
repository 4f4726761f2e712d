-- positions as a platform may keep it: one heap for each span of device time.
-- The bounds cut through the times that tests and load tests send, so that what
-- belongs together lies in several.

create table public.positions (
  device_id text not null,
  ts timestamptz not null,
  ingested_at timestamptz not null default now(),
  latitude double precision not null,
  longitude double precision not null,
  altitude real not null,
  angle real not null,
  speed real not null,
  satellites smallint not null,
  priority smallint not null,
  codec text not null,
  attributes jsonb not null,
  faulty boolean not null default false
) partition by range (ts);

do $$
declare
  bounds timestamptz[];
begin
  select array_agg(distinct b order by b)
  into bounds
  from unnest(array[
    '2023-11-14 22:13:35Z', '2023-11-14 22:14:05Z', '2023-11-14 22:25Z',
    '2025-09-13 08:00:05Z', '2025-09-13 08:00:20Z', '2025-09-13 09:00Z',
    '2026-01-01 00:00:03Z', '2026-01-01 00:00:25Z', '2026-01-01 00:30Z', '2026-01-02 00:00Z',
    now() - interval '1 hour', now(), now() + interval '1 minute'
  ]::timestamptz[]) b;

  for i in 0 .. array_length(bounds, 1) loop
    execute format(
      'create table public.positions_p%s partition of public.positions for values from (%s) to (%s)',
      i, coalesce(quote_literal(bounds[i]), 'minvalue'), coalesce(quote_literal(bounds[i + 1]), 'maxvalue'));
  end loop;
end
$$;
