package geofence

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"
)

// CrossingKind is the kind of a crossing.
type CrossingKind string

// The kinds of crossings, as stored. Areas and circles are entered and left,
// gates are passed forward, from the left of the line as drawn to its right,
// or backward.
const (
	Enter    CrossingKind = "enter"
	Exit     CrossingKind = "exit"
	Forward  CrossingKind = "forward"
	Backward CrossingKind = "backward"
)

// Crossing is one change of a device relative to a fence. Device, FenceID, Kind,
// LaterUS and Ordinal identify it.
type Crossing struct {
	Fence     int // version in the set, at the later fix or else at the earlier
	FenceID   string
	Kind      CrossingKind
	TimeUS    int64 // interpolated, EarlierUS <= TimeUS <= LaterUS
	EarlierUS int64 // device time of the fix before; LaterUS when Initial
	LaterUS   int64 // device time of the fix after
	Latitude  float64
	Longitude float64
	Ordinal   int  // from 0 in order of time, per fence and pair of fixes
	Initial   bool // there is no fix before: the device's first one was inside, or see Since

	// How it was derived. Zero where Initial, apart from the method: since when the
	// device is inside is not known.
	Method     Method
	DistanceM  float32 // between the fixes, great circle
	SpeedKMH   float32 // that this takes
	MaxErrorMS int64   // how far from TimeUS it may have been
	// Suppressed is a passage of a gate too soon after the last one that counted.
	Suppressed bool
}

// Method is how the time of a crossing was found.
type Method string

// The methods, as stored.
const (
	Interpolated Method = "interpolated" // where the way between the fixes meets the fence
	NetChange    Method = "net change"   // the later fix
	FirstFix     Method = "initial"
)

// Initial appends an enter for every fence that contains the device's first
// fix.
func (s *Set) Initial(dst []Crossing, first Fix) []Crossing {
	var buf [32]int
	for _, i := range s.At(buf[:0], first) {
		dst = append(dst, s.initialAt(i, Enter, first))
	}
	return dst
}

// Since appends what is new at a fix, in the order of fences, given whether the device
// was inside of them at some time before, of which nothing else is known. Fences whose
// borders are held still are not looked at.
func (s *Set) Since(dst []Crossing, was map[string]bool, fix Fix) []Crossing {
	var buf [32]int
	is := s.At(buf[:0], fix)
	for _, fence := range slices.Sorted(maps.Keys(was)) {
		first := s.firstOf(fence)
		if first < 0 || s.versions[first].held {
			continue
		}
		at := slices.IndexFunc(is, func(i int) bool { return s.versions[i].group == s.versions[first].group })
		switch {
		case at >= 0 && !was[fence]:
			dst = append(dst, s.initialAt(is[at], Enter, fix))
		case at < 0 && was[fence]:
			dst = append(dst, s.initialAt(s.versionBy(first, fix.TimeUS), Exit, fix))
		}
	}
	return dst
}

// initialAt returns the crossing at a fix with none before it.
func (s *Set) initialAt(i int, kind CrossingKind, first Fix) Crossing {
	c := s.crossingAt(i, kind, first, first)
	c.Initial, c.Method, c.MaxErrorMS = true, FirstFix, 0
	return c
}

// Crossings appends the crossings between prev and next, ordered by time, then
// fence, then ordinal. It is a function of the set and the two fixes: membership
// before is the point test at prev. If next is not later than prev, or either is
// out of range, nothing is appended.
//
// Only the net change is reported, at next, if more than maxGap lies between the
// fixes, and for a fence of which different versions are valid at the fixes.
func (s *Set) Crossings(dst []Crossing, prev, next Fix, maxGap time.Duration) []Crossing {
	if s.Len() == 0 || next.TimeUS <= prev.TimeUS {
		return dst
	}
	p, okP := prev.point()
	q, okQ := next.point()
	if !okP || !okQ {
		return dst
	}
	start := len(dst)
	// The difference of two int64 times always fits in uint64.
	if maxUS := maxGap.Microseconds(); uint64(next.TimeUS)-uint64(prev.TimeUS) > uint64(max(maxUS, 0)) {
		dst = s.netChange(dst, prev, next)
	} else {
		dst = s.along(dst, prev, next, newLeg(p, q))
	}
	if len(dst)-start > 1 {
		slices.SortFunc(dst[start:], func(a, b Crossing) int {
			return cmp.Or(
				cmp.Compare(a.TimeUS, b.TimeUS),
				cmp.Compare(a.FenceID, b.FenceID),
				cmp.Compare(a.Ordinal, b.Ordinal),
			)
		})
	}
	return dst
}

