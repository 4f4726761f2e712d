package oracle_test

import (
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// The first fix of a drive, and the time between two.
var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const apart = 10 * time.Second

// drive returns the crossings of the oracle for one device, and those that the service's geometry computes.
func drive(t *testing.T, fences []oracle.Fence, places [][2]float64) (ours, theirs []oracle.Crossing) {
	t.Helper()
	var items []fleet.Item
	var fixes []geofence.Fix
	for i, p := range places {
		when := start.Add(time.Duration(i) * apart)
		items = append(items, fleet.Item{Message: fleet.Message{DeviceID: "a", Codec: "8", Time: when, Longitude: p[0], Latitude: p[1]}})
		fixes = append(fixes, geofence.Fix{TimeUS: when.UnixMicro(), Longitude: p[0], Latitude: p[1]})
	}
	var sent []fleet.Sent
	for i := range items {
		s := fleet.Sent{Message: items[i].Message}
		s.ID.Ms = uint64(items[i].Message.Time.UnixMilli())
		sent = append(sent, s)
	}
	o, err := oracle.New(logOf(t, sent))
	require.NoError(t, err)
	r := oracle.Rules{Fences: fences, Limits: oracle.Limits{MaxFutureSkew: time.Hour, MaxCrossingGap: time.Hour}}
	for c, err := range o.Crossings(r) {
		require.NoError(t, err)
		ours = append(ours, c)
	}
	set, version := asService(t, fences)
	for _, c := range set.Track(nil, fixes, time.Hour, true) {
		theirs = append(theirs, asOracle("a", version, c))
	}
	return ours, theirs
}

func always(id, kind, geometry string, radius float64) oracle.Fence {
	return oracle.Fence{ID: id, Version: 1, Kind: kind, Geometry: geometry, RadiusM: radius, FromUS: math.MinInt64, ToUS: math.MaxInt64}
}

func brief(crossings []oracle.Crossing) string {
	var lines []string
	for _, c := range crossings {
		lines = append(lines, fmt.Sprintf("%s %s %d us %d at %.8f %.8f %t", c.FenceID, c.Kind, c.Ordinal, c.TimeUS, c.Latitude, c.Longitude, c.Initial))
	}
	return strings.Join(lines, "\n")
}

// Two geometries that share no line agree, on the coarse grids where ways meet
// corners and run along borders, exactly or within rounding, and across the antimeridian.
func TestTwoGeometriesAgree(t *testing.T) {
	testenv.Slow(t)
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 1))
	crossings := 0
	for range testenv.Size(50, 1000) {
		west := float64(r.IntN(3)*90 - 90)
		if r.IntN(4) == 0 {
			west = 178
		}
		wrap := func(x float64) float64 {
			if x > 180 {
				return x - 360
			}
			return x
		}
		scale := []float64{1, 0.8, 0.008}[r.IntN(3)] // decimals are on hardly any line between others
		place := func(n int) (float64, float64) {
			return wrap(west + scale*float64(r.IntN(n))*4/float64(n)), 10 + scale*float64(r.IntN(n))*4/float64(n)
		}
		var fences []oracle.Fence
		for n := range 3 {
			x, y := place(16)
			// a star round a place: never crosses itself
			corners := 3 + r.IntN(6)
			var ring []string
			for k := range corners {
				angle := 2 * math.Pi * float64(k) / float64(corners)
				far := float64(1+r.IntN(4)) / 4
				if corners == 3 {
					far = 1
				}
				ring = append(ring, fmt.Sprintf("[%v,%v]", wrap(x+scale*math.Round(far*math.Cos(angle)*8)/8), y+scale*math.Round(far*math.Sin(angle)*8)/8))
			}
			ring = append(ring, ring[0])
			f := always(fmt.Sprintf("area-%d", n), "area", `{"type":"Polygon","coordinates":[[`+strings.Join(ring, ",")+`]]}`, 0)
			if (geofence.Fence{ID: f.ID, Kind: geofence.Area, Geometry: f.Geometry, Valid: geofence.Always}).Check() == nil {
				fences = append(fences, f)
			}
			fences = append(fences, always(fmt.Sprintf("circle-%d", n), "circle", fmt.Sprintf(`{"type":"Point","coordinates":[%v,%v]}`, x, y), scale*(1000+r.Float64()*100_000)))
			var line []string
			for range 2 + r.IntN(4) {
				a, b := place(8)
				line = append(line, fmt.Sprintf("[%v,%v]", a, b))
			}
			f = always(fmt.Sprintf("corridor-%d", n), "area", `{"type":"LineString","coordinates":[`+strings.Join(line, ",")+`]}`, 0)
			f.WidthM = scale * (1000 + r.Float64()*50_000)
			if (geofence.Fence{ID: f.ID, Kind: geofence.Area, Geometry: f.Geometry, WidthM: f.WidthM, Valid: geofence.Always}).Check() == nil {
				fences = append(fences, f)
			}
			f = always(fmt.Sprintf("gate-%d", n), "gate", `{"type":"LineString","coordinates":[`+strings.Join(line, ",")+`]}`, 0)
			if (geofence.Fence{ID: f.ID, Kind: geofence.Gate, Geometry: f.Geometry, Valid: geofence.Always}).Check() == nil {
				fences = append(fences, f)
			}
		}
		var places [][2]float64
		for range 12 {
			x, y := place(16)
			places = append(places, [2]float64{x, y})
		}
		ours, theirs := drive(t, fences, places)
		crossings += len(ours)
		require.Len(t, theirs, len(ours), "fences %v\nplaces %v\nours\n%s\ntheirs\n%s", fences, places, brief(ours), brief(theirs))
		byKey := func(a, b oracle.Crossing) int { return strings.Compare(key(a), key(b)) }
		slices.SortFunc(ours, byKey)
		slices.SortFunc(theirs, byKey)
		for i := range ours {
			require.Equal(t, key(ours[i]), key(theirs[i]), "fences %v\nplaces %v\nours\n%s\ntheirs\n%s", fences, places, brief(ours), brief(theirs))
			require.InDelta(t, ours[i].TimeUS, theirs[i].TimeUS, 1)
			require.InDelta(t, ours[i].Latitude, theirs[i].Latitude, 1e-9)
		}
	}
	require.Greater(t, crossings, 700)
}

