-- +goose Up

-- The table of the service this one replaces, column for column. A database
-- that already has it is switched over in place: what exists stays, what is
-- missing is added, extra indexes or a primary key on the same columns are kept.
--
-- Way back: none is needed, an earlier service reads and writes this table as
-- it is. To remove it with everything stored: drop table public.positions;

create table if not exists public.positions (
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
);

alter table public.positions
  add column if not exists faulty boolean not null default false;

-- A hypertable with one chunk a day where TimescaleDB can be had, a plain
-- table otherwise; one that is partitioned already stays as it is. TimescaleDB
-- ends the session when it is created without having been preloaded, hence the
-- check of its settings first.
-- +goose StatementBegin
do $$
declare
  extension_schema text;
begin
  if exists (select from pg_catalog.pg_partitioned_table where partrelid = 'public.positions'::regclass) then
    return;
  end if;

  if not exists (select from pg_catalog.pg_extension where extname = 'timescaledb')
    and exists (select from pg_catalog.pg_available_extensions where name = 'timescaledb')
    and exists (select from pg_catalog.pg_settings where name like 'timescaledb.%')
  then
    begin
      create extension timescaledb;
    exception when others then
      raise warning 'timescaledb is available but was not created: %', sqlerrm;
    end;
  end if;

  select n.nspname
  into extension_schema
  from pg_catalog.pg_extension e
  join pg_catalog.pg_namespace n on n.oid = e.extnamespace
  where e.extname = 'timescaledb';

  if extension_schema is null then
    return;
  end if;

  execute format(
    'select %I.create_hypertable(%L, %L, chunk_time_interval => interval %L,'
    ' create_default_indexes => false, if_not_exists => true, migrate_data => true)',
    extension_schema, 'public.positions', 'ts', '1 day');
end
$$;
-- +goose StatementEnd

create unique index if not exists positions_device_ts
  on public.positions (device_id, ts);

-- A publication of all tables refuses to remove rows of one without an identity,
-- and with it the erasure of a device. Partitions and chunks do not inherit it:
-- processor migrate verify names what is missing there.
-- +goose StatementBegin
do $$
begin
  if exists (select from pg_catalog.pg_class where oid = 'public.positions'::regclass and relkind = 'r' and relreplident = 'd')
    and not exists (select from pg_catalog.pg_index where indrelid = 'public.positions'::regclass and indisprimary)
    and not exists (select from pg_catalog.pg_trigger where tgrelid = 'public.positions'::regclass and tgname = 'ts_insert_blocker')
    and not exists (select from pg_catalog.pg_inherits where inhparent = 'public.positions'::regclass)
    and exists (select from pg_catalog.pg_index where indexrelid = to_regclass('public.positions_device_ts') and indisvalid and indimmediate and indpred is null)
  then
    alter table public.positions replica identity using index positions_device_ts;
  end if;
end
$$;
-- +goose StatementEnd

create index if not exists positions_ts
  on public.positions (ts desc);

create index if not exists positions_faulty_idx
  on public.positions (device_id, ts desc)
  where faulty = false;

comment on table public.positions is
  'One row per device and device time: what the trackers reported.';
comment on column public.positions.device_id is
  'Identity of the tracker, 1 to 64 characters; the IMEI for Teltonika.';
comment on column public.positions.ts is
  'Device time of the fix, cut to microseconds. More than the clock guard ahead of ingested_at means a wrong clock: stored, but ignored by all derivation.';
comment on column public.positions.ingested_at is
  'Stream time: when the entry was added to the stream (for a replayed dead letter: when the original was).';
comment on column public.positions.latitude is
  'Degrees, WGS84. Latitude and longitude both exactly 0 mean that the tracker had no fix.';
comment on column public.positions.longitude is
  'Degrees, WGS84.';
comment on column public.positions.altitude is
  'Metres above sea level as reported.';
comment on column public.positions.angle is
  'Direction of travel, degrees clockwise from north.';
comment on column public.positions.speed is
  'Speed over ground in km/h as reported.';
comment on column public.positions.satellites is
  'Number of satellites used for the fix.';
comment on column public.positions.priority is
  'Priority the tracker gave the record: 0 low, 1 high, 2 panic.';
comment on column public.positions.codec is
  'Codec the record arrived in, for example 8, 8E or 16.';
comment on column public.positions.attributes is
  'IO elements by id. Integers beyond 53 bits are decimal strings, bytes are base64 text.';
comment on column public.positions.faulty is
  'Set by operators only: the row is ignored by every evaluation.';
