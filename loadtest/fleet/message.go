package fleet

import (
	"cmp"
	"encoding/base64"
	"math"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Message is what a tracker reported, as a publisher has it before encoding.
type Message struct {
	DeviceID   string
	Codec      string
	Time       time.Time
	Latitude   float64
	Longitude  float64
	Altitude   float64
	Angle      float64
	Speed      float64
	Satellites int
	Priority   int
	Attributes []Attribute // at most one per key
}

// AttributeKind is the type that an attribute has at the publisher.
type AttributeKind uint8

const (
	// KindNumber is a JavaScript number.
	KindNumber AttributeKind = iota
	// KindBigInt is a big integer, published as {"__bigint":"…"}.
	KindBigInt
	// KindBytes is published as {"__buffer_b64":"…"}.
	KindBytes
	// KindLegacyBytes is published as {"type":"Buffer","data":[…]}, as
	// publishers did that let Node.js print a Buffer its own way.
	KindLegacyBytes
	// KindText is a string.
	KindText
)

// Attribute is one member of a message's attributes.
type Attribute struct {
	Key    string
	Kind   AttributeKind
	Number float64 // of KindNumber
	Text   string  // of KindText; of KindBigInt its decimal digits
	Bytes  []byte  // of KindBytes and KindLegacyBytes
}

// NumberAttribute is an attribute of KindNumber.
func NumberAttribute(key string, v float64) Attribute {
	return Attribute{Key: key, Kind: KindNumber, Number: v}
}

// BigIntAttribute is an attribute of KindBigInt; digits is what
// BigInt.toString prints.
func BigIntAttribute(key, digits string) Attribute {
	return Attribute{Key: key, Kind: KindBigInt, Text: digits}
}

// BytesAttribute is an attribute of KindBytes.
func BytesAttribute(key string, v []byte) Attribute {
	return Attribute{Key: key, Kind: KindBytes, Bytes: v}
}

// LegacyBytesAttribute is an attribute of KindLegacyBytes.
func LegacyBytesAttribute(key string, v []byte) Attribute {
	return Attribute{Key: key, Kind: KindLegacyBytes, Bytes: v}
}

// TextAttribute is an attribute of KindText.
func TextAttribute(key, v string) Attribute {
	return Attribute{Key: key, Kind: KindText, Text: v}
}

// EntryFields are the names and values of the entry that carries m.
func EntryFields(m *Message) []string {
	return []string{
		telemetry.FieldTS, string(appendTime(nil, m.Time)),
		telemetry.FieldDeviceID, m.DeviceID,
		telemetry.FieldCodec, m.Codec,
		telemetry.FieldPayload, string(AppendPayload(make([]byte, 0, 512), m)),
	}
}

// AppendPayload appends the payload of m, byte for byte as JSON.stringify
// prints it at the publisher: attributes whose keys are array indices come
// first and in numeric order, the others as given.
func AppendPayload(dst []byte, m *Message) []byte {
	dst = append(dst, `{"device_id":`...)
	dst = appendString(dst, m.DeviceID)
	dst = append(dst, `,"timestamp":"`...)
	dst = appendTime(dst, m.Time)
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
	dst = append(dst, `,"attributes":`...)
	dst = appendAttributes(dst, m.Attributes, appendPublished)
	return append(dst, '}')
}

// AppendStoredAttributes appends the attributes of m in the form in which they
// are stored. It is what an oracle compares positions.attributes with, and owes
// nothing to the Decoder.
func AppendStoredAttributes(dst []byte, m *Message) []byte {
	return appendAttributes(dst, m.Attributes, appendStored)
}

func appendAttributes(dst []byte, attributes []Attribute, value func([]byte, *Attribute) []byte) []byte {
	inOrder := func(a, b Attribute) int {
		i, aIndex := arrayIndex(a.Key)
		j, bIndex := arrayIndex(b.Key)
		switch {
		case aIndex && bIndex:
			return cmp.Compare(i, j)
		case aIndex:
			return -1
		case bIndex:
			return 1
		}
		return 0
	}
	if !slices.IsSortedFunc(attributes, inOrder) {
		attributes = slices.Clone(attributes)
		slices.SortStableFunc(attributes, inOrder)
	}
	dst = append(dst, '{')
	for i := range attributes {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, attributes[i].Key)
		dst = append(dst, ':')
		dst = value(dst, &attributes[i])
	}
	return append(dst, '}')
}

