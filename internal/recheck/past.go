package recheck

import (
	"cmp"
	"maps"
	"slices"
)

// Retention drops positions, and crossings stay. What is recorded at a fix that is not
// stored says where the device was from then on; at the next fix that is stored, that is
// compared with where the device is. What is recorded at a stored fix whose predecessor
// is not stored stays, until a fix is stored that lies between the two. Of a fence that
// says when a change counts, both say that the track ends at the fix before and begins
// anew at this one, inside or not: in the margin of one that it was inside of it still is.
// Passages of gates stay likewise. The way over the gap passes no gate again that is passed
// there, and what stays is the last passage for those that follow.

// place is where crossings of a fence lie: at a later fix.
type place struct {
	fence   string
	laterUS int64
}

func placeOf(c *Crossing) place { return place{c.FenceID, c.LaterUS} }

// past is what is recorded of a device and cannot be derived again.
type past struct {
	changes []Crossing            // enters and exits at fixes that are not stored, in order
	passed  []Crossing            // passages of gates there
	last    map[string][]Crossing // passages that stay, by gate
	spans   []Crossing            // crossings at stored fixes with a predecessor that is not
	stays   map[place]bool        // where what is recorded is not judged
}

func pastOf(recorded []Crossing, stored func(us int64) bool) *past {
	p := &past{last: map[string][]Crossing{}, stays: map[place]bool{}}
	for _, c := range recorded {
		switch {
		case !stored(c.LaterUS):
			p.stays[placeOf(&c)] = true
			if c.Kind == "enter" || c.Kind == "exit" {
				p.changes = append(p.changes, c)
			} else {
				p.passed, p.last[c.FenceID] = append(p.passed, c), append(p.last[c.FenceID], c)
			}
		case !stored(c.EarlierUS):
			p.spans = append(p.spans, c)
		}
	}
	for _, list := range [][]Crossing{p.changes, p.passed, p.spans} {
		slices.SortFunc(list, func(a, b Crossing) int {
			return cmp.Or(cmp.Compare(a.LaterUS, b.LaterUS), cmp.Compare(a.Ordinal, b.Ordinal))
		})
	}
	return p
}

// between returns for each fence that was entered or left between two device times, as
// far as positions are gone, whether the device was inside at the end.
func (p *past) between(fromUS, toUS int64) map[string]bool {
	inside := map[string]bool{}
	for _, c := range p.changes[laterFrom(p.changes, fromUS):laterFrom(p.changes, toUS)] {
		inside[c.FenceID] = c.Kind == "enter"
	}
	return inside
}

// across returns what is recorded at a fix with a predecessor that is gone and lies behind
// the fix stored before it.
func (p *past) across(beforeUS int64, f Fix) (list []Crossing) {
	for _, c := range p.spans[laterFrom(p.spans, f.us):laterFrom(p.spans, f.us+1)] {
		if c.EarlierUS > beforeUS {
			list = append(list, c)
		}
	}
	return list
}

// gates returns the gates that are passed between two device times, as far as that stays.
func (p *past) gates(fromUS, toUS int64) map[string]bool {
	gates := map[string]bool{}
	for _, c := range p.passed[laterFrom(p.passed, fromUS):laterFrom(p.passed, toUS)] {
		gates[c.FenceID] = true
	}
	return gates
}

// start is a fix at which the track begins of a fence, and whether the device was inside.
type start struct {
	fix    int
	inside bool
}

// starts adds to the fences that say when a change counts where the track begins anew: at
// the fix with the index i, if anything is recorded between it and the one before.
func (d *Deriver) starts(by map[string][]start, p *past, beforeUS int64, i int, f Fix) {
	inside := p.between(beforeUS, f.us)
	for _, c := range p.across(beforeUS, f) {
		if c.Kind == "enter" || c.Kind == "exit" {
			inside[c.FenceID] = c.Kind == "enter"
		}
	}
	for id, in := range inside {
		if d.still[id] != nil {
			by[id] = append(by[id], start{i, in})
		}
	}
}

// laterFrom returns the index of the first crossing whose later fix is not before a time.
func laterFrom(list []Crossing, us int64) int {
	i, _ := slices.BinarySearchFunc(list, us, func(c Crossing, us int64) int { return cmp.Compare(c.LaterUS, us) })
	return i
}

// settled corrects what was derived at a fix, and one before it at beforeUS, by what is
// recorded between them.
func (d *Deriver) settled(fresh []Crossing, p *past, beforeUS int64, f Fix) []Crossing {
	was, gates := p.between(beforeUS, f.us), p.gates(beforeUS, f.us)
	for _, c := range p.across(beforeUS, f) {
		p.stays[placeOf(&c)] = true
		delete(was, c.FenceID)
		if c.Kind == "forward" || c.Kind == "backward" {
			gates[c.FenceID], p.last[c.FenceID] = true, append(p.last[c.FenceID], c)
		}
	}
	fresh = slices.DeleteFunc(fresh, func(c Crossing) bool { return gates[c.FenceID] })
	for _, id := range slices.Sorted(maps.Keys(was)) {
		n, known := d.number[id]
		if !known || d.still[id] != nil { // see starts
			continue
		}
		fresh = slices.DeleteFunc(fresh, func(c Crossing) bool { return c.FenceID == id })
		versions := d.fences[n]
		v := validAt(versions, f.us)
		switch is := v != nil && v.contains(f.at); {
		case is && !was[id]:
			fresh = append(fresh, initialAt(v, "enter", f))
		case was[id] && !is:
			fresh = append(fresh, initialAt(begunBy(versions, f.us), "exit", f))
		}
	}
	return fresh
}

// begunBy returns the newest version that has begun by a time, valid or not, or the
// first one.
func begunBy(versions []*drawn, us int64) *drawn {
	newest := versions[0]
	for _, v := range versions {
		if v.FromUS <= us {
			newest = v
		}
	}
	return newest
}
