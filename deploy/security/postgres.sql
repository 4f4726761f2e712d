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
revoke all on all tables in schema processor from :"role";
revoke all on public.positions from :"role";

grant usage on schema public, processor to :"role";

-- Positions are added, read, and removed: when a device is erased, and when one that
-- takes no part has the key of one that does; never changed.
grant select, insert, delete on public.positions to :"role";

-- What happened is added and read: the trail of changes and the ledger of losses are
-- not the service's to edit.
grant select, insert on
  processor.audit,
  processor.losses,
  processor.settings
to :"role";

-- State of the fleet, requests, incidents and fences: kept up to date, never removed.
grant select, insert, update on
  processor.assignments,
  processor.device_scans,
  processor.geofence_set,
  processor.geofences,
  processor.incidents,
  processor.leader,
  processor.progress,
  processor.requests,
  processor.shards
to :"role";

-- What comes and goes: crossings that late data or an erased device take back, entries
-- that wait, dead letters on their way, and those of a device that is erased.
grant select, insert, update, delete on
  processor.conflicts,
  processor.dead_letters,
  processor.deferred,
  processor.device_moves,
  processor.devices,
  processor.holds,
  processor.shard_states,
  processor.timing_records,
  processor.unconfirmed_letters
to :"role";

-- What became of crossings: told, and forgotten when a device is erased; never changed.
grant select, insert, delete on processor.timing_changes to :"role";
grant select on processor.timing_feed, processor.timing_removed to :"role";

-- Retention, which removes and counts what is old, and nothing else. The first three are
-- those of instances of the release before, and may be revoked once none of them runs.
grant execute on function processor.expire(text, text, interval, text) to :"role";
grant execute on function processor.expire_conflicts(text, text, interval) to :"role";
grant execute on function processor.expire_timing_changes(interval) to :"role";
grant execute on function processor.expire_page(text, text, text, interval, integer, text) to :"role";
grant execute on function processor.expire_timing_page(interval, bigint, bigint, integer) to :"role";

-- processor shards resize, streams remove and device faulty: with -v operator=true, for a
-- role that persons use.
\if :{?operator}
select set_config('processor.operator', :'role', true);
do $$
begin
  execute format('grant update (faulty) on public.positions to %I', current_setting('processor.operator'));
exception when undefined_column then
  if not exists (select from pg_attribute where attrelid = 'public.positions'::regclass and attname = 'faulty') then
    raise;
  end if;
  raise notice 'chunks are compressed: update on all columns of public.positions was granted';
  -- TimescaleDB passes the grant on to compressed chunks, which have no columns of ours.
  execute format('grant update on public.positions to %I', current_setting('processor.operator'));
end
$$;
-- The sessions of other roles, which may hold what a shard waits for: to see and to end
-- them is an administrator's to grant.
do $$
begin
  execute format('grant pg_read_all_stats, pg_signal_backend to %I', current_setting('processor.operator'));
exception when insufficient_privilege then
  raise notice 'run as an administrator: grant pg_read_all_stats, pg_signal_backend to %', quote_ident(current_setting('processor.operator'));
end
$$;
grant update on processor.settings to :"role";
grant delete on
  processor.assignments,
  processor.device_scans,
  processor.leader,
  processor.progress,
  processor.settings,
  processor.shards
to :"role";
\endif

-- Which migrations are applied.
grant select on processor.goose_db_version to :"role";

commit;
