package store

import (
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
)

func scanCrossing(row pgx.CollectableRow) (protocol.Crossing, error) {
	var c protocol.Crossing
	var kind string
	var at, earlier, later time.Time
	err := row.Scan(&c.DeviceID, &c.FenceID, &kind, &at, &earlier, &later, &c.Latitude, &c.Longitude, &c.Ordinal, &c.Initial)
	c.Kind = geofence.CrossingKind(kind)
	c.TimeUS, c.EarlierUS, c.LaterUS = at.UnixMicro(), earlier.UnixMicro(), later.UnixMicro()
	return c, err
}
