package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// DeadLetters is the archive: dead letters are written here before they leave
// their stream.
type DeadLetters struct {
	pool    *pgxpool.Pool
	scope   Scope
	timeout time.Duration
	heaps   *heaps
}

// NewDeadLetters returns the archive of a group.
func NewDeadLetters(pool *pgxpool.Pool, scope Scope, timeout time.Duration) *DeadLetters {
	return &DeadLetters{pool: pool, scope: scope, timeout: timeout, heaps: newHeaps(pool)}
}

// Export copies dead letters. One that exists already is left unchanged.
func (d *DeadLetters) Export(ctx context.Context, letters []protocol.DLQEntry, by string) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	b := &pgx.Batch{}
	for i := range letters {
		l := &letters[i]
		class, text := string(l.Class), l.Error
		if l.Err != nil {
			class, text = "foreign", l.Err.Error()
		}
		b.Queue(`
insert into processor.dead_letters (stream, group_name, dlq_id, source_id, shard, device_id, fields, class, error, field,
  fingerprint, attempts, first_failed_at, last_failed_at, instance, version, exported_by, digest)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
on conflict (stream, group_name, dlq_id, source_id, digest) do nothing`,
			d.scope.Stream, d.scope.Group, l.ID.String(), l.Entry.ID.String(), l.Shard, deviceOf(&l.Entry), byteFields(l.Entry.Fields),
			storable(class), storable(text), optional(l.Field), storable(l.Fingerprint), l.Attempts,
			l.FirstFailed, l.LastFailed, storable(l.Instance), storable(l.Version), by, l.Entry.Digest())
	}
	return failure("export dead letters", d.pool.SendBatch(ctx, b).Close())
}

// Now returns the server's time.
func (d *DeadLetters) Now(ctx context.Context) (now time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	err = d.pool.QueryRow(ctx, "select clock_timestamp()").Scan(&now)
	return now, failure("ask Postgres for its time", err)
}

// Edit holds the corrected fields of a dead letter.
type Edit struct {
	ID     telemetry.EntryID // of the dead letter
	Fields []string          // nil for its own: an earlier edit is taken back
	Diff   string            // to its own fields, for people
}

// Edit stores the fields that exported dead letters are to be replayed with:
// for all of them, or for none.
func (d *DeadLetters) Edit(ctx context.Context, edits []Edit, who string) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	b := &pgx.Batch{}
	for _, e := range edits {
		b.Queue(`
update processor.dead_letters
set edited_fields = case when $4 then $5::bytea[] end,
  edit_diff = case when $4 then $6 end,
  edited_by = case when $4 then $7 end,
  edited_at = case when $4 then now() end
where stream = $1
  and group_name = $2
  and dlq_id = $3`, d.scope.Stream, d.scope.Group, e.ID.String(), e.Fields != nil, byteFields(e.Fields), storable(e.Diff), who)
	}
	return failure("edit dead letters", d.pool.SendBatch(ctx, b).Close())
}

// Edited returns the corrected fields of those dead letters that have any.
func (d *DeadLetters) Edited(ctx context.Context, ids []telemetry.EntryID) (map[telemetry.EntryID][]string, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	edited := make(map[telemetry.EntryID][]string)
	rows, err := d.pool.Query(ctx, `
select dlq_id, edited_fields
from processor.dead_letters
where stream = $1
  and group_name = $2
  and dlq_id = any ($3)
  and edited_fields is not null`, d.scope.Stream, d.scope.Group, textIDs(ids))
	if err != nil {
		return nil, failure("look for edited dead letters", err)
	}
	var id string
	var fields [][]byte
	_, err = pgx.ForEachRow(rows, []any{&id, &fields}, func() error {
		parsed, err := telemetry.ParseEntryID(id)
		edited[parsed] = textFields(fields)
		return err
	})
	return edited, failure("look for edited dead letters", err)
}

// WhichEdited returns those dead letters that have corrected fields.
func (d *DeadLetters) WhichEdited(ctx context.Context, ids []telemetry.EntryID) ([]telemetry.EntryID, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	rows, err := d.pool.Query(ctx, `
select dlq_id
from processor.dead_letters
where stream = $1
  and group_name = $2
  and dlq_id = any ($3)
  and edited_fields is not null`, d.scope.Stream, d.scope.Group, textIDs(ids))
	if err != nil {
		return nil, failure("look for edited dead letters", err)
	}
	edited, err := pgx.CollectRows(rows, rowToEntryID)
	return edited, failure("look for edited dead letters", err)
}

