-- +goose Up

-- Everything the service keeps for itself apart from geofences and timing.
--
-- Way back, once no instance runs: drop schema processor cascade; positions
-- stay. Entries held in processor.deferred exist nowhere else: empty that
-- table first by letting an instance run until it is.

create schema if not exists processor;

comment on schema processor is
  'State of the telemetry processor. Written by the processor only; everyone may read.';

create table if not exists processor.settings (
  name text primary key,
  value text not null,
  set_by text not null,
  set_at timestamptz not null default now()
);

comment on table processor.settings is
  'Values pinned for the whole fleet. An instance configured otherwise refuses to start.';
comment on column processor.settings.name is
  'Name of the setting.';
comment on column processor.settings.value is
  'The pinned value as text.';
comment on column processor.settings.set_by is
  'Member or operator that pinned it.';
comment on column processor.settings.set_at is
  'When it was pinned.';

create table if not exists processor.shards (
  stream text not null,
  group_name text not null,
  shard integer not null check (shard >= 0),
  owner text,
  epoch bigint not null default 0,
  crash_count integer not null default 0 check (crash_count >= 0),
  max_in_flight integer check (max_in_flight > 0),
  owner_since timestamptz,
  updated_at timestamptz not null default now(),
  primary key (stream, group_name, shard)
) with (
  fillfactor = 50,
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 100,
  autovacuum_vacuum_cost_delay = 0
);

comment on table processor.shards is
  'The authority on who may commit for a shard: every transaction that writes for it ends with processor.fence.';
comment on column processor.shards.stream is
  'Name of the source stream.';
comment on column processor.shards.group_name is
  'Name of the consumer group.';
comment on column processor.shards.shard is
  'Number of the shard, from 0.';
comment on column processor.shards.owner is
  'Member that owns the shard, with its incarnation; null after a release.';
comment on column processor.shards.epoch is
  'Fencing token, incremented at every acquisition, never lowered.';
comment on column processor.shards.crash_count is
  'Owners that crashed since the shard last made progress.';
comment on column processor.shards.max_in_flight is
  'Maximum entries in flight while the shard is quarantined; null means no limit.';
comment on column processor.shards.owner_since is
  'When the current owner acquired the shard.';
comment on column processor.shards.updated_at is
  'When the row last changed.';

create table if not exists processor.progress (
  stream text not null,
  group_name text not null,
  shard integer not null check (shard >= 0),
  applied_id text not null,
  updated_at timestamptz not null default now(),
  primary key (stream, group_name, shard)
) with (
  fillfactor = 50,
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 100,
  autovacuum_vacuum_cost_delay = 0
);

comment on table processor.progress is
  'Progress marks of the shards, written up to once a second. Kept apart from processor.shards because every commit reads those rows, and under a long snapshot would have to read all their old versions.';
comment on column processor.progress.stream is
  'Name of the source stream.';
comment on column processor.progress.group_name is
  'Name of the consumer group.';
comment on column processor.progress.shard is
  'Number of the shard, from 0.';
comment on column processor.progress.applied_id is
  'An entry ID up to which work was committed at some time. A hint, never a reason to acknowledge or skip.';
comment on column processor.progress.updated_at is
  'When the mark was last written.';

create table if not exists processor.assignments (
  stream text not null,
  group_name text not null,
  shard integer not null check (shard >= 0),
  member text,
  term bigint not null default 0,
  assigned_at timestamptz not null default now(),
  owner_alive_at timestamptz,
  primary key (stream, group_name, shard)
);

comment on table processor.assignments is
  'Desired owner of each shard, as the leader decided. Commits never lock these rows.';
comment on column processor.assignments.stream is
  'Name of the source stream.';
comment on column processor.assignments.group_name is
  'Name of the consumer group.';
comment on column processor.assignments.shard is
  'Number of the shard, from 0.';
comment on column processor.assignments.member is
  'Member the shard is assigned to; null while there is none.';
comment on column processor.assignments.term is
  'Term of the leader that assigned it; 0 if an operator did.';
comment on column processor.assignments.assigned_at is
  'When the assignment last changed.';
