package telemetry

import (
	"encoding/binary"
	"math"

	"github.com/cespare/xxhash/v2"
)

// Digest identifies what the record says, apart from device, time and entry:
// records that are the same have the same one, others hardly ever.
func (r *Record) Digest() uint64 {
	var b [64]byte
	binary.LittleEndian.PutUint64(b[0:], xxhash.Sum64(r.Attributes))
	binary.LittleEndian.PutUint64(b[8:], xxhash.Sum64String(r.Codec))
	binary.LittleEndian.PutUint64(b[16:], math.Float64bits(r.Latitude))
	binary.LittleEndian.PutUint64(b[24:], math.Float64bits(r.Longitude))
	binary.LittleEndian.PutUint32(b[32:], math.Float32bits(r.Altitude))
	binary.LittleEndian.PutUint32(b[36:], math.Float32bits(r.Angle))
	binary.LittleEndian.PutUint32(b[40:], math.Float32bits(r.Speed))
	binary.LittleEndian.PutUint16(b[44:], uint16(r.Satellites))
	binary.LittleEndian.PutUint16(b[46:], uint16(r.Priority))
	return xxhash.Sum64(b[:])
}
