package store

import (
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
)

// derivation is how a crossing was derived, as a crossing has it; a row of an earlier
// version does not say.
const derivation = `coalesce(method, ''), coalesce(distance_m, 0), coalesce(speed, 0), coalesce(max_error_ms, 0)`

// crossingColumns are what scanCrossing reads.
const crossingColumns = `device_id, fence_id, kind, at, coalesce(earlier_ts, later_ts), later_ts, latitude, longitude, ordinal, initial, suppressed, ` + derivation

// sameCrossing reports whether a row says what is derived. How, only if it says that.
func sameCrossing(want, got geofence.Crossing) bool {
	got.Fence = want.Fence
	if got.Method == "" {
		got.Method, got.DistanceM, got.SpeedKMH, got.MaxErrorMS = want.Method, want.DistanceM, want.SpeedKMH, want.MaxErrorMS
	}
	return got == want
}

func scanCrossing(row pgx.CollectableRow) (protocol.Crossing, error) {
	var c protocol.Crossing
	var kind string
	var at, earlier, later time.Time
	err := row.Scan(&c.DeviceID, &c.FenceID, &kind, &at, &earlier, &later, &c.Latitude, &c.Longitude, &c.Ordinal, &c.Initial, &c.Suppressed,
		&c.Method, &c.DistanceM, &c.SpeedKMH, &c.MaxErrorMS)
	c.Kind = geofence.CrossingKind(kind)
	c.TimeUS, c.EarlierUS, c.LaterUS = at.UnixMicro(), earlier.UnixMicro(), later.UnixMicro()
	return c, err
}
