package telemetry_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
)

const device = "352093081452251"

// defaults are the payload's members as JSON, in the publisher's order.
var defaults = [][2]string{
	{"device_id", `"` + device + `"`},
	{"timestamp", `"2026-01-02T03:04:05.678Z"`},
	{"latitude", `54.6871593`},
	{"longitude", `25.2796514`},
	{"altitude", `112`},
	{"angle", `271`},
	{"speed", `57`},
	{"satellites", `14`},
	{"priority", `1`},
	{"attributes", `{"240":1}`},
}

// with is a payload in which key has another value: raw JSON, "" to leave the
// key out.
func with(key, value string) string {
	var b strings.Builder
	for _, member := range defaults {
		if member[0] == key {
			if member[1] = value; value == "" {
				continue
			}
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:%s", member[0], member[1])
	}
	return "{" + b.String() + "}"
}

func decode(t *testing.T, e *telemetry.Entry) (telemetry.Record, *telemetry.DecodeError) {
	t.Helper()
	var r telemetry.Record
	err := telemetry.NewDecoder(telemetry.Limits{}).Decode(e, &r)
	if err == nil {
		requireSound(t, &r)
		return r, nil
	}
	var refused *telemetry.DecodeError
	require.ErrorAs(t, err, &refused)
	requireSoundError(t, refused)
	return r, refused
}

// requireSound checks what every record promises.
func requireSound(t require.TestingT, r *telemetry.Record) {
	require.True(t, utf8.ValidString(r.DeviceID))
	require.NotEmpty(t, r.DeviceID)
	require.LessOrEqual(t, utf8.RuneCountInString(r.DeviceID), 64)
	require.NotContains(t, r.DeviceID, "\x00")
	require.NotEmpty(t, r.Codec)
	require.False(t, r.Time().Before(time.Unix(0, 0)))
	require.Less(t, r.Time().Year(), 2100)
	require.LessOrEqual(t, math.Abs(r.Latitude), 90.0)
	require.LessOrEqual(t, math.Abs(r.Longitude), 180.0)
	for _, v := range []float64{r.Latitude, r.Longitude, float64(r.Altitude), float64(r.Angle), float64(r.Speed)} {
		require.False(t, math.IsInf(v, 0) || math.IsNaN(v) || v == 0 && math.Signbit(v))
	}
	require.GreaterOrEqual(t, r.Satellites, int16(0))
	require.True(t, r.Priority >= 0 && r.Priority <= 2)
	require.True(t, strings.HasPrefix(string(r.Attributes), "{") && strings.HasSuffix(string(r.Attributes), "}"))
	require.NotContains(t, string(r.Attributes), `\u0000`+`"`)
	require.True(t, utf8.Valid(r.Attributes))
}

// requireSoundError checks what every error promises.
func requireSoundError(t require.TestingT, err *telemetry.DecodeError) {
	require.Contains(t, []telemetry.Class{telemetry.ClassDecode, telemetry.ClassInvalid, telemetry.ClassTooLarge}, err.Class)
	require.NotEmpty(t, err.Field)
	require.NotEmpty(t, err.Rule)
	for _, text := range []string{err.Error(), err.Fingerprint()} {
		require.Less(t, len(text), 600)
		require.True(t, utf8.ValidString(text))
		require.NotContains(t, text, "\x00")
		require.NotContains(t, text, "\n")
	}
}

func TestDecodeFillsEveryField(t *testing.T) {
	r, err := decode(t, entryOf(with("speed", "57.5")))
	require.Nil(t, err)
	require.Equal(t, telemetry.Record{
		ID: telemetry.EntryID{Ms: 1767323046000, Seq: 7}, DeviceID: device, Codec: "8E",
		TimeUS: 1767323045678000, StreamUS: 1767323046000000,
		Latitude: 54.6871593, Longitude: 25.2796514, Altitude: 112, Angle: 271, Speed: 57.5,
		Satellites: 14, Priority: 1, Attributes: []byte(`{"240":1}`),
	}, r)
}

func TestAReplayKeepsTheStreamTimeOfItsSource(t *testing.T) {
	e := entryOf(with("", ""))
	e.Fields = append(e.Fields, telemetry.FieldReplayOf, "1700000000123-4")
	r, err := decode(t, e)
	require.Nil(t, err)
	require.Equal(t, int64(1700000000123000), r.StreamUS)
	require.Equal(t, uint64(1767323046000), r.ID.Ms)
}

func TestThePayloadDecidesNotTheCopies(t *testing.T) {
	want, err := decode(t, entryOf(with("", "")))
	require.Nil(t, err)
	for name, fields := range map[string][]string{
		"no ts":           {"device_id", device, "codec", "8E", "payload", with("", "")},
		"another ts":      {"ts", "1999-01-01T00:00:00Z", "device_id", device, "codec", "8E", "payload", with("", "")},
		"an odd ts":       {"ts", "\x00", "device_id", device, "codec", "8E", "payload", with("", "")},
		"a new field":     {"hop", "3", "device_id", device, "codec", "8E", "payload", with("", "")},
		"fields twice":    {"device_id", device, "codec", "8E", "payload", with("", ""), "codec", "8", "payload", "x"},
		"a lone name":     {"device_id", device, "codec", "8E", "payload", with("", ""), "ts"},
		"an extra key":    {"device_id", device, "codec", "8E", "payload", strings.Replace(with("", ""), "{", `{"hdop":{"a":[1e999999,null,true,"é"]},`, 1)},
		"an escaped key":  {"device_id", device, "codec", "8E", "payload", strings.Replace(with("", ""), "speed", `sp\u0065ed`, 1)},
		"an escaped text": {"device_id", device, "codec", "8E", "payload", with("device_id", `"\u00335209308145225\u0031"`)},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decode(t, &telemetry.Entry{ID: want.ID, Fields: fields})
			require.Nil(t, err)
			require.Equal(t, want, got)
		})
	}
}

