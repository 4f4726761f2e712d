package store

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/geofence"
)

// Crossings outlive the positions that they were derived from. What was recorded at a
// fix that is no longer stored stays, and is all that is known of the device there: at
// the next fix that is stored, what the last crossing of a fence says is compared with
// where the device is. So does what was recorded at a stored fix whose predecessor is
// gone, unless a stored fix lies between the two.

// fenceAt is a fence at the device time of a fix.
type fenceAt struct {
	fence string
	us    int64
}

// gone is the crossings of one device that cannot be derived again.
type gone struct {
	past  []pastCrossing       // at fixes that are not stored, in order
	spans []geofence.Crossing  // at stored fixes with a predecessor that is not, in order
	stays map[fenceAt]struct{} // what is recorded there is not judged
}

// pastCrossing is what is left of a crossing at a fix that is gone.
type pastCrossing struct {
	fenceAt
	ordinal int
	inside  bool
}

// unfounded reports whether fixes lack one of those that a crossing refers to.
func unfounded(c *geofence.Crossing, fixes []geofence.Fix) bool {
	for _, us := range []int64{c.EarlierUS, c.LaterUS} {
		if _, found := slices.BinarySearchFunc(fixes, us, func(f geofence.Fix, us int64) int { return cmp.Compare(f.TimeUS, us) }); !found {
			return true
		}
	}
	return false
}

// goneOf finds the recorded crossings of a device of whose fixes one is not stored.
func goneOf(look ask, device string, recorded []geofence.Crossing) (*gone, error) {
	g := &gone{stays: make(map[fenceAt]struct{})}
	if len(recorded) == 0 {
		return g, nil
	}
	var times []time.Time
	for i := range recorded {
		times = append(times, micros(recorded[i].EarlierUS), micros(recorded[i].LaterUS))
	}
	stored := make(map[int64]bool)
	var ts time.Time
	if _, err := look(`
select ts
from public.positions
where device_id = $1
  and ts = any ($2)`, []any{pgx.QueryExecModeCacheDescribe, device, times}, []any{&ts}, func() error {
		stored[ts.UnixMicro()] = true
		return nil
	}); err != nil {
		return nil, err
	}
	for i := range recorded {
		c := &recorded[i]
		at := fenceAt{c.FenceID, c.LaterUS}
		switch {
		case !stored[c.LaterUS]:
			g.stays[at] = struct{}{}
			if c.Kind == geofence.Enter || c.Kind == geofence.Exit {
				g.past = append(g.past, pastCrossing{at, c.Ordinal, c.Kind == geofence.Enter})
			}
		case !stored[c.EarlierUS]:
			g.spans = append(g.spans, *c)
		}
	}
	slices.SortFunc(g.past, func(a, b pastCrossing) int {
		return cmp.Or(cmp.Compare(a.us, b.us), cmp.Compare(a.ordinal, b.ordinal))
	})
	slices.SortFunc(g.spans, func(a, b geofence.Crossing) int { return cmp.Compare(a.LaterUS, b.LaterUS) })
	return g, nil
}

// holds reports whether a recorded crossing stays as it is, after settle.
func (g *gone) holds(c *geofence.Crossing) bool {
	_, stays := g.stays[fenceAt{c.FenceID, c.LaterUS}]
	return stays
}

// inside names the fences of which the device was inside when the first fix came
// that is stored.
func (g *gone) inside(first int64) map[string]bool {
	was := make(map[string]bool)
	for _, c := range g.past {
		if c.us < first {
			was[c.fence] = c.inside
		}
	}
	return was
}

// insideBefore names the fences of which the device was inside before its first stored
// fix that takes part.
func insideBefore(look ask, device string, first int64) (map[string]bool, error) {
	var recorded []geofence.Crossing
	var c geofence.Crossing
	var later time.Time
	if _, err := look(`
select distinct on (fence_id) fence_id, kind, later_ts, ordinal
from processor.timing_records
where device_id = $1
  and later_ts < $2
  and kind in ('enter', 'exit')
order by fence_id, later_ts desc, ordinal desc`, []any{device, micros(first)}, []any{&c.FenceID, &c.Kind, &later, &c.Ordinal}, func() error {
		c.LaterUS, c.EarlierUS = later.UnixMicro(), later.UnixMicro()
		recorded = append(recorded, c)
		return nil
	}); err != nil || len(recorded) == 0 {
		return nil, err
	}
	g, err := goneOf(look, device, recorded)
	if err != nil {
		return nil, err
	}
	return g.inside(first), nil
}

// settle corrects what was derived of a fix and the one stored before it, math.MinInt64
// if none is, by what is known of the time between them.
func (g *gone) settle(derived []geofence.Crossing, before int64, fix geofence.Fix, set *geofence.Set) []geofence.Crossing {
	var was map[string]bool
	from, _ := slices.BinarySearchFunc(g.past, before, func(c pastCrossing, us int64) int { return cmp.Compare(c.us, us) })
	for _, c := range g.past[from:] {
		if c.us >= fix.TimeUS {
			break
		}
		if was == nil {
			was = make(map[string]bool)
		}
		was[c.fence] = c.inside
	}
	spanned := false
	from, _ = slices.BinarySearchFunc(g.spans, fix.TimeUS, func(c geofence.Crossing, us int64) int { return cmp.Compare(c.LaterUS, us) })
	for _, c := range g.spans[from:] {
		if c.LaterUS != fix.TimeUS {
			break
		}
		if c.EarlierUS > before {
			g.stays[fenceAt{c.FenceID, c.LaterUS}] = struct{}{}
			delete(was, c.FenceID)
			spanned = true
		}
	}
	if len(was) == 0 && !spanned {
		return derived
	}
	derived = slices.DeleteFunc(derived, func(c geofence.Crossing) bool { return c.LaterUS == fix.TimeUS && g.holds(&c) })
	return since(derived, was, fix, set)
}

// since replaces what was derived of a fix of fences of which it is known whether the
// device was inside before. Those with borders that are held still know it already.
func since(derived []geofence.Crossing, was map[string]bool, fix geofence.Fix, set *geofence.Set) []geofence.Crossing {
	derived = slices.DeleteFunc(derived, func(c geofence.Crossing) bool {
		_, known := was[c.FenceID]
		return c.LaterUS == fix.TimeUS && known && !set.HeldID(c.FenceID)
	})
	return set.Since(derived, was, fix)
}

// settleAll is settle along a track, whose first fix is the first one stored or has
// been looked at.
func (g *gone) settleAll(derived []geofence.Crossing, fixes []geofence.Fix, first bool, set *geofence.Set) []geofence.Crossing {
	before := int64(math.MinInt64)
	for i, f := range fixes {
		if i > 0 || first {
			derived = g.settle(derived, before, f, set)
		}
		before = f.TimeUS
	}
	return derived
}
