package geofence

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// hold is what is known of one device and one fence whose border is held still, fix
// by fix in the order of device time. It may begin anywhere: then what counts is
// unknown until the fixes themselves show it.
//
// There are two layers above the true border, which the crossings show that are given.
// The device is taken to be inside from where it enters until a fix is further than the
// margin from the fence, and then left where it first left the true border. And
// what it is taken to be counts once it has been that for long enough, from where that
// began.
type hold struct {
	set        *Set
	group      int32
	begin, end int32 // its versions, by their spans
	version    int32 // valid and enabled at the last fix, or -1
	untilUS    int64 // no other is before this device time

	known, inside bool     // whether it counts as inside, if that is known
	taken, in     bool     // whether it is taken to be inside, if that is known
	sinceUS       int64    // it has been taken to be that, for all that is known
	change        Crossing // since which that differs from what counts
	outside       bool     // of the true border, while taken to be inside
	left          Crossing // since when

	// Gates. Passages longer ago than any interval are of no matter.
	told       bool // all that are not longer ago are known
	quietUS    int64
	passedUS   [2]int64 // the last that counted, backward and forward
	intervalUS int64    // the longest

	crossings []Crossing // that count, or are suppressed

	settledUS [2]int64 // of a walk: the first and the last fix at which it was settled
}

const never = math.MinInt64

// newHold begins at a fix; with first it is the device's first that is known, and before
// the device was inside of the fences that inside names. In the margin of such a one
// it still is, and left it there at the latest.
func (s *Set) newHold(group int32, fix Fix, first bool, inside map[string]bool) *hold {
	h := &hold{}
	s.beginHold(h, group, fix, first, inside)
	return h
}

// beginHold is newHold in place: most holds do not outlive the way that they begin at.
func (s *Set) beginHold(h *hold, group int32, fix Fix, first bool, inside map[string]bool) {
	*h = hold{set: s, group: group, sinceUS: fix.TimeUS, quietUS: fix.TimeUS, told: first, known: first, taken: first, passedUS: [2]int64{never, never}, settledUS: [2]int64{math.MaxInt64, never}}
	begin, _ := slices.BinarySearchFunc(s.versions, group, func(v version, g int32) int { return cmp.Compare(v.group, g) })
	h.begin, h.end = int32(begin), int32(begin)
	for ; int(h.end) < len(s.versions) && s.versions[h.end].group == group; h.end++ {
		h.intervalUS = max(h.intervalUS, s.versions[h.end].intervalUS)
	}
	h.version, h.untilUS = h.valid(fix.TimeUS)
	if first {
		h.in, h.inside = h.contains(fix), inside[s.versions[begin].fence.ID]
		switch {
		case h.in && !h.inside:
			h.change = s.initialAt(int(h.version), Enter, fix)
		case h.inside && !h.in:
			h.change = s.initialAt(s.versionBy(begin, fix.TimeUS), Exit, fix)
			if h.within(fix) {
				h.in, h.outside, h.left = true, true, h.change
			}
		}
	}
	h.at(fix)
}

// valid returns the version for a device time, or -1, and before which one there is no
// other.
func (h *hold) valid(us int64) (version int32, untilUS int64) {
	version, untilUS = -1, math.MaxInt64
	for i := h.begin; i < h.end; i++ {
		f := &h.set.versions[i].fence
		switch {
		case us < f.Valid.FromUS:
			untilUS = min(untilUS, f.Valid.FromUS)
		case f.Valid.contains(us):
			untilUS = min(untilUS, f.Valid.ToUS)
			if f.Enabled {
				version = i
			}
		}
	}
	return version, untilUS
}

func (h *hold) contains(f Fix) bool {
	p, ok := f.point()
	return ok && h.version >= 0 && h.set.versions[h.version].shape.contains(p)
}

// beyond reports whether the fix is further from the fence than its margin.
func (h *hold) beyond(f Fix) bool {
	p, ok := f.point()
	return !ok || h.version < 0 || h.set.versions[h.version].beyond(p)
}

func (v *version) beyond(p point) bool {
	return !v.shape.contains(p) && (v.shape.margin == nil || !v.shape.margin.contains(p))
}

// within reports whether the fix is outside of the fence, but not beyond its margin.
func (h *hold) within(f Fix) bool { return h.marginal() && !h.contains(f) && !h.beyond(f) }

func (h *hold) marginal() bool {
	return h.version >= 0 && h.set.versions[h.version].shape.margin != nil
}