comment on column processor.assignments.owner_alive_at is
  'When an owner that had not released the shard last had sessions, which were ended: its process was alive. Null if there was none.';

create table if not exists processor.leader (
  stream text not null,
  group_name text not null,
  term bigint not null default 0,
  member text,
  since timestamptz not null default now(),
  high_watermark_id text,
  accounted_loss_id text,
  observed_at timestamptz not null default now(),
  primary key (stream, group_name)
);

comment on table processor.leader is
  'The term of the current leader. Each of its writes checks it with processor.check_term.';
comment on column processor.leader.stream is
  'Name of the source stream.';
comment on column processor.leader.group_name is
  'Name of the consumer group.';
comment on column processor.leader.term is
  'Fencing token of the leadership, raised at every election, never lowered.';
comment on column processor.leader.member is
  'Member that won the term; null after it resigned.';
comment on column processor.leader.since is
  'When the term began.';
comment on column processor.leader.high_watermark_id is
  'Newest entry that was ever observed in the stream or dispatched: if it is gone, Redis lost its newest entries.';
comment on column processor.leader.accounted_loss_id is
  'Entry ID up to which entries lost in that way are accounted for in the ledger; null if none are.';
comment on column processor.leader.observed_at is
  'When the high-water mark was written.';

create table if not exists processor.losses (
  id bigint generated always as identity primary key,
  dedupe_key text not null unique,
  stream text not null,
  group_name text not null,
  cause text not null check (cause in (
    'trimmed_unread', 'trimmed_pending', 'deleted', 'flush', 'failover',
    'group_lost', 'restored', 'dropped_by_operator')),
  first_id text,
  last_id text,
  entries bigint check (entries >= 0),
  shard integer,
  detected_at timestamptz not null default now(),
  detected_by text not null,
  detail jsonb not null default '{}'
);

create index if not exists losses_stream_detected
  on processor.losses (stream, group_name, detected_at desc);

comment on table processor.losses is
  'The loss ledger: entries lost before they could be read or finished.';
comment on column processor.losses.id is
  'Surrogate key.';
comment on column processor.losses.dedupe_key is
  'Names the loss by what was lost, so that recording it again changes nothing.';
comment on column processor.losses.stream is
  'Name of the source stream.';
comment on column processor.losses.group_name is
  'Name of the consumer group.';
comment on column processor.losses.cause is
  'Suspected cause: trimmed before it was read or while it was pending, deleted, flush, failover, group_lost, restored, dropped_by_operator.';
comment on column processor.losses.first_id is
  'First entry ID of the range, where it is known.';
comment on column processor.losses.last_id is
  'Last entry ID of the range, where it is known.';
comment on column processor.losses.entries is
  'Number of entries lost; null when it cannot be known.';
comment on column processor.losses.shard is
  'Shard whose queue they were on, where that is known.';
comment on column processor.losses.detected_at is
  'When the loss was detected.';
comment on column processor.losses.detected_by is
  'Member or operator that detected it.';
comment on column processor.losses.detail is
  'Evidence of the loss.';

create table if not exists processor.incidents (
  id bigint generated always as identity primary key,
  stream text not null,
  group_name text not null,
  kind text not null,
  subject text not null default '',
  opened_at timestamptz not null default now(),
  closed_at timestamptz,
  detail jsonb not null default '{}'
);

create unique index if not exists incidents_open
  on processor.incidents (stream, group_name, kind, subject)
  where closed_at is null;

comment on table processor.incidents is
  'Things a person should know about: a lost group, a foreign consumer that reads, a shard that does not advance.';
comment on column processor.incidents.id is
  'Surrogate key.';
comment on column processor.incidents.stream is
  'Name of the source stream.';
comment on column processor.incidents.group_name is
  'Name of the consumer group.';
comment on column processor.incidents.kind is
  'What happened, one word.';
comment on column processor.incidents.subject is
  'Affected object, for example a shard or a consumer. At most one incident of a kind and subject is open.';
comment on column processor.incidents.opened_at is
  'When it was opened.';
