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
  grp text not null,
  shard integer not null check (shard >= 0),
  owner text,
  epoch bigint not null default 0,
  deaths integer not null default 0 check (deaths >= 0),
  run_limit integer check (run_limit > 0),
  owner_since timestamptz,
  updated_at timestamptz not null default now(),
  primary key (stream, grp, shard)
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
comment on column processor.shards.grp is
  'Name of the consumer group.';
comment on column processor.shards.shard is
  'Number of the shard, from 0.';
comment on column processor.shards.owner is
  'Member that owns the shard, with its incarnation; null after a release.';
comment on column processor.shards.epoch is
  'Fencing token, raised at every take-over, never lowered.';
comment on column processor.shards.deaths is
  'Take-overs without a release since the shard last made progress.';
comment on column processor.shards.run_limit is
  'How many entries an owner may have in hand while a crash is suspected; null means no limit.';
comment on column processor.shards.owner_since is
  'When the present owner took the shard.';
comment on column processor.shards.updated_at is
  'When the row last changed.';

create table if not exists processor.progress (
  stream text not null,
  grp text not null,
  shard integer not null check (shard >= 0),
  applied_id text not null,
  updated_at timestamptz not null default now(),
  primary key (stream, grp, shard)
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
comment on column processor.progress.grp is
  'Name of the consumer group.';
comment on column processor.progress.shard is
  'Number of the shard, from 0.';
comment on column processor.progress.applied_id is
  'An entry ID up to which work was committed at some time. A hint, never a reason to acknowledge or skip.';
comment on column processor.progress.updated_at is
  'When the mark was last written.';

create table if not exists processor.assignments (
  stream text not null,
  grp text not null,
  shard integer not null check (shard >= 0),
  member text,
  term bigint not null default 0,
  assigned_at timestamptz not null default now(),
  primary key (stream, grp, shard)
);

comment on table processor.assignments is
  'Who should own which shard, as the leader decided. Commits never lock these rows.';
comment on column processor.assignments.stream is
  'Name of the source stream.';
comment on column processor.assignments.grp is
  'Name of the consumer group.';
comment on column processor.assignments.shard is
  'Number of the shard, from 0.';
comment on column processor.assignments.member is
  'Member the shard is assigned to; null while there is none.';
comment on column processor.assignments.term is
  'Term of the leader that assigned it.';
comment on column processor.assignments.assigned_at is
  'When the assignment last changed.';

create table if not exists processor.leader (
  stream text not null,
  grp text not null,
  term bigint not null default 0,
  member text,
  since timestamptz not null default now(),
  newest_id text,
  gone_id text,
  seen_at timestamptz not null default now(),
  primary key (stream, grp)
);

comment on table processor.leader is
  'The term of the present leader. Each of its writes checks it with processor.check_term.';
comment on column processor.leader.stream is
  'Name of the source stream.';
comment on column processor.leader.grp is
  'Name of the consumer group.';
comment on column processor.leader.term is
  'Fencing token of the leadership, raised at every election, never lowered.';
comment on column processor.leader.member is
  'Member that won the term; null after it resigned.';
comment on column processor.leader.since is
  'When the term began.';
comment on column processor.leader.newest_id is
  'Newest entry of the stream when the leader last looked: if it is gone later, Redis lost its newest entries.';
comment on column processor.leader.gone_id is
  'Entry ID up to which entries that are gone in that way are in the ledger; null where none are.';
comment on column processor.leader.seen_at is
  'When the newest entry was noted.';

create table if not exists processor.losses (
  id bigint generated always as identity primary key,
  dedupe_key text not null unique,
  stream text not null,
  grp text not null,
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
  on processor.losses (stream, grp, detected_at desc);

comment on table processor.losses is
  'The loss ledger: entries that were gone before they could be read or finished.';
comment on column processor.losses.id is
  'Surrogate key.';
comment on column processor.losses.dedupe_key is
  'Names the loss by what was lost, so that recording it again changes nothing.';
comment on column processor.losses.stream is
  'Name of the source stream.';
comment on column processor.losses.grp is
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
  'When the loss was found.';
comment on column processor.losses.detected_by is
  'Member or operator that found it.';
comment on column processor.losses.detail is
  'What the finding rests on.';

create table if not exists processor.incidents (
  id bigint generated always as identity primary key,
  stream text not null,
  grp text not null,
  kind text not null,
  subject text not null default '',
  opened_at timestamptz not null default now(),
  closed_at timestamptz,
  detail jsonb not null default '{}'
);

create unique index if not exists incidents_open
  on processor.incidents (stream, grp, kind, subject)
  where closed_at is null;

comment on table processor.incidents is
  'Things a person should know about: a lost group, a foreign consumer that reads, a shard that does not advance.';
comment on column processor.incidents.id is
  'Surrogate key.';
comment on column processor.incidents.stream is
  'Name of the source stream.';
comment on column processor.incidents.grp is
  'Name of the consumer group.';
comment on column processor.incidents.kind is
  'What happened, one word.';
comment on column processor.incidents.subject is
  'What it happened to, for example a shard or a consumer. One incident of a kind and subject is open at a time.';
comment on column processor.incidents.opened_at is
  'When it was noticed.';
comment on column processor.incidents.closed_at is
  'When it was over; null while it lasts.';
comment on column processor.incidents.detail is
  'Figures and names that belong to it.';

create table if not exists processor.requests (
  id bigint generated always as identity primary key,
  stream text not null,
  grp text not null,
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
  result jsonb,
  started_at timestamptz,
  finished_at timestamptz,
  run_by text,
  check (from_ts <= to_ts)
);

create index if not exists requests_todo
  on processor.requests (stream, grp, shard, id)
  where state in ('waiting', 'running');

create index if not exists requests_device
  on processor.requests (device_id, id desc);

comment on table processor.requests is
  'Work asked for by operators and neighbours, run by the owner of the shard in bounded steps.';
comment on column processor.requests.id is
  'Surrogate key; requests of a shard run in its order.';
comment on column processor.requests.stream is
  'Name of the source stream.';
comment on column processor.requests.grp is
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
  'Names what caused it, for example an entry of recompute:requests, so that it is taken up only once.';
comment on column processor.requests.state is
  'waiting, running, done, failed or cancelled.';
comment on column processor.requests.progress is
  'How far it has come; a new owner goes on from there.';
comment on column processor.requests.result is
  'What it changed, or why it failed.';
comment on column processor.requests.started_at is
  'When it was first taken up.';
comment on column processor.requests.finished_at is
  'When it was done, failed or cancelled.';
comment on column processor.requests.run_by is
  'Member that ran it last.';

create table if not exists processor.deferred (
  stream text not null,
  grp text not null,
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
  primary key (stream, grp, entry_id, digest)
);

create index if not exists deferred_next
  on processor.deferred (stream, grp, shard, next_attempt_at);

create index if not exists deferred_device
  on processor.deferred (device_id);

comment on table processor.deferred is
  'Entries to be tried again later. They are acknowledged, so this is where they live.';
comment on column processor.deferred.stream is
  'Name of the source stream.';
comment on column processor.deferred.grp is
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
  grp text not null,
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
  primary key (stream, grp, source_id, digest)
) with (
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_cost_delay = 0
);

create index if not exists unconfirmed_letters_written
  on processor.unconfirmed_letters (stream, grp, written_at, source_id, digest);

create index if not exists unconfirmed_letters_device
  on processor.unconfirmed_letters (device_id);

comment on table processor.unconfirmed_letters is
  'Dead letters that a failover of Redis could still lose. Written under the fence before they are added to their stream, removed once they are known to be durable there; the leader adds again those that Redis lost.';
comment on column processor.unconfirmed_letters.stream is
  'Name of the source stream.';
comment on column processor.unconfirmed_letters.grp is
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
  'Attempts made before it was given up.';
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
  grp text not null,
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
  unique (stream, grp, dlq_id, source_id, digest)
);

