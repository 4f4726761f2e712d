package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
)

// Holds is what operators hold back.
type Holds struct {
	pool    *pgxpool.Pool
	scope   Scope
	timeout time.Duration
}

// NewHolds returns the holds of a group.
func NewHolds(pool *pgxpool.Pool, scope Scope, timeout time.Duration) *Holds {
	return &Holds{pool: pool, scope: scope, timeout: timeout}
}

// Holds returns all of them. It waits for a lock of the table briefly.
func (h *Holds) Holds(ctx context.Context) (list protocol.Holds, err error) {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	err = briefly(ctx, h.pool, h.timeout, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
select kind, subject, reason, set_by, set_at
from processor.holds
where stream = $1
  and group_name = $2
order by kind, subject`, h.scope.Stream, h.scope.Group)
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[protocol.Hold])
		return err
	})
	return list, failure("read what is held back", err)
}

// Set holds something back, with its audit in one transaction. It reports whether
// it was not held back before.
func (h *Holds) Set(ctx context.Context, x protocol.Hold) (changed bool, err error) {
	return h.change(ctx, x, "hold", `
insert into processor.holds (stream, group_name, kind, subject, reason, set_by)
values ($1, $2, $3, $4, $5, $6)
on conflict do nothing
returning kind`, h.scope.Stream, h.scope.Group, x.Kind, x.Subject, x.Reason, x.By)
}

// Clear ends a hold, with its audit in one transaction. It reports whether there
// was one.
func (h *Holds) Clear(ctx context.Context, x protocol.Hold) (changed bool, err error) {
	return h.change(ctx, x, "release", `
delete from processor.holds
where stream = $1
  and group_name = $2
  and kind = $3
  and subject = $4
returning kind`, h.scope.Stream, h.scope.Group, x.Kind, x.Subject)
}

func (h *Holds) change(ctx context.Context, x protocol.Hold, verb, sql string, args ...any) (changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	err = pgx.BeginFunc(ctx, h.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, sql, args...)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		changed = true
		if _, err := tx.Exec(ctx, `
insert into processor.audit (who, action, target, count, detail)
values ($1, $2, $3, 1, jsonb_build_object('reason', $4::text, 'stream', $5::text, 'group', $6::text))`, x.By, verb+" "+x.Kind, x.Subject, x.Reason, h.scope.Stream, h.scope.Group); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `select pg_notify('processor_shards', '')`)
		return err
	})
	return changed, failure(verb+" "+x.Kind, err)
}
