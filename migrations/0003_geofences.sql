-- +goose Up

-- Geofences as series of versions, and the crossings derived from them.
--
-- Way back, once no instance of a version that reads them runs:
-- drop table processor.timing_records, processor.geofences, processor.geofence_set;
-- drop function processor.geofences_changed(), processor.geofence_versions_disjoint();
-- Timing records can be recomputed from positions and the fence versions.

create table if not exists processor.geofences (
  id text not null,
  version integer not null check (version > 0),
  name text not null,
  kind text not null check (kind in ('area', 'circle', 'gate')),
  geometry jsonb not null check (jsonb_typeof(geometry) = 'object'),
  radius_m double precision check (radius_m > 0),
  valid_from timestamptz,
  valid_to timestamptz,
  enabled boolean not null default true,
  source text not null default 'import' check (source in ('import', 'query')),
  created_at timestamptz not null default now(),
  created_by text not null default '',
  replaced_at timestamptz,
  primary key (id, version),
  check ((kind = 'circle') = (radius_m is not null)),
  check (valid_from < valid_to)
);

create index if not exists geofences_in_force
  on processor.geofences (id, valid_from)
  where replaced_at is null;

comment on table processor.geofences is
  'Versions of geofences. A version is valid for a span of device time; spans of one id do not overlap.';
comment on column processor.geofences.id is
  'Identity of the fence.';
comment on column processor.geofences.version is
  'Number of the version, from 1.';
comment on column processor.geofences.name is
  'Name for people.';
comment on column processor.geofences.kind is
  'area is a Polygon or MultiPolygon, circle a Point with radius_m, gate a LineString with a direction.';
comment on column processor.geofences.geometry is
  'GeoJSON geometry, WGS84, longitude before latitude.';
comment on column processor.geofences.radius_m is
  'Radius of a circle in metres; null for other kinds.';
comment on column processor.geofences.valid_from is
  'Begin of the span of device time in which this version holds, inclusive; null means since ever.';
comment on column processor.geofences.valid_to is
  'End of that span, exclusive; null means for ever.';
comment on column processor.geofences.enabled is
  'False means that the fence is disabled in this span.';
comment on column processor.geofences.source is
  'Who keeps it: import is an operator, query the platform''s own tables.';
comment on column processor.geofences.created_at is
  'When this version was written.';
comment on column processor.geofences.created_by is
  'Who wrote it.';
comment on column processor.geofences.replaced_at is
  'When a later version took over all of its span; such a version is kept for reference only.';

create table if not exists processor.geofence_set (
  id smallint primary key default 1 check (id = 1),
  version bigint not null default 0,
  changed_at timestamptz not null default now()
);

insert into processor.geofence_set default values
on conflict do nothing;

comment on table processor.geofence_set is
  'One row: the version of the set of all fences.';
comment on column processor.geofence_set.id is
  'Always 1.';
comment on column processor.geofence_set.version is
  'Raised by every change of processor.geofences.';
comment on column processor.geofence_set.changed_at is
  'When it was last raised.';

-- +goose StatementBegin
create or replace function processor.geofences_changed()
returns trigger
language plpgsql
set search_path = pg_catalog
as $$
declare
  raised bigint;
begin
  insert into processor.geofence_set as s (id, version)
  values (1, 1)
  on conflict (id) do update
    set version = s.version + 1, changed_at = now()
  returning s.version into raised;

  perform pg_notify('processor_geofences', raised::text);
  return null;
end
$$;
-- +goose StatementEnd

comment on function processor.geofences_changed() is
  'Raises the version of the fence set and announces it on the channel processor_geofences.';

create or replace trigger geofences_changed
  after insert or update or delete or truncate
  on processor.geofences
  for each statement
  execute function processor.geofences_changed();

-- The row of geofence_set, which every change locks until it commits, keeps
-- two transactions from adding overlapping versions unseen by each other.
-- +goose StatementBegin
create or replace function processor.geofence_versions_disjoint()
returns trigger
language plpgsql
set search_path = pg_catalog
as $$
declare
  overlapping text;
