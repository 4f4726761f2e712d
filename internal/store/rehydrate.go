package store

import (
	"context"
	"math"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Reader reads stored state for the pipeline.
type Reader struct {
	pool    *pgxpool.Pool
	heaps   *heaps
	timeout time.Duration
}

// NewReader returns a reader whose statements take at most timeout each.
func NewReader(pool *pgxpool.Pool, timeout time.Duration) *Reader {
	return &Reader{pool: pool, heaps: newHeaps(pool), timeout: timeout}
}

// LastCrossings calls found for every device of which crossings are recorded, with its index
// in devices and the device time of the fix of the last one. It asks for that in order, so that the plan is one look into the
// index for each device: one made while the table was new would read all of it, long after
// it has grown.
func (r *Reader) LastCrossings(ctx context.Context, devices []string, found func(i int, us int64)) error {
	var n int
	var later time.Time
	_, err := byItself(ctx, r.pool, r.timeout)(`
select d.n - 1, t.later_ts
from unnest($1::text[]) with ordinality as d (device_id, n)
cross join lateral (
  select later_ts
  from processor.timing_records
  where device_id = d.device_id
  order by later_ts desc
  limit 1
) t`, []any{devices}, []any{&n, &later}, func() error {
		found(n, later.UnixMicro())
		return nil
	})
	return failure("look for the last crossings of devices", err)
}

// LastFixes calls found for every device that has a position that takes part
// in state, with its index in devices. It is one statement where positions is one
// heap; otherwise newer heaps are asked before older ones, and only for devices
// not found yet. After an error some may have been found.
func (r *Reader) LastFixes(ctx context.Context, devices []string, rules telemetry.Eligibility,
	found func(i int, last geofence.Fix),
) error {
	const op = "load last positions"
	c, list, err := r.last(ctx, devices)
	if err != nil {
		return failure(op, err)
	}
	return failure(op, c.nearest(list, len(c), backward, 1, rules, byItself(ctx, r.pool, r.timeout), found))
}

// RecentFixes calls found as LastFixes does, for devices whose position lies in the newest
// heaps: it is one statement on a few of them, however many there are.
func (r *Reader) RecentFixes(ctx context.Context, devices []string, rules telemetry.Eligibility,
	found func(i int, last geofence.Fix),
) error {
	const op = "load recent positions"
	c, list, err := r.last(ctx, devices)
	if err != nil {
		return failure(op, err)
	}
	newest := c.span(len(c)-heapsFirst+1, len(c))
	_, err = c.nearestIn(newest, list, false, backward, 1, rules, byItself(ctx, r.pool, r.timeout), found)
	return failure(op, err)
}

// last returns how positions is divided, and the search for the last positions of devices.
func (r *Reader) last(ctx context.Context, devices []string) (cuts, []seek, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	c, err := r.heaps.now(ctx)
	list := make([]seek, len(devices))
	for i, id := range devices {
		list[i] = seek{device: id, at: math.MaxInt64, n: i}
	}
	return c, list, err
}
