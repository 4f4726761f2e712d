package geofence

import (
	"fmt"
	"math"
	"time"
)

// Kind is the kind of a fence.
type Kind string

// The kinds of fences, as stored.
const (
	Area   Kind = "area"   // Polygon or MultiPolygon, or LineString with a width: a corridor
	Circle Kind = "circle" // Point with a radius
	Gate   Kind = "gate"   // LineString with a direction
)

// Limits beyond which a fence is invalid.
const (
	// MaxVertices is the largest number of positions of one fence.
	MaxVertices = 20_000
	// MaxIDLength is the longest ID, in characters.
	maxIDLength = 200
	// MaxGeometryBytes is the longest text of one geometry.
	maxGeometryBytes = 4 << 20
	// MaxExitMarginM and maxHoldS bound what a border may be held still by: what lies
	// further back is read again with each change.
	maxExitMarginM = 1000
	maxHoldS       = 3600
	// MaxRadiusM is a quarter of the way round the world.
	maxRadiusM = EarthRadiusM * math.Pi / 2
)

// EarthRadiusM is the radius of the sphere on which circles are measured.
const EarthRadiusM = 6_371_000

// Span is a span of device time in microseconds since 1970, from FromUS up to
// but not including ToUS.
type Span struct{ FromUS, ToUS int64 }

// Always is the span that is open at both ends. Use its fields where a version
// has no beginning or no end.
var Always = Span{FromUS: math.MinInt64, ToUS: math.MaxInt64}

// contains reports whether the device time lies in the span.
func (s Span) contains(timeUS int64) bool {
	return s.FromUS <= timeUS && (timeUS < s.ToUS || s.ToUS == math.MaxInt64)
}

// String names the span's ends in UTC.
func (s Span) String() string {
	from, to := endOf(s.FromUS), endOf(s.ToUS)
	if s.FromUS == math.MinInt64 {
		from = "the beginning"
	}
	if s.ToUS == math.MaxInt64 {
		to = "no end"
	}
	return from + " to " + to
}

// endOf is an end of a span as a text; those that are not finite as Postgres writes them.
func endOf(us int64) string {
	switch us {
	case math.MinInt64:
		return "-infinity"
	case math.MaxInt64:
		return "infinity"
	}
	return time.UnixMicro(us).UTC().Format(time.RFC3339Nano)
}

// Fence is one version of a fence. Versions of one fence share its ID and have
// spans that do not overlap.
type Fence struct {
	ID       string
	Name     string
	Kind     Kind
	Geometry string  // GeoJSON geometry or feature, WGS84, longitude before latitude
	RadiusM  float64 // circles only, zero otherwise
	WidthM   float64 // corridors only, zero otherwise
	// When a change counts, see [Walk]; zero is none.
	ExitMarginM  float64 // metres, not for gates
	MinDwellS    float64 // seconds of device time, not for gates
	MinIntervalS float64 // seconds of device time, gates only
	Valid        Span
	Enabled      bool // a version that is not enabled holds its span and contains nothing
}

// Check returns why NewSet would skip this fence on its own, or nil.
func (f Fence) Check() error {
	_, err := f.compile(nil)
	return err
}

// FenceError reports a fence that was skipped.
type FenceError struct {
	Index  int // in the slice given to NewSet
	Number int // of the feature in its file, from 1; 0 is unknown
	ID     string
	Err    error
}

// Error returns the fence and the reason.
func (e *FenceError) Error() string {
	switch {
	case e.Number == 0:
		return fmt.Sprintf("fence %q: %v", e.ID, e.Err)
	case e.ID == "":
		return fmt.Sprintf("feature %d: %v", e.Number, e.Err)
	}
	return fmt.Sprintf("feature %d, fence %q: %v", e.Number, e.ID, e.Err)
}

// Unwrap returns the reason.
func (e *FenceError) Unwrap() error { return e.Err }

// shape is the compiled geometry of a fence; exactly one of the first four fields is
// set.
type shape struct {
	area     []*polygon
	corridor *corridor
	circle   *circle
	gate     *gate
	// margin is what is at most the exit margin from the fence, or only from its
	// border; nil without one.
	margin *shape
}

// contains is the point test. A gate contains no point.
func (s *shape) contains(p point) bool {
	switch {
	case s.circle != nil:
		return s.circle.contains(p)
	case s.corridor != nil:
		return s.corridor.contains(p)
	}
	for _, g := range s.area {
		if g.contains(p) {
			return true
		}
	}
	return false
}

// boxes appends the boxes of the shape that the index searches, cut to
// longitudes of -180 to 180.
func (s *shape) boxes(dst [][2]point) [][2]point {
	add := func(lo, hi point) {
		for copies := -farthest; copies <= farthest; copies++ {
			shift := 360 * float64(copies)
			west, east := max(lo.x+shift, -180), min(hi.x+shift, 180)
			if west <= east {
				dst = append(dst, [2]point{{west, lo.y}, {east, hi.y}})
			}
		}
	}
	switch {
	case s.circle != nil:
		add(s.circle.box())
	case s.corridor != nil:
		add(s.corridor.min, s.corridor.max)
	case s.gate != nil:
		add(s.gate.min, s.gate.max)
	}
	for _, g := range s.area {
		if g.pole {
			add(point{-180, g.min.y}, point{180, g.max.y})
		} else {
			add(g.min, g.max)
		}
	}
	return dst
}
