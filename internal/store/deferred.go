package store

import (
	"context"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Deferred holds the entries that wait for another attempt. Writer inserts them
// in the transaction that lets them be acknowledged.
type Deferred struct {
	pool    *pgxpool.Pool
	scope   Scope
	member  string
	timeout time.Duration
}

// NewDeferred returns the deferred entries of a group as one member sees them.
func NewDeferred(pool *pgxpool.Pool, scope Scope, member string, timeout time.Duration) *Deferred {
	return &Deferred{pool: pool, scope: scope, member: member, timeout: timeout}
}

// claimDeferredSQL returns an entry whose last attempt began and has no outcome, which
// has class crash, alone. Of entries with the same ID one is returned. What is stored of an
// entry, which may be compressed, says whether it is read to know its size. The rows are
// found again by ctid: no statistics are needed for that to be fast, and they are locked.
// Each shard gives its first rows, as the index has them in order: however many are due, none
// else is read or locked. One that changes meanwhile has another ctid, and waits for the next claim.
const claimDeferredSQL = `
with first as materialized (
  select d.ctid
  from unnest($4::int[], $5::bigint[]) as w (shard, epoch)
  join processor.shards s
    on s.stream = $1
    and s.group_name = $2
    and s.shard = w.shard
    and s.epoch = w.epoch
    and s.owner = $3
  cross join lateral (
    select ctid, next_attempt_at
    from processor.deferred
    where stream = $1
      and group_name = $2
      and shard = w.shard
      and next_attempt_at <= now()
    order by next_attempt_at
    limit $7
  ) d
  order by d.next_attempt_at
  limit $7
),
due as materialized (
  select d.ctid, d.entry_id, d.digest, d.class
  from first
  join processor.deferred d on d.ctid = first.ctid
  where d.next_attempt_at <= now()
  for update of d
),
candidates as (
  (select ctid
  from due
  where class = 'crash'
  order by entry_id, digest
  limit 1)
  union all
  (select distinct on (entry_id) ctid
  from due
  where not exists (select from due where class = 'crash'))
),
stored as (
  select d.ctid, d.next_attempt_at, d.entry_id, d.fields,
    sum(pg_column_size(d.fields)) over (order by d.next_attempt_at, d.entry_id) - pg_column_size(d.fields) as bytes_before
  from candidates
  join processor.deferred d on d.ctid = candidates.ctid
),
sized as (
  select stored.ctid, row_number() over w as n, sum(f.bytes) over w as bytes
  from stored
  cross join lateral (
    select coalesce(sum(octet_length(field)), 0) as bytes
    from unnest(stored.fields) as field
  ) f
  where bytes_before <= $8
  window w as (order by next_attempt_at, entry_id)
),
chosen as materialized (
  select ctid
  from sized
  where n = 1
    or bytes <= $8
)
update processor.deferred d
set next_attempt_at = now() + $6::interval
from chosen
where d.ctid = chosen.ctid
returning d.entry_id, d.shard, d.fields, d.class, d.error, coalesce(d.field, ''), d.fingerprint, d.attempts + 1, d.first_failed_at, d.last_failed_at, d.next_attempt_at, d.instance, d.version,
  (select count(*) from first)`

// Claim returns due entries of the shards given, at most limit and of so many bytes, or
// one that is larger, and protects them from another claim for the lease. Their attempts
// include the one to be made next. Shards owned under another epoch are skipped. more
// reports whether others are due.
func (s *Deferred) Claim(ctx context.Context, held []protocol.ShardLease, lease time.Duration, limit int, maxBytes int64) (claimed []protocol.Deferred, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	shards, epochs := make([]int32, len(held)), make([]int64, len(held))
	for i, h := range held {
		shards[i], epochs[i] = int32(h.Shard), h.Epoch
	}
	rows, err := s.pool.Query(ctx, claimDeferredSQL, s.scope.Stream, s.scope.Group, s.member, shards, epochs, lease, limit, maxBytes)
	if err != nil {
		return nil, false, failure("claim deferred entries", err)
	}
	due := 0
	claimed, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (protocol.Deferred, error) {
		var d protocol.Deferred
		var id string
		var fields [][]byte
		if err := row.Scan(&id, &d.Shard, &fields, &d.Class, &d.Error, &d.Field, &d.Fingerprint, &d.Attempts,
			&d.FirstFailed, &d.LastFailed, &d.NextAttempt, &d.Instance, &d.Version, &due); err != nil {
			return d, err
		}
		d.Entry.Fields = textFields(fields)
		var err error
		d.Entry.ID, err = telemetry.ParseEntryID(id)
		return d, err
	})
	return claimed, due == limit || due > len(claimed), failure("claim deferred entries", err)
}

