package geofence_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/testenv"
)

// heldFences draws fences of all kinds with one or two versions, whose borders may be
// held still, on the grid of heldTrack.
func heldFences(r *rand.Rand) []geofence.Fence {
	var list []geofence.Fence
	maybe := func(of ...float64) float64 { return of[r.IntN(len(of))] }
	for n := range 1 + r.IntN(4) {
		spans := []geofence.Span{geofence.Always}
		if cut := int64(r.IntN(600)) * 1e6; r.IntN(3) == 0 {
			spans = []geofence.Span{{FromUS: geofence.Always.FromUS, ToUS: cut}, {FromUS: cut, ToUS: geofence.Always.ToUS}}
		}
		for _, valid := range spans {
			x, y, w := r.IntN(6), r.IntN(6), 1+r.IntN(4)
			at := func(x, y int) string { return fmt.Sprintf("[%v,%v]", 11+float64(x)*0.001, 48+float64(y)*0.001) }
			f := geofence.Fence{ID: fmt.Sprint("fence", n), Valid: valid, Enabled: r.IntN(8) > 0}
			switch r.IntN(5) {
			case 0:
				f.Kind, f.MinIntervalS = geofence.Gate, maybe(0, 15.5, 40, 200)
				f.Geometry = `{"type":"LineString","coordinates":[` + at(x, y) + "," + at(x+w, y+r.IntN(3)) + `]}`
			case 1:
				f.Kind, f.RadiusM = geofence.Circle, float64(50+r.IntN(300))
				f.Geometry = `{"type":"Point","coordinates":` + at(x, y) + `}`
			case 2:
				f.Kind, f.WidthM = geofence.Area, float64(50+r.IntN(100))
				f.Geometry = `{"type":"LineString","coordinates":[` + at(x, y) + "," + at(x+w, y+r.IntN(3)) + `]}`
			default:
				f.Kind = geofence.Area
				f.Geometry = `{"type":"Polygon","coordinates":[[` + at(x, y) + "," + at(x+w, y) + "," + at(x+w, y+w) + "," + at(x, y+w) + "," + at(x, y) + `]]}`
			}
			if f.Kind != geofence.Gate {
				f.ExitMarginM, f.MinDwellS = maybe(0, 30, 130.5), maybe(0, 0, 12.5, 60)
			}
			list = append(list, f)
		}
	}
	return list
}

func heldTrack(r *rand.Rand) (fixes []geofence.Fix) {
	us := int64(0)
	x, y := r.IntN(9), r.IntN(9)
	for range 2 + r.IntN(50) {
		us += 1 + int64(r.IntN(30))*1e6
		if r.IntN(20) == 0 {
			us += 100e6 // longer than the gap
		}
		x, y = min(max(x+r.IntN(5)-2, 0), 8), min(max(y+r.IntN(5)-2, 0), 8)
		fixes = append(fixes, geofence.Fix{TimeUS: us, Latitude: 48 + float64(y)*0.001, Longitude: 11 + float64(x)*0.001})
	}
	return fixes
}

const heldGap = 90 * time.Second

func walked(s *geofence.Set, fixes []geofence.Fix, since map[int64]map[string]bool) (list []geofence.Crossing) {
	w := s.Walk(heldGap)
	for _, f := range fixes {
		list = w.NextSince(list, f, since[f.TimeUS], nil)
	}
	return list
}

// told is that something else than the fixes tells where the device was from a time on.
type told struct {
	us     int64
	fence  string
	inside bool
}

// heldTold draws what is told between fixes: of half of the tracks nothing.
func heldTold(r *rand.Rand, fixes []geofence.Fix) (list []told) {
	if r.IntN(2) == 0 {
		return nil
	}
	for _, f := range fixes {
		if r.IntN(8) == 0 {
			list = append(list, told{f.TimeUS - 1, fmt.Sprint("fence", r.IntN(4)), r.IntN(2) == 0})
		}
	}
	return list
}

// sinceOf says of fixes what is told between each and the one before.
func sinceOf(list []told, fixes []geofence.Fix) map[int64]map[string]bool {
	since := make(map[int64]map[string]bool)
	for _, c := range list {
		i := slices.IndexFunc(fixes, func(f geofence.Fix) bool { return f.TimeUS > c.us })
		if i < 0 {
			continue
		}
		if since[fixes[i].TimeUS] == nil {
			since[fixes[i].TimeUS] = make(map[string]bool)
		}
		since[fixes[i].TimeUS][c.fence] = c.inside
	}
	return since
}

// complete returns those crossings that a stretch derives, in one order.
func complete(d *geofence.Derived, list []geofence.Crossing) (in []string) {
	for _, c := range list {
		if d.Complete(c.FenceID, c.LaterUS) {
			in = append(in, fmt.Sprintf("%+v", c))
		}
	}
	slices.Sort(in)
	return in
}