func TestEntriesOutsideTheContractAreRefused(t *testing.T) {
	good := with("", "")
	long := strings.Repeat("ü", 65)
	for _, c := range []struct {
		name   string
		fields []string
		want   string // fingerprint
	}{
		{"no fields", nil, "invalid/device_id/missing"},
		{"odd fields", []string{"device_id"}, "invalid/device_id/missing"},
		{"no device", []string{"codec", "8", "payload", good}, "invalid/device_id/missing"},
		{"empty device", []string{"device_id", "", "codec", "8", "payload", good}, "invalid/device_id/text"},
		{"long device", []string{"device_id", long, "codec", "8", "payload", good}, "invalid/device_id/text"},
		{"huge device", []string{"device_id", strings.Repeat("1", 10<<20), "codec", "8", "payload", good}, "invalid/device_id/text"},
		{"NUL in device", []string{"device_id", "1\x002", "codec", "8", "payload", good}, "invalid/device_id/text"},
		{"DEL in device", []string{"device_id", "1\x7f2", "codec", "8", "payload", good}, "invalid/device_id/text"},
		{"C1 control in device", []string{"device_id", "1\u00852", "codec", "8", "payload", good}, "invalid/device_id/text"},
		{"device not UTF-8", []string{"device_id", "1\xff2", "codec", "8", "payload", good}, "invalid/device_id/utf8"},
		{"no codec", []string{"device_id", device, "payload", good}, "invalid/codec/missing"},
		{"empty codec", []string{"device_id", device, "codec", "", "payload", good}, "invalid/codec/text"},
		{"long codec", []string{"device_id", device, "codec", "12345678901234567", "payload", good}, "invalid/codec/text"},
		{"NUL in codec", []string{"device_id", device, "codec", "8\x00", "payload", good}, "invalid/codec/text"},
		{"codec not UTF-8", []string{"device_id", device, "codec", "8\xff", "payload", good}, "invalid/codec/utf8"},
		{"no payload", []string{"device_id", device, "codec", "8"}, "invalid/payload/missing"},
		{"payload without value", []string{"device_id", device, "codec", "8", "payload"}, "invalid/payload/missing"},
		{"another device in the payload", []string{"device_id", "35", "codec", "8", "payload", good}, "invalid/payload.device_id/mismatch"},
		{"10 MB payload", []string{"device_id", device, "codec", "8", "payload", strings.Repeat(" ", 10<<20) + good}, "too_large/payload/payload_bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := decode(t, &telemetry.Entry{Fields: c.fields})
			require.NotNil(t, err)
			require.Equal(t, c.want, err.Fingerprint())
		})
	}
}

