-- Gives the service's role in Postgres the least rights that work, where the
-- migrations are applied by another program (processor migrate up as the owner of
-- the schema, then MIGRATE=verify for the service). Run it as that owner, after
-- each upgrade that brings migrations:
--
--   psql "$POSTGRES_MIGRATE_URL" -v role=processor -f deploy/security/postgres.sql
--
-- The role itself: create role processor login; its password belongs in the file
-- that POSTGRES_URL_FILE names.

\set ON_ERROR_STOP on

begin;

revoke create on schema public from public;

grant usage on schema public, processor to :"role";

-- Positions are added, read, and removed when a device is erased; never changed.
grant select, insert, delete on public.positions to :"role";

grant select, insert, update, delete on
  processor.assignments,
  processor.audit,
  processor.dead_letters,
  processor.deferred,
  processor.geofence_set,
  processor.geofences,
  processor.incidents,
  processor.leader,
  processor.losses,
  processor.progress,
  processor.requests,
  processor.settings,
  processor.shards,
  processor.timing_records,
  processor.unconfirmed_letters
to :"role";

-- Which migrations are applied.
grant select on processor.goose_db_version to :"role";

commit;