comment on column processor.incidents.closed_at is
  'When it was resolved; null while it is open.';
comment on column processor.incidents.detail is
  'Details.';

create table if not exists processor.requests (
  id bigint generated always as identity primary key,
  stream text not null,
  group_name text not null,
  kind text not null check (kind in ('rehydrate', 'recompute', 'erase')),
  shard integer not null check (shard >= 0),
  device_id text,
  from_ts timestamptz,
  to_ts timestamptz,
  reason text not null default '',
  requested_by text not null,
  requested_at timestamptz not null default now(),
  source_key text unique,
  state text not null default 'waiting' check (state in ('waiting', 'running', 'done', 'failed', 'cancelled')),
  progress jsonb not null default '{}',
  attempts integer not null default 0 check (attempts >= 0),
  next_attempt_at timestamptz,
  result jsonb,
  started_at timestamptz,
  finished_at timestamptz,
  executed_by text,
  check (from_ts <= to_ts)
);

create index if not exists requests_todo
  on processor.requests (stream, group_name, shard, id)
  where state in ('waiting', 'running');

create index if not exists requests_device
  on processor.requests (device_id, id desc);

comment on table processor.requests is
  'Work requested by operators and other services, executed by the owner of the shard in bounded steps.';
comment on column processor.requests.id is
  'Surrogate key; requests of a shard run in its order.';
comment on column processor.requests.stream is
  'Name of the source stream.';
comment on column processor.requests.group_name is
  'Name of the consumer group.';
comment on column processor.requests.kind is
  'rehydrate reloads state, recompute derives the window again, erase removes the data of a device.';
comment on column processor.requests.shard is
  'Shard of the device.';
comment on column processor.requests.device_id is
  'The device; null means all devices of the shard.';
comment on column processor.requests.from_ts is
  'Begin of the window of device time; null means from the first row.';
comment on column processor.requests.to_ts is
  'End of the window of device time, inclusive; null means to the last row.';
comment on column processor.requests.reason is
  'Why it was asked for.';
comment on column processor.requests.requested_by is
  'Who asked for it.';
comment on column processor.requests.requested_at is
  'When it was asked for.';
comment on column processor.requests.source_key is
  'Idempotency key, for example an entry of recompute:requests, so that it is recorded only once.';
comment on column processor.requests.state is
  'waiting, running, done, failed or cancelled.';
comment on column processor.requests.progress is
  'Progress; a new owner resumes from here.';
comment on column processor.requests.attempts is
  'Attempts that failed since it last made progress; outages count none.';
comment on column processor.requests.next_attempt_at is
  'When to try again after a failed attempt; null means at once.';
comment on column processor.requests.result is
  'What it changed, or why it or its last attempt failed.';
comment on column processor.requests.started_at is
  'When it was first started.';
comment on column processor.requests.finished_at is
  'When it was done, failed or cancelled.';
comment on column processor.requests.executed_by is
  'Member that executed it last.';

create table if not exists processor.devices (
  device_id text primary key,
  stream text not null,
  first_seen_at timestamptz not null default now(),
  last_seen_at timestamptz not null default now()
);

comment on table processor.devices is
  'The devices that have positions, and the stream each belongs to. Written when an owner loads the state of a device; those that were stored before this table was are found by a scan.';
comment on column processor.devices.device_id is
  'Identity of the tracker.';
comment on column processor.devices.stream is
  'Name of the source stream.';
comment on column processor.devices.first_seen_at is
  'When it was registered.';
comment on column processor.devices.last_seen_at is
  'When its state was last loaded, to the day: not when its last record came.';

create table if not exists processor.device_scans (
  stream text primary key,
  from_us bigint not null,
  to_us bigint not null,
  after_device text not null default '',
  done_at timestamptz
);

comment on table processor.device_scans is
  'How far the scan for devices that were stored before processor.devices has come. Delete the row to have it done again.';
comment on column processor.device_scans.stream is
  'Name of the source stream that the devices found are registered for.';
comment on column processor.device_scans.from_us is
  'Begin of the span of device time that is looked into, in microseconds since 1970; what precedes it is done.';
