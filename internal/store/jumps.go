package store

import (
	"cmp"
	"slices"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// A fix with no neighbour from which it is plausible takes no part in crossings,
// unless it is the device's first: it is a jump, or undecided while it is the
// newest. Its neighbours alone decide that, so a changed position changes at most
// what it and its two neighbours are. Crossings lie between fixes that take part;
// how many jumps lie between those is not bounded, and they are read in pages.

// jumpsFirst and jumpsAtOnce are how many fixes of a track are read beyond its
// ends, at first, which nearly always is enough, and then. HeldFirst and heldAtOnce are
// how many are at first and at most where borders are held still, and heldLimit how many
// a transaction may read of one device for that; a request derives what needs more.
// One step of it reads up to requestHeldShare, and one at a time in a process up to
// requestHeldLimit: about 150 MB.
const (
	jumpsFirst  = 4
	jumpsAtOnce = 5000
	heldFirst   = 32
	heldAtOnce  = 250_000
	heldLimit   = 5000

	requestHeldShare = 50_000
	requestHeldLimit = 1_000_000
)

// widenTracks makes tracks reach as far beyond their windows as what they yield depends on:
// with a rule on jumps to fixes that take part, and with held borders to where these
// are settled. It leaves out the fixes that take no part.
func widenTracks(c cuts, list []window, rules protocol.Rules, near, far ask, own map[string][]geofence.Fix, found []track, limit int) error {
	wide := make([]reach, len(list))
	added, stored := make(map[string][]int64), make(map[string][]int64)
	for _, w := range list {
		added[w.device] = append(added[w.device], w.added...)
		stored[w.device] = append(stored[w.device], w.stored...)
	}
	for device := range added {
		slices.Sort(added[device])
		slices.Sort(stored[device])
	}
	for i := range found {
		wide[i] = reach{track: &found[i], device: list[i].device, top: rules.Eligibility.MaxSpeed, first: !found[i].before, last: !found[i].after, added: added[list[i].device], stored: stored[list[i].device]}
		if found[i].before {
			wide[i].known++
		}
		if found[i].after {
			wide[i].behind++
		}
	}
	for d, enough := range map[direction]func(*reach) bool{backward: (*reach).begins, forward: (*reach).ends} {
		for most := jumpsFirst; rules.Eligibility.MaxSpeed > 0; most = jumpsAtOnce {
			more, err := extendWhere(c, list, d, most, rules, far, own, wide, enough)
			if err != nil {
				return err
			}
			if !more {
				break
			}
		}
	}
	if rules.Eligibility.MaxSpeed > 0 {
		for begin, end := 0, 0; begin < len(list); begin = end {
			for end < len(list) && list[end].device == list[begin].device {
				end++
			}
			found[begin].jumps = newJumps(wide[begin:end])
		}
	}
	if rules.Fences.Held() {
		if err := settleHeld(c, list, rules, near, far, own, wide, limit); err != nil {
			return err
		}
	}
	for i := range wide {
		if found[i].derived == nil {
			wide[i].cut()
		}
	}
	return nil
}

// settleHeld derives what counts of fences with held borders, and reads for it what that
// takes.
func settleHeld(c cuts, list []window, rules protocol.Rules, near, far ask, own map[string][]geofence.Fix, wide []reach, limit int) error {
	before := make([]int, len(wide))
	for i := range wide {
		before[i] = len(wide[i].fixes)
	}
	// Each round derives all that was read: rounds that grow keep that linear.
	for most := heldFirst; ; most = min(8*most, heldAtOnce) {
		read, ends := make(map[string]int), make(map[string]int) // of a device: fixes, and ends of tracks that are to grow
		if err := goneAlong(c, wide, near, rules); err != nil {
			return err
		}
		for i := range wide {
			r := &wide[i]
			if !r.settled() {
				r.derive(rules, false)
			}
			read[list[i].device] += len(r.fixes) - before[i]
			ends[list[i].device] += r.unsettled() // as of now: what was read may ask for more at the other end
		}
		room := 0 // of the device that has the most, for each end
		for device, n := range ends {
			if n > 0 {
				room = max(room, (limit-read[device])/n)
			}
		}
		if limit > 0 && room > 0 {
			most = min(most, room)
		}
		more := false
		for i := range wide {
			r := &wide[i]
			if device := list[i].device; limit > 0 && !r.settled() && read[device]+most*ends[device] > limit {
				r.derive(rules, true)
			}
			more = more || !r.settled()
		}
		if !more {
			return nil
		}
		for d, enough := range map[direction]func(*reach) bool{
			backward: func(r *reach) bool { return r.settled() || !r.derived.Before },
			forward:  func(r *reach) bool { return r.settled() || !r.derived.Behind },
		} {
			if _, err := extendWhere(c, list, d, most, rules, far, own, wide, enough); err != nil {
				return err
			}
		}
	}
}

// goneAlong finds for tracks that are to be derived what is recorded at fixes that are gone.
func goneAlong(c cuts, wide []reach, look ask, rules protocol.Rules) error {
	var list []piece
	var of []*reach
	for i := range wide {
		if r := &wide[i]; !r.settled() {
			list, of = append(list, piece{r.device, r.fixes, r.first}), append(of, r)
		}
	}
	found, err := gonesOf(look, c, list, rules.Fences.IntervalUS())
	if err != nil {
		return err
	}
	for i, r := range of {
		r.gone = found[i]
	}
	return nil
}

// settled reports whether what counts was derived, if anything was to be.
func (r *reach) settled() bool { return r.unsettled() == 0 }

// unsettled is at how many ends of the track more has to be read.
func (r *reach) unsettled() (ends int) {
	if !r.tried {
		return 2 // not known yet
	}
	if r.derived != nil && r.derived.Before {
		ends++
	}
	if r.derived != nil && r.derived.Behind {
		ends++
	}
	return ends
}

// extendWhere reads more on one side of those tracks that do not hold enough there, and
// reports whether there were any.
func extendWhere(c cuts, list []window, d direction, most int, rules protocol.Rules, far ask, own map[string][]geofence.Fix, wide []reach, enough func(*reach) bool) (bool, error) {
	var seeks []distant
	for i := range wide {
		if fixes := wide[i].fixes; !enough(&wide[i]) {
			from := fixes[0].TimeUS
			if d == forward {
				from = fixes[len(fixes)-1].TimeUS
			}
			seeks = append(seeks, distant{seek{list[i].device, from, i}, c.heap(from)})
		}
	}
	if len(seeks) == 0 {
		return false, nil
	}
	return true, extend(c, seeks, d, most, rules.Eligibility, far, own, wide)
}

// reach is a track with more and more of what lies around it.
type reach struct {
	*track
	device      string
	top         int     // km/h
	known       int     // fixes before the window
	behind      int     // and behind it
	first, last bool    // it begins with the first fix of the device, ends with the newest
	from, to    int     // of the fixes, what counts
	added       []int64 // to the device, in order; nil if that is not known
	stored      []int64 // see window
	gone        *gone   // along it, of enters and exits
	tried       bool
}

// takesPart reports whether a fix does, as far as its neighbours that are known tell.
func (r *reach) takesPart(i int) bool {
	return r.top == 0 || i == 0 && r.first ||
		i > 0 && geofence.Plausible(r.fixes[i-1], r.fixes[i], r.top) ||
		i+1 < len(r.fixes) && geofence.Plausible(r.fixes[i], r.fixes[i+1], r.top)
}

// newJumps is how many more fixes of a device are jumps than were before its windows
// changed: of those in the windows and next to them, each once.
func newJumps(windows []reach) int {
	is, was := make(map[int64]bool), make(map[int64]bool)
	for i := range windows {
		r := &windows[i]
		if r.added == nil || len(r.fixes) == 0 {
			continue
		}
		lo, hi := r.fixes[max(r.known-1, 0)].TimeUS, r.fixes[min(len(r.fixes)-r.behind, len(r.fixes)-1)].TimeUS
		r.jumpsBetween(lo, hi, is)
		r.without(r.stored).jumpsBetween(lo, hi, was)
	}
	return max(0, len(is)-len(was))
}

func (r *reach) jumpsBetween(lo, hi int64, found map[int64]bool) {
	for i, f := range r.fixes {
		ends := i == 0 && r.first || i == len(r.fixes)-1 && r.last
		if f.TimeUS >= lo && f.TimeUS <= hi && !ends && !r.takesPart(i) {
			found[f.TimeUS] = true
		}
	}
}

// without is the track without what was added to it at some device times, in order.
func (r *reach) without(added []int64) *reach {
	was := &reach{track: &track{}, top: r.top, first: r.first, last: r.last}
	for _, f := range r.fixes {
		if _, found := slices.BinarySearch(added, f.TimeUS); !found {
			was.fixes = append(was.fixes, f)
		}
	}
	return was
}

// derive derives what counts, as far as the fixes known allow. With enough, no more will
// be.
func (r *reach) derive(rules protocol.Rules, enough bool) {
	t := geofence.Stretch{From: r.known - 1, First: r.first, Last: r.last, Enough: enough, Beyond: r.added == nil}
	from, to := r.known-1, len(r.fixes)-r.behind
	r.tried = true
	if r.top > 0 {
		r.begins()
		r.ends()
		if from, to = r.from, r.to; from == r.known-1 && r.known > 1 {
			r.derived = nil // only jumps are new
			return
		}
	}
	t.From = -1
	for i, f := range r.fixes {
		if !r.takesPart(i) {
			continue
		}
		if i <= from {
			t.From = len(t.Fixes)
		}
		if i < to {
			t.To = len(t.Fixes) + 1
		}
		t.Fixes = append(t.Fixes, f)
	}
	if t.From >= 0 && t.To < len(t.Fixes) {
		t.Old, t.Known = r.old(t.Fixes[t.From], t.Fixes[t.To])
	}
	t.Since, t.Passed = r.gone.since(t.Fixes, t.First), r.gone.passedAlong(t.Fixes, t.First)
	if t.Known { // what began anew there before may not any more: a fix lies in what was dropped since
		was := append(append([]geofence.Fix{t.Fixes[t.From]}, t.Old...), t.Fixes[t.To])
		passed := r.gone.passedAlong(was, false)
		t.Known = len(r.gone.since(was, false))+len(passed) == 0
		for _, list := range passed {
			for i := range list {
				t.Anew = append(t.Anew, list[i].FenceID)
			}
		}
	}
	d := rules.Fences.Derive(t, rules.MaxGap)
	r.derived, r.stretch, r.later = &d, t, 0
	for _, f := range t.Fixes[min(t.To, len(t.Fixes)):] {
		if f.TimeUS <= d.ThroughUS() {
			r.later++
		}
	}
}

// old returns what took part between two fixes before the window changed, if that is
// known.
func (r *reach) old(from, to geofence.Fix) (between []geofence.Fix, known bool) {
	if r.added == nil {
		return nil, false
	}
	was, ends := r.without(r.added), 0
	for i, f := range was.fixes {
		switch {
		case !was.takesPart(i):
		case f == from, f == to:
			ends++
		case f.TimeUS > from.TimeUS && f.TimeUS < to.TimeUS:
			between = append(between, f)
		}
	}
	return between, ends == 2
}

// begins finds the nearest fix before the window and its neighbour that takes part;
// it reports false if more has to be read for that. At the newest end no such fix
// is needed while none takes part there, nor did before: a device that only jumps,
// as two with one ID do, does not have all its jumps read with each record.
func (r *reach) begins() bool {
	if r.known > 1 && r.behind == 0 && r.last && !r.anyFrom(r.known-1) && !r.hadFrom(r.known-1) {
		r.from = r.known - 1
		return true
	}
	for r.from = r.known - 2; r.from >= 0; r.from-- {
		if r.takesPart(r.from) {
			return true
		}
	}
	return r.first
}

func (r *reach) anyFrom(i int) bool {
	for ; i < len(r.fixes); i++ {
		if r.takesPart(i) {
			return true
		}
	}
	return false
}

// hadFrom reports whether a fix from this one on may have taken part before the window changed.
func (r *reach) hadFrom(i int) bool {
	if r.added == nil {
		return true
	}
	was := r.without(r.added)
	at, _ := slices.BinarySearchFunc(was.fixes, r.fixes[i].TimeUS, func(f geofence.Fix, us int64) int { return cmp.Compare(f.TimeUS, us) })
	return was.anyFrom(at)
}

// ends finds the nearest one behind the window and its neighbour.
func (r *reach) ends() bool {
	for r.to = len(r.fixes) - r.behind + 1; r.to < len(r.fixes); r.to++ {
		if r.takesPart(r.to) {
			return true
		}
	}
	return r.last
}

// cut leaves the fixes that take part from one end to the other.
func (r *reach) cut() {
	r.before, r.after = r.begins() && r.from >= 0, r.ends() && r.to < len(r.fixes)
	kept := make([]geofence.Fix, 0, len(r.fixes))
	for i := max(r.from, 0); i < len(r.fixes) && i <= r.to; i++ {
		if r.takesPart(i) {
			kept = append(kept, r.fixes[i])
		}
	}
	r.fixes = kept
}

// extend reads the fixes next to the ends of tracks, and what this transaction
// wrote of them.
func extend(c cuts, list []distant, d direction, most int, rules telemetry.Eligibility, far ask, own map[string][]geofence.Fix, wide []reach) error {
	slices.SortStableFunc(list, func(a, b distant) int { return cmp.Compare(a.heap, b.heap) })
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].heap == list[0].heap {
			n++
		}
		seeks, got := make([]seek, n), make(map[int][]geofence.Fix, n)
		for i := range seeks {
			seeks[i] = list[i].seek
		}
		if err := c.nearest(seeks, list[0].heap, d, most, rules, far, func(n int, f geofence.Fix) { got[n] = append(got[n], f) }); err != nil {
			return err
		}
		for _, k := range seeks {
			wide[k.n].add(d, k.at, got[k.n], own[k.device])
		}
		list = list[n:]
	}
	return nil
}

// add joins fixes to the end of a track that were read, and own ones no further
// away than those, since between more of them others may lie.
func (r *reach) add(d direction, end int64, read, own []geofence.Fix) {
	away := func(f geofence.Fix) int64 { return (f.TimeUS - end) * int64(d) }
	nearest := func(a, b geofence.Fix) int { return cmp.Compare(away(a), away(b)) }
	var more []geofence.Fix // own ones first: what was read may be what they replace
	for _, f := range own {
		if away(f) > 0 && (len(read) == 0 || nearest(f, slices.MaxFunc(read, nearest)) <= 0) {
			more = append(more, f)
		}
	}
	more = append(more, read...)
	slices.SortStableFunc(more, nearest)
	more = slices.CompactFunc(more, func(a, b geofence.Fix) bool { return a.TimeUS == b.TimeUS })
	if d == forward {
		r.fixes, r.behind, r.last = append(r.fixes, more...), r.behind+len(more), len(more) == 0
		return
	}
	slices.Reverse(more)
	r.fixes, r.known, r.first = append(more, r.fixes...), r.known+len(more), len(more) == 0
}
