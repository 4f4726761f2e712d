package observer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// Observer has the database itself note which member committed which rows and
// who owned which shard when, so that a load test can judge order and fences by
// nothing the service says. It is for databases of load tests: it adds triggers.
type Observer struct {
	pool  *pgxpool.Pool
	scope store.Scope
}

// NewObserver returns an observer of one group.
func NewObserver(pool *pgxpool.Pool, scope store.Scope) *Observer {
	return &Observer{pool: pool, scope: scope}
}

const observeSQL = `
create schema if not exists loadtest;

create table if not exists loadtest.commits (
  session text not null
);

create table if not exists loadtest.ownership_spans (
  stream text not null,
  group_name text not null,
  shard integer not null,
  epoch bigint not null,
  owner text
);

create table if not exists loadtest.timing_changes (
  number bigint generated always as identity primary key,
  device_id text not null,
  fence_id text not null,
  kind text not null,
  later_ts timestamptz not null,
  ordinal smallint not null,
  old_revision integer not null,
  new_revision integer not null,
  same boolean not null
);

create table if not exists loadtest.refusal (
  code text not null
);

insert into loadtest.refusal
select ''
where not exists (select from loadtest.refusal);

create table if not exists loadtest.refused_devices (
  device_id text primary key
);

create table if not exists loadtest.deferrals (
  stream text not null,
  group_name text not null,
  entry_id text not null,
  class text not null,
  failed_at timestamptz not null
);

create or replace function loadtest.allowed(device text)
returns boolean
language plpgsql
as $$
begin
  return not exists (select from loadtest.refused_devices where device_id = device);
end
$$;

create or replace function loadtest.note_deferral()
returns trigger
language plpgsql
as $$
begin
  insert into loadtest.deferrals (stream, group_name, entry_id, class, failed_at)
  values (new.stream, new.group_name, new.entry_id, new.class, new.first_failed_at);
  return null;
end
$$;

create or replace function loadtest.note_commit()
returns trigger
language plpgsql
as $$
declare
  refused text := (select code from loadtest.refusal);
begin
  if refused <> '' then
    raise exception using errcode = refused, message = 'refused by a load test';
  end if;
  insert into loadtest.commits (session)
  values (current_setting('application_name'));
  return null;
end
$$;

create or replace function loadtest.note_owner()
returns trigger
language plpgsql
as $$
begin
  insert into loadtest.ownership_spans (stream, group_name, shard, epoch, owner)
  values (new.stream, new.group_name, new.shard, new.epoch, new.owner);
  return null;
end
$$;

create or replace function loadtest.note_timing()
returns trigger
language plpgsql
as $$
declare
  r processor.timing_records := case when tg_op = 'DELETE' then old else new end;
begin
  insert into loadtest.timing_changes (device_id, fence_id, kind, later_ts, ordinal, old_revision, new_revision, same)
  values (r.device_id, r.fence_id, r.kind, r.later_ts, r.ordinal,
    case when tg_op = 'INSERT' then 0 else old.revision end,
    case when tg_op = 'DELETE' then 0 else new.revision end,
    tg_op = 'UPDATE' and (old.fence_version, old.at, old.earlier_ts, old.latitude, old.longitude, old.initial)
      is not distinct from (new.fence_version, new.at, new.earlier_ts, new.latitude, new.longitude, new.initial));
  return null;
end
$$;

create or replace trigger loadtest_note_timing
  after insert or update or delete
  on processor.timing_records
  for each row
  execute function loadtest.note_timing();

create or replace trigger loadtest_note_commit
  after insert
  on public.positions
  for each statement
  execute function loadtest.note_commit();

create or replace trigger loadtest_note_deferral
  after insert
  on processor.deferred
  for each row
  execute function loadtest.note_deferral();

create or replace trigger loadtest_note_owner
  after update of owner, epoch
  on processor.shards
  for each row
  execute function loadtest.note_owner();`

// Install begins to observe. The schema must be there, and no instance at work.
func (o *Observer) Install(ctx context.Context) error {
	_, err := o.pool.Exec(ctx, observeSQL)
	return wrapped("install the observer", err)
}