func (h *hold) dwellUS() int64 {
	if h.version < 0 {
		return 0
	}
	return h.set.versions[h.version].dwellUS
}

// settled reports whether what was before the last fix has no influence on
// what counts from there on, and nothing that counts is still open.
func (h *hold) settled() bool {
	return h.told && h.known && h.taken && h.in == h.inside && !h.outside
}

// step follows the device to the next fix, over the crossings of the true border.
func (h *hold) step(next Fix, raw []Crossing) {
	if len(raw) == 0 && next.TimeUS < h.untilUS && h.settled() {
		return
	}
	for i := range raw {
		switch c := &raw[i]; c.Kind {
		case Enter:
			if h.outside {
				h.outside = false
			} else {
				h.flip(true, c)
			}
		case Exit:
			if h.marginal() {
				h.outside, h.left = true, *c
			} else {
				h.flip(false, c)
			}
		default:
			h.pass(*c)
		}
	}
	if next.TimeUS >= h.untilUS && h.untilUS != math.MaxInt64 {
		if version, untilUS := h.valid(next.TimeUS); version != h.version {
			h.replace(version, untilUS, next)
		} else {
			h.untilUS = untilUS
		}
	}
	h.at(next)
}

// replace ends all that is open, since another version is valid at the next fix.
func (h *hold) replace(version int32, untilUS int64, next Fix) {
	if h.outside {
		h.outside = false
		h.flip(false, &h.left)
	}
	h.version, h.untilUS = version, untilUS
	h.taken, h.in = true, h.contains(next)
	h.count()
}

// at looks at the last fix.
func (h *hold) at(fix Fix) {
	switch {
	case h.outside && h.beyond(fix):
		h.outside = false
		h.flip(false, &h.left)
	case h.taken:
	case h.contains(fix):
		h.taken, h.in, h.sinceUS = true, true, fix.TimeUS
	case h.beyond(fix):
		h.taken, h.in, h.sinceUS = true, false, fix.TimeUS
	}
	until := fix.TimeUS
	if h.outside {
		until = h.left.TimeUS
	}
	h.dwell(until)
	h.told = h.told || fix.TimeUS-h.quietUS >= h.intervalUS
}

// flip changes what the device is taken to be, at a crossing.
func (h *hold) flip(in bool, c *Crossing) {
	h.dwell(c.TimeUS)
	h.taken, h.in, h.sinceUS = true, in, c.TimeUS
	h.change = *c
}

// dwell counts what the device is taken to be, if it was that for long enough.
func (h *hold) dwell(untilUS int64) {
	if h.taken && untilUS-h.sinceUS >= h.dwellUS() {
		h.count()
	}
}

func (h *hold) count() {
	if h.known && h.in != h.inside {
		h.crossings = append(h.crossings, h.change)
	}
	h.known, h.inside = true, h.in
}

// pass counts a passage, or suppresses it.
func (h *hold) pass(c Crossing) {
	h.told = h.told || c.TimeUS-h.quietUS >= h.intervalUS
	h.quietUS = max(h.quietUS, c.TimeUS)
	if !h.told {
		return
	}
	last := h.lastPassed(c.Kind)
	if c.Suppressed = *last != never && c.TimeUS-*last < h.set.versions[c.Fence].intervalUS; !c.Suppressed {
		*last = c.TimeUS
	}
	h.crossings = append(h.crossings, c)
}

func (h *hold) lastPassed(kind CrossingKind) *int64 {
	if kind == Forward {
		return &h.passedUS[1]
	}
	return &h.passedUS[0]
}

// passed takes note of passages that are recorded, and stay as they are.
func (h *hold) passed(list []Crossing) {
	for i := range list {
		c := &list[i]
		h.told = h.told || c.TimeUS-h.quietUS >= h.intervalUS
		h.quietUS = max(h.quietUS, c.TimeUS)
		if last := h.lastPassed(c.Kind); !c.Suppressed {
			*last = max(*last, c.TimeUS)
		}
	}
}

// firstOf returns the first version of a fence, or -1.
func (s *Set) firstOf(fence string) int {
	i, found := slices.BinarySearchFunc(s.versions, fence, func(v version, id string) int { return cmp.Compare(v.fence.ID, id) })
	if !found {
		return -1
	}
	return i
}