begin
  select format('versions %s and %s', a.version, b.version)
  into overlapping
  from processor.geofences a
  join processor.geofences b
    on b.id = a.id
    and b.version > a.version
    and b.replaced_at is null
    and tstzrange(a.valid_from, a.valid_to) && tstzrange(b.valid_from, b.valid_to)
  where a.id = new.id
    and a.replaced_at is null
  limit 1;

  if overlapping is not null then
    raise exception using
      errcode = 'exclusion_violation',
      message = format('geofence %s: %s hold at the same time', new.id, overlapping),
      hint = 'close the earlier version with valid_to or mark it with replaced_at in the same transaction',
      schema = 'processor',
      table = 'geofences',
      constraint = 'geofence_versions_disjoint';
  end if;
  return null;
end
$$;
-- +goose StatementEnd

comment on function processor.geofence_versions_disjoint() is
  'Refuses, at the end of the transaction, versions of one fence that hold at the same device time.';

drop trigger if exists geofence_versions_disjoint on processor.geofences;

create constraint trigger geofence_versions_disjoint
  after insert or update
  on processor.geofences
  deferrable initially deferred
  for each row
  execute function processor.geofence_versions_disjoint();

-- Part of every commit whose crossings were derived: fences that changed since
-- then would make it wrong. Each change of fences requests a recompute in the
-- same transaction, which corrects commits that preceded the change.
-- +goose StatementBegin
create or replace function processor.check_fences(version bigint)
returns void
language plpgsql
set search_path = pg_catalog
as $$
declare
  current_version bigint;
begin
  select s.version into current_version from processor.geofence_set s;
  if current_version is distinct from check_fences.version then
    raise exception using
      errcode = 'PF003',
      message = format('the fences are at version %s', coalesce(current_version::text, 'unknown')),
      detail = format('version %s was used', check_fences.version);
  end if;
end
$$;
-- +goose StatementEnd

comment on function processor.check_fences(bigint) is
  'Part of every commit: raises PF003 unless the set of fences is at this version.';

create table if not exists processor.timing_records (
  id bigint generated always as identity primary key,
  device_id text not null,
  fence_id text not null,
  fence_version integer not null,
  kind text not null check (kind in ('enter', 'exit', 'forward', 'backward')),
  at timestamptz not null,
  earlier_ts timestamptz,
  later_ts timestamptz not null,
  latitude double precision not null,
  longitude double precision not null,
  ordinal smallint not null default 0,
  initial boolean not null default false,
  revision integer not null default 1,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  check (earlier_ts <= later_ts),
  check (initial = (earlier_ts is null))
);

create unique index if not exists timing_records_key
  on processor.timing_records (device_id, fence_id, kind, later_ts, ordinal);

create index if not exists timing_records_last
  on processor.timing_records (device_id, fence_id, later_ts desc, ordinal desc);

create index if not exists timing_records_device_later
  on processor.timing_records (device_id, later_ts);

comment on table processor.timing_records is
  'Crossings of geofences. The last row per device and fence says where the device is.';
comment on column processor.timing_records.id is
  'Surrogate key; not stable when a crossing is derived again under another key.';
comment on column processor.timing_records.device_id is
  'The device.';
comment on column processor.timing_records.fence_id is
  'The fence.';
comment on column processor.timing_records.fence_version is
  'Version of the fence that was valid at the later fix.';
comment on column processor.timing_records.kind is
  'enter or exit of an area or circle, forward or backward through a gate.';
comment on column processor.timing_records.at is
  'Device time of the crossing, interpolated between the two fixes; the later fix across a long gap.';
comment on column processor.timing_records.earlier_ts is
  'Device time of the fix before the crossing; null exactly where initial is true, since there is none.';
comment on column processor.timing_records.later_ts is
  'Device time of the fix after the crossing.';
comment on column processor.timing_records.latitude is
  'Where the crossing was, degrees.';
comment on column processor.timing_records.longitude is
  'Where the crossing was, degrees.';
comment on column processor.timing_records.ordinal is
  'Number of the crossing among those of this fence between the same two fixes, from 0.';
comment on column processor.timing_records.initial is
  'True when it is no crossing: the first fix known of the device was inside.';
comment on column processor.timing_records.revision is
  'Raised each time later knowledge changed the row.';
comment on column processor.timing_records.created_at is
  'When the row was first written.';
comment on column processor.timing_records.updated_at is
  'When the row was last written.';