func TestCodecsAndDevicesOfOtherVendorsPass(t *testing.T) {
	for _, codec := range []string{"8", "8E", "16", "GV300", "1234567890123456", "JT/T 808", "ü"} {
		e := entryOf(with("", ""))
		e.Fields[5] = codec
		r, err := decode(t, e)
		require.Nil(t, err, codec)
		require.Equal(t, codec, r.Codec)
	}
	for _, id := range []string{"1", "scheidegg-1", strings.Repeat("ü", 64), "a b\"c\\d", "\ufffd"} {
		m := fleet.Message{DeviceID: id, Codec: "8", Time: time.Unix(0, 0)}
		r, err := decode(t, &telemetry.Entry{Fields: fleet.EntryFields(&m)})
		require.Nil(t, err, id)
		require.Equal(t, id, r.DeviceID)
	}
}

func TestPayloadsOutsideTheContractAreRefused(t *testing.T) {
	attributes := func(v string) string { return with("attributes", v) }
	for _, c := range []struct{ name, payload, want string }{
		{"empty", "", "decode/payload/truncated"},
		{"not JSON", "hello", "decode/payload/syntax"},
		{"an array", "[]", "decode/payload/type"},
		{"a string", `"x"`, "decode/payload/type"},
		{"no members", "{}", "decode/payload.device_id/missing"},
		{"trailing text", with("", "") + "x", "decode/payload/syntax"},
		{"trailing NUL", with("", "") + "\x00", "decode/payload/syntax"},
		{"byte order mark", "\ufeff" + with("", ""), "decode/payload/syntax"},
		{"trailing comma", strings.TrimSuffix(with("", ""), "}") + ",}", "decode/payload/syntax"},
		{"single quotes", strings.ReplaceAll(with("", ""), `"`, `'`), "decode/payload/syntax"},
		{"slim form of old", `{"device_id":"` + device + `","lat":1,"lon":2}`, "decode/payload.timestamp/missing"},
		{"null latitude", with("latitude", "null"), "decode/payload.latitude/type"},
		{"text latitude", with("latitude", `"54.6"`), "decode/payload.latitude/type"},
		{"NaN", with("latitude", "NaN"), "decode/payload.latitude/syntax"},
		{"Infinity", with("speed", "-Infinity"), "decode/payload.speed/syntax"},
		{"text NaN", with("speed", `"NaN"`), "decode/payload.speed/type"},
		{"leading zero", with("speed", "01"), "decode/payload.speed/syntax"},
		{"leading plus", with("speed", "+1"), "decode/payload.speed/syntax"},
		{"bare point", with("speed", "1."), "decode/payload.speed/syntax"},
		{"bare exponent", with("speed", "1e"), "decode/payload.speed/syntax"},
		{"bare minus", with("speed", "-"), "decode/payload.speed/syntax"},
		{"hexadecimal", with("speed", "0x10"), "decode/payload.speed/syntax"},
		{"too far north", with("latitude", "90.0000001"), "invalid/payload.latitude/range"},
		{"too far south", with("latitude", "-91"), "invalid/payload.latitude/range"},
		{"too far east", with("longitude", "180.5"), "invalid/payload.longitude/range"},
		{"beyond a double", with("longitude", "1e400"), "invalid/payload.longitude/range"},
		{"altitude beyond a real", with("altitude", "3.5e38"), "invalid/payload.altitude/range"},
		{"angle beyond a real", with("angle", "-1e39"), "invalid/payload.angle/range"},
		{"speed with huge exponent", with("speed", "1e99999999999999999999"), "invalid/payload.speed/range"},
		{"64-bit satellites", with("satellites", "18446744073709551615"), "invalid/payload.satellites/integer"},
		{"satellites that wrap to 5", with("satellites", "18446744073709551621"), "invalid/payload.satellites/integer"},
		{"latitude that wraps to 5", with("latitude", "18446744073709551621"), "invalid/payload.latitude/range"},
		{"too many satellites", with("satellites", "32768"), "invalid/payload.satellites/range"},
		{"negative satellites", with("satellites", "-1"), "invalid/payload.satellites/range"},
		{"half a satellite", with("satellites", "0.5"), "invalid/payload.satellites/integer"},
		{"priority 3", with("priority", "3"), "invalid/payload.priority/range"},
		{"priority -1", with("priority", "-1"), "invalid/payload.priority/range"},
		{"priority true", with("priority", "true"), "decode/payload.priority/type"},
		{"a number for a time", with("timestamp", "1767323045678"), "decode/payload.timestamp/type"},
		{"no offset", with("timestamp", `"2026-01-02T03:04:05"`), "invalid/payload.timestamp/time"},
		{"1901", with("timestamp", `"1901-12-13T20:45:52.000Z"`), "invalid/payload.timestamp/range"},
		{"before 1970", with("timestamp", `"1969-12-31T23:59:59.999999Z"`), "invalid/payload.timestamp/range"},
		{"2100", with("timestamp", `"2100-01-01T00:00:00Z"`), "invalid/payload.timestamp/range"},
		{"key twice", strings.Replace(with("", ""), `"angle":271`, `"speed":1`, 1), "invalid/payload.speed/duplicate_key"},
		{"key twice, once escaped", strings.Replace(with("", ""), `"angle":271`, `"sp\u0065ed":1`, 1), "invalid/payload.speed/duplicate_key"},
		{"unknown key twice", strings.Replace(with("", ""), `{`, `{"x":1,"\u0078":2,`, 1), "invalid/payload[*]/duplicate_key"},
		{"key twice in what is ignored", strings.Replace(with("", ""), `{`, `{"x":[{"y":1,"y":2}],`, 1), "invalid/payload[*]/duplicate_key"},
		{"NUL in what is ignored", strings.Replace(with("", ""), `{`, `{"x":"\u0000",`, 1), "invalid/payload[*]/nul"},
		{"attributes null", attributes(`null`), "decode/payload.attributes/type"},
		{"attributes an array", attributes(`[]`), "decode/payload.attributes/type"},
		{"attributes a sentinel", attributes(`{"__bigint":"1"}`), "decode/payload.attributes[*]/sentinel"},
		{"attribute twice", attributes(`{"1":1,"2":2,"1":1}`), "invalid/payload.attributes[*]/duplicate_key"},
		{"attribute twice, once escaped", attributes(`{"1":1,"\u0031":1}`), "invalid/payload.attributes[*]/duplicate_key"},
		{"long attribute twice", attributes(`{"__generation_type":1,"__generation_type":1}`), "invalid/payload.attributes[*]/duplicate_key"},
		{"NUL in a value", attributes(`{"1":"a\u0000"}`), "invalid/payload.attributes[*]/nul"},
		{"NUL in a key", attributes(`{"a\u0000":1}`), "invalid/payload.attributes/nul"},
		{"raw NUL", attributes("{\"1\":\"\x00\"}"), "decode/payload.attributes[*]/syntax"},
		{"raw newline", attributes("{\"1\":\"\n\"}"), "decode/payload.attributes[*]/syntax"},
		{"lone high surrogate", attributes(`{"1":"\ud800"}`), "invalid/payload.attributes[*]/surrogate"},
		{"lone low surrogate", attributes(`{"1":"\udc00"}`), "invalid/payload.attributes[*]/surrogate"},
		{"two high surrogates", attributes(`{"1":"\ud800\ud800"}`), "invalid/payload.attributes[*]/surrogate"},
		{"surrogate in UTF-8", attributes("{\"1\":\"\xed\xa0\x80\"}"), "decode/payload.attributes[*]/utf8"},
		{"not UTF-8", attributes("{\"1\":\"\xff\"}"), "decode/payload.attributes[*]/utf8"},
		{"key not UTF-8", attributes("{\"\xc3\":1}"), "decode/payload.attributes/utf8"},
		{"bad escape", attributes(`{"1":"\x"}`), "decode/payload.attributes[*]/syntax"},
		{"bad hex", attributes(`{"1":"\u00g0"}`), "decode/payload.attributes[*]/syntax"},
		{"attribute NaN", attributes(`{"1":NaN}`), "decode/payload.attributes[*]/syntax"},
		{"attribute nothing", attributes(`{"1":}`), "decode/payload.attributes[*]/syntax"},
		{"attribute leading zero", attributes(`{"1":007}`), "decode/payload.attributes[*]/syntax"},
		{"beyond a double", attributes(`{"1":1e309}`), "invalid/payload.attributes[*]/range"},
		{"beyond numeric", attributes(`{"1":1e999999}`), "invalid/payload.attributes[*]/range"},
		{"small stored, large printed", attributes(`{"1":[` + strings.Repeat("1e131000,", 99) + `1]}`), "invalid/payload.attributes[*]/range"},
		{"finer than a double", attributes(`{"1":[-1.5e-346]}`), "invalid/payload.attributes[*]/range"},
		{"401 digits", attributes(`{"1":0.` + strings.Repeat("1", 399) + `}`), "invalid/payload.attributes[*]/range"},
		{"unknown sentinel", attributes(`{"1":{"__decimal":"1.5"}}`), "decode/payload.attributes[*]/sentinel"},
		{"sentinel of another type", attributes(`{"1":{"__bigint":5}}`), "decode/payload.attributes[*]/sentinel"},
		{"sentinel with more", attributes(`{"1":{"__bigint":"5","unit":"m"}}`), "decode/payload.attributes[*]/sentinel"},
		{"sentinel behind more", attributes(`{"1":{"unit":"m","__bigint":"5"}}`), "decode/payload.attributes[*]/sentinel"},
		{"bigint empty", attributes(`{"1":{"__bigint":""}}`), "invalid/payload.attributes[*]/digits"},
		{"bigint of letters", attributes(`{"1":{"__bigint":"12n"}}`), "invalid/payload.attributes[*]/digits"},
		{"bigint with zeros", attributes(`{"1":{"__bigint":"007"}}`), "invalid/payload.attributes[*]/digits"},
		{"bigint minus zero", attributes(`{"1":{"__bigint":"-0"}}`), "invalid/payload.attributes[*]/digits"},
		{"base64 unpadded", attributes(`{"1":{"__buffer_b64":"AQI"}}`), "invalid/payload.attributes[*]/base64"},
		{"base64 for URLs", attributes(`{"1":{"__buffer_b64":"-_-_"}}`), "invalid/payload.attributes[*]/base64"},
		{"base64 stray bits", attributes(`{"1":{"__buffer_b64":"AB=="}}`), "invalid/payload.attributes[*]/base64"},
		{"base64 padding inside", attributes(`{"1":{"__buffer_b64":"AA==AA=="}}`), "invalid/payload.attributes[*]/base64"},
		{"base64 three pads", attributes(`{"1":{"__buffer_b64":"A==="}}`), "invalid/payload.attributes[*]/base64"},
		{"buffer of text", attributes(`{"1":{"type":"Buffer","data":"AQI="}}`), "decode/payload.attributes[*]/sentinel"},
		{"buffer of texts", attributes(`{"1":{"type":"Buffer","data":["1"]}}`), "decode/payload.attributes[*]/sentinel"},
		{"buffer of words", attributes(`{"1":{"type":"Buffer","data":[256]}}`), "invalid/payload.attributes[*]/byte"},
		{"buffer of halves", attributes(`{"1":{"type":"Buffer","data":[0.5]}}`), "invalid/payload.attributes[*]/byte"},
		{"too deep", attributes(`{"1":` + strings.Repeat("[", 15) + strings.Repeat("]", 15) + `}`), "too_large/payload.attributes[*]/depth"},
		{"100,000 deep", attributes(`{"1":` + strings.Repeat("[", 100_000)), "too_large/payload.attributes[*]/depth"},
		{"too deep in what is ignored", strings.Replace(with("", ""), `{`, `{"x":`+strings.Repeat(`{"a":`, 100_000), 1), "too_large/payload[*]/depth"},
		{"1,025 attributes", attributes(manyMembers(1025)), "too_large/payload.attributes/attributes"},
		{"1,025 attributes, nested", attributes(`{"1":{"2":` + manyMembers(1023) + `}}`), "too_large/payload.attributes/attributes"},
		{"1,025 elements", attributes(`{"1":[` + strings.Repeat("0,", 1023) + `0]}`), "too_large/payload.attributes/attributes"},
		{"1,025 elements, nested", attributes(`{"1":[` + strings.Repeat("[0],", 511) + `[0,0]]}`), "too_large/payload.attributes/attributes"},
		{"1,025 elements of no buffer", attributes(`{"1":{"type":"Buffer","data":[` + strings.Repeat("0,", 1020) + `0],"x":1}}`), "too_large/payload.attributes/attributes"},
		{"elements behind an empty buffer", attributes(`{"1":{"type":"Buffer","data":[]},"2":[` + strings.Repeat("0,", 1023) + `0]}`), "too_large/payload.attributes/attributes"},
		{"100,000 attributes", attributes(manyMembers(80_000)), "too_large/payload.attributes/attributes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := decode(t, entryOf(c.payload))
			require.NotNil(t, err)
			require.Equal(t, c.want, err.Fingerprint(), err.Error())
		})
	}
}

