package telemetry_test

import (
	"encoding/json"
	"math"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// text is any string that a tracker could mean: no NUL, which Postgres refuses.
func text() *rapid.Generator[string] {
	return rapid.StringOf(rapid.Rune().Filter(func(r rune) bool { return r != 0 && (r < 0xd800 || r > 0xdfff) }))
}

func attribute(key string) *rapid.Generator[fleet.Attribute] {
	return rapid.Custom(func(t *rapid.T) fleet.Attribute {
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0:
			return fleet.NumberAttribute(key, rapid.Float64().Draw(t, "number"))
		case 1:
			return fleet.NumberAttribute(key, float64(rapid.Int32().Draw(t, "integer")))
		case 2:
			if rapid.Bool().Draw(t, "signed") {
				return fleet.BigIntAttribute(key, strconv.FormatInt(rapid.Int64().Draw(t, "int64"), 10))
			}
			return fleet.BigIntAttribute(key, strconv.FormatUint(rapid.Uint64().Draw(t, "uint64"), 10))
		case 3:
			return fleet.BytesAttribute(key, rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
		case 4:
			return fleet.LegacyBytesAttribute(key, rapid.SliceOf(rapid.Byte()).Draw(t, "legacy bytes"))
		default:
			return fleet.TextAttribute(key, text().Draw(t, "text"))
		}
	})
}

func message() *rapid.Generator[fleet.Message] {
	return rapid.Custom(func(t *rapid.T) fleet.Message {
		m := fleet.Message{
			DeviceID:   rapid.OneOf(rapid.StringMatching(`[0-9]{15}`), rapid.StringMatching(`[ -~äé😀]{1,64}`)).Draw(t, "device"),
			Codec:      rapid.SampledFrom([]string{"8", "8E", "16", "GL300"}).Draw(t, "codec"),
			Time:       time.UnixMicro(rapid.Int64Range(0, 4102444799999999).Draw(t, "time")),
			Latitude:   rapid.Float64Range(-90, 90).Draw(t, "latitude"),
			Longitude:  rapid.Float64Range(-180, 180).Draw(t, "longitude"),
			Altitude:   rapid.Float64Range(-math.MaxFloat32, math.MaxFloat32).Draw(t, "altitude"),
			Angle:      rapid.Float64Range(0, 360).Draw(t, "angle"),
			Speed:      float64(rapid.Float32Range(0, 1000).Draw(t, "speed")),
			Satellites: rapid.IntRange(0, math.MaxInt16).Draw(t, "satellites"),
			Priority:   rapid.IntRange(0, 2).Draw(t, "priority"),
		}
		key := rapid.OneOf(rapid.StringMatching(`[0-9]{1,11}`), rapid.Just("__generation_type"), text())
		for _, k := range rapid.SliceOfNDistinct(key, 0, 12, rapid.ID).Draw(t, "keys") {
			if k != "__bigint" && k != "__buffer_b64" {
				m.Attributes = append(m.Attributes, attribute(k).Draw(t, "attribute"))
			}
		}
		return m
	})
}

// realOf is the real that Postgres makes of v as published. Rounding v itself
// would differ where v lies half way between two reals and its text does not.
func realOf(v float64) float32 {
	r, _ := strconv.ParseFloat(strconv.FormatFloat(v, 'e', -1, 64), 32)
	return float32(r) + 0
}

func TestWhatIsEncodedDecodesToTheSame(t *testing.T) {
	d := telemetry.NewDecoder(telemetry.DefaultLimits())
	rapid.Check(t, func(t *rapid.T) {
		m := message().Draw(t, "message")
		e := telemetry.Entry{ID: telemetry.EntryID{Ms: rapid.Uint64Range(0, 1<<45).Draw(t, "ms")}, Fields: fleet.EntryFields(&m)}
		var r telemetry.Record
		require.NoError(t, d.Decode(&e, &r))
		requireSound(t, &r)
		require.Equal(t, telemetry.Record{
			ID: e.ID, DeviceID: m.DeviceID, Codec: m.Codec, TimeUS: m.Time.UnixMicro(), StreamUS: e.ID.Time().UnixMicro(),
			Latitude: m.Latitude + 0, Longitude: m.Longitude + 0,
			Altitude: realOf(m.Altitude), Angle: realOf(m.Angle), Speed: realOf(m.Speed),
			Satellites: int16(m.Satellites), Priority: int16(m.Priority),
			Attributes: fleet.AppendStoredAttributes(nil, &m),
		}, r)
		require.True(t, json.Valid(r.Attributes))
		require.True(t, json.Valid(fleet.AppendPayload(nil, &m)))
	})
}

func TestTimesBelowAMicrosecondAreCutTowardsThePast(t *testing.T) {
	m := fleet.Message{DeviceID: device, Codec: "8", Time: time.Unix(1, 1_999)}
	fields := fleet.EntryFields(&m)
	require.Equal(t, []string{"ts", "1970-01-01T00:00:01.000001999Z"}, fields[:2])
	r, err := decode(t, &telemetry.Entry{Fields: fields})
	require.Nil(t, err)
	require.Equal(t, int64(1_000_001), r.TimeUS)
}

func TestPayloadsAreThoseOfTheNeighbour(t *testing.T) {
	m := fleet.Message{
		DeviceID: device, Codec: "16", Time: time.Date(2026, 1, 2, 4, 4, 5, 678e6, time.FixedZone("", 3600)),
		Latitude: 54.6871593, Longitude: -1e-7, Altitude: 1e21, Angle: math.Copysign(0, -1), Speed: 0.1, Satellites: 14, Priority: 2,
		Attributes: []fleet.Attribute{
			fleet.NumberAttribute("__generation_type", 3),
			fleet.NumberAttribute("240", 1),
			fleet.TextAttribute("4294967295", "\"\\\b\f\n\r\t\x01\u2028\x7fé"),
			fleet.BigIntAttribute("78", "18446744073709551615"),
			fleet.BytesAttribute("4294967294", []byte{1, 2, 3}),
			fleet.LegacyBytesAttribute("9", []byte{0, 255}),
			fleet.NumberAttribute("01", 123456789.125),
			fleet.NumberAttribute("nan", math.NaN()),
		},
	}
	require.Equal(t, `{"device_id":"352093081452251","timestamp":"2026-01-02T03:04:05.678Z","latitude":54.6871593,"longitude":-1e-7,`+
		`"altitude":1e+21,"angle":0,"speed":0.1,"satellites":14,"priority":2,"attributes":{"9":{"type":"Buffer","data":[0,255]},`+
		`"78":{"__bigint":"18446744073709551615"},"240":1,"4294967294":{"__buffer_b64":"AQID"},"__generation_type":3,`+
		`"4294967295":"\"\\\b\f\n\r\t\u0001`+"\u2028\x7f"+`é","01":123456789.125,"nan":null}}`, string(fleet.AppendPayload(nil, &m)))
	require.Equal(t, `{"9":"AP8=","78":"18446744073709551615","240":1,"4294967294":"AQID","__generation_type":3,`+
		`"4294967295":"\"\\\b\f\n\r\t\u0001`+"\u2028\x7f"+`é","01":123456789.125,"nan":null}`, string(fleet.AppendStoredAttributes(nil, &m)))
	require.Equal(t, "__generation_type", m.Attributes[0].Key, "the message keeps its order")
}
