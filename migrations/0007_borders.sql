-- +goose Up

-- Borders that hold still: when a change counts, as properties of a fence version.
--
-- Way back, once no fence in force has one and no instance of a version that reads
-- them runs:
-- alter table processor.timing_records drop column suppressed;
-- alter table processor.geofences drop column exit_margin_m, drop column min_dwell_s, drop column min_interval_s;

alter table processor.geofences
  add column if not exists exit_margin_m double precision
  check (exit_margin_m is null or (exit_margin_m > 0 and kind <> 'gate')),
  add column if not exists min_dwell_s double precision
  check (min_dwell_s is null or (min_dwell_s > 0 and kind <> 'gate')),
  add column if not exists min_interval_s double precision
  check (min_interval_s is null or (min_interval_s > 0 and kind = 'gate'));

comment on column processor.geofences.exit_margin_m is
  'How far from the fence in metres a device has to be to have left it; null is any distance.';
comment on column processor.geofences.min_dwell_s is
  'How long in seconds of device time a device has to stay inside to have entered, and outside to have left; null is not at all.';
comment on column processor.geofences.min_interval_s is
  'Seconds of device time between two passages of a gate in the same direction that both count; null is none.';

alter table processor.timing_records
  add column if not exists suppressed boolean not null default false;

comment on column processor.timing_records.suppressed is
  'A passage of a gate too soon after the last one that counted in its direction: does not count.';
