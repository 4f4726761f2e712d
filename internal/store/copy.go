package store

import (
	"encoding/binary"
	"math"

	"github.com/trmtracking/processor/internal/telemetry"
)

// positionColumns are the columns written, in the order of the encodings below.
const positionColumns = `device_id, ts, ingested_at, latitude, longitude,
  altitude, angle, speed, satellites, priority, codec, attributes`

// postgresEpochUS is 2000-01-01, from which Postgres counts, in microseconds
// since 1970.
const postgresEpochUS = 946684800_000_000

var copyHeader = []byte("PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00")

// appendCopy appends records in the binary form of COPY, header and trailer
// included. It is the hot path of the service: encoding through the driver's
// generic row source costs several allocations a record.
func appendCopy(dst []byte, records []telemetry.Record) []byte {
	be := binary.BigEndian
	dst = append(dst, copyHeader...)
	for i := range records {
		r := &records[i]
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
		dst = append(dst, r.Attributes...)
	}
	return append(dst, 0xff, 0xff)
}
