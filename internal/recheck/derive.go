package recheck

import (
	"cmp"
	"math"
	"math/big"
	"slices"
	"time"
)

// Rules are what crossings depend on besides the fences and the positions.
type Rules struct {
	MaxFutureSkew  time.Duration
	MaxPast        time.Duration // 0 for any
	MinSatellites  int           // 0 for none
	MaxSpeed       int           // km/h; 0 for any
	MaxCrossingGap time.Duration
}

// Position is a row of positions of the device that is looked at.
type Position struct {
	TimeUS     int64 // device time, microseconds since 1970
	StreamUS   int64 // ingested_at, the same
	Latitude   float64
	Longitude  float64
	SpeedKMH   float32
	Satellites int
	Faulty     bool // marked by an operator
}

// Eligible reports whether a position takes part in what is derived: it is not faulty,
// has a place, seen by enough satellites, and its clock is neither too far ahead of the
// stream's nor too far behind. A row of another program may have a place that is none, or a
// time in no year from 1 to 9998.
func (r *Rules) Eligible(p *Position) bool {
	fix := (p.Latitude != 0 || p.Longitude != 0) && p.Satellites >= r.MinSatellites &&
		math.Abs(p.Latitude) <= 90 && math.Abs(p.Longitude) <= 180
	if year := time.UnixMicro(p.TimeUS).UTC().Year(); year < 1 || year > 9998 {
		return false
	}
	ahead := p.TimeUS - p.StreamUS
	return fix && !p.Faulty && ahead <= r.MaxFutureSkew.Microseconds() && (r.MaxPast == 0 || -ahead <= r.MaxPast.Microseconds())
}

// Crossing is a row of timing_records. Its key is Device, FenceID, Kind,
// LaterUS and Ordinal.
type Crossing struct {
	Device       string
	FenceID      string
	FenceVersion int
	Kind         string // enter, exit, forward or backward
	TimeUS       int64
	EarlierUS    int64
	LaterUS      int64
	Latitude     float64
	Longitude    float64
	Ordinal      int
	Initial      bool
	Method       string  // interpolated, net change or initial
	DistanceM    float64 // between the fixes; with what follows 0 for an initial one
	SpeedKMH     float64
	MaxErrorMS   int64
	Suppressed   bool // a passage of a gate that does not count
	Revision     int  // of a row that was found; judged by its changes
}

// Fix is what counts of an eligible position.
type Fix struct {
	us  int64
	at  point
	kmh int // as told
}

// Fix returns what counts of the position, whether it is eligible or not.
func (p *Position) Fix() Fix {
	return Fix{p.TimeUS, point{p.Longitude, p.Latitude}, told(p.SpeedKMH)}
}

// told is a reported speed as far as it counts: in whole km/h, and 0 if it is no speed
// that a vehicle on land has.
func told(kmh float32) int {
	if whole := int(math.Floor(float64(kmh) + 0.5)); whole > 0 && whole <= 254 {
		return whole
	}
	return 0
}

// Deriver computes crossings from the fixes of one device after the other, fence by
// fence. One goroutine at a time may use it.
type Deriver struct {
	fences [][]*drawn
	number map[string]int      // of a fence in fences
	still  map[string][]*drawn // those that say when a change counts
	index  *index
	rules  Rules
}

// Passed is why a version of a fence is passed over.
type Passed struct {
	FenceID string
	Err     error
}

// New reads the fences, all versions in force. Those that are invalid are passed over
// and told in the second result.
func New(fences []Fence, rules Rules) (*Deriver, []Passed) {
	all, passed := draw(fences)
	d := &Deriver{fences: all, number: map[string]int{}, still: map[string][]*drawn{}, rules: rules}
	for n, versions := range d.fences {
		d.number[versions[0].ID] = n
		if held(versions) {
			d.still[versions[0].ID] = versions
		}
	}
	d.index = newIndex(d.fences)
	return d, passed
}

// Derive returns the crossings of a device whose fixes are given in the order of device
// time, ordered by the later fix, time, fence and ordinal. The fixes are used up.
func (d *Deriver) Derive(fixes []Fix) []Crossing {
	found, _ := d.DeriveAfter(fixes, nil, nil)
	return found
}