comment on column processor.device_scans.to_us is
  'End of that span, exclusive.';
comment on column processor.device_scans.after_device is
  'Device found last in that span.';
comment on column processor.device_scans.done_at is
  'When the scan ended; null until then.';

create table if not exists processor.deferred (
  stream text not null,
  group_name text not null,
  entry_id text not null,
  digest text not null,
  shard integer not null check (shard >= 0),
  device_id text,
  fields bytea[] not null check (cardinality(fields) % 2 = 0),
  class text not null check (class in ('decode', 'invalid', 'sink', 'crash', 'too_large')),
  error text not null,
  field text,
  fingerprint text not null,
  attempts integer not null check (attempts >= 0),
  first_failed_at timestamptz not null,
  last_failed_at timestamptz not null,
  next_attempt_at timestamptz not null,
  instance text not null,
  version text not null,
  primary key (stream, group_name, entry_id, digest)
);

create index if not exists deferred_next
  on processor.deferred (stream, group_name, shard, next_attempt_at);

create index if not exists deferred_device
  on processor.deferred (device_id);

comment on table processor.deferred is
  'Entries to be retried later. They are acknowledged, so this row is the only copy.';
comment on column processor.deferred.stream is
  'Name of the source stream.';
comment on column processor.deferred.group_name is
  'Name of the consumer group.';
comment on column processor.deferred.entry_id is
  'ID of the entry in the source stream.';
comment on column processor.deferred.digest is
  'Tells the entry from another one that came to have its ID on a stream that was recreated or restored.';
comment on column processor.deferred.shard is
  'Shard the entry belongs to.';
comment on column processor.deferred.device_id is
  'Device of the entry, where it has one that is text.';
comment on column processor.deferred.fields is
  'The entry byte for byte: name, value, name, value and so on.';
comment on column processor.deferred.class is
  'Why it failed: decode, invalid, sink, crash or too_large.';
comment on column processor.deferred.error is
  'The error of the last attempt.';
comment on column processor.deferred.field is
  'The field at fault, where one is.';
comment on column processor.deferred.fingerprint is
  'The same for failures of the same kind.';
comment on column processor.deferred.attempts is
  'Attempts made so far; outages and drains count none.';
comment on column processor.deferred.first_failed_at is
  'When the first attempt failed.';
comment on column processor.deferred.last_failed_at is
  'When the last attempt failed.';
comment on column processor.deferred.next_attempt_at is
  'When to try again.';
comment on column processor.deferred.instance is
  'Instance that made the last attempt.';
comment on column processor.deferred.version is
  'Version of that instance.';

create table if not exists processor.unconfirmed_letters (
  stream text not null,
  group_name text not null,
  source_id text not null,
  digest text not null,
  queued boolean not null,
  shard integer not null check (shard >= 0),
  device_id text,
  fields bytea[] not null check (cardinality(fields) % 2 = 0),
  class text not null,
  error text not null,
  field text,
  fingerprint text not null,
  attempts integer not null,
  first_failed_at timestamptz not null,
  last_failed_at timestamptz not null,
  instance text not null,
  version text not null,
  written_at timestamptz not null default now(),
  added_at timestamptz,
  primary key (stream, group_name, source_id, digest)
) with (
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_cost_delay = 0
);

create index if not exists unconfirmed_letters_written
  on processor.unconfirmed_letters (stream, group_name, written_at, source_id, digest);

create index if not exists unconfirmed_letters_device
  on processor.unconfirmed_letters (device_id);

comment on table processor.unconfirmed_letters is
  'Dead letters that a failover of Redis could still lose. Written under the fence before they are added to their stream, removed once they are known to be durable there; the leader adds again those that Redis lost.';
comment on column processor.unconfirmed_letters.stream is
  'Name of the source stream.';
comment on column processor.unconfirmed_letters.group_name is
  'Name of the consumer group.';
comment on column processor.unconfirmed_letters.source_id is
  'ID of the entry in the source stream.';
comment on column processor.unconfirmed_letters.digest is
  'Tells the entry from another one that came to have its ID on a stream that was recreated or restored.';