// manyMembers is an object with n members.
func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"%d":%d`, i, i%10)
	}
	return "{" + b.String()[1:] + "}"
}

func TestEveryPayloadKeyIsRequired(t *testing.T) {
	for _, member := range defaults {
		_, err := decode(t, entryOf(with(member[0], "")))
		require.NotNil(t, err, member[0])
		require.Equal(t, "decode/payload."+member[0]+"/missing", err.Fingerprint())
	}
}

func TestEveryTruncationIsOfClassDecode(t *testing.T) {
	payload := with("attributes", `{"240":1,"78":{"__bigint":"-9223372036854775808"},"385":{"__buffer_b64":"AQI="},`+
		`"386":{"type":"Buffer","data":[1,2]},"x":[true,false,null,-1.5e+3,"\ud83d\ude00é\n"]}`)
	_, err := decode(t, entryOf(payload))
	require.Nil(t, err)
	for n := range len(payload) {
		_, err := decode(t, entryOf(payload[:n]))
		require.NotNil(t, err, payload[:n])
		require.Equal(t, telemetry.ClassDecode, err.Class, "%s: %s", payload[:n], err)
	}
}

func TestAttributesAreStoredAsAgreed(t *testing.T) {
	for _, c := range []struct{ name, published, stored string }{
		{"none", `{}`, `{}`},
		{"white space", "{ \"1\" :\t1 \n}", "{ \"1\" :\t1 \n}"},
		{"plain values", `{"1":0,"2":-0,"3":1.50,"4":1E+2,"5":true,"6":null,"7":"é\u00e9\/","8":[1,{}],"9":{"a":{}}}`, ""},
		{"generation type", `{"1":1,"__generation_type":3}`, ""},
		{"integers beyond 2^53 as numbers", `{"1":9007199254740993,"2":18446744073709551615,"3":-9223372036854775808}`, ""},
		{"the widest doubles", `{"1":1.7976931348623157e308,"2":4.9406564584124654e-324,"3":-1.7976931348623157E+308}`, ""},
		{"1,023 elements", `{"1":[` + strings.Repeat("0,", 1022) + `0]}`, ""},
		{"a long legacy buffer", `{"1":{"type":"Buffer","data":[` + strings.Repeat("0,", 2999) + `0]}}`, `{"1":"` + strings.Repeat("AAAA", 1000) + `"}`},
		{
			"64-bit extremes", `{"1":{"__bigint":"18446744073709551615"},"2":{"__bigint":"-9223372036854775808"},"3":{"__bigint":"0"}}`,
			`{"1":"18446744073709551615","2":"-9223372036854775808","3":"0"}`,
		},
		{"a longer integer", `{"1":{"__bigint":"340282366920938463463374607431768211456"},"2":2}`, `{"1":"340282366920938463463374607431768211456","2":2}`},
		{"bytes", `{"0":0,"1":{"__buffer_b64":"AQID"},"2":{"__buffer_b64":""},"3":{"__buffer_b64":"+\/8="}}`, `{"0":0,"1":"AQID","2":"","3":"+/8="}`},
		{"escaped sentinel", `{"1":{"__big\u0069nt":"\u0031"}}`, `{"1":"1"}`},
		{"spaced sentinel", `{"1": { "__bigint" : "12" } }`, `{"1": "12" }`},
		{"legacy buffer", `{"1":{"type":"Buffer","data":[0,255,16]},"2":{"type":"Buffer","data":[]}}`, `{"1":"AP8Q","2":""}`},
		{"legacy buffer, other order", `{"1":{ "data" : [ 1 , 2.0 ], "type" : "Buffer" }}`, `{"1":"AQI="}`},
		{"no legacy buffers", `{"1":{"type":"Buffer"},"2":{"type":"Buffer","data":[1],"n":1},"3":{"type":"buffer","data":[1]},"4":{"data":[1]}}`, ""},
		{"sentinels inside", `{"1":[{"__bigint":"1"},{"a":{"__buffer_b64":"AQ=="}}]}`, `{"1":["1",{"a":"AQ=="}]}`},
		{"same key in different objects", `{"1":{"1":{"1":1},"2":{"1":1}},"2":1}`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := decode(t, entryOf(with("attributes", c.published)))
			require.Nil(t, err)
			if c.stored == "" {
				c.stored = c.published
			}
			require.Equal(t, c.stored, string(r.Attributes))
		})
	}
}

func TestNumbersAreThoseOfTheirColumns(t *testing.T) {
	for _, c := range []struct {
		text   string
		double float64
		real   float32
	}{
		{"0", 0, 0},
		{"-0", 0, 0},
		{"-0.0e5", 0, 0},
		{"1e-400", 0, 0},
		{"-1e-400", 0, 0},
		{"0.1", 0.1, 0.1},
		{"-12.9715987", -12.9715987, -12.9715987},
		{"16777217", 0, 16777216},
		{"1.00000005960464477540", 1.00000005960464477540, 1.0000001}, // twice rounded it would be 1
		{"1e1", 10, 10},
		{"89.99999999999999999999999", 90, 90},
	} {
		t.Run(c.text, func(t *testing.T) {
			r, err := decode(t, entryOf(with("altitude", c.text)))
			require.Nil(t, err)
			require.Equal(t, c.real, r.Altitude)
			if c.text == "16777217" {
				return
			}
			r, err = decode(t, entryOf(with("latitude", c.text)))
			require.Nil(t, err)
			require.Equal(t, c.double, r.Latitude)
		})
	}
	for text, want := range map[string]int16{"1": 1, "1.0": 1, "1e0": 1, "0.1e1": 1, "10e-1": 1, "2.000": 2, "-0": 0} {
		r, err := decode(t, entryOf(with("priority", text)))
		require.Nil(t, err, text)
		require.Equal(t, want, r.Priority)
	}
}

func TestMinusZeroIsNoFix(t *testing.T) {
	payload := strings.NewReplacer("54.6871593", "-0.0", "25.2796514", "0").Replace(with("", ""))
	r, err := decode(t, entryOf(payload))
	require.Nil(t, err)
	require.Equal(t, telemetry.NoFix, telemetry.Eligibility{}.Of(&r))
	require.False(t, math.Signbit(r.Latitude))
}

func TestTimesAreThoseOfRFC3339(t *testing.T) {
	for text, want := range map[string]int64{
		"2026-01-02T03:04:05Z":                     1767323045000000,
		"2026-01-02t03:04:05.6z":                   1767323045600000,
		"2026-01-02T03:04:05.678901Z":              1767323045678901,
		"2026-01-02T03:04:05.6789019999999999999Z": 1767323045678901,
		"2026-01-02T05:34:05.678+02:30":            1767323045678000,
		"2026-01-01T19:04:05-08:00":                1767323045000000,
		"2026-01-02T03:04:05-00:00":                1767323045000000,
		"1970-01-01T00:00:00.000Z":                 0,
		"1969-12-31T23:00:00-01:00":                0,
		"2000-02-29T00:00:00Z":                     951782400000000,
		"2016-12-31T23:59:60.5Z":                   1483228800000000,
		"2017-01-01T01:59:60+02:00":                1483228800000000,
		"2099-12-31T23:59:59.999999999Z":           4102444799999999,
	} {
		r, err := decode(t, entryOf(with("timestamp", `"`+text+`"`)))
		require.Nil(t, err, text)
		require.Equal(t, want, r.TimeUS, text)
	}
	for _, text := range []string{
		"", "Z", "2026-01-02", "2026-01-02 03:04:05Z", "2026-01-02T03:04:05", "2026-01-02T03:04Z", "2026-01-02T03:04:05.Z",
		"2026-01-02T03:04:05,5Z", "2026-13-02T03:04:05Z", "2026-00-02T03:04:05Z", "2026-01-32T03:04:05Z", "2026-02-29T03:04:05Z",
		"2026-04-31T03:04:05Z", "2026-01-00T03:04:05Z", "2026-01-02T24:00:00Z", "2026-01-02T03:60:05Z", "2026-01-02T03:04:61Z",
		"2026-01-02T03:04:60Z", "2026-01-02T03:04:05+0200", "2026-01-02T03:04:05+24:00", "2026-01-02T03:04:05+02:60",
		"2026-01-02T03:04:05ZZ", "+002026-01-02T03:04:05Z", "2026-1-2T3:4:5Z", "20260102T030405Z", "2026-01-02T03:04:05 Z", "２026-01-02T03:04:05Z",
	} {
		_, err := decode(t, entryOf(with("timestamp", `"`+text+`"`)))
		require.NotNil(t, err, text)
		require.Equal(t, "invalid/payload.timestamp/time", err.Fingerprint(), text)
	}
	for at := minDay; at.Before(time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)); at = at.AddDate(0, 0, 1) {
		text := at.Format(time.RFC3339)
		r, err := decode(t, entryOf(with("timestamp", `"`+text+`"`)))
		require.Nil(t, err, text)
		require.Equal(t, at.UnixMicro(), r.TimeUS, text)
	}
}

var minDay = time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)

func TestErrorsNameTheFieldAndNoValue(t *testing.T) {
	for payload, want := range map[string]string{
		with("latitude", "154.6871593"):                "invalid: payload.latitude: must lie from -90 to 90",
		with("attributes", `{"240":{"__bigint":"x"}}`): `invalid: payload.attributes["240"]: has a __bigint that is not a decimal integer`,
		with("attributes", "{\"\u2028\x7f"+strings.Repeat("é", 99)+`":nan}`): `decode: payload.attributes["\u2028\x7f` +
			strings.Repeat(`\u00e9`, 30) + `..."]: is not JSON at byte`,
	} {
		_, err := decode(t, entryOf(payload))
		require.NotNil(t, err)
		require.Contains(t, err.Error(), want)
	}
}