// Track appends the crossings along fixes ordered by time: those of each pair of
// neighbours, and with first those of Initial for the first fix. Evaluating a
// track in pieces that share one fix gives the same rows as evaluating it whole.
func (s *Set) Track(dst []Crossing, fixes []Fix, maxGap time.Duration, first bool) []Crossing {
	if first && len(fixes) > 0 {
		dst = s.Initial(dst, fixes[0])
	}
	for i := 1; i < len(fixes); i++ {
		dst = s.Crossings(dst, fixes[i-1], fixes[i], maxGap)
	}
	return dst
}

// Plausible reports whether a vehicle of at most maxSpeed km/h can have been at
// both fixes, which are taken to be a second apart at least.
func Plausible(prev, next Fix, maxSpeed int) bool {
	farthest := float64(maxSpeed) / 3.6 * max(float64(next.TimeUS-prev.TimeUS)/1e6, 1)
	// Along the meridian and then along the parallel is no shorter than straight.
	if EarthRadiusM*radian*(math.Abs(next.Latitude-prev.Latitude)+math.Abs(next.Longitude-prev.Longitude)) <= farthest {
		return true
	}
	from := newCircle(point{prev.Longitude, prev.Latitude}, 0)
	return from.distance(point{next.Longitude, next.Latitude}) <= farthest
}

// netChange compares membership at both fixes.
func (s *Set) netChange(dst []Crossing, prev, next Fix) []Crossing {
	var bufA, bufB [32]int
	was, is := s.At(bufA[:0], prev), s.At(bufB[:0], next)
	for len(was) > 0 || len(is) > 0 {
		switch {
		case len(is) == 0 || len(was) > 0 && s.versions[was[0]].group < s.versions[is[0]].group:
			dst = append(dst, s.crossingAt(s.versionAt(was[0], next.TimeUS), Exit, prev, next))
			was = was[1:]
		case len(was) == 0 || s.versions[is[0]].group < s.versions[was[0]].group:
			dst = append(dst, s.crossingAt(is[0], Enter, prev, next))
			is = is[1:]
		default:
			was, is = was[1:], is[1:]
		}
	}
	return dst
}

// versionBy returns the newest version of the fence of version i, its first, that has
// begun by the time; i itself if none has.
func (s *Set) versionBy(i int, timeUS int64) int {
	for i+1 < len(s.versions) && s.versions[i+1].group == s.versions[i].group && s.versions[i+1].fence.Valid.FromUS <= timeUS {
		i++
	}
	return i
}

// versionAt returns the version of the fence of version i, or a later one, that is
// valid and enabled at the time; i itself if there is none. Whether the device is
// anywhere near it does not matter.
func (s *Set) versionAt(i int, timeUS int64) int {
	for n := i; n < len(s.versions) && s.versions[n].group == s.versions[i].group; n++ {
		if f := &s.versions[n].fence; f.Enabled && f.Valid.contains(timeUS) {
			return n
		}
	}
	return i
}

// along evaluates the way between two fixes.
func (s *Set) along(dst []Crossing, prev, next Fix, l leg) []Crossing {
	var buf [64]int32
	near := s.near(buf[:0], l)
	for len(near) > 0 {
		group := s.versions[near[0]].group
		old, fresh := int32(-1), int32(-1) // valid at prev, at next
		for len(near) > 0 && s.versions[near[0]].group == group {
			valid := s.versions[near[0]].fence.Valid
			if valid.contains(prev.TimeUS) {
				old = near[0]
			}
			if valid.contains(next.TimeUS) {
				fresh = near[0]
			}
			near = near[1:]
		}
		if old >= 0 && old == fresh {
			dst = s.crossings(dst, int(old), prev, next, l)
			continue
		}
		was := old >= 0 && s.versions[old].shape.contains(l.p)
		is := fresh >= 0 && s.versions[fresh].shape.contains(l.q)
		switch {
		case was && !is:
			dst = append(dst, s.crossingAt(s.versionAt(int(old), next.TimeUS), Exit, prev, next))
		case is && !was:
			dst = append(dst, s.crossingAt(int(fresh), Enter, prev, next))
		}
	}
	return dst
}