// DeriveAfter is Derive for a device of which positions were dropped, given what is
// recorded of it. Stored reports whether there is a position at a device time. What is
// recorded and to be compared with what is derived comes second.
func (d *Deriver) DeriveAfter(fixes []Fix, recorded []Crossing, stored func(us int64) bool) (found, judged []Crossing) {
	fixes = d.rules.withoutJumps(fixes)
	p := pastOf(recorded, stored)
	begin := map[string][]start{}
	for i, f := range fixes {
		before := int64(math.MinInt64)
		var fresh []Crossing
		if i == 0 {
			fresh = d.initial(f)
		} else {
			before = fixes[i-1].us
			fresh = d.between(nil, fixes[i-1], f)
		}
		d.starts(begin, p, before, i, f)
		found = append(found, d.settled(fresh, p, before, f)...)
	}
	if len(d.still) > 0 {
		found = d.hold(fixes, found, begin, p.last)
	}
	found = slices.DeleteFunc(found, func(c Crossing) bool { return p.stays[placeOf(&c)] })
	slices.SortFunc(found, func(a, b Crossing) int {
		return cmp.Or(
			cmp.Compare(a.LaterUS, b.LaterUS), cmp.Compare(a.TimeUS, b.TimeUS),
			cmp.Compare(a.FenceID, b.FenceID), cmp.Compare(a.Ordinal, b.Ordinal),
		)
	})
	for _, c := range recorded {
		if !p.stays[placeOf(&c)] {
			judged = append(judged, c)
		}
	}
	return found, judged
}

// initial returns an enter for each fence that contains the first fix.
func (d *Deriver) initial(first Fix) (found []Crossing) {
	for n := range d.index.near(boxOf([]point{first.at})) {
		versions := d.fences[n]
		if v := validAt(versions, first.us); v != nil && v.contains(first.at) {
			found = append(found, initialAt(v, "enter", first))
		}
	}
	return found
}

func initialAt(v *drawn, kind string, at Fix) Crossing {
	c := changeAt(v, kind, at, at)
	c.Initial, c.Method, c.MaxErrorMS = true, "initial", 0
	return c
}

// between appends the crossings between two neighbouring fixes.
func (d *Deriver) between(found []Crossing, prev, next Fix) []Crossing {
	l := newLine(prev.at, next.at)
	far := next.us-prev.us > d.rules.MaxCrossingGap.Microseconds()
	for n := range d.index.near(l.box()) {
		versions := d.fences[n]
		old, fresh := validAt(versions, prev.us), validAt(versions, next.us)
		if (old == nil || !old.near(l)) && (fresh == nil || !fresh.near(l)) {
			continue
		}
		if far || old != fresh {
			was, is := old != nil && old.contains(prev.at), fresh != nil && fresh.contains(next.at)
			switch {
			case was && !is:
				found = append(found, changeAt(cmp.Or(fresh, old), "exit", prev, next))
			case is && !was:
				found = append(found, changeAt(fresh, "enter", prev, next))
			}
			continue
		}
		found = append(found, along(fresh, l, prev, next)...)
	}
	return found
}

// withoutJumps leaves out the fixes that both neighbours are too far from, and the
// newest one if the only neighbour it has is.
func (r *Rules) withoutJumps(fixes []Fix) []Fix {
	if r.MaxSpeed == 0 || len(fixes) == 0 {
		return fixes
	}
	far := func(a, b Fix) bool {
		seconds := max(float64(b.us-a.us)/1e6, 1)
		return metres(vectorOf(a.at), vectorOf(b.at))*3.6 > float64(r.MaxSpeed)*seconds
	}
	kept := fixes[:1] // in place: those of a device are many
	prev := fixes[0]
	for i, f := range fixes[1:] {
		next := i + 2
		if !far(prev, f) || next < len(fixes) && !far(f, fixes[next]) {
			kept = append(kept, f)
		}
		prev = f
	}
	return kept
}

// validAt returns the version that is valid at a time, nil where there is none or
// where it is disabled.
func validAt(versions []*drawn, us int64) *drawn {
	for _, v := range versions {
		if v.valid(us) && !v.Disabled {
			return v
		}
	}
	return nil
}

