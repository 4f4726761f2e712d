package observer

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/loadtest/oracle"
)

// positionsSQL reads the whole table in the order of bytes, whatever the
// database's collation.
const positionsSQL = `
select device_id, ts, ingested_at, latitude, longitude, altitude, angle, speed,
  satellites, priority, codec, attributes::text, faulty
from public.positions
order by device_id collate "C", ts`

// errEnough ends a transaction whose remaining rows are not wanted.
var errEnough = errors.New("no more rows are wanted")

// withoutStatementTimeout lifts the bounds on one transaction: a reader of a
// table of any size may pause between rows.
func withoutStatementTimeout(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, "set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0")
	return err
}

// Positions yields every row of positions as of one moment, ordered by device
// ID in bytes and device time. Attributes are valid until the next step only;
// the ID is zero, since the table does not store it.
func Positions(ctx context.Context, pool *pgxpool.Pool) iter.Seq2[oracle.Row, error] {
	return func(yield func(oracle.Row, error) bool) {
		err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			// A table of any size is sorted and sent in one statement.
			if err := withoutStatementTimeout(ctx, tx); err != nil {
				return err
			}
			rows, err := tx.Query(ctx, positionsSQL)
			if err != nil {
				return err
			}
			defer rows.Close()
			var r oracle.Row
			var ts, ingested time.Time
			targets := []any{
				&r.Device, &ts, &ingested, &r.Latitude, &r.Longitude, &r.Altitude, &r.Angle, &r.Speed,
				&r.Satellites, &r.Priority, &r.Codec, &r.Attributes, &r.Faulty,
			}
			for rows.Next() {
				if err := rows.Scan(targets...); err != nil {
					return err
				}
				r.TimeUS, r.IngestedUS = ts.UnixMicro(), ingested.UnixMicro()
				if !yield(r, nil) {
					return errEnough
				}
			}
			return rows.Err()
		})
		if err != nil && !errors.Is(err, errEnough) {
			yield(oracle.Row{}, wrapped("read positions", err))
		}
	}
}
