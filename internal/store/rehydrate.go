package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Reader reads stored state for the pipeline.
type Reader struct {
	pool    *pgxpool.Pool
	timeout time.Duration
}

// NewReader returns a reader whose queries take at most timeout each.
func NewReader(pool *pgxpool.Pool, timeout time.Duration) *Reader {
	return &Reader{pool: pool, timeout: timeout}
}

// lastFixSQL finds the newest eligible position: not flagged faulty, with a
// fix, and not ahead of its stream time by more than the skew.
const lastFixSQL = `
select w.n - 1, p.ts, p.latitude, p.longitude
from unnest($1::text[]) with ordinality as w (device_id, n)
cross join lateral (
  select ts, latitude, longitude
  from public.positions
  where ` + ofDevice + `
    and faulty = false
    and ts <= ingested_at + $2::interval
    and not (latitude = 0 and longitude = 0)
  order by ts desc
  limit 1
) p`

// LastFixes calls found for every device with an eligible position, with its
// index in devices: device time in microseconds since 1970, latitude and
// longitude in degrees. It makes one round trip.
func (r *Reader) LastFixes(ctx context.Context, devices []string, skew time.Duration,
	found func(i int, us int64, lat, lon float64),
) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	rows, err := r.pool.Query(ctx, lastFixSQL, devices, skew)
	if err != nil {
		return failure("load last positions", err)
	}
	var n int64
	var ts time.Time
	var lat, lon float64
	_, err = pgx.ForEachRow(rows, []any{&n, &ts, &lat, &lon}, func() error {
		found(int(n), ts.UnixMicro(), lat, lon)
		return nil
	})
	return failure("load last positions", err)
}