func TestLimitsAreInclusive(t *testing.T) {
	limits := telemetry.Limits{MaxPayloadBytes: 1 << 20, MaxDepth: 3, MaxAttributes: 3}
	payload := with("attributes", `{"1":[1],"2":{}}`)
	payload += strings.Repeat(" ", limits.MaxPayloadBytes-len(payload))
	var r telemetry.Record
	require.NoError(t, telemetry.NewDecoder(limits).Decode(entryOf(payload), &r))
	require.Error(t, telemetry.NewDecoder(limits).Decode(entryOf(payload+" "), &r))
	require.Error(t, telemetry.NewDecoder(limits).Decode(entryOf(with("attributes", `{"1":[[]]}`)), &r))
	require.Error(t, telemetry.NewDecoder(limits).Decode(entryOf(with("attributes", `{"1":1,"2":2,"3":3,"4":4}`)), &r))
	require.Equal(t, telemetry.Limits{MaxPayloadBytes: 1 << 20, MaxDepth: 16, MaxAttributes: 1024}, telemetry.DefaultLimits())
}

func TestRecordsStayValidWhileTheDecoderGoesOn(t *testing.T) {
	const n = 5000
	d := telemetry.NewDecoder(telemetry.DefaultLimits())
	records := make([]telemetry.Record, n)
	payload := func(i int) string {
		return with("attributes", fmt.Sprintf(`{"1":{"__bigint":"%d"},"2":{"__buffer_b64":%q}}`,
			i, base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", i%700)))))
	}
	for i := range records {
		require.NoError(t, d.Decode(entryOf(payload(i)), &records[i]))
		// A payload that fails half way leaves nothing behind.
		require.Error(t, d.Decode(entryOf(payload(i)[:len(payload(i))-4]), new(telemetry.Record)))
	}
	for i := range records {
		require.Equal(t, fmt.Sprintf(`{"1":"%d","2":%q}`, i, base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", i%700)))),
			string(records[i].Attributes))
	}
}

func TestManyKeysCostNoMoreThanTheirBytes(t *testing.T) {
	// Quadratic work on 80,000 keys would take minutes.
	payload := strings.Replace(with("", ""), "{", `{"extra":`+manyMembers(80_000)+",", 1)
	require.LessOrEqual(t, len(payload), 1<<20)
	d := telemetry.NewDecoder(telemetry.DefaultLimits())
	var r telemetry.Record
	start := time.Now()
	require.NoError(t, d.Decode(entryOf(payload), &r))
	require.Less(t, time.Since(start), 5*time.Second)
	twice := strings.Replace(payload, `"79999":`, `"0":`, 1)
	var refused *telemetry.DecodeError
	require.ErrorAs(t, d.Decode(entryOf(twice), &r), &refused)
	require.Equal(t, telemetry.RuleDuplicateKey, refused.Rule)
	require.NoError(t, d.Decode(entryOf(with("", "")), &r))
}

func TestDecodeErrorsAreNotNilInterfaces(t *testing.T) {
	var r telemetry.Record
	err := telemetry.NewDecoder(telemetry.Limits{}).Decode(entryOf(with("", "")), &r)
	require.True(t, err == nil && !errors.As(err, new(*telemetry.DecodeError)))
}