// Both know that parts share a border on which only one of them has a position, slanted or
// along an axis, drawn once or apart: their union is what their corners enclose, whatever way
// goes through it.
func TestTwoGeometriesAgreeOnSharedBorders(t *testing.T) {
	testenv.Slow(t)
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 1))
	between := func(a, b position, f float64) position {
		return position{a[0] + f*(b[0]-a[0]), a[1] + f*(b[1]-a[1])}
	}
	for i := range 120 {
		west := float64(r.IntN(4)*90-90) - 0.3
		a := position{west + r.Float64()/10, 10 + r.Float64()}
		b := position{a[0] + 0.2 + r.Float64(), a[1] + r.Float64() - 0.5}
		switch i % 4 {
		case 0:
			b[0] = a[0]
			b[1] = a[1] + 0.2 + r.Float64()
		case 1:
			b[1] = a[1]
		}
		middle, dx, dy := between(a, b, 0.3+0.4*r.Float64()), b[0]-a[0], b[1]-a[1]
		c, d := position{middle[0] + dy/2, middle[1] - dx/2}, position{middle[0] - dy/2, middle[1] + dx/2}
		m := between(a, b, 0.02+0.96*r.Float64())
		scale := math.Pow(10, float64(6+r.IntN(11)))
		draw := func(p position) position { // as people draw, or with all digits
			return position{math.Round(p[0]*scale) / scale, math.Round(p[1]*scale) / scale}
		}
		if r.IntN(2) == 0 {
			step := func() float64 { return float64(r.IntN(3)-1) * 0.5e-6 }
			draw = func(p position) position { // each part apart, within rounding to six decimals
				return position{p[0] + step(), p[1] + step()}
			}
		}
		places := []position{draw(m)}
		for range 12 {
			places = append(places,
				between(middle, c, r.Float64()/2), between(a, b, r.Float64()), between(middle, d, r.Float64()/2),
				position{west + r.Float64(), 10 + r.Float64()})
		}
		requireOneArea(t, [4]position{a, c, b, d}, m, draw, places)
	}
}

