-- +goose Up

-- How a crossing was derived, and how sure its time is. Rows from before say nothing
-- until they are derived again: a recompute of all devices fills them.
--
-- Way back: alter table processor.timing_records drop column method, drop column distance_m,
--   drop column speed, drop column max_error_ms;

alter table processor.timing_records
  add column if not exists method text,
  add column if not exists distance_m real,
  add column if not exists speed real,
  add column if not exists max_error_ms bigint;

-- Not valid: to validate it all rows would be read under the strongest lock, and all are
-- null. It holds for every row that is written from now on.
alter table processor.timing_records
  drop constraint if exists timing_records_method_check;
alter table processor.timing_records
  add constraint timing_records_method_check check (method in ('interpolated', 'net change', 'initial')) not valid;

comment on column processor.timing_records.method is
  'How the time was found: interpolated between the two fixes; net change is the later fix, across a long gap or a change of the fence; initial is the first fix known of the device.';
comment on column processor.timing_records.distance_m is
  'Metres between the two fixes, great circle; null for an initial row.';
comment on column processor.timing_records.speed is
  'Speed in km/h that the way between the two fixes takes; null for an initial row.';
comment on column processor.timing_records.max_error_ms is
  'How far from at the crossing may have been, in milliseconds: half the time between the fixes, less where the speeds that both told agree with that of the way, and all of it for a net change; null for an initial row.';
