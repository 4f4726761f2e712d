package fleet

import (
	"fmt"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Junk is an entry that is no valid record.
type Junk struct {
	Kind   string // one of JunkKinds
	Class  telemetry.Class
	Device string   // the device it claims to come from, may be empty
	Fields []string // names and values of the entry
}

// JunkKinds returns the names of the kinds of junk.
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
	class telemetry.Class
	spoil func(f *junkFields)
}{
	{"not_json", telemetry.ClassDecode, func(f *junkFields) { f.payload = "$GPRMC,081836,A,3751.65,S*62" }},
	{"truncated", telemetry.ClassDecode, func(f *junkFields) { f.payload = f.payload[:len(f.payload)/2] }},
	{"wrong_type", telemetry.ClassDecode, func(f *junkFields) { f.replace(`"latitude":`, `"latitude":"north","was":`) }},
	{"missing_field", telemetry.ClassDecode, func(f *junkFields) { f.replace(`"longitude":`, `"x":`) }},
	{"unknown_sentinel", telemetry.ClassDecode, func(f *junkFields) { f.replace(`"attributes":{`, `"attributes":{"78":{"__decimal":"1.5"},`) }},
	{"no_payload", telemetry.ClassInvalid, func(f *junkFields) { f.payload = "" }},
	{"latitude_range", telemetry.ClassInvalid, func(f *junkFields) { f.replace(`"latitude":`, `"latitude":91.5,"was":`) }},
	{"priority_range", telemetry.ClassInvalid, func(f *junkFields) { f.replace(`"priority":`, `"priority":7,"was":`) }},
	{"time_range", telemetry.ClassInvalid, func(f *junkFields) {
		f.replace(`"timestamp":`, `"timestamp":"1901-12-13T20:45:52.207Z","was":`)
	}},
	{"device_mismatch", telemetry.ClassInvalid, func(f *junkFields) { f.replace(`"device_id":"`, `"device_id":"9`) }},
	{"nul", telemetry.ClassInvalid, func(f *junkFields) { f.replace(`"attributes":{`, `"attributes":{"note":"a\u0000b",`) }},
	{"huge", telemetry.ClassTooLarge, func(f *junkFields) {
		f.replace(`"attributes":{`, `"attributes":{"note":"`+strings.Repeat("x", 1<<20)+`",`)
	}},
}

type junkFields struct{ payload string }

func (f *junkFields) replace(old, with string) {
	f.payload = strings.Replace(f.payload, old, with, 1)
}

// hugeEvery is how seldom the last kind takes its turn: entries of a megabyte each
// time would make every measurement with junk one of bandwidth.
const hugeEvery = 20

// junkKind returns the kind of the n-th junk of a fleet: each in turn.
func junkKind(n int) int {
	turn, last := n/len(junkKinds), len(junkKinds)-1
	if kind := n % len(junkKinds); kind < last || turn%hugeEvery == 0 {
		return kind
	}
	return turn % last
}

func newJunk(kind int, device string, us int64, r uint64) *Junk {
	k := junkKinds[kind]
	good := Message{
		DeviceID: device, Codec: "8E", Time: time.UnixMicro(us),
		Latitude: 42.5, Longitude: 1.5, Altitude: 900, Angle: 10, Speed: 50, Satellites: 9,
		Attributes: []Attribute{NumberAttribute("10009", float64(r>>12))},
	}
	f := junkFields{payload: string(AppendPayload(nil, &good))}
	k.spoil(&f)
	j := &Junk{Kind: k.name, Class: k.class, Device: device}
	j.Fields = EntryFields(&good)
	payload := len(j.Fields) - 1 // the last field
	if j.Fields[payload] = f.payload; f.payload == "" {
		j.Fields = j.Fields[:payload-1]
	}
	return j
}

// NewJunk returns one entry of the given kind that claims to come from a device at
// a time.
func NewJunk(kind, device string, at time.Time) (*Junk, error) {
	for i, k := range junkKinds {
		if k.name == kind {
			return newJunk(i, device, at.UnixMicro(), hash(0, uint64(at.UnixMicro()), uint64(i), saltJunk)), nil
		}
	}
	return nil, fmt.Errorf("junk kind %q: want one of %q", kind, JunkKinds())
}
