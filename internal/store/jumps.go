package store

import (
	"cmp"
	"math"
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
// ends, at first, which nearly always is enough, and then; heldFirst is how many
// are at first where borders are held still.
const (
	jumpsFirst  = 4
	jumpsAtOnce = 5000
	heldFirst   = 32
)

// widenTracks makes tracks reach as far beyond their windows as what they yield depends on:
// with a rule on jumps to fixes that take part, and with held borders to where these
// are settled. It leaves out the fixes that take no part, and moves the windows to
// what changed.
func widenTracks(c cuts, list []window, rules protocol.Rules, far ask, own map[string][]geofence.Fix, found []track) error {
	wide := make([]reach, len(list))
	for i := range found {
		wide[i] = reach{track: &found[i], top: rules.Eligibility.MaxSpeed, first: !found[i].before, last: !found[i].after}
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
		for i := range wide {
			found[i].jumps = wide[i].newJumps()
		}
	}
	if rules.Fences.Held() {
		// Each round derives all that was read: rounds that grow keep that linear.
		for most, more := heldFirst, true; more; most *= 8 {
			for i := range wide {
				wide[i].derive(rules)
			}
			more = false
			for d, enough := range map[direction]func(*reach) bool{
				backward: func(r *reach) bool { return r.derived == nil || !r.derived.Before },
				forward:  func(r *reach) bool { return r.derived == nil || !r.derived.Behind },
			} {
				some, err := extendWhere(c, list, d, most, rules, far, own, wide, enough)
				if err != nil {
					return err
				}
				more = more || some
			}
		}
	}
	for i := range wide {
		if found[i].derived != nil {
			continue
		}
		if lo := wide[i].cut(); found[i].before {
			list[i].lo = lo
		}
	}
	return nil
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
	top         int  // km/h
	known       int  // fixes before the window
	behind      int  // and behind it
	first, last bool // it begins with the first fix of the device, ends with the newest
	from, to    int  // of the fixes, what counts
}

// takesPart reports whether a fix does, as far as its neighbours that are known tell.
func (r *reach) takesPart(i int) bool {
	return r.top == 0 || i == 0 && r.first ||
		i > 0 && geofence.Plausible(r.fixes[i-1], r.fixes[i], r.top) ||
		i+1 < len(r.fixes) && geofence.Plausible(r.fixes[i], r.fixes[i+1], r.top)
}

// newJumps is how many more of the fixes of the window and next to it are jumps than were
// without the window.
func (r *reach) newJumps() (n int) {
	jump := func(of *reach, i int) int {
		if i > 0 && i+1 < len(of.fixes) && !of.takesPart(i) {
			return 1
		}
		return 0
	}
	end := len(r.fixes) - r.behind
	for i := r.known - 1; i <= end; i++ {
		n += jump(r, i)
	}
	before := &reach{track: &track{fixes: slices.Concat(r.fixes[:r.known], r.fixes[end:])}, top: r.top, first: r.first, last: r.last}
	return max(0, n-jump(before, r.known-1)-jump(before, r.known))
}

// derive derives what counts, as far as the fixes known allow.
func (r *reach) derive(rules protocol.Rules) {
	t := geofence.Stretch{From: r.known - 1, First: r.first, Last: r.last}
	from, to := r.known-1, len(r.fixes)-r.behind
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
	d := rules.Fences.Derive(t, rules.MaxGap)
	r.derived, r.begin = &d, math.MaxInt64
	if len(t.Fixes) > 0 {
		r.begin = t.Fixes[0].TimeUS
	}
}

// begins finds the nearest fix before the window and its neighbour that takes part;
// it reports false if more has to be read for that. At the newest end no such fix
// is needed while none behind it takes part: a device that only jumps, as two with
// one ID do, does not have all its jumps read with each record.
func (r *reach) begins() bool {
	if r.known > 1 && r.behind == 0 && r.last && !r.anyFrom(r.known-1) {
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

// ends finds the nearest one behind the window and its neighbour.
func (r *reach) ends() bool {
	for r.to = len(r.fixes) - r.behind + 1; r.to < len(r.fixes); r.to++ {
		if r.takesPart(r.to) {
			return true
		}
	}
	return r.last
}

// cut leaves the fixes that take part from one end to the other, and returns where
// the first of them may be whose crossings changed.
func (r *reach) cut() (lo int64) {
	if r.known > 0 {
		lo = r.fixes[r.known-1].TimeUS
	}
	r.before, r.after = r.begins() && r.from >= 0, r.ends() && r.to < len(r.fixes)
	kept := make([]geofence.Fix, 0, len(r.fixes))
	for i := max(r.from, 0); i < len(r.fixes) && i <= r.to; i++ {
		if r.takesPart(i) {
			kept = append(kept, r.fixes[i])
		}
	}
	r.fixes = kept
	return lo
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