comment on column processor.unconfirmed_letters.queued is
  'Whether the entry was pending on its queue when the row was written; if not, it was acknowledged when it was deferred.';
comment on column processor.unconfirmed_letters.shard is
  'Shard of the entry.';
comment on column processor.unconfirmed_letters.device_id is
  'Device of the entry, where it has one that is text.';
comment on column processor.unconfirmed_letters.fields is
  'The original entry byte for byte: name, value, name, value and so on.';
comment on column processor.unconfirmed_letters.class is
  'Why it failed: decode, invalid, sink, crash or too_large.';
comment on column processor.unconfirmed_letters.error is
  'The error of the last attempt.';
comment on column processor.unconfirmed_letters.field is
  'The field at fault, where one is.';
comment on column processor.unconfirmed_letters.fingerprint is
  'The same for failures of the same kind.';
comment on column processor.unconfirmed_letters.attempts is
  'Attempts made before it was dead-lettered.';
comment on column processor.unconfirmed_letters.first_failed_at is
  'When the first attempt failed.';
comment on column processor.unconfirmed_letters.last_failed_at is
  'When the last attempt failed.';
comment on column processor.unconfirmed_letters.instance is
  'Instance that made the last attempt.';
comment on column processor.unconfirmed_letters.version is
  'Version of that instance.';
comment on column processor.unconfirmed_letters.written_at is
  'When the row was written.';
comment on column processor.unconfirmed_letters.added_at is
  'When the letter was in its stream; null until that is known.';

create table if not exists processor.dead_letters (
  id bigint generated always as identity primary key,
  stream text not null,
  group_name text not null,
  dlq_id text not null,
  source_id text not null,
  digest text not null,
  shard integer,
  device_id text,
  fields bytea[] not null check (cardinality(fields) % 2 = 0),
  class text not null,
  error text not null,
  field text,
  fingerprint text not null,
  attempts integer not null,
  first_failed_at timestamptz,
  last_failed_at timestamptz,
  instance text not null,
  version text not null,
  exported_at timestamptz not null default now(),
  exported_by text not null,
  edited_fields bytea[] check (cardinality(edited_fields) % 2 = 0),
  edit_diff text,
  edited_by text,
  edited_at timestamptz,
  replayed_as text,
  replayed_by text,
  replayed_at timestamptz,
  unique (stream, group_name, dlq_id, source_id, digest)
);

create index if not exists dead_letters_device
  on processor.dead_letters (device_id, exported_at desc);

create index if not exists dead_letters_exported
  on processor.dead_letters (exported_at);

create index if not exists dead_letters_source
  on processor.dead_letters (stream, group_name, source_id);

comment on table processor.dead_letters is
  'Archive of dead letters: written before one is edited, replayed, dropped or trimmed by retention, so that none is gone without a trace.';
comment on column processor.dead_letters.id is
  'Surrogate key.';
comment on column processor.dead_letters.stream is
  'Name of the source stream.';
comment on column processor.dead_letters.group_name is
  'Name of the consumer group.';
comment on column processor.dead_letters.dlq_id is
  'ID of the dead letter in its own stream.';
comment on column processor.dead_letters.source_id is
  'ID of the entry in the source stream.';
comment on column processor.dead_letters.digest is
  'Tells the entry from another one that came to have its ID on a stream that was recreated or restored.';
comment on column processor.dead_letters.shard is
  'Shard the entry belonged to.';
comment on column processor.dead_letters.device_id is
  'Device of the entry, where it has one that is text.';
comment on column processor.dead_letters.fields is
  'The original entry byte for byte: name, value, name, value and so on.';
comment on column processor.dead_letters.class is
  'Why it failed: decode, invalid, sink, crash or too_large.';
comment on column processor.dead_letters.error is
  'The error of the last attempt.';
comment on column processor.dead_letters.field is
  'The field at fault, where one is.';
comment on column processor.dead_letters.fingerprint is
  'The same for failures of the same kind.';
comment on column processor.dead_letters.attempts is
  'Attempts made before it was dead-lettered.';