// beginDeferredSQL sets the class of entries to crash before an attempt: a decision
// overwrites it; without one the process died. The next attempt counts from the start,
// otherwise such an entry would crash one process after the other.
const beginDeferredSQL = `
update processor.deferred d
set class = 'crash',
  attempts = c.attempts
from unnest($3::text[], $4::text[], $5::timestamptz[], $6::int[]) as c (id, digest, lease, attempts)
where d.stream = $1
  and d.group_name = $2
  and d.entry_id = c.id
  and d.digest = c.digest
  and d.next_attempt_at = c.lease
returning d.entry_id`

// Begin notes that attempts of claimed entries begin, and returns those that are
// still claimed. A process that ends before shows nothing of an entry: it may have
// waited behind others, or for Postgres.
func (s *Deferred) Begin(ctx context.Context, claimed []protocol.Deferred) ([]protocol.Deferred, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	refs, leases, attempts := make([]telemetry.Ref, len(claimed)), make([]time.Time, len(claimed)), make([]int32, len(claimed))
	for i := range claimed {
		d := &claimed[i]
		refs[i], leases[i], attempts[i] = d.Entry.Ref(), d.NextAttempt, int32(d.Attempts-1)
		if d.Class == telemetry.ClassCrash {
			attempts[i]++
		}
	}
	ids, digests := columns(refs)
	rows, err := s.pool.Query(ctx, beginDeferredSQL, s.scope.Stream, s.scope.Group, ids, digests, leases, attempts)
	if err != nil {
		return nil, failure("begin attempts of deferred entries", err)
	}
	begun, err := pgx.CollectRows(rows, rowToEntryID)
	if err != nil {
		return nil, failure("begin attempts of deferred entries", err)
	}
	return slices.DeleteFunc(slices.Clone(claimed), func(d protocol.Deferred) bool { return !slices.Contains(begun, d.Entry.ID) }), nil
}

// Return cancels attempts that were not made: the entries are due immediately
// and keep their earlier count of attempts.
func (s *Deferred) Return(ctx context.Context, claimed []protocol.Deferred) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	b := &pgx.Batch{}
	for _, d := range claimed {
		b.Queue(`
update processor.deferred
set class = $4,
  attempts = $5,
  next_attempt_at = now()
where stream = $1
  and group_name = $2
  and entry_id = $3
  and digest = $7
  and next_attempt_at = $6`, s.scope.Stream, s.scope.Group, d.Entry.ID.String(), d.Class, d.Attempts-1, d.NextAttempt, d.Entry.Digest())
	}
	return failure("return deferred entries", s.pool.SendBatch(ctx, b).Close())
}

// waitingSQL lists entries that are acknowledged, but neither stored nor
// dead-lettered yet.
const waitingSQL = `
select entry_id
from processor.deferred
where stream = $1
  and group_name = $2
union all
select source_id
from processor.unconfirmed_letters
where stream = $1
  and group_name = $2
  and added_at is null
  and not queued`

// IDs returns the entries that wait for another attempt.
func (s *Deferred) IDs(ctx context.Context) ([]telemetry.EntryID, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	rows, err := s.pool.Query(ctx, waitingSQL, s.scope.Stream, s.scope.Group)
	if err != nil {
		return nil, failure("list deferred entries", err)
	}
	ids, err := pgx.CollectRows(rows, rowToEntryID)
	return ids, failure("list deferred entries", err)
}

