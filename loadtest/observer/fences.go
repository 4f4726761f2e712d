package observer

import (
	"context"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/loadtest/oracle"
)

// Fences returns the fence versions in force.
func Fences(ctx context.Context, pool *pgxpool.Pool) ([]oracle.Fence, error) {
	rows, err := pool.Query(ctx, `
select id, version, kind, geometry::text, coalesce(radius_m, 0), coalesce(width_m, 0), 
  coalesce(exit_margin_m, 0), coalesce(min_dwell_s, 0), coalesce(min_interval_s, 0), valid_from, valid_to, not enabled
from processor.geofences
where replaced_at is null
order by id, version`)
	if err != nil {
		return nil, wrapped("read fences", err)
	}
	fences, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f oracle.Fence, err error) {
		var from, to *time.Time
		err = row.Scan(&f.ID, &f.Version, &f.Kind, &f.Geometry, &f.RadiusM, &f.WidthM, &f.ExitMarginM, &f.MinDwellS, &f.MinIntervalS, &from, &to, &f.Disabled)
		f.FromUS, f.ToUS = int64(math.MinInt64), int64(math.MaxInt64)
		if from != nil {
			f.FromUS = from.UnixMicro()
		}
		if to != nil {
			f.ToUS = to.UnixMicro()
		}
		return f, err
	})
	return fences, wrapped("read fences", err)
}

// Marked returns which rows of positions an operator has marked as faulty.
func Marked(ctx context.Context, pool *pgxpool.Pool) (func(device string, timeUS int64) bool, error) {
	type key struct {
		device string
		us     int64
	}
	marked := map[key]bool{}
	rows, err := pool.Query(ctx, `select device_id, ts from public.positions where faulty`)
	if err != nil {
		return nil, wrapped("read faulty rows", err)
	}
	var device string
	var ts time.Time
	_, err = pgx.ForEachRow(rows, []any{&device, &ts}, func() error {
		marked[key{device, ts.UnixMicro()}] = true
		return nil
	})
	return func(device string, us int64) bool { return marked[key{device, us}] }, wrapped("read faulty rows", err)
}