// What a stretch of a track yields is what one pass over all of it does, and
// what changes between two of its fixes changes nothing beyond.
func TestAStretchIsDerivedAsTheWholeTrackIs(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 17))
	var pieces, crossings int
	for range 4000 {
		set, refused := geofence.NewSet(heldFences(r))
		require.Empty(t, refused)
		fixes := heldTrack(r)
		told := heldTold(r, fixes)
		from := r.IntN(len(fixes)+1) - 1
		to := from + 1 + r.IntN(len(fixes)-from)
		changed := slices.Concat(fixes[:from+1], fixes[min(to, len(fixes)):])
		if len(changed) == 0 {
			continue
		}
		whole := walked(set, fixes, sinceOf(told, fixes))
		begin, end := max(from, 0), min(to, len(fixes)-1)
		for d := (geofence.Derived{Before: true}); d.Before || d.Behind; {
			if d.Before {
				begin = max(0, begin-r.IntN(3))
			}
			if d.Behind {
				end = min(len(fixes)-1, end+r.IntN(3))
			}
			s := geofence.Stretch{Fixes: fixes[begin : end+1], From: from - begin, To: to - begin, First: begin == 0, Last: end == len(fixes)-1, Since: sinceOf(told, fixes)}
			if from < 0 {
				s.From = -1
			}
			if d = set.Derive(s, heldGap); d.Before || d.Behind {
				continue
			}
			want := complete(&d, whole)
			require.Equal(t, want, complete(&d, d.Crossings), "seed %d, %+v", seed, s)
			pieces, crossings = pieces+1, crossings+len(want)
			// Without the fixes between, the rest is the same.
			s.Fixes = slices.Concat(s.Fixes[:s.From+1], s.Fixes[min(s.To, len(s.Fixes)):])
			s.To, s.Since = s.From+1, sinceOf(told, changed)
			if len(s.Fixes) == 0 {
				break
			}
			less := set.Derive(s, heldGap)
			if less.Before || less.Behind {
				continue
			}
			var kept, keptLess []string
			for _, c := range whole {
				if !less.Complete(c.FenceID, c.LaterUS) && !d.Complete(c.FenceID, c.LaterUS) {
					kept = append(kept, fmt.Sprintf("%+v", c))
				}
			}
			for _, c := range walked(set, changed, sinceOf(told, changed)) {
				if !less.Complete(c.FenceID, c.LaterUS) && !d.Complete(c.FenceID, c.LaterUS) {
					keptLess = append(keptLess, fmt.Sprintf("%+v", c))
				}
			}
			slices.Sort(kept)
			slices.Sort(keptLess)
			require.Equal(t, kept, keptLess, "seed %d", seed)
		}
	}
	t.Logf("%d pieces, %d crossings", pieces, crossings)
	require.Greater(t, pieces, 2000)
	require.Greater(t, crossings, 2000)
}

// rest returns what counts where a stretch derives nothing, in one order.
func rest(d *geofence.Derived, list []geofence.Crossing) (out []string) {
	for _, c := range list {
		if !d.Complete(c.FenceID, c.LaterUS) {
			out = append(out, fmt.Sprintf("%+v", c))
		}
	}
	slices.Sort(out)
	return out
}

// Where it is known what was there before, a stretch derives less: the rest is what it
// was. With enough read it leaves fences out, and says so. And it derives what lies
// behind as far as it says.
func TestAStretchDerivesWhatMayHaveChanged(t *testing.T) {
	testenv.Slow(t)
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 23))
	var less, rested, left, beyond int
	for range 6000 {
		set, refused := geofence.NewSet(heldFences(r))
		require.Empty(t, refused)
		fixes := heldTrack(r)
		var old []geofence.Fix
		from, to := 1+r.IntN(len(fixes)), 0
		to = min(from+r.IntN(6), len(fixes))
		var between []geofence.Fix
		for _, f := range fixes[from:to] {
			if r.IntN(3) == 0 {
				between = append(between, f)
			}
		}
		old = slices.Concat(fixes[:from], between, fixes[to:])
		told := heldTold(r, fixes)
		was, is := walked(set, old, sinceOf(told, old)), walked(set, fixes, sinceOf(told, fixes))
		begin, end := from-1, min(to, len(fixes)-1)
		rounds := r.IntN(8)
		enough := func() bool { return rounds < 4 }
		for s := (geofence.Stretch{Known: true, Old: between, Since: sinceOf(told, fixes)}); ; rounds++ {
			s.Fixes, s.From, s.To, s.First, s.Last = fixes[begin:end+1], from-1-begin, to-begin, begin == 0, end == len(fixes)-1
			s.Enough = enough()
			d := set.Derive(s, heldGap)
			if d.Before || d.Behind {
				require.False(t, s.Enough, "seed %d", seed)
				begin, end = max(0, begin-1-r.IntN(3)), min(len(fixes)-1, end+1+r.IntN(3))
				continue
			}
			require.Equal(t, complete(&d, is), complete(&d, d.Crossings), "seed %d, %+v", seed, s)
			if d.Left {
				left++
				break
			}
			require.Equal(t, rest(&d, was), rest(&d, is), "seed %d, %+v", seed, s)
			rested += len(rest(&d, is))
			s.Known, s.Beyond = false, true
			further := set.Derive(s, heldGap)
			if further.Before || further.Behind {
				less++
				break
			}
			require.Equal(t, complete(&further, is), complete(&further, further.Crossings), "seed %d, %+v", seed, s)
			if to < len(fixes) && further.ThroughUS() > fixes[to].TimeUS {
				beyond++
			}
			for _, c := range is {
				if c.LaterUS > fixes[from-1].TimeUS && c.LaterUS <= further.ThroughUS() {
					require.True(t, further.Complete(c.FenceID, c.LaterUS), "seed %d, %+v", seed, s)
				}
			}
			break
		}
	}
	t.Logf("seed %d: %d crossings that were not derived again, %d stretches that needed less, %d with fences left out, %d derived beyond", seed, rested, less, left, beyond)
	require.Greater(t, less, 300)
	require.Greater(t, left, 300)
	require.Greater(t, beyond, 300)
}

