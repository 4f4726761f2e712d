package fleet

import (
	"encoding/base64"
	"strconv"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Message is what one tracker reports in one record, before encoding.
type Message struct {
	DeviceID   string
	Codec      string // "8", "8E" or "16"
	TimeUS     int64  // device time, microseconds since 1970, UTC; whole milliseconds on the wire
	Latitude   float64
	Longitude  float64
	Altitude   float64
	Angle      float64
	Speed      float64 // km/h
	Satellites int
	Priority   int
	Attributes []Attribute
}

// AttributeKind tells how the value of an attribute is written.
type AttributeKind uint8

// The kinds of attribute values that trackers send.
const (
	Number  AttributeKind = iota // a JSON number
	BigInt                       // eight bytes on the wire: {"__bigint":"…"}
	Buffer                       // variable length: {"__buffer_b64":"…"}
	OldNode                      // the same bytes as {"type":"Buffer","data":[…]}, which old publishers wrote
)

// Attribute is one IO element of a record, or a name of the ingestion's own
// such as "__generation_type".
type Attribute struct {
	Name  string
	Kind  AttributeKind
	Value int64  // of Number; of BigInt the bits of an unsigned 64-bit integer
	Bytes string // of Buffer and OldNode
}

const timeLayout = "2006-01-02T15:04:05.000Z"

// AppendPayload appends the payload as the ingestion service writes it.
func (m *Message) AppendPayload(dst []byte) []byte {
	dst = append(dst, `{"device_id":`...)
	dst = strconv.AppendQuote(dst, m.DeviceID)
	dst = append(dst, `,"timestamp":"`...)
	dst = time.UnixMicro(m.TimeUS).UTC().AppendFormat(dst, timeLayout)
	dst = append(dst, `","latitude":`...)
	dst = appendNumber(dst, m.Latitude)
	dst = append(dst, `,"longitude":`...)
	dst = appendNumber(dst, m.Longitude)
	dst = append(dst, `,"altitude":`...)
	dst = appendNumber(dst, m.Altitude)
	dst = append(dst, `,"angle":`...)
	dst = appendNumber(dst, m.Angle)
	dst = append(dst, `,"speed":`...)
	dst = appendNumber(dst, m.Speed)
	dst = append(dst, `,"satellites":`...)
	dst = strconv.AppendInt(dst, int64(m.Satellites), 10)
	dst = append(dst, `,"priority":`...)
	dst = strconv.AppendInt(dst, int64(m.Priority), 10)
	dst = append(dst, `,"attributes":{`...)
	for i := range m.Attributes {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = m.Attributes[i].appendTo(dst)
	}
	return append(dst, '}', '}')
}

// Fields are the names and values of the entry as the ingestion service
// publishes it.
func (m *Message) Fields() []string {
	// One allocation for the texts of the entry: the payload, then the time.
	buf := make([]byte, 0, 256+40*len(m.Attributes))
	buf = m.AppendPayload(buf)
	n := len(buf)
	buf = time.UnixMicro(m.TimeUS).UTC().AppendFormat(buf, timeLayout)
	text := string(buf)
	return []string{
		telemetry.FieldTS, text[n:],
		telemetry.FieldDeviceID, m.DeviceID,
		telemetry.FieldCodec, m.Codec,
		telemetry.FieldPayload, text[:n],
	}
}

func (a *Attribute) appendTo(dst []byte) []byte {
	dst = strconv.AppendQuote(dst, a.Name)
	dst = append(dst, ':')
	switch a.Kind {
	case BigInt:
		dst = append(dst, `{"__bigint":"`...)
		dst = strconv.AppendUint(dst, uint64(a.Value), 10)
		return append(dst, '"', '}')
	case Buffer:
		dst = append(dst, `{"__buffer_b64":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, []byte(a.Bytes))
		return append(dst, '"', '}')
	case OldNode:
		dst = append(dst, `{"type":"Buffer","data":[`...)
		for i := range len(a.Bytes) {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = strconv.AppendUint(dst, uint64(a.Bytes[i]), 10)
		}
		return append(dst, ']', '}')
	default:
		return strconv.AppendInt(dst, a.Value, 10)
	}
}

// appendNumber writes a number in the shortest form that reads back as the
// same double, as JavaScript does within the range of positions.
func appendNumber(dst []byte, f float64) []byte {
	return strconv.AppendFloat(dst, f, 'f', -1, 64)
}