// groupsOf appends the groups of the fences with held borders among those that the device
// was inside of, or among all.
func (s *Set) groupsOf(dst []int32, inside map[string]bool, all bool) []int32 {
	for fence, in := range inside {
		if i := s.firstOf(fence); (in || all) && i >= 0 && s.versions[i].held {
			dst = append(dst, s.versions[i].group)
		}
	}
	return dst
}

// HeldID reports whether the border of a fence is held still.
func (s *Set) HeldID(fence string) bool {
	i := s.firstOf(fence)
	return i >= 0 && s.versions[i].held
}

// IntervalUS is the longest interval of a gate.
func (s *Set) IntervalUS() int64 {
	if s == nil {
		return 0
	}
	return s.intervalUS
}

// Held reports whether the border of any fence is held still.
func (s *Set) Held() bool { return s != nil && s.holds }

// touched appends the groups of fences with held borders that the way between two
// fixes comes near, each at least once.
func (s *Set) touched(dst []int32, prev, next Fix) []int32 {
	p, okP := prev.point()
	q, okQ := next.point()
	if !okP || !okQ {
		return dst
	}
	newLeg(p, q).search(&s.held, func(i int32) { dst = append(dst, s.versions[i].group) })
	return dst
}

// Open is what is not known of a device. Something that changed before may count with a
// fix from FromUS on, and with the first one from UntilUS on at the latest; up to then
// a change may end something. And a gate may have been passed before PassedUS.
type Open struct{ FromUS, UntilUS, PassedUS int64 }

// Known is what is not known of a device whose past is.
var Known = Open{math.MaxInt64, never, never}

// Unknown is what is not known of a device of whose past nothing is, up to a device time.
func (s *Set) Unknown(us int64) Open {
	o := Known
	if s == nil {
		return o
	}
	if s.dwellUS > 0 {
		o.FromUS, o.UntilUS = never, us+s.dwellUS
	}
	if s.intervalUS > 0 {
		o.PassedUS = us + s.intervalUS
	}
	return o
}

// Join returns when either may.
func (o Open) Join(other Open) Open {
	return Open{min(o.FromUS, other.FromUS), max(o.UntilUS, other.UntilUS), max(o.PassedUS, other.PassedUS)}
}

// Over reports whether all is known from a fix on.
func (o Open) Over(us int64) bool { return us >= o.UntilUS && us >= o.PassedUS }

// Kept is what is known of a device and fences with held borders at its last fix, where the
// fix alone does not show it: what changed there may still count or end, or decides what
// counts next. It belongs to a set.
type Kept []*hold

// Of reports whether the set can go on with it.
func (k Kept) Of(s *Set) bool { return len(k) == 0 || k[0].set == s }

func (k Kept) of(group int32) *hold {
	for _, h := range k {
		if h.group == group {
			return h
		}
	}
	return nil
}

// Steps is what Between finds.
type Steps struct {
	Crossings []Crossing // that count, unless only more fixes show that
	Unsettled bool       // only more fixes show what counts
	Eventful  bool       // the way does something to a fence with a held border
	Open      Open       // what is not known from here on, besides what was not before
	Kept      Kept       // at the later fix
}

// Between replaces among the crossings that Crossings gives for the way between two
// neighbouring fixes, or Initial for the device's first one, which is then both, those
// of fences with held borders by what counts, given what is not known and what
// was kept at the earlier one. Some of these crossings may lie before the way.
func (s *Set) Between(crossings []Crossing, prev, next Fix, open Open, kept Kept) Steps {
	out := Steps{Crossings: crossings, Open: Known}
	var buf [16]int32
	groups := s.touched(buf[:0], prev, next)
	for _, h := range kept {
		groups = append(groups, h.group)
	}
	slices.Sort(groups)
	for _, g := range slices.Compact(groups) {
		raw := s.of(crossings, g)
		h := kept.of(g)
		if h == nil {
			var begun hold
			s.beginHold(&begun, g, prev, prev == next, nil)
			quiet := len(raw) == 0 && next.TimeUS < begun.untilUS && (!begun.marginal() || begun.beyond(prev) || !begun.beyond(next))
			if quiet && (!begun.taken || begun.in || !begun.within(next)) {
				continue
			}
			out.Eventful = out.Eventful || !quiet
			if after, unknown := s.openAfter(&begun, prev, next, open); unknown {
				if !quiet {
					out.Unsettled, out.Open = true, out.Open.Join(after)
				}
				continue
			}
			h = new(hold)
			*h = begun
			if prev != next {
				h.known, h.inside, h.told = true, h.in, true
			}
		}
		if prev != next {
			h.step(next, raw)
		}
		out.Crossings = slices.DeleteFunc(out.Crossings, func(c Crossing) bool { return s.versions[c.Fence].group == g })
		out.Crossings = append(out.Crossings, h.crossings...)
		h.crossings = nil
		if !h.settled() || h.within(next) || h.intervalUS > 0 && next.TimeUS-h.quietUS < h.intervalUS {
			out.Kept = append(out.Kept, h)
		}
	}
	return out
}