// What Between says of a way counts is what one pass over the whole track finds there,
// unless it says that only more fixes show that.
func TestBetweenKnowsWhatItDoesNotKnow(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 19))
	var known, unknown, followed int
	for range 4000 {
		set, refused := geofence.NewSet(heldFences(r))
		require.Empty(t, refused)
		if !set.Held() {
			continue
		}
		walk := set.Walk(heldGap)
		fixes := heldTrack(r)
		open, kept := geofence.Known, geofence.Kept(nil)
		for i, fix := range fixes {
			prev := fixes[max(i-1, 0)]
			unsettled := prev.TimeUS < open.UntilUS && fix.TimeUS >= open.FromUS
			raw := set.Crossings(nil, prev, fix, heldGap)
			if i == 0 {
				raw = set.Initial(nil, fix)
			}
			steps := set.Between(raw, prev, fix, open, kept)
			unsettled = unsettled || steps.Unsettled
			if open.Over(fix.TimeUS) {
				open = geofence.Known
			}
			open, kept = open.Join(steps.Open), steps.Kept
			want := walk.Next(nil, fix)
			if unsettled {
				unknown++
			} else {
				if len(want)+len(steps.Crossings) > 0 {
					known++
				}
				require.ElementsMatch(t, want, steps.Crossings, "seed %d, fix %d of %+v", seed, i, fixes)
			}
			if len(kept) > 0 {
				followed++
			}
			if r.IntN(20) == 0 { // a restart
				open, kept = set.Unknown(fix.TimeUS), nil
			}
		}
	}
	t.Logf("%d ways that count something, %d of which only more fixes show it, %d after which something is kept", known, unknown, followed)
	require.Greater(t, known, 8000)
	require.Greater(t, followed, 10_000)
}

// A walk that begins anywhere knows as much of fences that the device left as one that
// keeps them, and keeps none of them.
func TestAWalkForgetsFencesFarBehind(t *testing.T) {
	t.Parallel()
	var list []geofence.Fence
	for n := range 500 {
		x := 11 + float64(n)*0.01
		list = append(list, geofence.Fence{
			ID: fmt.Sprintf("fence%03d", n), Kind: geofence.Area, Valid: geofence.Always, Enabled: true, ExitMarginM: 30,
			Geometry: fmt.Sprintf(`{"type":"Polygon","coordinates":[[[%[1]v,48],[%[2]v,48],[%[2]v,48.01],[%[1]v,48.01],[%[1]v,48]]]}`, x, x+0.005),
		})
	}
	set := setOf(t, list...)
	walk, whole := set.WalkHeld(heldGap, false), set.Walk(heldGap)
	var crossings, want []geofence.Crossing
	most := 0
	for way := range 2 {
		for n := range 2000 {
			us := int64(way*2000+n) * 1e6
			fix := geofence.Fix{TimeUS: us, Latitude: 48.005, Longitude: 10.9951 + 0.0025*float64(n)}
			crossings, want = walk.Next(crossings, fix), whole.Next(want, fix)
			most = max(most, walk.Kept())
		}
	}
	require.Greater(t, len(crossings), 2000)
	require.True(t, slices.Equal(want, crossings))
	for _, c := range crossings {
		require.True(t, walk.Complete(c.FenceID, c.LaterUS), "%+v", c)
	}
	require.LessOrEqual(t, most, 502, "the way back meets them all at once")
	require.LessOrEqual(t, walk.Kept(), 2)
}