create index if not exists dead_letters_device
  on processor.dead_letters (device_id, exported_at desc);

create index if not exists dead_letters_source
  on processor.dead_letters (stream, grp, source_id);

comment on table processor.dead_letters is
  'Archive of dead letters: written before one is edited, replayed, dropped or trimmed by retention, so that none is gone without a trace.';
comment on column processor.dead_letters.id is
  'Surrogate key.';
comment on column processor.dead_letters.stream is
  'Name of the source stream.';
comment on column processor.dead_letters.grp is
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
  'Attempts made before it was given up.';
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
  'Who changed what by hand.';
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
  grp text,
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

  with held as materialized (
    select s.shard, s.epoch, s.owner
    from processor.shards s
    where s.stream = fence.stream
      and s.grp = fence.grp
      and s.shard = any (fence.shards)
    order by s.shard
    for share
  )
  select string_agg(
    format('shard %s: epoch %s was expected, it is %s, owner %s',
      want.shard,
      coalesce(want.epoch::text, 'unknown'),
      coalesce(held.epoch::text, 'missing'),
      coalesce(held.owner, 'nobody')),
    '; ' order by want.shard)
  into lost
  from unnest(fence.shards, fence.epochs) as want (shard, epoch)
  left join held on held.shard = want.shard
  where (held.epoch = want.epoch and held.owner = fence.owner) is not true;

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
  grp text,
  term bigint,
  member text
) returns void
language plpgsql
set search_path = pg_catalog
as $$
declare
  present record;
begin
  select l.term, l.member
  into present
  from processor.leader l
  where l.stream = check_term.stream
    and l.grp = check_term.grp
  for share;

  if (present.term = check_term.term and present.member = check_term.member) is not true then
    raise exception using
      errcode = 'PF002',
      message = format('%s no longer leads %s', check_term.member, check_term.stream),
      detail = format('term %s was expected, it is %s, member %s',
        check_term.term,
        coalesce(present.term::text, 'missing'),
        coalesce(present.member, 'nobody'));
  end if;
end
$$;
-- +goose StatementEnd

comment on function processor.check_term(text, text, bigint, text) is
  'Part of every transaction of a leader: locks the row of the term and raises PF002 unless it is still the term of the member.';
