package telemetry

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
)

// EntryID is the ID of a stream entry: milliseconds since 1970 on the server
// that added it, and a sequence number within that millisecond. The zero value
// is "0-0", which precedes every entry.
type EntryID struct {
	Ms  uint64
	Seq uint64
}

// MaxEntryID follows every entry.
var MaxEntryID = EntryID{Ms: ^uint64(0), Seq: ^uint64(0)}

// ParseEntryID reads the "ms-seq" form that Redis prints. A missing sequence
// number means 0.
func ParseEntryID(s string) (EntryID, error) {
	ms, seq, found := strings.Cut(s, "-")
	var id EntryID
	var err error
	if id.Ms, err = strconv.ParseUint(ms, 10, 64); err != nil {
		return EntryID{}, fmt.Errorf("entry ID %q: want the form 1700000000000-0", s)
	}
	if found {
		if id.Seq, err = strconv.ParseUint(seq, 10, 64); err != nil {
			return EntryID{}, fmt.Errorf("entry ID %q: want the form 1700000000000-0", s)
		}
	}
	return id, nil
}

// AppendTo appends the "ms-seq" form to dst.
func (id EntryID) AppendTo(dst []byte) []byte {
	dst = strconv.AppendUint(dst, id.Ms, 10)
	dst = append(dst, '-')
	return strconv.AppendUint(dst, id.Seq, 10)
}

// String returns the "ms-seq" form.
func (id EntryID) String() string {
	var buf [41]byte
	return string(id.AppendTo(buf[:0]))
}

// Compare returns -1, 0 or 1 in stream order.
func (id EntryID) Compare(other EntryID) int {
	if c := cmp.Compare(id.Ms, other.Ms); c != 0 {
		return c
	}
	return cmp.Compare(id.Seq, other.Seq)
}

// Less reports whether id precedes other in the stream.
func (id EntryID) Less(other EntryID) bool { return id.Compare(other) < 0 }

// IsZero reports whether id is "0-0".
func (id EntryID) IsZero() bool { return id == EntryID{} }

// Next returns the smallest ID that follows id.
func (id EntryID) Next() EntryID {
	if id.Seq == ^uint64(0) {
		return EntryID{Ms: id.Ms + 1}
	}
	return EntryID{Ms: id.Ms, Seq: id.Seq + 1}
}

// Time returns the stream time: when the server added the entry, in milliseconds.
func (id EntryID) Time() time.Time {
	const latest = 253402300799999 // the end of year 9999, beyond which time formats break
	return time.UnixMilli(int64(min(id.Ms, latest))).UTC()
}

// clockTolerance is by how much two clocks differ without being noticed.
const clockTolerance = time.Second

// Age returns how old an entry is by its ID. ahead is by how many seconds the ID is
// ahead of the clock, 0 if it is not: then the age is unknown.
func (id EntryID) Age(now time.Time) (age time.Duration, ahead float64) {
	ms := uint64(max(0, now.UnixMilli()))
	if id.Ms > ms+uint64(clockTolerance.Milliseconds()) {
		return 0, float64(id.Ms-ms) / 1000
	}
	return max(0, now.Sub(id.Time())), 0
}

// The field names of the wire contract.
const (
	FieldTS       = "ts"
	FieldDeviceID = "device_id"
	FieldCodec    = "codec"
	FieldPayload  = "payload"
	// FieldReplayOf names the source entry of a dead letter that an operator
	// sent again. The record then keeps the stream time of that entry.
	FieldReplayOf = "replay_of"
	// FieldReplayLetter names the dead letter that was sent again, and
	// FieldReplayAttempts its attempts, so that another dead letter continues the
	// count.
	FieldReplayLetter   = "replay_letter"
	FieldReplayAttempts = "replay_attempts"
)

// Entry is one stream item as delivered: names and values of its fields in
// stream order, byte for byte. The strings share the memory of the server
// reply they came in: clone one to keep it longer than the entry.
type Entry struct {
	ID     EntryID
	Fields []string // name, value, name, value, …
}

// Field returns the value of the first field called name.
func (e *Entry) Field(name string) (string, bool) {
	for i := 0; i+1 < len(e.Fields); i += 2 {
		if e.Fields[i] == name {
			return e.Fields[i+1], true
		}
	}
	return "", false
}

// Set changes the first field called name, or appends it. It writes to Fields.
func (e *Entry) Set(name, value string) {
	for i := 0; i+1 < len(e.Fields); i += 2 {
		if e.Fields[i] == name {
			e.Fields[i+1] = value
			return
		}
	}
	e.Fields = append(e.Fields, name, value)
}

// DeviceID returns the entry's device_id field, or "" if it has none.
func (e *Entry) DeviceID() string {
	v, _ := e.Field(FieldDeviceID)
	return v
}

// Size returns the number of bytes of the entry's names and values.
func (e *Entry) Size() int {
	n := 0
	for _, s := range e.Fields {
		n += len(s)
	}
	return n
}

// Clone returns the entry with text of its own: what it was read with shares that of a
// whole reply, which lives as long as any of it.
func (e *Entry) Clone() Entry {
	if e.Fields == nil {
		return *e
	}
	text, fields := strings.Join(e.Fields, ""), make([]string, len(e.Fields))
	for i, s := range e.Fields {
		fields[i], text = text[:len(s)], text[len(s):]
	}
	return Entry{ID: e.ID, Fields: fields}
}

// Ref identifies an entry by its ID and content. The ID alone does not: a stream
// that was recreated, restored, or lost its newest entries issues IDs again.
type Ref struct {
	ID     EntryID
	Digest string
}

// Ref returns the reference of the entry.
func (e *Entry) Ref() Ref { return Ref{ID: e.ID, Digest: e.Digest()} }

// Digest returns a short text without spaces, a function of the fields.
func (e *Entry) Digest() string {
	h := xxhash.New()
	for _, f := range e.Fields {
		_, _ = h.WriteString(strconv.Itoa(len(f))) // never fails
		_, _ = h.WriteString(":")
		_, _ = h.WriteString(f)
	}
	return strconv.FormatUint(h.Sum64(), 16)
}

// EarlierAttempts returns the failed attempts of the dead letters that the entry
// is a replay of.
func (e *Entry) EarlierAttempts() int {
	v, _ := e.Field(FieldReplayAttempts)
	n, err := strconv.ParseUint(v, 10, 20) // bounded: a publisher may have written it
	if err != nil {
		return 0
	}
	return int(n)
}

// streamTime returns the time of the entry's ID, or of the entry it is a replay of.
func (e *Entry) streamTime() time.Time {
	if v, ok := e.Field(FieldReplayOf); ok {
		if id, err := ParseEntryID(v); err == nil {
			return id.Time()
		}
	}
	return e.ID.Time()
}

// ShardOf returns the shard of a device: xxhash64 of the device ID's bytes modulo
// the number of shards. An entry without a device ID belongs to shard 0.
// The hash is pinned for the fleet; changing it reorders devices.
func ShardOf(deviceID string, shards int) int {
	if deviceID == "" {
		return 0
	}
	return int(xxhash.Sum64String(deviceID) % uint64(shards))
}

// StreamOf returns which of n streams a publisher adds the records of a device to. It takes
// the upper half of the hash of shards: by the same bits each stream would
// use a part of its shards only.
func StreamOf(deviceID string, n int) int {
	return int((xxhash.Sum64String(deviceID) >> 32) % uint64(n))
}