comment on column processor.dead_letters.first_failed_at is
  'When the first attempt failed.';
comment on column processor.dead_letters.last_failed_at is
  'When the last attempt failed.';
comment on column processor.dead_letters.instance is
  'Instance that made the last attempt.';
comment on column processor.dead_letters.version is
  'Version of that instance.';
comment on column processor.dead_letters.exported_at is
  'When it was copied here.';
comment on column processor.dead_letters.exported_by is
  'Member or operator that copied it, or retention.';
comment on column processor.dead_letters.edited_fields is
  'The entry as an operator corrected it, byte for byte; null when it was not.';
comment on column processor.dead_letters.edit_diff is
  'What the correction changed.';
comment on column processor.dead_letters.edited_by is
  'Who corrected it.';
comment on column processor.dead_letters.edited_at is
  'When it was corrected.';
comment on column processor.dead_letters.replayed_as is
  'ID of the entry it was sent again as; null when it was not.';
comment on column processor.dead_letters.replayed_by is
  'Who sent it again.';
comment on column processor.dead_letters.replayed_at is
  'When it was sent again.';

create table if not exists processor.holds (
  stream text not null,
  group_name text not null,
  kind text not null check (kind in ('fleet', 'shard', 'member')),
  subject text not null,
  reason text not null default '',
  set_by text not null,
  set_at timestamptz not null default now(),
  primary key (stream, group_name, kind, subject)
);

comment on table processor.holds is
  'What operators hold back: a fleet or a shard that is paused, a member that is drained.';
comment on column processor.holds.stream is
  'Name of the source stream.';
comment on column processor.holds.group_name is
  'Name of the consumer group.';
comment on column processor.holds.kind is
  'fleet stops dispatching, shard has no owner, member gets no shards.';
comment on column processor.holds.subject is
  'Number of the shard or identity of the member without its incarnation; empty for the fleet.';
comment on column processor.holds.reason is
  'Why it is held back.';
comment on column processor.holds.set_by is
  'Operator that did it.';
comment on column processor.holds.set_at is
  'Since when.';

create table if not exists processor.audit (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  who text not null,
  action text not null,
  target text not null,
  count bigint not null default 0,
  detail jsonb not null default '{}'
);

create index if not exists audit_at
  on processor.audit (at desc);

comment on table processor.audit is
  'Changes made by operators.';
comment on column processor.audit.id is
  'Surrogate key.';
comment on column processor.audit.at is
  'When it was done.';
comment on column processor.audit.who is
  'Operator or member that did it.';
comment on column processor.audit.action is
  'What was done, for example dlq drop or shards resize.';
comment on column processor.audit.target is
  'What it was done to.';
comment on column processor.audit.count is
  'How many things it changed.';
comment on column processor.audit.detail is
  'Filters, values before and after, and the like.';

-- Sequential scans are switched off because a plan made while the table was
-- small would otherwise read all dead row versions that a long snapshot keeps.
-- +goose StatementBegin
create or replace function processor.fence(
  stream text,
  group_name text,
  shards integer[],
  epochs bigint[],
  owner text
) returns void
language plpgsql
set search_path = pg_catalog
set enable_seqscan = off
as $$
declare
  lost text;
begin
  if fence.shards is null or fence.epochs is null then
    raise exception using
      errcode = 'PF001',
      message = 'fence called without shards or epochs';
  end if;

  with owned as materialized (
    select s.shard, s.epoch, s.owner
    from processor.shards s
    where s.stream = fence.stream
      and s.group_name = fence.group_name
      and s.shard = any (fence.shards)
    order by s.shard
    for share
  )
  select string_agg(
    format('shard %s: epoch %s was expected, it is %s, owner %s',
      want.shard,
      coalesce(want.epoch::text, 'unknown'),
      coalesce(owned.epoch::text, 'missing'),
      coalesce(owned.owner, 'none')),
    '; ' order by want.shard)
  into lost
  from unnest(fence.shards, fence.epochs) as want (shard, epoch)
  left join owned on owned.shard = want.shard
  where (owned.epoch = want.epoch and owned.owner = fence.owner) is not true;

  if lost is not null then
    raise exception using
      errcode = 'PF001',
      message = format('shards of %s are no longer owned by %s', fence.stream, fence.owner),
      detail = lost;
  end if;
