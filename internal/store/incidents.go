package store

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Opened returns the subjects of the open incidents of a kind. Like Open and Close it waits
// for a lock of the table briefly: a leader has more urgent work.
func (l *Ledger) Opened(ctx context.Context, kind string) (subjects []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	err = briefly(ctx, l.pool, l.timeout, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
select subject
from processor.incidents
where stream = $1
  and group_name = $2
  and kind = $3
  and closed_at is null
order by subject`, l.scope.Stream, l.scope.Group, kind)
		if err != nil {
			return err
		}
		subjects, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	return subjects, failure("read incidents "+kind, err)
}
