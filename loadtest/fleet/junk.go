package fleet

import (
	"fmt"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Class is the reason under which an entry that is no valid record has to be
// dead-lettered.
type Class string

// The classes of junk.
const (
	ClassDecode   Class = "decode"    // cannot be read as the wire contract says
	ClassInvalid  Class = "invalid"   // can be read, but says what cannot be
	ClassTooLarge Class = "too_large" // is larger than any record may be
)

// Junk is an entry that is no valid record.
type Junk struct {
	Kind   string // one of JunkKinds
	Class  Class
	Device string   // the device it claims to come from, may be empty
	Fields []string // names and values of the entry
}

// JunkKinds are the names of the kinds of junk.
func JunkKinds() []string {
	names := make([]string, 0, len(junkKinds))
	for _, k := range junkKinds {
		names = append(names, k.name)
	}
	return names
}

// junkKinds tell how to spoil a good payload or its entry.
var junkKinds = [...]struct {
	name  string
	class Class
	spoil func(f *junkFields)
}{
	{"not_json", ClassDecode, func(f *junkFields) { f.payload = "$GPRMC,081836,A,3751.65,S*62" }},
	{"truncated", ClassDecode, func(f *junkFields) { f.payload = f.payload[:len(f.payload)/2] }},
	{"wrong_type", ClassDecode, func(f *junkFields) { f.replace(`"latitude":`, `"latitude":"north","was":`) }},
	{"missing_field", ClassDecode, func(f *junkFields) { f.replace(`"longitude":`, `"x":`) }},
	{"bad_sentinel", ClassDecode, func(f *junkFields) { f.replace(`"attributes":{`, `"attributes":{"78":{"__bigint":"0x1F"},`) }},
	{"no_payload", ClassDecode, func(f *junkFields) { f.payload = "" }},
	{"latitude_range", ClassInvalid, func(f *junkFields) { f.replace(`"latitude":`, `"latitude":91.5,"was":`) }},
	{"priority_range", ClassInvalid, func(f *junkFields) { f.replace(`"priority":`, `"priority":7,"was":`) }},
	{"time_range", ClassInvalid, func(f *junkFields) {
		f.replace(`"timestamp":`, `"timestamp":"1901-12-13T20:45:52.207Z","was":`)
	}},
	{"device_mismatch", ClassInvalid, func(f *junkFields) { f.replace(`"device_id":"`, `"device_id":"9`) }},
	{"nul", ClassInvalid, func(f *junkFields) { f.replace(`"attributes":{`, `"attributes":{"note":"a\u0000b",`) }},
	{"huge", ClassTooLarge, func(f *junkFields) {
		f.replace(`"attributes":{`, `"attributes":{"note":"`+strings.Repeat("x", 1<<20)+`",`)
	}},
}

type junkFields struct{ payload string }

func (f *junkFields) replace(old, with string) {
	f.payload = strings.Replace(f.payload, old, with, 1)
}

func newJunk(kind int, device string, us int64, r uint64) *Junk {
	k := junkKinds[kind]
	good := Message{
		DeviceID: device, Codec: "8E", TimeUS: us,
		Latitude: 42.5, Longitude: 1.5, Altitude: 900, Angle: 10, Speed: 50, Satellites: 9,
		Attributes: []Attribute{{Name: "junk", Value: int64(r >> 12)}},
	}
	f := junkFields{payload: string(good.AppendPayload(nil))}
	k.spoil(&f)
	j := &Junk{Kind: k.name, Class: k.class, Device: device}
	j.Fields = []string{
		telemetry.FieldTS, time.UnixMicro(us).UTC().Format(timeLayout),
		telemetry.FieldDeviceID, device,
		telemetry.FieldCodec, "8E",
	}
	if f.payload != "" {
		j.Fields = append(j.Fields, telemetry.FieldPayload, f.payload)
	}
	return j
}

// NewJunk is one entry of the given kind that claims to come from a device at
// a time.
func NewJunk(kind, device string, at time.Time) (*Junk, error) {
	for i, k := range junkKinds {
		if k.name == kind {
			return newJunk(i, device, at.UnixMicro(), hash(0, uint64(at.UnixMicro()), uint64(i), saltJunk)), nil
		}
	}
	return nil, fmt.Errorf("junk kind %q: want one of %q", kind, JunkKinds())
}