end
$$;
-- +goose StatementEnd

comment on function processor.fence(text, text, integer[], bigint[], text) is
  'Last statement of every commit: locks the rows of the shards in shard order and raises PF001, naming those that have another epoch or owner or no row.';

-- +goose StatementBegin
create or replace function processor.check_term(
  stream text,
  group_name text,
  term bigint,
  member text
) returns void
language plpgsql
set search_path = pg_catalog
as $$
declare
  current_leader record;
begin
  select l.term, l.member
  into current_leader
  from processor.leader l
  where l.stream = check_term.stream
    and l.group_name = check_term.group_name
  for share;

  if (current_leader.term = check_term.term and current_leader.member = check_term.member) is not true then
    raise exception using
      errcode = 'PF002',
      message = format('%s no longer leads %s', check_term.member, check_term.stream),
      detail = format('term %s was expected, it is %s, member %s',
        check_term.term,
        coalesce(current_leader.term::text, 'missing'),
        coalesce(current_leader.member, 'none'));
  end if;
end
$$;
-- +goose StatementEnd

comment on function processor.check_term(text, text, bigint, text) is
  'Part of every transaction of a leader: locks the row of the term and raises PF002 unless it is still the term of the member.';

-- The service may not delete what happened. This removes, with the rights of its
-- owner, what is older than the retention and a day, some of each table at a time;
-- what was lost stays in the ledger as a sum.
-- +goose StatementBegin
create or replace function processor.expire(
  stream text,
  group_name text,
  retention interval,
  who text
) returns table (name text, removed bigint)
language plpgsql
security definer
set search_path = pg_catalog
as $$
#variable_conflict use_column
declare
  until constant timestamptz := now() - greatest(expire.retention, interval '1 day');
  page constant integer := 5000;
begin
  delete from processor.requests
  where id in (
    select r.id
    from processor.requests r
    where r.stream = expire.stream
      and r.group_name = expire.group_name
      and r.finished_at < until
    limit page);
  get diagnostics removed = row_count;
  name := 'requests';
  return next;

  delete from processor.incidents
  where id in (
    select i.id
    from processor.incidents i
    where i.stream = expire.stream
      and i.group_name = expire.group_name
      and i.closed_at < until
    limit page);
  get diagnostics removed = row_count;
  name := 'incidents';
  return next;

  delete from processor.dead_letters
  where id in (
    select l.id
    from processor.dead_letters l
    where l.exported_at < until
      and l.stream = expire.stream
      and l.group_name = expire.group_name
    limit page);
  get diagnostics removed = row_count;
  name := 'dead_letters';
  return next;

  delete from processor.audit
  where id in (
    select a.id
    from processor.audit a
    where a.at < until
    order by a.at
    limit page);
  get diagnostics removed = row_count;
  name := 'audit';
  return next;

  with gone as (
    delete from processor.losses
    where id in (
      select l.id
      from processor.losses l
      where l.stream = expire.stream
        and l.group_name = expire.group_name
        and l.detected_at < until
        and l.detail ->> 'sum' is null
      limit page)
    returning cause, entries, detected_at
  ), summed as (
    insert into processor.losses as s (dedupe_key, stream, group_name, cause, entries, detected_at, detected_by, detail)
    select format('sum|%s|%s|%s|%s', expire.stream, expire.group_name, g.cause, g.entries is null),
      expire.stream, expire.group_name, g.cause, sum(g.entries), max(g.detected_at), expire.who,
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
  name := 'losses';
  return next;
end
$$;
-- +goose StatementEnd

comment on function processor.expire(text, text, interval, text) is
  'Removes finished requests, closed incidents, archived dead letters, audit and losses beyond the retention, some at a time, and returns how many; the sums of losses stay.';

revoke all on function processor.expire(text, text, interval, text) from public;