// Remove ends the observation and drops what was observed.
func (o *Observer) Remove(ctx context.Context) error {
	_, err := o.pool.Exec(ctx, `
drop trigger if exists loadtest_note_commit on public.positions;
drop trigger if exists loadtest_note_deferral on processor.deferred;
drop trigger if exists loadtest_note_owner on processor.shards;
drop trigger if exists loadtest_note_timing on processor.timing_records;
drop schema if exists loadtest cascade`)
	return wrapped("remove the observer", err)
}

// Dated reports whether the server keeps the time of each commit
// (track_commit_timestamp), without which there is nothing to judge by.
func (o *Observer) Dated(ctx context.Context) (bool, error) {
	var on bool
	err := o.pool.QueryRow(ctx, `select current_setting('track_commit_timestamp')::boolean`).Scan(&on)
	return on, wrapped("ask for track_commit_timestamp", err)
}

// How statements that store positions can be refused.
const (
	DiskFull = "53100"
	TimedOut = "57014"
	Raised   = "P0001" // by a trigger of the platform
)

// Refuse has every statement that stores positions fail with a code, or with "" no
// longer.
func (o *Observer) Refuse(ctx context.Context, code string) error {
	_, err := o.pool.Exec(ctx, `update loadtest.refusal set code = $1`, code)
	return wrapped("refuse positions", err)
}

// Constrain adds a constraint to positions that a row of a refused device does not meet, as
// a platform might.
func (o *Observer) Constrain(ctx context.Context) error {
	_, err := o.pool.Exec(ctx, `alter table public.positions add constraint loadtest_allowed check (loadtest.allowed(device_id))`)
	return wrapped("add a constraint", err)
}

// RefuseDevices has every row of these devices refused, and of no others.
func (o *Observer) RefuseDevices(ctx context.Context, devices []string) error {
	_, err := o.pool.Exec(ctx, `
with allowed as (
  delete from loadtest.refused_devices
  where device_id <> all ($1)
)
insert into loadtest.refused_devices
select unnest($1::text[])
on conflict do nothing`, devices)
	return wrapped("refuse devices", err)
}

// Deferrals returns the entries that were deferred at some time, of those given or, with
// nil, of all.
func (o *Observer) Deferrals(ctx context.Context, among []string) (map[oracle.ID]bool, error) {
	rows, err := o.pool.Query(ctx, `
select distinct entry_id
from loadtest.deferrals
where stream = $1
  and group_name = $2
  and ($3::text[] is null or entry_id = any ($3))`, o.scope.Stream, o.scope.Group, among)
	if err != nil {
		return nil, wrapped("read what was deferred", err)
	}
	found := make(map[oracle.ID]bool)
	var text string
	_, err = pgx.ForEachRow(rows, []any{&text}, func() error {
		id, err := telemetry.ParseEntryID(text)
		found[oracle.ID(id)] = true
		return err
	})
	return found, wrapped("read what was deferred", err)
}

// Rejections returns the entries that were deferred because the database rejected them.
func (o *Observer) Rejections(ctx context.Context) ([]oracle.Rejection, error) {
	rows, err := o.pool.Query(ctx, `
select entry_id, failed_at
from loadtest.deferrals
where stream = $1
  and group_name = $2
  and class = 'sink'`, o.scope.Stream, o.scope.Group)
	if err != nil {
		return nil, wrapped("read what was rejected", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r oracle.Rejection, err error) {
		var text string
		var at time.Time
		if err := row.Scan(&text, &at); err != nil {
			return r, err
		}
		id, err := telemetry.ParseEntryID(text)
		r.ID, r.AtUS = oracle.ID(id), at.UnixMicro()
		return r, err
	})
	return list, wrapped("read what was rejected", err)
}

// LockShard locks the row of a shard, as another program might, until unlock.
func (o *Observer) LockShard(ctx context.Context, shard int) (unlock func(context.Context) error, err error) {
	tx, err := o.pool.Begin(ctx)
	if err != nil {
		return nil, wrapped("lock a shard", err)
	}
	if _, err := tx.Exec(ctx, `
select
from processor.shards
where stream = $1
  and group_name = $2
  and shard = $3
for update`, o.scope.Stream, o.scope.Group, shard); err != nil {
		return nil, errors.Join(wrapped("lock a shard", err), tx.Rollback(ctx))
	}
	return func(ctx context.Context) error { return wrapped("unlock a shard", tx.Rollback(ctx)) }, nil
}

