package observer

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
)

// Timings yields every row of timing_records as of one moment, ordered by
// device ID in bytes and the later fix. Fence numbers are not set.
func Timings(ctx context.Context, pool *pgxpool.Pool) iter.Seq2[protocol.Crossing, error] {
	return func(yield func(protocol.Crossing, error) bool) {
		err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			if err := withoutStatementTimeout(ctx, tx); err != nil {
				return err
			}
			rows, err := tx.Query(ctx, `
select device_id, fence_id, kind, at, coalesce(earlier_ts, later_ts), later_ts, latitude, longitude, ordinal, initial
from processor.timing_records
order by device_id collate "C", later_ts, at, fence_id, ordinal`)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				c, err := crossing(rows)
				if err != nil {
					return err
				}
				if !yield(c, nil) {
					return errEnough
				}
			}
			return rows.Err()
		})
		if err != nil && !errors.Is(err, errEnough) {
			yield(protocol.Crossing{}, wrapped("read timing records", err))
		}
	}
}

func crossing(row pgx.CollectableRow) (protocol.Crossing, error) {
	var c protocol.Crossing
	var kind string
	var at, earlier, later time.Time
	err := row.Scan(&c.DeviceID, &c.FenceID, &kind, &at, &earlier, &later, &c.Latitude, &c.Longitude, &c.Ordinal, &c.Initial)
	c.Kind = geofence.CrossingKind(kind)
	c.TimeUS, c.EarlierUS, c.LaterUS = at.UnixMicro(), earlier.UnixMicro(), later.UnixMicro()
	return c, err
}