// openAfter reports whether it is not known what counts on a way that begins where nothing was kept
// of a fence, and what is not known after it.
func (s *Set) openAfter(h *hold, prev, next Fix, open Open) (after Open, unknown bool) {
	after, restUS := Known, s.versions[h.begin].restUS
	passed := h.intervalUS > 0 && prev.TimeUS < open.PassedUS
	unknown = passed || !h.taken || restUS > 0 && prev.TimeUS < open.UntilUS
	if unknown && restUS > 0 {
		after = Open{never, next.TimeUS + restUS, never} // it may have left long ago, or another version may end it
		if h.taken && h.end == h.begin+1 && h.untilUS == math.MaxInt64 {
			after.FromUS = prev.TimeUS + restUS
		}
	}
	if unknown && h.intervalUS > 0 {
		after.PassedUS = next.TimeUS + h.intervalUS
	}
	return after, unknown
}

// Walk derives what counts along the track of one device, fix by fix.
type Walk struct {
	set    *Set
	maxGap time.Duration
	whole  bool // from the device's first fix of all
	only   bool // fences with held borders only
	begun  bool
	last   Fix
	holds  map[int32]*hold
	// left are fences far from the device, outside of which it is settled: since when first.
	left   map[int32]int64
	raw    []Crossing
	groups []int32
}

// Walk returns the walk that begins with the device's first fix.
func (s *Set) Walk(maxGap time.Duration) *Walk {
	return &Walk{set: s, maxGap: maxGap, whole: true, holds: make(map[int32]*hold), left: make(map[int32]int64)}
}

// WalkHeld returns a walk that looks at fences with held borders only. It begins with the
// device's first fix or anywhere.
func (s *Set) WalkHeld(maxGap time.Duration, whole bool) *Walk {
	w := s.Walk(maxGap)
	w.whole, w.only = whole, true
	return w
}

// Complete reports whether all that counts of a fence with a held border at this later
// fix was appended, and nothing else.
func (w *Walk) Complete(fence string, laterUS int64) bool {
	i := w.set.firstOf(fence)
	if i < 0 {
		return true
	}
	h := w.holds[w.set.versions[i].group]
	if since, left := w.left[w.set.versions[i].group]; h == nil {
		return !left || w.whole || laterUS > since
	}
	return (w.whole || laterUS > h.settledUS[0]) && laterUS <= h.settledUS[1]
}

// Next appends what the next fix shows. It may be a crossing before the last fix.
func (w *Walk) Next(dst []Crossing, fix Fix) []Crossing { return w.NextSince(dst, fix, nil, nil) }

// NextSince is Next where it is known of some fences whether the device was inside of them
// before the fix, and which it passed, see Stretch.Since and Stretch.Passed. A walk that
// begins anywhere knows none at its first fix.
func (w *Walk) NextSince(dst []Crossing, fix Fix, was map[string]bool, passed []Crossing) []Crossing {
	start := len(dst)
	prev := w.last
	if w.last = fix; !w.begun {
		w.begun = true
		w.groups = w.set.touched(w.groups[:0], fix, fix)
		w.raw = w.raw[:0]
		if w.whole {
			w.raw = w.set.Initial(w.raw, fix)
		}
		prev = fix
	} else {
		w.groups = w.set.touched(w.groups[:0], prev, fix)
		w.raw = w.set.Crossings(w.raw[:0], prev, fix, w.maxGap)
	}
	if len(passed) > 0 {
		w.raw = slices.DeleteFunc(w.raw, func(c Crossing) bool { return len(ofFence(passed, c.FenceID)) > 0 })
		w.groups = w.set.groupsPassed(w.groups, passed)
	}
	if !w.only {
		for i := range w.raw {
			if !w.set.versions[w.raw[i].Fence].held {
				dst = append(dst, w.raw[i])
			}
		}
	}
	for _, g := range w.groups {
		if w.holds[g] != nil {
			continue
		}
		since, left := w.left[g]
		h := w.set.newHold(g, prev, w.whole || left, nil)
		switch {
		case left: // it is where it was
			h.settledUS = [2]int64{since, prev.TimeUS}
			delete(w.left, g)
		case h.settled():
			h.settledUS = [2]int64{prev.TimeUS, prev.TimeUS}
		}
		w.holds[g] = h
	}
	anew := w.anew(fix, was)
	for g, h := range w.holds {
		h.passed(ofFence(passed, w.set.versions[h.begin].fence.ID))
		if prev != fix && !slices.Contains(anew, g) {
			h.step(fix, w.set.of(w.raw, g))
		}
		if h.settled() {
			h.settledUS = [2]int64{min(h.settledUS[0], fix.TimeUS), fix.TimeUS}
		}
		dst = append(dst, h.crossings...)
		h.crossings = h.crossings[:0]
		if !h.in && h.settled() && fix.TimeUS-h.quietUS >= h.intervalUS && !slices.Contains(w.groups, g) {
			delete(w.holds, g)
			w.left[g] = h.settledUS[0]
		}
	}
	slices.SortFunc(dst[start:], byTime)
	return dst
}