// InTransaction returns how many sessions of a member are inside a transaction.
func (o *Observer) InTransaction(ctx context.Context, member string) (n int, err error) {
	err = o.pool.QueryRow(ctx, `
select count(*)
from pg_stat_activity
where application_name = $1
  and xact_start is not null
  and backend_type = 'client backend'`, store.ApplicationName(member)).Scan(&n)
	return n, wrapped("look for transactions of a member", err)
}

// Commits yields the commit of every row of positions, ordered by device ID in
// bytes and device time. A row and the note of its session have the same xmin: that of the
// transaction, or of what follows a savepoint.
func (o *Observer) Commits(ctx context.Context) iter.Seq2[oracle.Commit, error] {
	return func(yield func(oracle.Commit, error) bool) {
		err := pgx.BeginTxFunc(ctx, o.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			if err := withoutStatementTimeout(ctx, tx); err != nil {
				return err
			}
			rows, err := tx.Query(ctx, `
select p.device_id, p.ts, pg_xact_commit_timestamp(p.xmin), coalesce(c.session, '')
from public.positions p
left join (select distinct xmin as xid, session from loadtest.commits) c on c.xid = p.xmin
order by p.device_id collate "C", p.ts`)
			if err != nil {
				return err
			}
			defer rows.Close()
			var c oracle.Commit
			var ts, at time.Time
			var session string
			for rows.Next() {
				if err := rows.Scan(&c.Device, &ts, &at, &session); err != nil {
					return err
				}
				c.TimeUS, c.AtUS, c.Member = ts.UnixMicro(), at.UnixMicro(), store.MemberOf(session)
				if !yield(c, nil) {
					return errEnough
				}
			}
			return rows.Err()
		})
		if err != nil && !errors.Is(err, errEnough) {
			yield(oracle.Commit{}, wrapped("read commits", err))
		}
	}
}

// OwnershipSpans returns every change of ownership in the order of commits.
func (o *Observer) OwnershipSpans(ctx context.Context) ([]oracle.OwnershipSpan, error) {
	rows, err := o.pool.Query(ctx, `
select shard, epoch, coalesce(owner, ''), pg_xact_commit_timestamp(xmin) as at
from loadtest.ownership_spans
where stream = $1
  and group_name = $2
order by at, epoch, owner nulls last`, o.scope.Stream, o.scope.Group)
	if err != nil {
		return nil, wrapped("read owners", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t oracle.OwnershipSpan, err error) {
		var at time.Time
		err = row.Scan(&t.Shard, &t.Epoch, &t.Owner, &at)
		t.FromUS = at.UnixMicro()
		return t, err
	})
	return list, wrapped("read owners", err)
}

// CommitTime is one commit of positions by a member.
type CommitTime struct {
	Member string
	AtUS   int64
}

// CommitTimes returns every commit of positions in order, whatever it stored.
func (o *Observer) CommitTimes(ctx context.Context) ([]CommitTime, error) {
	rows, err := o.pool.Query(ctx, `
select session, pg_xact_commit_timestamp(xmin) as at
from loadtest.commits
order by at`)
	if err != nil {
		return nil, wrapped("read the times of commits", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c CommitTime, err error) {
		var session string
		var at time.Time
		err = row.Scan(&session, &at)
		c.Member, c.AtUS = store.MemberOf(session), at.UnixMicro()
		return c, err
	})
	return list, wrapped("read the times of commits", err)
}

// Deferred returns the entries that wait for another attempt.
func (o *Observer) Deferred(ctx context.Context) ([]telemetry.EntryID, error) {
	return store.NewDeferred(o.pool, o.scope, "observer", deferredTimeout).IDs(ctx)
}