// crossings evaluates one version that is valid at both fixes.
func (s *Set) crossings(dst []Crossing, i int, prev, next Fix, l leg) []Crossing {
	shape, start := s.versions[i].shape, len(dst)
	add := func(kind CrossingKind, t float64) {
		c := s.crossingOn(i, kind, prev, next, l, t)
		if n := len(dst); n > start && takenBack(dst[n-1], c) {
			dst = dst[:n-1]
			return
		}
		c.Ordinal = len(dst) - start
		dst = append(dst, c)
	}
	if shape.gate != nil {
		var buf [8]passage
		for _, p := range shape.gate.passages(buf[:0], l) {
			kind := Backward
			if p.forward {
				kind = Forward
			}
			add(kind, p.t)
		}
		return dst
	}
	var buf [16]span
	spans := buf[:0]
	switch {
	case shape.circle != nil:
		spans = shape.circle.spans(spans, l)
	case shape.corridor != nil:
		spans = shape.corridor.spans(spans, l)
	}
	for _, g := range shape.area {
		spans = g.spans(spans, l)
	}
	for _, sp := range united(spans) {
		if sp.from != before {
			add(Enter, sp.from)
		}
		if sp.to != after {
			add(Exit, sp.to)
		}
	}
	return dst
}

// takenBack reports whether the next crossing of a way takes back the one before: at a corner
// that the way passes within rounding, rounding alone would decide whether there are two.
// What is entered and left at once stays: a fix can lie there.
func takenBack(c, next Crossing) bool {
	return c.Kind != next.Kind && c.Kind != Enter && next.TimeUS-c.TimeUS <= 1
}

// united sorts the spans and joins those that touch.
func united(spans []span) []span {
	if len(spans) < 2 {
		return spans
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	joined := spans[:1]
	for _, sp := range spans[1:] {
		if last := &joined[len(joined)-1]; sp.from <= last.to {
			last.to = max(last.to, sp.to)
		} else {
			joined = append(joined, sp)
		}
	}
	return joined
}

// crossingAt returns a crossing at the later fix, before which it may have been at any
// time since the earlier one.
func (s *Set) crossingAt(i int, kind CrossingKind, prev, next Fix) Crossing {
	c := Crossing{
		Fence: i, FenceID: s.versions[i].fence.ID, Kind: kind,
		TimeUS: next.TimeUS, EarlierUS: prev.TimeUS, LaterUS: next.TimeUS,
		Latitude: next.Latitude, Longitude: next.Longitude,
		Method: NetChange,
	}
	if us := float64(next.TimeUS) - float64(prev.TimeUS); us > 0 {
		metres := newCircle(point{prev.Longitude, prev.Latitude}, 0).distance(point{next.Longitude, next.Latitude})
		c.DistanceM, c.SpeedKMH = float32(metres), float32(metres/us*3.6e6)
		c.MaxErrorMS = int64(math.Ceil(us / 1000))
	}
	return c
}

// maxErrorMS is how far from the interpolated time a crossing may have been: half the
// time between the fixes. A device whose speed stayed within a part r of that of the
// segment is at most r times that away, whatever it did; so if both fixes tell a speed,
// r is by how much of the segment's the one that differs more does. A km/h is what
// speeds in whole ones may differ by, a millisecond what the times do.
func maxErrorMS(prev, next Fix, segment float32) int64 {
	half := float64(next.TimeUS-prev.TimeUS) / 2000
	off := max(math.Abs(float64(prev.Speed)-float64(segment)), math.Abs(float64(next.Speed)-float64(segment))) + 1
	if off < float64(segment) {
		half = min(half, half*off/float64(segment)+1)
	}
	return int64(math.Ceil(half))
}

// crossingOn returns a crossing at fraction t of the leg.
func (s *Set) crossingOn(i int, kind CrossingKind, prev, next Fix, l leg, t float64) Crossing {
	c := s.crossingAt(i, kind, prev, next)
	c.Method, c.MaxErrorMS = Interpolated, maxErrorMS(prev, next, c.SpeedKMH)
	switch t {
	case 1:
	case 0:
		c.TimeUS, c.Latitude, c.Longitude = prev.TimeUS, prev.Latitude, prev.Longitude
	default:
		passed := math.Round(t * float64(next.TimeUS-prev.TimeUS))
		c.TimeUS = min(prev.TimeUS+int64(passed), next.TimeUS)
		at := l.at(t)
		c.Latitude, c.Longitude = at.y, wrap(at.x)
	}
	return c
}

// wrap brings a longitude of a leg back to -180 to 180.
func wrap(lon float64) float64 {
	switch {
	case lon > 180:
		return lon - 360
	case lon < -180:
		return lon + 360
	}
	return lon
}