// anew begins anew at a fix for the fences with held borders of which it is known whether the
// device was inside before, and returns their groups.
func (w *Walk) anew(fix Fix, was map[string]bool) (groups []int32) {
	for fence := range was {
		i := w.set.firstOf(fence)
		if i < 0 || !w.set.versions[i].held {
			continue
		}
		g := w.set.versions[i].group
		since, left := w.left[g]
		if h := w.holds[g]; h != nil {
			since = h.settledUS[0]
		} else if !left {
			since = math.MaxInt64
		}
		h := w.set.newHold(g, fix, true, was)
		h.settledUS = [2]int64{min(since, fix.TimeUS-1), fix.TimeUS - 1} // nothing is open before
		delete(w.left, g)
		w.holds[g] = h
		groups = append(groups, g)
	}
	return groups
}

func byTime(a, b Crossing) int {
	return cmp.Or(cmp.Compare(a.TimeUS, b.TimeUS), cmp.Compare(a.FenceID, b.FenceID), cmp.Compare(a.Ordinal, b.Ordinal))
}

// of returns those crossings that are of a fence.
func (s *Set) of(list []Crossing, group int32) (of []Crossing) {
	for i := range list {
		if s.versions[list[i].Fence].group == group {
			of = append(of, list[i])
		}
	}
	return of
}

// ofFence returns those crossings that are of a fence.
func ofFence(list []Crossing, id string) (of []Crossing) {
	for i := range list {
		if list[i].FenceID == id {
			of = append(of, list[i])
		}
	}
	return of
}

// groupsPassed appends the groups of the gates with held borders among those passed.
func (s *Set) groupsPassed(dst []int32, passed []Crossing) []int32 {
	for i := range passed {
		if v := s.firstOf(passed[i].FenceID); v >= 0 && s.versions[v].held {
			dst = append(dst, s.versions[v].group)
		}
	}
	return dst
}

// Stretch is a part of the track of one device, of which something changed between
// two fixes that did not.
type Stretch struct {
	Fixes []Fix // ordered by time
	From  int   // the last one before what changed, or -1
	To    int   // the first one behind, or len(Fixes)
	First bool  // Fixes begin with the device's first one
	Last  bool  // and end with its newest
	// Since says of fences, for the device time of a fix, whether the device was inside before
	// it as something else tells than the fix before, if there is one. What counts of
	// a fence with a held border begins anew there: what is open at the fix before does
	// not count, and the way between them is none.
	Since map[int64]map[string]bool
	// Passed are the passages of gates that are recorded between the fix before and the one with a
	// device time, and stay. The way between the two does not pass those gates again.
	Passed map[int64][]Crossing
	Anew   []string // fences to look at though neither way comes near them

	Known  bool  // what was between From and To before
	Old    []Fix // is this
	Enough bool  // no more fixes are read: fences that need them are left out
	Beyond bool  // what lies behind To is derived, too, as far as it is settled
}

// Derived is what counts in a stretch. Of fences with held borders it may begin before
// From and end behind To.
type Derived struct {
	Before, Behind bool // more fixes are needed
	Left           bool // fences were left out that need them
	Crossings      []Crossing
	held           map[string]reach
	other          reach
}