// Requests returns the requests that are not done yet.
func (o *Observer) Requests(ctx context.Context) ([]oracle.Request, error) {
	rows, err := o.pool.Query(ctx, `
select id, kind, state, coalesce(device_id, '')
from processor.requests
where stream = $1
  and group_name = $2
  and state in ('waiting', 'running')
order by id`, o.scope.Stream, o.scope.Group)
	if err != nil {
		return nil, wrapped("read requests", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r oracle.Request, err error) {
		err = row.Scan(&r.Number, &r.Kind, &r.State, &r.Device)
		return r, err
	})
	return list, wrapped("read requests", err)
}

// Losses returns the rows of the ledger, apart from dead letters that an operator
// dropped. It is never nil.
func (o *Observer) Losses(ctx context.Context) ([]oracle.Loss, error) {
	rows, err := o.pool.Query(ctx, `
select cause, coalesce(first_id, '0-0'), coalesce(last_id, '0-0'), coalesce(entries, -1)
from processor.losses
where stream = $1
  and group_name = $2
  and cause <> 'dropped_by_operator'
order by id`, o.scope.Stream, o.scope.Group)
	if err != nil {
		return nil, wrapped("read the ledger", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l oracle.Loss, err error) {
		var first, last string
		if err := row.Scan(&l.Cause, &first, &last, &l.Entries); err != nil {
			return l, err
		}
		from, err := telemetry.ParseEntryID(first)
		if err != nil {
			return l, err
		}
		to, err := telemetry.ParseEntryID(last)
		l.First, l.Last = oracle.ID(from), oracle.ID(to)
		return l, err
	})
	return append([]oracle.Loss{}, list...), wrapped("read the ledger", err)
}

// Missing returns how many of the records given, by device and device time, are not
// stored.
func (o *Observer) Missing(ctx context.Context, devices []string, timesUS []int64) (n int, err error) {
	at := make([]time.Time, len(timesUS))
	for i, us := range timesUS {
		at[i] = time.UnixMicro(us)
	}
	err = o.pool.QueryRow(ctx, `
select count(*)
from unnest($1::text[], $2::timestamptz[]) as r (device_id, ts)
where not exists (
  select
  from public.positions p
  where p.device_id = r.device_id
    and p.ts = r.ts
)`, devices, at).Scan(&n)
	return n, wrapped("look for records", err)
}

// Archived returns each entry whose dead letter was archived: edited,
// replayed, dropped, or removed by retention. One that was refused as it was and has
// been replayed is a record again.
func (o *Observer) Archived(ctx context.Context) (map[oracle.ID]oracle.DeadLetter, error) {
	rows, err := o.pool.Query(ctx, `
select source_id, class, fields, coalesce(shard, 0), attempts, error, coalesce(field, ''), fingerprint, instance,
  coalesce(first_failed_at, 'epoch'), coalesce(last_failed_at, 'epoch')
from processor.dead_letters
where stream = $1
  and group_name = $2
  and (replayed_as is null or class in ('decode', 'invalid', 'too_large'))`, o.scope.Stream, o.scope.Group)
	if err != nil {
		return nil, wrapped("read archived dead letters", err)
	}
	found := make(map[oracle.ID]oracle.DeadLetter)
	var source, class string
	var entry [][]byte
	var is oracle.LetterFields
	var first, last time.Time
	_, err = pgx.ForEachRow(rows, []any{&source, &class, &entry, &is.Shard, &is.Attempts, &is.Error, &is.Field, &is.Fingerprint, &is.Instance, &first, &last}, func() error {
		id, err := telemetry.ParseEntryID(source)
		if err != nil {
			return nil //nolint:nilerr // of no entry that was sent
		}
		texts := make([]string, len(entry))
		for i, text := range entry {
			texts[i] = string(text)
		}
		fields := is
		fields.Sum, fields.FirstUS, fields.LastUS = fleet.SumOf(texts), first.UnixMicro(), last.UnixMicro()
		found[oracle.ID(id)] = oracle.DeadLetter{Source: oracle.ID(id), Class: class, Fields: &fields}
		return nil
	})
	return found, wrapped("read archived dead letters", err)
}

// deferredTimeout is how long the deferred entries may take to read.
const deferredTimeout = time.Minute

func wrapped(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", op, err)
}