func textIDs(ids []telemetry.EntryID) []string {
	text := make([]string, len(ids))
	for i, id := range ids {
		text[i] = id.String()
	}
	return text
}

// Moved has what is archived of entries, and was not replayed, follow their dead letters:
// one that Redis lost was added again, under a later ID. Its edits go with it. The newest of
// an entry's rows follows, and none where the dead letter has one already. A zero ID is
// unknown.
func (d *DeadLetters) Moved(ctx context.Context, refs []telemetry.Ref, letters []telemetry.EntryID) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	var known []telemetry.Ref
	var as []telemetry.EntryID
	for i, id := range letters {
		if !id.IsZero() {
			known, as = append(known, refs[i]), append(as, id)
		}
	}
	if len(known) == 0 {
		return nil
	}
	ids, digests := columns(known)
	_, err := d.pool.Exec(ctx, `
update processor.dead_letters d
set dlq_id = r.letter
from unnest($3::text[], $4::text[], $5::text[]) as r (id, digest, letter)
where d.stream = $1
  and d.group_name = $2
  and d.source_id = r.id
  and d.digest = r.digest
  and d.replayed_as is null
  and (split_part(d.dlq_id, '-', 1)::numeric, split_part(d.dlq_id, '-', 2)::numeric) <
    (split_part(r.letter, '-', 1)::numeric, split_part(r.letter, '-', 2)::numeric)
  and not exists (
    select
    from processor.dead_letters o
    where o.stream = d.stream
      and o.group_name = d.group_name
      and o.source_id = d.source_id
      and o.digest = d.digest
      and (o.id > d.id
        or o.dlq_id = r.letter))`, d.scope.Stream, d.scope.Group, ids, digests, textIDs(as))
	return failure("record dead letters that were added again", err)
}

// Replayed records the entries that dead letters were replayed as.
func (d *DeadLetters) Replayed(ctx context.Context, as map[telemetry.EntryID]telemetry.EntryID, who string) error {
	if len(as) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	ids, entries := make([]string, 0, len(as)), make([]string, 0, len(as))
	for id, entry := range as {
		ids, entries = append(ids, id.String()), append(entries, entry.String())
	}
	_, err := d.pool.Exec(ctx, `
update processor.dead_letters d
set replayed_as = r.entry,
  replayed_by = $5,
  replayed_at = now()
from unnest($3::text[], $4::text[]) as r (id, entry)
where d.stream = $1
  and d.group_name = $2
  and d.dlq_id = r.id`, d.scope.Stream, d.scope.Group, ids, entries, who)
	return failure("record replays", err)
}

// Try runs the complete write of a record in a transaction that is rolled back, and
// returns whether it would have been new, or why it would have been rejected. It holds what
// commits of the same device wait for, so it is one record's.
func (d *DeadLetters) Try(ctx context.Context, record telemetry.Record, rules protocol.Rules) (stored bool, rejected, err error) {
	c, err := d.heaps.now(ctx)
	if err != nil {
		return false, nil, failure("try a replay", err)
	}
	tx, err := d.pool.Begin(ctx)
	if err != nil {
		return false, nil, failure("try a replay", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.timeout)
		defer cancel()
		_ = tx.Rollback(ctx) // a connection that cannot is closed, which also rolls back
	}()
	stored, err = d.try(ctx, tx, c, []telemetry.Record{record}, rules)
	if err = failure("write", err); mayBeOneRow(err) {
		return false, err, nil
	}
	return stored, nil, err
}

func (d *DeadLetters) try(ctx context.Context, tx pgx.Tx, c cuts, records []telemetry.Record, rules protocol.Rules) (bool, error) {
	stored := make([]bool, 1)
	b := &pgx.Batch{}
	queueLate(b, records, stored)
	b.Queue("savepoint " + savepoint)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return false, err
	}
	lost, err := settle(ctx, tx, d.scope, records, stored, 1, rules, new(protocol.CommitResult))
	if err != nil {
		return false, err
	}
	then := &pgx.Batch{}
	if rules.Fences.Len() > 0 {
		list := windows(records, stored, lost, nil, rules)
		found, err := tracks(c, list, rules, inTx(ctx, tx), inTx(ctx, tx), nil, heldLimit)
		if err != nil {
			return false, err
		}
		if _, err := recompute(ctx, tx, list, found, rules, then); err != nil {
			return false, err
		}
	}
	then.Queue(dueNow)
	return stored[0], tx.SendBatch(ctx, then).Close()
}
