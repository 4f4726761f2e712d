package telemetry

import "time"

// Record is one decoded and validated telemetry message, in the shape and the
// precision of the positions table. Strings and Attributes may share memory
// with the entry or with the decoder's buffers (see Decoder.Decode).
type Record struct {
	ID         EntryID // of the entry it came from
	DeviceID   string  // 1 to 64 characters, the IMEI for Teltonika
	Codec      string
	TimeUS     int64   // device time, microseconds since 1970, UTC
	StreamUS   int64   // stream time, microseconds since 1970, UTC; the row's ingested_at
	Latitude   float64 // degrees, WGS84, -90 to 90
	Longitude  float64 // degrees, WGS84, -180 to 180
	Altitude   float32 // metres
	Angle      float32 // degrees clockwise from north
	Speed      float32 // km/h
	Satellites int16
	Priority   int16  // 0 low, 1 high, 2 panic
	Attributes []byte // JSON object as stored: big integers are decimal strings, bytes are base64 text
}

// PriorityPanic is the priority of a record whose alarm a person has to hear at once.
const PriorityPanic = 2

// Time returns the device time in UTC.
func (r *Record) Time() time.Time { return time.UnixMicro(r.TimeUS).UTC() }