// along returns the crossings of a fence on the way between two fixes.
func along(v *drawn, l *line, prev, next Fix) []Crossing {
	l.exactly()
	var found []Crossing
	add := func(kind string, t *big.Rat) {
		c := changeAt(v, kind, prev, next)
		c.Method, c.MaxErrorMS = "interpolated", uncertain(prev, next)
		after := new(big.Rat).Mul(t, new(big.Rat).SetInt64(next.us-prev.us))
		c.TimeUS = prev.us + nearest(after)
		place := l.at(t)
		c.Latitude, _ = place.y.Float64()
		c.Longitude, _ = place.x.Float64()
		switch {
		case c.Longitude > 180:
			c.Longitude -= 360
		case c.Longitude < -180:
			c.Longitude += 360
		}
		// Within a microsecond a fence is not left and entered again, nor a gate passed
		// and passed back.
		if n := len(found); n > 0 && kind != "exit" && kind != found[n-1].Kind && c.TimeUS-found[n-1].TimeUS <= 1 {
			found = found[:n-1]
			return
		}
		c.Ordinal = len(found)
		found = append(found, c)
	}
	switch {
	case v.gate != nil:
		for _, p := range v.gate.passages(l) {
			kind := "backward"
			if p.forward {
				kind = "forward"
			}
			add(kind, p.t)
		}
	case v.disc != nil || v.lane != nil:
		var changes []float64
		var inside bool
		if v.disc != nil {
			changes, inside, _ = v.disc.changes(l)
		} else {
			changes, inside = v.lane.changes(l)
		}
		for _, t := range changes {
			kind := "enter"
			if inside {
				kind = "exit"
			}
			inside = !inside
			add(kind, ratio(t))
		}
	default:
		for _, s := range v.area.stays(l) {
			if !s.before {
				add("enter", s.from)
			}
			if !s.beyond {
				add("exit", s.to)
			}
		}
	}
	return found
}

func nearest(v *big.Rat) int64 {
	f, _ := v.Float64()
	return int64(math.Round(f))
}

// changeAt returns a crossing at the later fix.
func changeAt(v *drawn, kind string, prev, next Fix) Crossing {
	c := Crossing{
		FenceID: v.ID, FenceVersion: v.Version, Kind: kind,
		TimeUS: next.us, EarlierUS: prev.us, LaterUS: next.us,
		Latitude: next.at.y, Longitude: next.at.x, Method: "net change",
	}
	if prev.us < next.us {
		c.DistanceM, c.SpeedKMH = way(prev, next)
		c.MaxErrorMS = (next.us - prev.us + 999) / 1000
	}
	return c
}

// way returns the metres between two fixes, and the speed in km/h that they take.
func way(prev, next Fix) (m, kmh float64) {
	m = metres(vectorOf(prev.at), vectorOf(next.at))
	return m, m / 1000 / (float64(next.us-prev.us) / 3.6e9)
}

// uncertain is how many milliseconds an interpolated time may be off: half of those
// between the fixes, times the share of the segment's speed by which a speed that a fix
// tells differs from it, which may be a km/h more than it shows, and 1 for the clocks.
func uncertain(prev, next Fix) int64 {
	_, kmh := way(prev, next)
	half := float64(next.us-prev.us) / 2000
	slowest, fastest := math.Min(float64(prev.kmh), float64(next.kmh)), math.Max(float64(prev.kmh), float64(next.kmh))
	if share := (math.Max(kmh-slowest, fastest-kmh) + 1) / kmh; share < 1 {
		return int64(math.Ceil(math.Min(half, share*half+1)))
	}
	return int64(math.Ceil(half))
}

// Same reports whether two crossings with the same key say the same: times to the microsecond,
// places to a tenth of a millimetre and what a device moves in a microsecond.
// More cannot be asked of a service that computes in doubles.
func Same(want, got Crossing) bool {
	const degrees = 1e-9
	apart := math.Abs(want.Longitude - got.Longitude)
	return want.FenceVersion == got.FenceVersion && want.EarlierUS == got.EarlierUS && want.Initial == got.Initial && want.Suppressed == got.Suppressed &&
		max(want.TimeUS-got.TimeUS, got.TimeUS-want.TimeUS) <= 1 &&
		math.Abs(want.Latitude-got.Latitude) <= degrees && min(apart, 360-apart) <= degrees &&
		want.Method == got.Method && max(want.MaxErrorMS-got.MaxErrorMS, got.MaxErrorMS-want.MaxErrorMS) <= 1 &&
		nearly(want.DistanceM, got.DistanceM) && nearly(want.SpeedKMH, got.SpeedKMH)
}

// nearly compares a number with one that was stored in single precision.
func nearly(want, got float64) bool { return math.Abs(want-got) <= 1e-6*want+1e-4 }