// rowToEntryID scans a row that is the text of an ID.
func rowToEntryID(row pgx.CollectableRow) (telemetry.EntryID, error) {
	text, err := pgx.RowTo[string](row)
	if err != nil {
		return telemetry.EntryID{}, err
	}
	return telemetry.ParseEntryID(text)
}

// Count returns the number of deferred entries.
func (s *Deferred) Count(ctx context.Context) (n int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err = s.pool.QueryRow(ctx, "select count(*) from ("+waitingSQL+") w", s.scope.Stream, s.scope.Group).Scan(&n)
	return n, failure("count deferred entries", err)
}

// queueForget removes deferred entries that are decided.
func queueForget(b *pgx.Batch, scope Scope, refs []telemetry.Ref) {
	ids, digests := columns(refs)
	b.Queue(`
delete from processor.deferred d
using unnest($3::text[], $4::text[]) as r (id, digest)
where d.stream = $1
  and d.group_name = $2
  and d.entry_id = r.id
  and d.digest = r.digest`, scope.Stream, scope.Group, ids, digests)
}

// columns returns the IDs and the digests of entries.
func columns(refs []telemetry.Ref) (ids, digests []string) {
	ids, digests = make([]string, len(refs)), make([]string, len(refs))
	for i, r := range refs {
		ids[i], digests[i] = r.ID.String(), r.Digest
	}
	return ids, digests
}

// deferSQL leaves an entry unchanged that was deferred before and is delivered
// again: its attempts stay counted.
const deferSQL = `
insert into processor.deferred (stream, group_name, entry_id, shard, device_id, fields, class, error, field, fingerprint,
  attempts, first_failed_at, last_failed_at, next_attempt_at, instance, version, digest)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
on conflict (stream, group_name, entry_id, digest) do nothing`

const deferAgainSQL = `
update processor.deferred
set class = $4,
  error = $5,
  field = $6,
  fingerprint = $7,
  attempts = $8,
  last_failed_at = $9,
  next_attempt_at = $10,
  instance = $11,
  version = $12
where stream = $1
  and group_name = $2
  and entry_id = $3
  and digest = $13`

// queueDeferred defers entries as part of a batch's transaction.
func (w *Writer) queueDeferred(b *pgx.Batch, list []protocol.Deferred) {
	for i := range list {
		d := &list[i]
		id := d.Entry.ID.String()
		if d.Again || d.Attempts > 1 { // one that is kept may have one attempt for ever
			b.Queue(deferAgainSQL, w.scope.Stream, w.scope.Group, id, d.Class, storable(d.Error), optional(d.Field),
				storable(d.Fingerprint), d.Attempts, d.LastFailed, d.NextAttempt, d.Instance, d.Version, d.Entry.Digest())
			continue
		}
		b.Queue(deferSQL, w.scope.Stream, w.scope.Group, id, d.Shard, deviceOf(&d.Entry), byteFields(d.Entry.Fields),
			d.Class, storable(d.Error), optional(d.Field), storable(d.Fingerprint), d.Attempts,
			d.FirstFailed, d.LastFailed, d.NextAttempt, d.Instance, d.Version, d.Entry.Digest())
	}
}

// longestDevice is the longest device ID, in bytes, that certainly fits the
// indexes.
const longestDevice = 1000

// deviceOf returns the entry's device if the column can hold it.
func deviceOf(e *telemetry.Entry) *string {
	device, ok := e.Field(telemetry.FieldDeviceID)
	if !ok || len(device) > longestDevice || !utf8.ValidString(device) || strings.ContainsRune(device, 0) {
		return nil
	}
	return &device
}

// storable removes from s what no text column can hold.
func storable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	s = storable(s)
	return &s
}

func byteFields(fields []string) [][]byte {
	out := make([][]byte, len(fields))
	for i, f := range fields {
		out[i] = []byte(f)
	}
	return out
}

func textFields(fields [][]byte) []string {
	out := make([]string, len(fields))
	for i, f := range fields {
		out[i] = string(f)
	}
	return out
}
