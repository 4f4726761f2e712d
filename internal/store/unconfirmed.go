package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Unconfirmed holds dead letters until they are known to be durable in their
// stream. Writer inserts them, in the transaction that dead-letters their
// entries.
type Unconfirmed struct {
	pool    *pgxpool.Pool
	scope   Scope
	timeout time.Duration
}

// NewUnconfirmed returns the unconfirmed dead letters of a group.
func NewUnconfirmed(pool *pgxpool.Pool, scope Scope, timeout time.Duration) *Unconfirmed {
	return &Unconfirmed{pool: pool, scope: scope, timeout: timeout}
}

// unconfirmedSQL marks a letter that was inserted before as not added again.
const unconfirmedSQL = `
insert into processor.unconfirmed_letters (stream, group_name, source_id, digest, queued, shard, device_id, fields, class, error, field,
  fingerprint, attempts, first_failed_at, last_failed_at, instance, version)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
on conflict (stream, group_name, source_id, digest) do update
set added_at = null,
  written_at = now(),
  queued = excluded.queued and unconfirmed_letters.queued`

// queueLetters inserts dead letters as part of a batch's transaction.
func (w *Writer) queueLetters(b *pgx.Batch, list []protocol.Unconfirmed) {
	for i := range list {
		l := &list[i]
		b.Queue(unconfirmedSQL, w.scope.Stream, w.scope.Group, l.Entry.ID.String(), l.Entry.Digest(), l.Queued, l.Shard,
			deviceOf(&l.Entry), byteFields(l.Entry.Fields), l.Class, storable(l.Error), optional(l.Field), storable(l.Fingerprint), l.Attempts,
			l.FirstFailed, l.LastFailed, l.Instance, l.Version)
	}
}

// Added records which entries are dead letters in their stream now.
func (s *Deferred) Added(ctx context.Context, refs []telemetry.Ref) error {
	return markAdded(ctx, s.pool, s.scope, s.timeout, refs, true)
}

// Added records which letters are in their stream now.
func (u *Unconfirmed) Added(ctx context.Context, refs []telemetry.Ref) error {
	return markAdded(ctx, u.pool, u.scope, u.timeout, refs, true)
}

// Queued records which letters Redis lost together with their acknowledgement:
// their entries are pending again.
func (u *Unconfirmed) Queued(ctx context.Context, refs []telemetry.Ref) error {
	return markAdded(ctx, u.pool, u.scope, u.timeout, refs, false)
}

func markAdded(ctx context.Context, pool *pgxpool.Pool, scope Scope, timeout time.Duration, refs []telemetry.Ref, added bool) error {
	if len(refs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ids, digests := columns(refs)
	_, err := pool.Exec(ctx, `
update processor.unconfirmed_letters u
set added_at = case when $5 then now() end
from unnest($3::text[], $4::text[]) as r (id, digest)
where u.stream = $1
  and u.group_name = $2
  and u.source_id = r.id
  and u.digest = r.digest`, scope.Stream, scope.Group, ids, digests, added)
	return failure("record dead letters as added", err)
}

// Page returns the positions of letters that were written more than ago earlier
// and follow after, oldest first, at most limit. The zero position precedes
// all.
func (u *Unconfirmed) Page(ctx context.Context, after protocol.UnconfirmedMark, ago time.Duration, limit int) ([]protocol.UnconfirmedMark, error) {
	const op = "list unconfirmed dead letters"
	ctx, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	rows, err := u.pool.Query(ctx, `
select written_at, source_id, digest
from processor.unconfirmed_letters
where stream = $1
  and group_name = $2
  and written_at < now() - $3::interval
  and (written_at, source_id, digest) > ($4, $5, $6)
order by written_at, source_id, digest
limit $7`, u.scope.Stream, u.scope.Group, ago, after.CommitResult, after.ID.String(), after.Digest, limit)
	if err != nil {
		return nil, failure(op, err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m protocol.UnconfirmedMark, err error) {
		var id string
		if err := row.Scan(&m.CommitResult, &id, &m.Digest); err != nil {
			return m, err
		}
		m.ID, err = telemetry.ParseEntryID(id)
		return m, err
	})
	return list, failure(op, err)
}

// Get returns those of the letters that still exist.
func (u *Unconfirmed) Get(ctx context.Context, refs []telemetry.Ref) ([]protocol.Unconfirmed, error) {
	const op = "read unconfirmed dead letters"
	ctx, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	ids, digests := columns(refs)
	rows, err := u.pool.Query(ctx, `
select u.source_id, u.queued, u.added_at is not null, u.shard, u.fields, u.class, u.error, coalesce(u.field, ''), u.fingerprint, u.attempts,
  u.first_failed_at, u.last_failed_at, u.instance, u.version
from processor.unconfirmed_letters u
join unnest($3::text[], $4::text[]) as r (id, digest)
  on u.source_id = r.id
  and u.digest = r.digest
where u.stream = $1
  and u.group_name = $2
order by u.written_at, u.source_id, u.digest`, u.scope.Stream, u.scope.Group, ids, digests)
	if err != nil {
		return nil, failure(op, err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l protocol.Unconfirmed, err error) {
		var id string
		var fields [][]byte
		if err := row.Scan(&id, &l.Queued, &l.Added, &l.Shard, &fields, &l.Class, &l.Error, &l.Field, &l.Fingerprint, &l.Attempts,
			&l.FirstFailed, &l.LastFailed, &l.Instance, &l.Version); err != nil {
			return l, err
		}
		l.Entry.Fields = textFields(fields)
		l.Entry.ID, err = telemetry.ParseEntryID(id)
		return l, err
	})
	return list, failure(op, err)
}

// Confirmed removes letters that are durable.
func (u *Unconfirmed) Confirmed(ctx context.Context, refs []telemetry.Ref) error {
	return confirmed(ctx, u.pool, u.scope, u.timeout, refs)
}

// Dropped marks archived letters as removed from their stream: they are not
// added again, whatever Redis loses.
func (d *DeadLetters) Dropped(ctx context.Context, letters []protocol.DLQEntry) error {
	refs := make([]telemetry.Ref, len(letters))
	for i := range letters {
		refs[i] = letters[i].Entry.Ref()
	}
	return confirmed(ctx, d.pool, d.scope, d.timeout, refs)
}

func confirmed(ctx context.Context, pool *pgxpool.Pool, scope Scope, timeout time.Duration, refs []telemetry.Ref) error {
	if len(refs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ids, digests := columns(refs)
	_, err := pool.Exec(ctx, `
delete from processor.unconfirmed_letters u
using unnest($3::text[], $4::text[]) as r (id, digest)
where u.stream = $1
  and u.group_name = $2
  and u.source_id = r.id
  and u.digest = r.digest`, scope.Stream, scope.Group, ids, digests)
	return failure("confirm dead letters", err)
}
