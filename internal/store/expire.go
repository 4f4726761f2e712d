package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/protocol"
)

// Retention removes what happened long ago: requests that are over, closed incidents,
// archived dead letters, audit, losses, conflicts and changes of crossings.
type Retention struct {
	pool    *pgxpool.Pool
	scope   Scope
	member  string
	timeout time.Duration
	changes time.Duration // age of changes of crossings

	pages map[string]int         // rows of a table in one transaction, where not expirePage
	next  struct{ tx, id int64 } // behind which change of a crossing the next page begins
}

// How many rows of a table one transaction removes, at most, and where more take too long. What
// takes as long with any page, since it has to do with rows that stay, would not end with smaller ones.
const (
	expirePage = 5000
	expireSlow = 100
)

// timingChanges is the table of the changes of crossings.
const timingChanges = "timing_changes"

// NewRetention returns the retention of a group, in the name of a member. Changes of
// crossings have an age of their own.
func NewRetention(pool *pgxpool.Pool, scope Scope, member string, changes, timeout time.Duration) *Retention {
	return &Retention{pool: pool, scope: scope, member: member, changes: changes, timeout: timeout, pages: make(map[string]int)}
}

// Tables returns the tables that Expire knows.
func (r *Retention) Tables() []string {
	return []string{"requests", "incidents", "dead_letters", "audit", "losses", "conflicts", timingChanges}
}

// Expire removes some rows of a table that are older than age, a day at least, and returns
// how many, and whether there may be more. The audit counts them, and the sums of losses
// stay. What takes too long is made smaller, and tried again by the next call: up to
// expireSlow rows have as long as any statement, and fail then.
func (r *Retention) Expire(ctx context.Context, table string, age time.Duration) (removed int64, more bool, err error) {
	page := cmp.Or(r.pages[table], expirePage)
	short := min(r.timeout, stepTime)
	limit := short
	if page <= expireSlow {
		limit = r.timeout
	}
	began := time.Now()
	removed, more, err = r.expire(ctx, table, age, page, limit)
	f, _ := errors.AsType[*protocol.Failure](err)
	switch {
	case f != nil && f.TooMuch && page > expireSlow && ctx.Err() == nil:
		r.pages[table] = expireSlow
		return 0, true, nil
	case err == nil && time.Since(began) < short/4:
		r.pages[table] = min(2*page, expirePage)
	}
	return removed, more, err
}

func (r *Retention) expire(ctx context.Context, table string, age time.Duration, page int, limit time.Duration) (removed int64, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	var next struct{ tx, id int64 }
	err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("set local statement_timeout = %d", limit.Milliseconds())); err != nil {
			return err
		}
		var err error
		if table == timingChanges {
			age = r.changes
			err = tx.QueryRow(ctx, "select removed, again, next_tx, next_id from processor.expire_timing_page($1, $2, $3, $4)",
				age, r.next.tx, r.next.id, page).Scan(&removed, &more, &next.tx, &next.id)
		} else {
			err = tx.QueryRow(ctx, "select processor.expire_page($1, $2, $3, $4, $5, $6)",
				table, r.scope.Stream, r.scope.Group, age, page, r.member).Scan(&removed)
			more = removed == int64(page)
		}
		if err != nil || removed == 0 {
			return err
		}
		_, err = tx.Exec(ctx, `
insert into processor.audit (who, action, target, count, detail)
values ($1, 'retention', 'processor.' || $2, $3, jsonb_build_object('retention', $4::interval))`, r.member, table, removed, age)
		return err
	})
	if err != nil {
		return 0, false, failure(fmt.Sprintf("remove what is old of processor.%s, up to %d rows", table, page), err)
	}
	if table == timingChanges {
		if r.next = next; !more {
			r.next.tx, r.next.id = 0, 0 // the next pass begins again
		}
	}
	return removed, more, nil
}
