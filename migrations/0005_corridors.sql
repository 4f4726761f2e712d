-- +goose Up

-- Corridors: areas drawn as a line with a width.
--
-- Way back, once no corridor is in force and no instance of a version that reads
-- them runs:
-- alter table processor.geofences drop column width_m;

alter table processor.geofences
  add column if not exists width_m double precision
  check (width_m is null or (width_m > 0 and kind = 'area'));

comment on column processor.geofences.width_m is
  'Whole width of a corridor in metres; null for other fences.';
comment on column processor.geofences.kind is
  'area is a Polygon, a MultiPolygon or a LineString with width_m, circle a Point with radius_m, gate a LineString with a direction.';
