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

// Timings yields every row of timing_records as of one moment, ordered by
// device ID in bytes and the later fix.
func Timings(ctx context.Context, pool *pgxpool.Pool) iter.Seq2[oracle.Crossing, error] {
	return func(yield func(oracle.Crossing, error) bool) {
		err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			if err := withoutStatementTimeout(ctx, tx); err != nil {
				return err
			}
			rows, err := tx.Query(ctx, `
select device_id, fence_id, fence_version, kind, at, coalesce(earlier_ts, later_ts), later_ts, latitude, longitude, ordinal, initial, revision,
  coalesce(method, ''), coalesce(distance_m, 0), coalesce(speed, 0), coalesce(max_error_ms, 0), suppressed
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
			yield(oracle.Crossing{}, wrapped("read timing records", err))
		}
	}
}

func crossing(row pgx.CollectableRow) (oracle.Crossing, error) {
	var c oracle.Crossing
	var at, earlier, later time.Time
	err := row.Scan(&c.Device, &c.FenceID, &c.FenceVersion, &c.Kind, &at, &earlier, &later, &c.Latitude, &c.Longitude, &c.Ordinal, &c.Initial, &c.Revision,
		&c.Method, &c.DistanceM, &c.SpeedKMH, &c.MaxErrorMS, &c.Suppressed)
	c.TimeUS, c.EarlierUS, c.LaterUS = at.UnixMicro(), earlier.UnixMicro(), later.UnixMicro()
	return c, err
}

// Changes yields every change of timing_records in the order in which they were
// made.
func (o *Observer) Changes(ctx context.Context) iter.Seq2[oracle.Change, error] {
	return func(yield func(oracle.Change, error) bool) {
		rows, err := o.pool.Query(ctx, `
select device_id, fence_id, kind, later_ts, ordinal, old_revision, new_revision, same
from loadtest.timing_changes
order by number`)
		if err != nil {
			yield(oracle.Change{}, wrapped("read changes of timing records", err))
			return
		}
		defer rows.Close()
		for rows.Next() {
			var c oracle.Change
			var later time.Time
			err := rows.Scan(&c.Device, &c.FenceID, &c.Kind, &later, &c.Ordinal, &c.Old, &c.New, &c.Same)
			c.LaterUS = later.UnixMicro()
			if !yield(c, wrapped("read changes of timing records", err)) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(oracle.Change{}, wrapped("read changes of timing records", err))
		}
	}
}
