package store

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Retention removes what happened long ago: requests that are over, closed incidents,
// archived dead letters, audit, losses, conflicts and changes of crossings.
type Retention struct {
	pool    *pgxpool.Pool
	scope   Scope
	member  string
	timeout time.Duration
	changes time.Duration // age of changes of crossings
}

// NewRetention returns the retention of a group, in the name of a member. Changes of
// crossings have an age of their own.
func NewRetention(pool *pgxpool.Pool, scope Scope, member string, changes, timeout time.Duration) *Retention {
	return &Retention{pool: pool, scope: scope, member: member, changes: changes, timeout: timeout}
}

// Expire removes some rows that are older than age, a day at least, and returns how
// many by table. The audit counts them, and the sums of losses stay.
func (r *Retention) Expire(ctx context.Context, age time.Duration) (map[string]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	removed := make(map[string]int64)
	err := pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, "select name, removed from processor.expire($1, $2, $3, $4)", r.scope.Stream, r.scope.Group, age, r.member)
		if err != nil {
			return err
		}
		var name string
		var n int64
		if _, err := pgx.ForEachRow(rows, []any{&name, &n}, func() error {
			removed[name] = n
			return nil
		}); err != nil {
			return err
		}
		var conflicts, changes int64
		if err := tx.QueryRow(ctx, "select processor.expire_conflicts($1, $2, $3), processor.expire_timing_changes($4)",
			r.scope.Stream, r.scope.Group, age, r.changes).Scan(&conflicts, &changes); err != nil {
			return err
		}
		removed["conflicts"], removed["timing_changes"] = conflicts, changes
		ages := map[string]time.Duration{"timing_changes": r.changes}
		for _, name := range slices.Sorted(maps.Keys(removed)) {
			if removed[name] == 0 {
				continue
			}
			if _, err := tx.Exec(ctx, `
insert into processor.audit (who, action, target, count, detail)
values ($1, 'retention', 'processor.' || $2, $3, jsonb_build_object('retention', $4::interval))`, r.member, name, removed[name], cmp.Or(ages[name], age)); err != nil {
				return err
			}
		}
		return nil
	})
	return removed, failure("remove what is old", err)
}
