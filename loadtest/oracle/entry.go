package oracle

import (
	"cmp"
	"fmt"
	"time"
)

// ID is the ID of a stream entry. It converts from every type with the same two
// fields.
type ID struct{ Ms, Seq uint64 }

// Compare returns -1, 0 or 1 in stream order.
func (id ID) Compare(other ID) int {
	return cmp.Or(cmp.Compare(id.Ms, other.Ms), cmp.Compare(id.Seq, other.Seq))
}

// Less reports whether id precedes other in the stream.
func (id ID) Less(other ID) bool { return id.Compare(other) < 0 }

// IsZero reports whether id is that of no entry.
func (id ID) IsZero() bool { return id == ID{} }

func (id ID) String() string { return fmt.Sprintf("%d-%d", id.Ms, id.Seq) }

// Row is a row of positions, in the precision of its columns.
type Row struct {
	Entry      ID // that it comes from; zero for rows of a table, which does not say
	Device     string
	TimeUS     int64 // device time, microseconds since 1970
	IngestedUS int64 // ingested_at, the same
	Latitude   float64
	Longitude  float64
	Altitude   float32
	Angle      float32
	Speed      float32
	Satellites int16
	Priority   int16
	Codec      string
	Attributes []byte // a JSON object
	Faulty     bool
}

func clock(us int64) string { return time.UnixMicro(us).UTC().Format("2006-01-02T15:04:05.000000Z") }
