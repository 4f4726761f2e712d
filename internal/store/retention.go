package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/geofence"
)

// fenceAt is a fence at the device time of a fix.
type fenceAt struct {
	fence string
	us    int64
}

// gone is the crossings of one device that cannot be judged, since positions
// they were derived from are no longer stored: retention dropped them.
type gone map[fenceAt]bool

func (g gone) holds(c *geofence.Crossing) bool { return g[fenceAt{c.FenceID, c.LaterUS}] }

// goneOf finds them among the crossings recorded up to and after the device's
// first eligible fix: those at fixes that are not stored, those at fixes whose
// predecessor is not, and at the first fix those of fences with earlier ones.
func goneOf(ctx context.Context, tx asker, device string, recorded []geofence.Crossing, first int64) (gone, error) {
	if len(recorded) == 0 {
		return nil, nil
	}
	var times []time.Time
	for i := range recorded {
		times = append(times, micros(recorded[i].EarlierUS), micros(recorded[i].LaterUS))
	}
	rows, err := tx.Query(ctx, `
select ts
from public.positions
where device_id = $1
  and ts = any ($2)`, pgx.QueryExecModeCacheDescribe, device, times)
	if err != nil {
		return nil, err
	}
	stored := make(map[int64]bool)
	var ts time.Time
	if _, err := pgx.ForEachRow(rows, []any{&ts}, func() error {
		stored[ts.UnixMicro()] = true
		return nil
	}); err != nil {
		return nil, err
	}
	g := make(gone)
	for i := range recorded {
		c := &recorded[i]
		if stored[c.LaterUS] && stored[c.EarlierUS] {
			continue
		}
		g[fenceAt{c.FenceID, c.LaterUS}] = true
		if !stored[c.LaterUS] && c.LaterUS < first {
			g[fenceAt{c.FenceID, first}] = true
		}
	}
	return g, nil
}