// reach is from which device time of the later fix, itself not included, and up to
// which one crossings are derived.
type reach struct{ fromUS, toUS int64 }

// nowhere is where nothing is derived.
var nowhere = reach{math.MaxInt64, never}

func (r reach) holds(us int64) bool { return us > r.fromUS && us <= r.toUS }

// Complete reports whether all crossings of a fence with this later fix are
// derived.
func (d *Derived) Complete(fence string, laterUS int64) bool {
	if r, held := d.held[fence]; held {
		return r.holds(laterUS)
	}
	return d.other.holds(laterUS)
}

// Bounds returns the first and last device time of a later fix for which anything
// is.
func (d *Derived) Bounds() (fromUS, toUS int64) {
	fromUS, toUS = d.other.fromUS, d.other.toUS
	for _, r := range d.held {
		fromUS, toUS = min(fromUS, r.fromUS), max(toUS, r.toUS)
	}
	if fromUS != never {
		fromUS++
	}
	return fromUS, toUS
}

// ThroughUS returns up to which device time of a later fix, from the window on, all is
// derived.
func (d *Derived) ThroughUS() int64 { return d.other.toUS }

// Derive returns what counts in a stretch: between From and To, and of fences with held
// borders from the last fix up to From to the first from To on at which they are settled.
// What lies beyond is a function of the fixes there.
func (s *Set) Derive(t Stretch, maxGap time.Duration) Derived {
	d := Derived{held: make(map[string]reach), other: reach{never, math.MaxInt64}}
	if t.From >= 0 {
		d.other.fromUS = t.Fixes[t.From].TimeUS
	}
	if t.To < len(t.Fixes) {
		d.other.toUS = t.Fixes[t.To].TimeUS
	}
	if len(t.Fixes) == 0 {
		return d
	}
	t.Known = t.Known && t.From >= 0 && t.To < len(t.Fixes)
	// A change may be open that a fence far away made, and count with one of these fixes;
	// with To, if these fixes come and go without meeting that fence.
	if s.Held() && !t.First && !t.Known && t.Fixes[0].TimeUS > t.Fixes[t.From].TimeUS-s.dwellUS {
		d.Before, d.Left = !t.Enough, t.Enough
	}
	raw := make([][]Crossing, len(t.Fixes)) // of fences with held borders, by later fix
	var groups []int32
	var buf, plain, old []Crossing
	for i := range t.Fixes {
		prev, between := t.Fixes[max(i-1, 0)], i > t.From && (i <= t.To || t.Beyond)
		near := len(groups)
		if s.Held() {
			groups = s.touched(groups, prev, t.Fixes[i])
			if i > 0 || t.First { // where it begins anew between From and To, To does not count what is open
				groups = s.groupsOf(groups, t.Since[t.Fixes[i].TimeUS], i > t.From && i <= t.To)
				groups = s.groupsPassed(groups, t.Passed[t.Fixes[i].TimeUS])
			}
		}
		switch buf = buf[:0]; {
		case !between && near == len(groups):
			continue
		case i > 0:
			buf = s.Crossings(buf, prev, t.Fixes[i], maxGap)
		case t.First:
			buf = s.Initial(buf, t.Fixes[0])
		}
		passed := t.Passed[t.Fixes[i].TimeUS]
		for _, c := range buf {
			switch {
			case len(ofFence(passed, c.FenceID)) > 0:
			case s.versions[c.Fence].held:
				raw[i] = append(raw[i], c)
			case between:
				plain = append(plain, c)
			}
		}
		if n := len(groups); n > 64 {
			slices.Sort(groups)
			groups = slices.Compact(groups)
		}
	}
	if t.Known && s.Held() {
		prev := t.Fixes[t.From]
		for _, f := range append(slices.Clip(t.Old), t.Fixes[t.To]) {
			groups = s.touched(groups, prev, f)
			old = s.Crossings(old, prev, f, maxGap)
			prev = f
		}
	}
	for _, id := range t.Anew {
		if v := s.firstOf(id); v >= 0 && s.versions[v].held {
			groups = append(groups, s.versions[v].group)
		}
	}
	slices.Sort(groups)
	for _, g := range slices.Compact(groups) {
		s.deriveHeld(&d, &t, g, raw, old)
	}
	if t.Beyond && t.To < len(t.Fixes) {
		d.other.toUS = math.MaxInt64
		if !t.Last {
			d.other.toUS = t.Fixes[len(t.Fixes)-1].TimeUS
		}
		for _, r := range d.held {
			if r != nowhere {
				d.other.toUS = min(d.other.toUS, r.toUS)
			}
		}
	}
	for i := range plain {
		if d.other.holds(plain[i].LaterUS) {
			d.Crossings = append(d.Crossings, plain[i])
		}
	}
	return d
}

