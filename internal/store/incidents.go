package store

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Opened returns the subjects of the open incidents of a kind.
func (l *Ledger) Opened(ctx context.Context, kind string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
select subject
from processor.incidents
where stream = $1
  and group_name = $2
  and kind = $3
  and closed_at is null
order by subject`, l.scope.Stream, l.scope.Group, kind)
	if err != nil {
		return nil, failure("read incidents "+kind, err)
	}
	subjects, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return subjects, failure("read incidents "+kind, err)
}