// A fix that is a tenth of a millimetre outside of the parts was outside, on no border that
// they share: the exit before it and the enter after it are at one microsecond.
func TestAFixJustOutsideOfAllPartsIsOutside(t *testing.T) {
	a, c := position{-90.26102037681109, 10.231789566457339}, position{-89.74104424919346, 9.790594556432195}
	b, d := position{-89.22600400797498, 10.416498033864189}, position{-89.9257527166003, 10.825610925268306}
	beside := position{-90.25397892614966, 10.244261294430428}
	ours := requireOneArea(t, [4]position{a, c, b, d}, position{-89.47118299675029, 10.372743522708028}, func(p position) position { return p },
		[]position{{-89.87281526448615, 10.528975203951061}, beside, {-89.79902272907324, 10.11547774429186}})
	require.Len(t, ours, 3)
	require.Equal(t, []string{"enter", "exit", "enter"}, []string{ours[0].Kind, ours[1].Kind, ours[2].Kind})
	require.Equal(t, ours[1].TimeUS, ours[2].TimeUS)
	require.Equal(t, ours[1].LaterUS, ours[2].EarlierUS)
}

type position = [2]float64

// requireOneArea drives along places through three parts whose union has the corners, a
// convex shape whose first and third one are joined by the border that the parts share, by
// way of m. Each part draws its positions anew; where one is drawn first counts. In a convex
// area no way between two fixes that are inside crosses anything.
func requireOneArea(t *testing.T, corners [4]position, m position, draw func(position) position, places []position) []oracle.Crossing {
	t.Helper()
	exact := func(v float64) *big.Rat { return new(big.Rat).SetFloat64(v) }
	inside := func(p position) bool {
		for i, a := range corners {
			b := corners[(i+1)%4]
			ab := [2]*big.Rat{new(big.Rat).Sub(exact(b[0]), exact(a[0])), new(big.Rat).Sub(exact(b[1]), exact(a[1]))}
			ap := [2]*big.Rat{new(big.Rat).Sub(exact(p[0]), exact(a[0])), new(big.Rat).Sub(exact(p[1]), exact(a[1]))}
			if new(big.Rat).Mul(ab[0], ap[1]).Cmp(new(big.Rat).Mul(ab[1], ap[0])) < 0 {
				return false
			}
		}
		return true
	}
	wrap := func(p position) position {
		if p[0] > 180 {
			p[0] -= 360 // which rounds nothing
		}
		return p
	}
	a, c, b, d := corners[0], corners[1], corners[2], corners[3]
	var parts []string
	first := make(map[position]position)
	for _, part := range [][]position{{a, c, b}, {a, m, d}, {m, b, d}} {
		var ring []position
		for _, p := range part {
			at := draw(p)
			if _, drawn := first[p]; !drawn {
				first[p] = at
			}
			ring = append(ring, wrap(at))
		}
		ring = append(ring, ring[0])
		text, err := json.Marshal([][]position{ring})
		require.NoError(t, err)
		parts = append(parts, string(text))
	}
	fence := always("area", "area", `{"type":"MultiPolygon","coordinates":[`+strings.Join(parts, ",")+`]}`, 0)
	var way []position
	for _, p := range places {
		way = append(way, wrap(p))
	}
	ours, theirs := drive(t, []oracle.Fence{fence}, way)
	require.Equal(t, keys(ours), keys(theirs), "fence %v\nplaces %v\nours\n%s\ntheirs\n%s", fence, places, brief(ours), brief(theirs))
	kinds := make(map[int64][]string) // by the later fix
	for _, c := range ours {
		kinds[c.LaterUS] = append(kinds[c.LaterUS], c.Kind)
	}
	for i, p := range corners {
		corners[i] = first[p]
	}
	was := false
	for i, p := range places {
		is, got := inside(p), kinds[start.Add(time.Duration(i)*apart).UnixMicro()]
		switch {
		case is && !was:
			require.Equal(t, []string{"enter"}, got, "at %v, fix %d of %v, in %v\n%s", p, i, places, fence, brief(ours))
		case was && !is:
			require.Equal(t, []string{"exit"}, got, "at %v, fix %d of %v, in %v\n%s", p, i, places, fence, brief(ours))
		case is:
			require.Empty(t, got, "seam before %v, fix %d of %v, in %v\n%s", p, i, places, fence, brief(ours))
		case len(got) > 0:
			require.Equal(t, []string{"enter", "exit"}, got, "at %v, fix %d of %v, in %v\n%s", p, i, places, fence, brief(ours))
		}
		was = is
	}
	return ours
}

func keys(list []oracle.Crossing) []string {
	var out []string
	for _, c := range list {
		out = append(out, key(c))
	}
	slices.Sort(out)
	return out
}

func key(c oracle.Crossing) string {
	return fmt.Sprint(c.LaterUS, c.FenceID, c.Kind, c.Ordinal, c.EarlierUS, c.Initial, c.FenceVersion)
}