// deriveHeld derives what counts of one fence with a held border.
func (s *Set) deriveHeld(d *Derived, t *Stretch, group int32, raw [][]Crossing, old []Crossing) {
	r := reach{never, math.MaxInt64}
	h := s.newHold(group, t.Fixes[0], t.First, t.Since[t.Fixes[0].TimeUS])
	id := s.versions[h.begin].fence.ID
	d.held[id] = nowhere
	if t.First {
		h.passed(ofFence(t.Passed[t.Fixes[0].TimeUS], id))
	}
	if s.undisturbed(t, group, raw, old) {
		return
	}
	from := h.settled() && t.From >= 0
	if from {
		r.fromUS = t.Fixes[0].TimeUS
	}
	settled := int64(never) // the last fix from To on
	for i := 1; i < len(t.Fixes); i++ {
		if t.anew(i, id) {
			us, crossings := t.Fixes[i].TimeUS, h.crossings
			h = s.newHold(group, t.Fixes[i], true, t.Since[us])
			h.crossings = append(crossings, h.crossings...)
			if i <= t.From {
				from, r.fromUS = true, us-1
			}
			if i > t.To {
				settled = us - 1
			}
		} else {
			h.passed(ofFence(t.Passed[t.Fixes[i].TimeUS], id))
			h.step(t.Fixes[i], s.of(raw[i], group))
		}
		if !h.settled() {
			continue
		}
		if i <= t.From {
			from, r.fromUS = true, t.Fixes[i].TimeUS
		}
		if i >= t.To {
			settled = t.Fixes[i].TimeUS
		}
	}
	before, behind := !from && !t.First, false
	if t.To < len(t.Fixes) {
		f := s.newHold(group, t.Fixes[t.To], false, nil)
		to := t.To
		for ; !f.settled() && to+1 < len(t.Fixes) && !t.anew(to+1, id); to++ {
			f.passed(ofFence(t.Passed[t.Fixes[to+1].TimeUS], id))
			f.step(t.Fixes[to+1], s.of(raw[to+1], group))
		}
		switch {
		case t.Beyond && t.Last:
		case f.settled(), to+1 < len(t.Fixes):
			if r.toUS = t.Fixes[to].TimeUS; !f.settled() {
				r.toUS = t.Fixes[to+1].TimeUS - 1
			}
			if t.Beyond {
				r.toUS = max(r.toUS, settled)
			}
		default:
			behind = !t.Last
		}
	}
	if before || behind {
		d.Before, d.Behind = d.Before || before && !t.Enough, d.Behind || behind && !t.Enough
		d.Left = d.Left || t.Enough
		return
	}
	d.held[id] = r
	for _, c := range h.crossings {
		if r.holds(c.LaterUS) {
			d.Crossings = append(d.Crossings, c)
		}
	}
}

// anew reports whether what counts of a fence begins anew at a fix.
func (t *Stretch) anew(i int, fence string) bool {
	_, known := t.Since[t.Fixes[i].TimeUS][fence]
	return known
}

// undisturbed reports whether what changed does nothing to a fence with a held border,
// whatever is open there: neither way from From to To crosses the true border or goes
// beyond the margin and back within it, and both are under one version. What else a fix
// between them decides, To does. Nor does what counts begin anew between them.
func (s *Set) undisturbed(t *Stretch, group int32, raw [][]Crossing, old []Crossing) bool {
	if !t.Known || len(s.of(old, group)) > 0 {
		return false
	}
	from, to := t.Fixes[t.From], t.Fixes[t.To]
	h := s.newHold(group, from, false, nil)
	for i := t.From + 1; i <= t.To; i++ {
		if len(s.of(raw[i], group)) > 0 || t.anew(i, s.versions[h.begin].fence.ID) {
			return false
		}
	}
	if to.TimeUS >= h.untilUS {
		return false
	}
	return !h.marginal() || h.beyond(from) || h.beyond(to) ||
		!slices.ContainsFunc(t.Fixes[t.From+1:t.To], h.beyond) && !slices.ContainsFunc(t.Old, h.beyond)
}
