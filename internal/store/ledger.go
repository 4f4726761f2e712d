package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
)

// Ledger records what was lost and what a person should know.
type Ledger struct {
	pool    *pgxpool.Pool
	scope   Scope
	member  string
	timeout time.Duration
}

// NewLedger returns the ledger as one member writes it.
func NewLedger(pool *pgxpool.Pool, scope Scope, member string, timeout time.Duration) *Ledger {
	return &Ledger{pool: pool, scope: scope, member: member, timeout: timeout}
}

// Lose records losses. Recording the same loss again changes nothing.
func (l *Ledger) Lose(ctx context.Context, losses []protocol.Loss) error {
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
insert into processor.losses (dedupe_key, stream, grp, cause, first_id, last_id, entries, shard, detected_by)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (dedupe_key) do nothing`,
			key, l.scope.Stream, l.scope.Group, loss.Cause, loss.First.String(), loss.Last.String(), entries, shard, l.member)
	}
	return failure("record losses", l.pool.SendBatch(ctx, b).Close())
}

// Lost is the number of entries in the ledger, and whether some losses are of
// unknown size.
func (l *Ledger) Lost(ctx context.Context) (entries int64, unknown bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	err = l.pool.QueryRow(ctx, `
select coalesce(sum(entries), 0), coalesce(bool_or(entries is null), false)
from processor.losses
where stream = $1
  and grp = $2`, l.scope.Stream, l.scope.Group).Scan(&entries, &unknown)
	return entries, unknown, failure("read the ledger", err)
}

// Open notes that something a person should know has begun. While it lasts,
// noting it again only renews its detail.
func (l *Ledger) Open(ctx context.Context, kind, subject string, detail map[string]any) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	text, err := json.Marshal(detail)
	if err != nil {
		return fmt.Errorf("note incident %s: %w", kind, err)
	}
	_, err = l.pool.Exec(ctx, `
insert into processor.incidents (stream, grp, kind, subject, detail)
values ($1, $2, $3, $4, $5)
on conflict (stream, grp, kind, subject) where closed_at is null do update
set detail = excluded.detail`, l.scope.Stream, l.scope.Group, kind, subject, text)
	return failure("note incident "+kind, err)
}

// Close notes that it is over.
func (l *Ledger) Close(ctx context.Context, kind, subject string) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	_, err := l.pool.Exec(ctx, `
update processor.incidents
set closed_at = now()
where stream = $1
  and grp = $2
  and kind = $3
  and subject = $4
  and closed_at is null`, l.scope.Stream, l.scope.Group, kind, subject)
	return failure("close incident "+kind, err)
}
