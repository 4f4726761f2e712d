package geofence

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/tidwall/rtree"
)

// Fix is a position of a device at a device time. Positions outside of the
// ranges of latitude and longitude are in no fence and cross none.
type Fix struct {
	TimeUS    int64   // microseconds since 1970
	Latitude  float64 // -90 to 90
	Longitude float64 // -180 to 180
	Speed     uint8   // reported, see WholeKMH; 0 if it stood or told none
}

// WholeKMH is a reported speed in km/h as a fix has it: rounded, and 0 from 254.5 on
// and for what is no speed.
func WholeKMH(kmh float32) uint8 {
	if kmh > 0 && kmh < math.MaxUint8-0.5 {
		return uint8(math.Round(float64(kmh)))
	}
	return 0
}

func (f Fix) point() (point, bool) {
	ok := f.Latitude >= -90 && f.Latitude <= 90 && f.Longitude >= -180 && f.Longitude <= 180
	return point{settle(f.Longitude), settle(f.Latitude)}, ok
}

// Set is an immutable, indexed set of fence versions. Any number of goroutines
// may use it. The nil set has no fences.
type Set struct {
	versions []version           // sorted by ID, then by span
	tree     rtree.RTreeG[int32] // boxes of the versions that are enabled
	held     rtree.RTreeG[int32] // of those with held borders that are enabled, with their margins
	holds    bool                // the border of any is held, if only of one that is disabled

	dwellUS, intervalUS int64 // the longest
}

type version struct {
	fence Fence
	shape *shape
	group int32 // the same for all versions of a fence
	held  bool  // the border of one of them is held still

	dwellUS, intervalUS int64
	restUS              int64 // the longest dwell of any version of the fence
}

// NewSet indexes the fences. A fence that is invalid is skipped and reported in
// the second result; other fences are not affected. Of versions of one fence
// with spans that overlap the one that begins first is kept, of two that begin
// together the one that comes first in fences.
func NewSet(fences []Fence) (*Set, []*FenceError) {
	return (*Set)(nil).Renew(fences)
}

// Renew is NewSet for fences that are mostly in s already: their geometries are
// not read and checked again. s itself does not change.
func (s *Set) Renew(fences []Fence) (*Set, []*FenceError) {
	known := make(map[drawing]*shape, s.Len())
	for i := range s.Len() {
		v := &s.versions[i]
		known[v.fence.drawing()] = v.shape
	}
	return newSet(fences, known)
}

func newSet(fences []Fence, known map[drawing]*shape) (*Set, []*FenceError) {
	var refused []*FenceError
	order := make([]int, len(fences))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(
			cmp.Compare(fences[a].ID, fences[b].ID),
			cmp.Compare(fences[a].Valid.FromUS, fences[b].Valid.FromUS),
		)
	})
	s := &Set{}
	for _, i := range order {
		f := fences[i]
		shape, err := f.compile(known)
		group := int32(0)
		if n := len(s.versions); err == nil && n > 0 {
			last := &s.versions[n-1]
			group = last.group
			switch {
			case last.fence.ID != f.ID:
				group++
			case last.fence.Valid.ToUS > f.Valid.FromUS:
				err = fmt.Errorf("overlaps another version of it, valid from %v", last.fence.Valid)
			}
		}
		if err != nil {
			refused = append(refused, &FenceError{Index: i, ID: f.ID, Err: err})
			continue
		}
		s.versions = append(s.versions, version{fence: f, shape: shape, group: group})
		if f.Enabled {
			for _, box := range shape.boxes(nil) {
				s.tree.Insert([2]float64{box[0].x, box[0].y}, [2]float64{box[1].x, box[1].y}, int32(len(s.versions)-1))
			}
		}
	}
	s.hold()
	return s, refused
}

// hold prepares the fences whose borders are held still.
func (s *Set) hold() {
	for begin, end := 0, 0; begin < len(s.versions); begin = end {
		held, restUS := false, int64(0)
		for end = begin; end < len(s.versions) && s.versions[end].group == s.versions[begin].group; end++ {
			f := &s.versions[end].fence
			restUS = max(restUS, microseconds(f.MinDwellS))
			held = held || f.ExitMarginM > 0 || f.MinDwellS > 0 || f.MinIntervalS > 0
		}
		if !held {
			continue
		}
		s.holds = true
		for i := begin; i < end; i++ {
			v := &s.versions[i]
			v.held, v.restUS = true, restUS
			v.dwellUS, v.intervalUS = microseconds(v.fence.MinDwellS), microseconds(v.fence.MinIntervalS)
			if !v.fence.Enabled {
				continue
			}
			s.dwellUS, s.intervalUS = max(s.dwellUS, v.dwellUS), max(s.intervalUS, v.intervalUS)
			for _, box := range cmp.Or(v.shape.margin, v.shape).boxes(nil) {
				s.held.Insert([2]float64{box[0].x, box[0].y}, [2]float64{box[1].x, box[1].y}, int32(i))
			}
		}
	}
}

func microseconds(seconds float64) int64 { return int64(math.Round(seconds * 1e6)) }

// Len returns the number of versions in the set.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return len(s.versions)
}

// Fence returns version i of the set, 0 <= i < Len. Versions are sorted by ID,
// then by span.
func (s *Set) Fence(i int) Fence { return s.versions[i].fence }

// At appends to dst the versions that contain the fix and are valid at its
// time, in the order of the set. It does not allocate when dst has room.
func (s *Set) At(dst []int, f Fix) []int {
	p, ok := f.point()
	if s.Len() == 0 || !ok {
		return dst
	}
	found := len(dst)
	s.tree.Search([2]float64{p.x, p.y}, [2]float64{p.x, p.y}, func(_, _ [2]float64, i int32) bool {
		if v := &s.versions[i]; v.fence.Valid.contains(f.TimeUS) && v.shape.contains(p) {
			dst = append(dst, int(i))
		}
		return true
	})
	slices.Sort(dst[found:])
	return dst[:found+len(slices.Compact(dst[found:]))]
}

// near appends the versions whose boxes meet the box of the leg, in the order
// of the set. A version with several boxes can be there more than once.
func (s *Set) near(dst []int32, l leg) []int32 {
	l.search(&s.tree, func(i int32) { dst = append(dst, i) })
	slices.Sort(dst)
	return dst
}

// search calls found for what has a box in the tree that meets the box of the leg, once
// for each box and side of the antimeridian.
func (l leg) search(tree *rtree.RTreeG[int32], found func(int32)) {
	search := func(west, east float64) {
		tree.Search(
			[2]float64{west, min(l.p.y, l.q.y)}, [2]float64{east, max(l.p.y, l.q.y)},
			func(_, _ [2]float64, i int32) bool {
				found(i)
				return true
			})
	}
	switch l.turn {
	case 0:
		search(min(l.p.x, l.q.x), max(l.p.x, l.q.x))
	case 1: // eastward across the antimeridian
		search(l.p.x, 180)
		search(-180, l.q.x)
	case -1:
		search(-180, l.p.x)
		search(l.q.x, 180)
	}
}
