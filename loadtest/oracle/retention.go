package oracle

import "slices"

// place is where crossings of a fence lie: at a later fix.
type place struct {
	fence   string
	laterUS int64
}

// retention takes out what is right though it is not what all records yield: between
// the last fix that retention dropped and the first one left it may be known only where
// the last crossing left the device, as after a restart. Then the first fix left has
// the net change, marked as initial, and a gate was passed unseen.
func (j *judge) retention(want, got []Crossing) (otherWant, otherGot []Crossing) {
	if j.seen.DroppedUS == 0 {
		return want, got
	}
	spans := func(c Crossing) bool { return c.LaterUS >= j.seen.DroppedUS && c.EarlierUS < j.seen.DroppedUS }
	net := make(map[place][]Crossing) // of what spans the end of what was dropped
	for _, c := range want {
		if spans(c) {
			net[place{c.FenceID, c.LaterUS}] = append(net[place{c.FenceID, c.LaterUS}], c)
		}
	}
	for at, list := range net {
		is := slices.DeleteFunc(slices.Clone(got), func(c Crossing) bool { return place{c.FenceID, c.LaterUS} != at })
		slices.SortFunc(list, func(a, b Crossing) int { return a.Ordinal - b.Ordinal })
		first, last := list[0], list[len(list)-1]
		changed := last.Kind == first.Kind && (last.Kind == "enter" || last.Kind == "exit")
		switch {
		case !changed && len(is) == 0:
		case changed && len(is) == 1 && is[0].Initial && is[0].Kind == last.Kind && is[0].TimeUS == is[0].LaterUS &&
			is[0].FenceVersion == last.FenceVersion && is[0].Ordinal == 0:
		default:
			continue
		}
		here := func(c Crossing) bool { return place{c.FenceID, c.LaterUS} == at }
		want, got = slices.DeleteFunc(want, here), slices.DeleteFunc(got, here)
		j.report.Crossings += int64(len(is))
	}
	return want, got
}
