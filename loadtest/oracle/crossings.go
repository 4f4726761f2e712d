package oracle

import (
	"cmp"
	"fmt"
	"iter"
	"math"
	"math/big"
	"slices"
	"time"
)

// Rules are what crossings depend on besides the records.
type Rules struct {
	Fences         []Fence // all versions in force; those that are invalid are passed over
	MaxFutureSkew  time.Duration
	MaxPast        time.Duration // 0 for any
	MinSatellites  int           // 0 for none
	MaxSpeed       int           // km/h; 0 for any
	MaxCrossingGap time.Duration
	// Faulty reports which rows of positions an operator has marked. Nil means
	// none.
	Faulty func(device string, timeUS int64) bool
}

func (r *Rules) faulty(device string, timeUS int64) bool {
	return r.Faulty != nil && r.Faulty(device, timeUS)
}

// eligible reports whether a record takes part in what is derived: it has a
// place, seen by enough satellites, and its clock is neither too far ahead of the
// stream's nor too far behind.
func (r *Rules) eligible(row *Row) bool {
	fix := (row.Latitude != 0 || row.Longitude != 0) && int(row.Satellites) >= r.MinSatellites
	ahead := row.TimeUS - row.IngestedUS
	return fix && ahead <= r.MaxFutureSkew.Microseconds() && (r.MaxPast == 0 || -ahead <= r.MaxPast.Microseconds())
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

// Crossings yields the rows that timing_records must hold, ordered by device
// ID in bytes, the later fix, time, fence and ordinal.
func (o *Oracle) Crossings(rules Rules) iter.Seq2[Crossing, error] {
	return func(yield func(Crossing, error) bool) {
		if err := o.prefer(rules); err != nil {
			yield(Crossing{}, err)
			return
		}
		d := newDeriver(rules)
		device, fixes := uint32(0), []fix(nil)
		end := func() bool {
			for _, c := range d.derive(fixes) {
				c.Device = o.devices[device]
				if !yield(c, nil) {
					return false
				}
			}
			fixes = fixes[:0]
			return true
		}
		for group := range o.groups() {
			if group[0].device != device {
				if !end() {
					return
				}
				device = group[0].device
			}
			s, err := o.log.At(group[0].place)
			if err != nil {
				yield(Crossing{}, err)
				return
			}
			row := rowOf(&s)
			if rules.eligible(&row) && !rules.faulty(row.Device, row.TimeUS) {
				fixes = append(fixes, fix{row.TimeUS, point{row.Longitude, row.Latitude}, told(row.Speed)})
			}
		}
		if len(fixes) > 0 {
			end()
		}
	}
}

// fix is an eligible record of the device that is looked at.
type fix struct {
	us  int64
	at  point
	kmh int // as told
}

// told is a reported speed as far as it counts: in whole km/h, and 0 if it is no speed
// that a vehicle on land has.
func told(kmh float32) int {
	if whole := int(math.Floor(float64(kmh) + 0.5)); whole > 0 && whole <= 254 {
		return whole
	}
	return 0
}

// deriver computes crossings from the fixes of one device in the order of device
// time, fence by fence.
type deriver struct {
	fences [][]*drawn
	still  map[string][]*drawn // those that say when a change counts
	index  *index
	rules  Rules
}

func newDeriver(rules Rules) *deriver {
	d := &deriver{fences: draw(rules.Fences), still: map[string][]*drawn{}, rules: rules}
	for _, versions := range d.fences {
		if held(versions) {
			d.still[versions[0].ID] = versions
		}
	}
	d.index = newIndex(d.fences)
	return d
}

func (d *deriver) derive(fixes []fix) []Crossing {
	if len(fixes) == 0 {
		return nil
	}
	fixes = d.rules.withoutJumps(fixes)
	var found []Crossing
	first := fixes[0]
	for n := range d.index.near(boxOf([]point{first.at})) {
		versions := d.fences[n]
		if v := validAt(versions, first.us); v != nil && v.contains(first.at) {
			c := changeAt(v, "enter", first, first)
			c.Initial, c.Method, c.MaxErrorMS = true, "initial", 0
			found = append(found, c)
		}
	}
	for i := 1; i < len(fixes); i++ {
		found = d.between(found, fixes[i-1], fixes[i])
	}
	if len(d.still) > 0 {
		found = d.hold(fixes, found)
	}
	slices.SortFunc(found, func(a, b Crossing) int {
		return cmp.Or(
			cmp.Compare(a.LaterUS, b.LaterUS), cmp.Compare(a.TimeUS, b.TimeUS),
			cmp.Compare(a.FenceID, b.FenceID), cmp.Compare(a.Ordinal, b.Ordinal),
		)
	})
	return found
}

// between appends the crossings between two neighbouring fixes.
func (d *deriver) between(found []Crossing, prev, next fix) []Crossing {
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
func (r *Rules) withoutJumps(fixes []fix) []fix {
	if r.MaxSpeed == 0 {
		return fixes
	}
	far := func(a, b fix) bool {
		seconds := max(float64(b.us-a.us)/1e6, 1)
		return metres(vectorOf(a.at), vectorOf(b.at))*3.6 > float64(r.MaxSpeed)*seconds
	}
	kept := fixes[:1:1]
	for i := 1; i < len(fixes); i++ {
		if !far(fixes[i-1], fixes[i]) || i+1 < len(fixes) && !far(fixes[i], fixes[i+1]) {
			kept = append(kept, fixes[i])
		}
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
func along(v *drawn, l *line, prev, next fix) []Crossing {
	l.exactly()
	var found []Crossing
	add := func(kind string, t *big.Rat) {
		c := changeAt(v, kind, prev, next)
		c.Ordinal, c.Method, c.MaxErrorMS = len(found), "interpolated", uncertain(prev, next)
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
func changeAt(v *drawn, kind string, prev, next fix) Crossing {
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
func way(prev, next fix) (m, kmh float64) {
	m = metres(vectorOf(prev.at), vectorOf(next.at))
	return m, m / 1000 / (float64(next.us-prev.us) / 3.6e9)
}

// uncertain is how many milliseconds an interpolated time may be off: half of those
// between the fixes, times the share of the segment's speed by which a speed that a fix
// tells differs from it, which may be a km/h more than it shows, and 1 for the clocks.
func uncertain(prev, next fix) int64 {
	_, kmh := way(prev, next)
	half := float64(next.us-prev.us) / 2000
	slowest, fastest := math.Min(float64(prev.kmh), float64(next.kmh)), math.Max(float64(prev.kmh), float64(next.kmh))
	if share := (math.Max(kmh-slowest, fastest-kmh) + 1) / kmh; share < 1 {
		return int64(math.Ceil(math.Min(half, share*half+1)))
	}
	return int64(math.Ceil(half))
}

// crossings compares the rows of timing_records with those that must be there,
// device by device.
func (j *judge) crossings() error {
	if j.seen.Crossings == nil {
		return nil
	}
	nextWant, stopWant := iter.Pull2(j.o.Crossings(j.seen.Rules))
	defer stopWant()
	nextGot, stopGot := iter.Pull2(j.seen.Crossings)
	defer stopGot()
	want := runs{next: nextWant, what: "crossings"}
	got := runs{next: nextGot, what: "timing records"}
	for {
		if err := want.fill(); err != nil {
			return err
		}
		if err := got.fill(); err != nil {
			return err
		}
		switch {
		case want.device == "" && got.device == "":
			return nil
		case got.device == "" || want.device != "" && want.device < got.device:
			j.sameCrossings(want.take(), nil)
		case want.device == "" || got.device < want.device:
			if rows := got.take(); !j.others(rows[0].Device) {
				j.sameCrossings(nil, rows)
			}
		default:
			j.sameCrossings(want.take(), got.take())
		}
	}
}

// runs reads crossings one device at a time.
type runs struct {
	next   func() (Crossing, error, bool)
	what   string
	ahead  *Crossing // read, but not of device
	device string    // of rows, "" at the end
	rows   []Crossing
	last   string // device taken before
}

// fill reads the rows of the next device, unless they are there.
func (r *runs) fill() error {
	if r.device != "" {
		return nil
	}
	for {
		c := r.ahead
		r.ahead = nil
		if c == nil {
			row, err, more := r.next()
			if err != nil {
				return fmt.Errorf("read %s: %w", r.what, err)
			}
			if !more {
				return nil
			}
			c = &row
		}
		switch {
		case r.device == "" && c.Device <= r.last:
			return fmt.Errorf("read %s: device %q follows device %q, want them ordered by device_id collate \"C\"", r.what, c.Device, r.last)
		case r.device == "":
			r.device = c.Device
		case r.device != c.Device:
			r.ahead = c
			return nil
		}
		r.rows = append(r.rows, *c)
	}
}

func (r *runs) take() []Crossing {
	rows := r.rows
	r.last, r.device, r.rows = r.device, "", nil
	return rows
}

func compareKeys(a, b Crossing) int {
	return cmp.Or(
		cmp.Compare(a.LaterUS, b.LaterUS), cmp.Compare(a.FenceID, b.FenceID),
		cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Ordinal, b.Ordinal),
	)
}

// sameCrossings compares the rows of one device.
func (j *judge) sameCrossings(want, got []Crossing) {
	slices.SortFunc(want, compareKeys)
	slices.SortFunc(got, compareKeys)
	if j.seen.Changes != nil {
		for _, c := range got {
			j.revision[crossingID{c.Device, c.FenceID, c.Kind, c.LaterUS, c.Ordinal}] = c.Revision
		}
	}
	want, got = j.retention(want, got)
	for len(want) > 0 || len(got) > 0 {
		c := 0
		switch {
		case len(got) == 0:
			c = -1
		case len(want) == 0:
			c = 1
		default:
			c = compareKeys(want[0], got[0])
		}
		switch {
		case c < 0:
			j.crossing(KindCrossing, want[0], "is missing")
			want = want[1:]
			continue
		case c > 0:
			j.crossing(KindCrossing, got[0], "must not be there")
			got = got[1:]
			continue
		}
		if w, g := want[0], got[0]; !sameCrossing(w, g) {
			j.crossing(KindCrossing, want[0], fmt.Sprintf("want %s, got %s", crossingText(w), crossingText(g)))
		} else {
			j.report.Crossings++
		}
		last := got[0]
		want, got = want[1:], got[1:]
		for len(got) > 0 && compareKeys(last, got[0]) == 0 {
			j.crossing(KindDouble, got[0], "is there twice")
			got = got[1:]
		}
	}
}

// sameCrossing reports whether two rows say the same: times to the microsecond,
// places to a tenth of a millimetre and what a device moves in a microsecond.
// More cannot be asked of a service that computes in doubles.
func sameCrossing(want, got Crossing) bool {
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

func crossingText(c Crossing) string {
	return fmt.Sprintf("version %d time %s earlier %s at %v,%v initial %t suppressed %t, %s, %g m, %g km/h, within %d ms", c.FenceVersion, clock(c.TimeUS), clock(c.EarlierUS), c.Latitude, c.Longitude, c.Initial, c.Suppressed,
		c.Method, c.DistanceM, c.SpeedKMH, c.MaxErrorMS)
}

func (j *judge) crossing(kind Kind, c Crossing, text string) {
	j.report.find(Finding{
		Kind: kind, Device: c.Device, Time: clock(c.LaterUS),
		Text: fmt.Sprintf("%s of fence %q, ordinal %d, %s", c.Kind, c.FenceID, c.Ordinal, text),
	})
}
