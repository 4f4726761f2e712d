package recheck

import (
	"cmp"
	"math"
	"slices"
)

// held reports whether any version of a fence says when a change of it counts.
func held(versions []*drawn) bool {
	return slices.ContainsFunc(versions, func(v *drawn) bool { return v.ExitMarginM > 0 || v.MinDwellS > 0 || v.MinIntervalS > 0 })
}

// still returns what counts of the crossings of one fence by one device, given in their
// order, and whether the device was inside before the first fix. Passages of gates that
// do not count stay and are marked; some are known that are not derived.
func still(versions []*drawn, fixes []Fix, raw []Crossing, inside bool, known []Crossing) []Crossing {
	var found []Crossing
	last := map[string]Crossing{} // that counted, by direction
	var changes []Crossing
	for _, c := range raw {
		if c.Kind == "enter" || c.Kind == "exit" {
			changes = append(changes, c)
			continue
		}
		shortly := func(o Crossing) bool {
			return o.Kind == c.Kind && !o.Suppressed && o.LaterUS <= c.LaterUS && c.TimeUS-o.TimeUS < micro(validAt(versions, c.LaterUS).MinIntervalS)
		}
		if c.Suppressed = shortly(last[c.Kind]) || slices.ContainsFunc(known, shortly); !c.Suppressed {
			last[c.Kind] = c
		}
		found = append(found, c)
	}
	if v := validAt(versions, fixes[0].us); inside && (v == nil || !v.contains(fixes[0].at)) {
		changes = append([]Crossing{initialAt(begunBy(versions, fixes[0].us), "exit", fixes[0])}, changes...)
	}
	for begin := 0; begin < len(fixes); {
		v := validAt(versions, fixes[begin].us)
		end := begin + 1 // of the fixes under this version
		for end < len(fixes) && validAt(versions, fixes[end].us) == v {
			end++
		}
		upTo := int64(math.MaxInt64)
		if end < len(fixes) {
			upTo = fixes[end].us // whose way belongs to this version, too
		}
		n := 0
		for n < len(changes) && changes[n].LaterUS <= upTo {
			n++
		}
		for _, c := range lasting(v, fixes[begin:end], changes[:n], end < len(fixes)) {
			if (c.Kind == "enter") != inside {
				inside = !inside
				found = append(found, c)
			}
		}
		begin, changes = end, changes[n:]
	}
	return found
}

// lasting returns the changes under one version after which the device stays as long as
// it has to. An absence that no fix shows to be far enough away is none. If another
// version follows, whatever is so at the end lasts.
func lasting(v *drawn, fixes []Fix, changes []Crossing, another bool) (list []Crossing) {
	var marginM float64
	var dwell int64
	if v != nil {
		marginM, dwell = v.ExitMarginM, micro(v.MinDwellS)
	}
	end := fixes[len(fixes)-1].us // when it is last known how it is
	var kept []Crossing
	for i := 0; i < len(changes); i++ {
		c := changes[i]
		if c.Kind == "enter" || marginM == 0 {
			kept = append(kept, c)
			continue
		}
		back, isLast := int64(math.MaxInt64), i == len(changes)-1
		if !isLast {
			back = changes[i+1].LaterUS
		}
		first, _ := slices.BinarySearchFunc(fixes, c.LaterUS, func(f Fix, us int64) int { return cmp.Compare(f.us, us) })
		far := false
		for _, f := range fixes[first:] {
			if far = f.us < back && v.away(f.at) > marginM; far || f.us >= back {
				break
			}
		}
		switch {
		case far || isLast && another:
			kept = append(kept, c)
		case isLast:
			end = c.TimeUS
		default:
			i++ // it came back
		}
	}
	for i, c := range kept {
		until := end
		if i+1 < len(kept) {
			until = kept[i+1].TimeUS
		} else if another {
			until = math.MaxInt64
		}
		if until-dwell >= c.TimeUS {
			list = append(list, c)
		}
	}
	return list
}

// away returns how many metres outside of an area, a corridor or a circle a place is that
// is outside.
func (d *drawn) away(p point) float64 {
	switch {
	case d.disc != nil:
		return metres(d.disc.center, vectorOf(p)) - d.disc.radius
	case d.lane != nil:
		return d.lane.metres(p) - d.lane.half
	}
	near := math.Inf(1)
	for _, border := range d.border {
		near = min(near, border.metres(p))
	}
	return near
}

// drawBorder draws the borders of the parts of an area, each as a corridor without a
// width, to measure how far away a place is.
func (d *drawn) drawBorder() {
	if d.ExitMarginM == 0 {
		return
	}
	for _, g := range d.area {
		for _, r := range append([]*ring{g.shell}, g.holes...) {
			d.border = append(d.border, newLane(r.points, r.turns, 0))
		}
	}
}

func micro(seconds float64) int64 { return int64(math.Round(seconds * 1e6)) }

// hold leaves of the crossings of a device those that count, given where its track begins
// anew of a fence, and which passages of gates stay.
func (d *Deriver) hold(fixes []Fix, found []Crossing, begin map[string][]start, passed map[string][]Crossing) []Crossing {
	if len(fixes) == 0 {
		return found
	}
	by := map[string][]Crossing{}
	for id := range begin {
		by[id] = nil
	}
	kept := found[:0:0]
	for _, c := range found {
		if d.still[c.FenceID] == nil {
			kept = append(kept, c)
		} else {
			by[c.FenceID] = append(by[c.FenceID], c)
		}
	}
	for id, raw := range by {
		slices.SortFunc(raw, func(a, b Crossing) int {
			return cmp.Or(cmp.Compare(a.LaterUS, b.LaterUS), cmp.Compare(a.TimeUS, b.TimeUS), cmp.Compare(a.Ordinal, b.Ordinal))
		})
		kept = append(kept, d.pieces(id, fixes, raw, begin[id], passed[id])...)
	}
	return kept
}

// pieces returns what counts of one fence in each piece of a track by itself.
func (d *Deriver) pieces(id string, fixes []Fix, raw []Crossing, begin []start, passed []Crossing) (kept []Crossing) {
	inside, first := false, 0
	for n := 0; n <= len(begin); n++ {
		end := len(fixes)
		if n < len(begin) {
			end = begin[n].fix
		}
		if piece := fixes[first:end]; len(piece) > 0 {
			in := raw[laterFrom(raw, piece[0].us):laterFrom(raw, piece[len(piece)-1].us+1)]
			if n > 0 { // the way to its first fix is none
				in = in[laterFrom(in, piece[0].us+1):]
				if v := validAt(d.still[id], piece[0].us); v != nil && v.contains(piece[0].at) {
					in = append([]Crossing{initialAt(v, "enter", piece[0])}, in...)
				}
			}
			kept = append(kept, still(d.still[id], piece, in, inside, passed)...)
		}
		if n < len(begin) {
			first, inside = end, begin[n].inside
		}
	}
	return kept
}
