package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Ledger records losses and incidents.
type Ledger struct {
	pool    *pgxpool.Pool
	scope   Scope
	member  string
	timeout time.Duration
}

// NewLedger returns the ledger as written by one member.
func NewLedger(pool *pgxpool.Pool, scope Scope, member string, timeout time.Duration) *Ledger {
	return &Ledger{pool: pool, scope: scope, member: member, timeout: timeout}
}

// RecordLosses records losses. It is idempotent.
func (l *Ledger) RecordLosses(ctx context.Context, losses []protocol.Loss) error {
	if len(losses) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	b := &pgx.Batch{}
	for _, loss := range losses {
		var entries *int64
		if loss.Entries >= 0 {
			entries = &loss.Entries
		}
		var shard *int
		if loss.Shard >= 0 {
			shard = &loss.Shard
		}
		key := fmt.Sprintf("%s|%s|%s|%s|%s|%d", l.scope.Stream, l.scope.Group, loss.Cause, loss.First, loss.Last, loss.Entries)
		b.Queue(`
insert into processor.losses (dedupe_key, stream, group_name, cause, first_id, last_id, entries, shard, detected_by)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (dedupe_key) do nothing`,
			key, l.scope.Stream, l.scope.Group, loss.Cause, knownID(loss.First), knownID(loss.Last), entries, shard, l.member)
	}
	return failure("record losses", l.pool.SendBatch(ctx, b).Close())
}

// knownID returns the text of an ID, nil if it is unknown.
func knownID(id telemetry.EntryID) *string {
	if id.IsZero() {
		return nil
	}
	text := id.String()
	return &text
}

// TotalLost returns the number of entries in the ledger, and whether some
// losses are of unknown size.
func (l *Ledger) TotalLost(ctx context.Context) (entries int64, unknown bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	err = l.pool.QueryRow(ctx, `
select coalesce(sum(entries), 0), coalesce(bool_or(entries is null), false)
from processor.losses
where stream = $1
  and group_name = $2`, l.scope.Stream, l.scope.Group).Scan(&entries, &unknown)
	return entries, unknown, failure("read the ledger", err)
}

// Open opens an incident. If it is open already only its detail is updated.
func (l *Ledger) Open(ctx context.Context, kind, subject string, detail map[string]any) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	text, err := json.Marshal(detail)
	if err != nil {
		return fmt.Errorf("record incident %s: %w", kind, err)
	}
	return failure("record incident "+kind, briefly(ctx, l.pool, l.timeout, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
insert into processor.incidents (stream, group_name, kind, subject, detail)
values ($1, $2, $3, $4, $5)
on conflict (stream, group_name, kind, subject) where closed_at is null do update
set detail = excluded.detail`, l.scope.Stream, l.scope.Group, kind, subject, text)
		return err
	}))
}

// Close closes an incident.
func (l *Ledger) Close(ctx context.Context, kind, subject string) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	return failure("close incident "+kind, briefly(ctx, l.pool, l.timeout, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
update processor.incidents
set closed_at = now()
where stream = $1
  and group_name = $2
  and kind = $3
  and subject = $4
  and closed_at is null`, l.scope.Stream, l.scope.Group, kind, subject)
		return err
	}))
}

// GroupHistory returns what is known from before a recreation of the group that
// was noticed some time ago; subject names the recreation's incident.
func (l *Ledger) GroupHistory(ctx context.Context, subject string, ago time.Duration) (protocol.GroupHistory, error) {
	const op = "read the history of the group"
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	var past protocol.GroupHistory
	var known string
	err := l.pool.QueryRow(ctx, `
select
  coalesce((
    select kind
    from processor.incidents
    where (stream, group_name, subject) = ($1, $2, $3)
      and kind = any ($4)
    limit 1), ''),
  exists (
    select
    from processor.incidents
    where (stream, group_name) = ($1, $2)
      and kind = any ($4)
      and subject <> $3)
  or exists (
    select
    from processor.progress
    where (stream, group_name) = ($1, $2)
      and updated_at < now() - $5::interval),
  coalesce((
    select applied_id
    from processor.progress
    where (stream, group_name) = ($1, $2)
      and updated_at < now() - $5::interval
    order by split_part(applied_id, '-', 1)::numeric desc, split_part(applied_id, '-', 2)::numeric desc
    limit 1), '0-0')`, l.scope.Stream, l.scope.Group, subject,
		[]string{protocol.GroupCreated, protocol.GroupLost, protocol.RedisLost}, ago).Scan(&past.Kind, &past.Ever, &known)
	if err == nil {
		past.Known, err = telemetry.ParseEntryID(known)
	}
	return past, failure(op, err)
}

// OpenIncidents counts the open incidents by kind.
func (l *Ledger) OpenIncidents(ctx context.Context) (map[string]int, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
select kind, count(*)
from processor.incidents
where stream = $1
  and group_name = $2
  and closed_at is null
group by kind`, l.scope.Stream, l.scope.Group)
	if err != nil {
		return nil, failure("count incidents", err)
	}
	open := make(map[string]int)
	var kind string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&kind, &n}, func() error {
		open[kind] = n
		return nil
	})
	return open, failure("count incidents", err)
}

// LossRow is a row of the ledger. nil is unknown.
type LossRow struct {
	Cause    string
	First    *string
	Last     *string
	Entries  *int64
	Shard    *int // nil for several
	Detected time.Time
}

// IncidentRow is an incident as recorded.
type IncidentRow struct {
	Kind    string
	Subject string
	Opened  time.Time
	Closed  *time.Time // nil while open
	Detail  json.RawMessage
}

// Recent returns losses and incidents, newest first, at most limit of each:
// those of the last since, and every open incident. The creation of the first
// group is normal and is omitted.
func (l *Ledger) Recent(ctx context.Context, since time.Duration, limit int) ([]LossRow, []IncidentRow, error) {
	const op = "read the ledger"
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
select cause, first_id, last_id, entries, shard, detected_at
from processor.losses
where stream = $1
  and group_name = $2
  and detected_at > now() - $3::interval
order by detected_at desc, id desc
limit $4`, l.scope.Stream, l.scope.Group, since, limit)
	if err != nil {
		return nil, nil, failure(op, err)
	}
	losses, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LossRow])
	if err != nil {
		return nil, nil, failure(op, err)
	}
	rows, err = l.pool.Query(ctx, `
select kind, subject, opened_at, closed_at, detail
from processor.incidents
where stream = $1
  and group_name = $2
  and kind <> $5
  and (closed_at is null or closed_at > now() - $3::interval)
order by closed_at is not null, opened_at desc, id desc
limit $4`, l.scope.Stream, l.scope.Group, since, limit, protocol.GroupCreated)
	if err != nil {
		return nil, nil, failure(op, err)
	}
	incidents, err := pgx.CollectRows(rows, pgx.RowToStructByPos[IncidentRow])
	return losses, incidents, failure(op, err)
}