// arrayIndex is the number that key is when JavaScript takes it for an index.
func arrayIndex(key string) (uint64, bool) {
	if len(key) == 0 || len(key) > 10 || key[0] == '0' && len(key) > 1 {
		return 0, false
	}
	var n uint64
	for i := range len(key) {
		if key[i]-'0' > 9 {
			return 0, false
		}
		n = n*10 + uint64(key[i]-'0')
	}
	return n, n < math.MaxUint32
}

func appendPublished(dst []byte, a *Attribute) []byte {
	switch a.Kind {
	case KindBigInt:
		dst = append(dst, `{"__bigint":`...)
		dst = appendString(dst, a.Text)
		return append(dst, '}')
	case KindBytes:
		dst = append(dst, `{"__buffer_b64":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, a.Bytes)
		return append(dst, `"}`...)
	case KindLegacyBytes:
		dst = append(dst, `{"type":"Buffer","data":[`...)
		for i, b := range a.Bytes {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = strconv.AppendUint(dst, uint64(b), 10)
		}
		return append(dst, `]}`...)
	default:
		return appendStored(dst, a)
	}
}

func appendStored(dst []byte, a *Attribute) []byte {
	switch a.Kind {
	case KindNumber:
		return appendNumber(dst, a.Number)
	case KindBytes, KindLegacyBytes:
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, a.Bytes)
		return append(dst, '"')
	default:
		return appendString(dst, a.Text)
	}
}

// appendTime appends an ISO 8601 time as Date.toISOString prints it, with more
// digits only where milliseconds do not say it all.
func appendTime(dst []byte, t time.Time) []byte {
	t = t.UTC()
	switch ns := t.Nanosecond(); {
	case ns%1_000_000 == 0:
		return t.AppendFormat(dst, "2006-01-02T15:04:05.000Z")
	case ns%1_000 == 0:
		return t.AppendFormat(dst, "2006-01-02T15:04:05.000000Z")
	default:
		return t.AppendFormat(dst, "2006-01-02T15:04:05.000000000Z")
	}
}

// appendNumber appends v as JSON.stringify does: the shortest digits that read
// back as v, an exponent only for the very large and the very small, null for
// what JSON has no number for.
func appendNumber(dst []byte, v float64) []byte {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return append(dst, "null"...)
	}
	if v == 0 {
		return append(dst, '0') // minus zero too
	}
	if abs := math.Abs(v); abs >= 1e-6 && abs < 1e21 {
		return strconv.AppendFloat(dst, v, 'f', -1, 64)
	}
	dst = strconv.AppendFloat(dst, v, 'e', -1, 64)
	if n := len(dst); dst[n-2] == '0' && (dst[n-3] == '-' || dst[n-3] == '+') { // Go pads exponents to two digits
		dst[n-2] = dst[n-1]
		dst = dst[:n-1]
	}
	return dst
}

// appendString appends s as JSON.stringify does. Bytes that are no UTF-8
// become U+FFFD, as they do when Node.js reads them.
func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', byte(c))
		case c >= ' ':
			dst = utf8.AppendRune(dst, c)
		case c == '\b':
			dst = append(dst, `\b`...)
		case c == '\f':
			dst = append(dst, `\f`...)
		case c == '\n':
			dst = append(dst, `\n`...)
		case c == '\r':
			dst = append(dst, `\r`...)
		case c == '\t':
			dst = append(dst, `\t`...)
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(dst, '"')
}
