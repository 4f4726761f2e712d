package geofence_test

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
)

// Promise 6.
func TestBadFencesAreRefusedWithAReason(t *testing.T) {
	ring := func(n int) []position {
		out := make([]position, 0, n)
		for i := range n - 1 {
			a := float64(i) / float64(n-1) * 2 * math.Pi
			out = append(out, position{10 * math.Cos(a), 10 * math.Sin(a)})
		}
		return append(out, out[0])
	}
	with := func(f geofence.Fence, change func(*geofence.Fence)) geofence.Fence {
		change(&f)
		return f
	}
	square := polygon(box(0, 0, 1, 1))
	tests := []struct {
		name string
		give geofence.Fence
		want string
	}{
		{"no id", area("", square), "has no id"},
		{"null kind", with(area("x", square), func(f *geofence.Fence) { f.Kind = "" }), "has no kind"},
		{"unknown kind", with(area("x", square), func(f *geofence.Fence) { f.Kind = "polygon" }), `unknown kind "polygon"`},
		{"empty span", with(area("x", square), func(f *geofence.Fence) { f.Valid = geofence.Span{FromUS: 5, ToUS: 5} }), "valid span is empty"},
		{"radius of an area", with(area("x", square), func(f *geofence.Fence) { f.RadiusM = 5 }), "only circles have one"},
		{"nothing", area("x", ""), "read GeoJSON"},
		{"null", area("x", "null"), "null or has no type"},
		{"not JSON", area("x", "POLYGON((0 0,1 0,1 1,0 0))"), "read GeoJSON"},
		{"wrong type", area("x", `{"type":"MultiPoint","coordinates":[[0,0]]}`), `"MultiPoint" is not one of`},
		{"feature without geometry", area("x", `{"type":"Feature","geometry":null}`), "null or has no type"},
		{"no coordinates", area("x", `{"type":"Polygon"}`), "no coordinates"},
		{"null coordinate", area("x", `{"type":"Polygon","coordinates":[[[0,0],[1,null],[1,1],[0,0]]]}`), "a null among them"},
		{"text as coordinate", area("x", `{"type":"Polygon","coordinates":[[["0",0],[1,0],[1,1],[0,0]]]}`), "read GeoJSON"},
		{"number too large", area("x", `{"type":"Polygon","coordinates":[[[1e999,0],[1,0],[1,1],[0,0]]]}`), "read GeoJSON"},
		{"empty polygon", area("x", `{"type":"Polygon","coordinates":[]}`), "empty"},
		{"empty ring", area("x", `{"type":"Polygon","coordinates":[[]]}`), "ring 1 has 0 positions"},
		{"empty multipolygon", area("x", `{"type":"MultiPolygon","coordinates":[]}`), "empty"},
		{"three positions", area("x", polygon([]position{{0, 0}, {1, 0}, {0, 0}})), "ring 1 has 3 positions"},
		{"open ring", area("x", polygon([]position{{0, 0}, {1, 0}, {1, 1}, {0, 1}})), "ring 1 is open"},
		{"open hole", area("x", polygon(box(0, 0, 9, 9), []position{{1, 1}, {2, 1}, {2, 2}, {1, 2}})), "ring 2 is open"},
		{"crossing itself", area("x", polygon([]position{{0, 0}, {1, 1}, {1, 0}, {0, 1}, {0, 0}})), "not simple"},
		{"no area", area("x", polygon([]position{{0, 0}, {1, 0}, {2, 0}, {0, 0}})), "ring 1 has no area"},
		{"hole outside", area("x", polygon(box(0, 0, 1, 1), box(2, 2, 3, 3))), "not a valid polygon"},
		{"hole through the edge", area("x", polygon(box(0, 0, 2, 2), box(1, 1, 3, 1.5))), "not a valid polygon"},
		{"bad part", area("x", geometry("MultiPolygon", [][][]position{{box(0, 0, 1, 1)}, {box(2, 2, 2, 3)}})), "part 2: ring 1 has no area"},
		{"swapped", area("x", polygon([]position{{30.2, -97.7}, {30.3, -97.7}, {30.3, -97.6}, {30.2, -97.7}})), "look swapped"},
		{"latitude", area("x", polygon([]position{{120, 91}, {121, 91}, {121, 92}, {120, 91}})), "latitude 91 is out of range"},
		{"longitude", area("x", polygon(box(361, 0, 362, 1))), "out of range"},
		{"a vertex too many", area("x", polygon(ring(20_001))), "has 20001 vertices, at most 20000"},
		{"a million vertices", area("x", `{"type":"Polygon","coordinates":[[`+strings.Repeat("[0,0],", 1_000_000)+`[0,0]]]}`), "bytes, at most"},
		{"round the equator", area("x", polygon([]position{{0, 0}, {120, 0}, {-120, 0}, {0, 0}})), "which pole"},
		{"twice round", area("x", polygon([]position{{0, 50}, {120, 50}, {-120, 50}, {0, 51}, {120, 51}, {-120, 51}, {0, 50}})), "more than once"},
		{"one and a half times round and back", area("x", polygon([]position{
			{0, 0}, {120, 1}, {-120, 2}, {0, 3}, {100, 4}, {100, 6}, {0, 5}, {-120, 4}, {120, 3}, {0, 2}, {0, 0},
		})), "more than once"},
		{"area of a line", area("x", line(position{0, 0}, position{1, 1})), "width_m 0 is not above 0"},
		{"circle of a polygon", with(circle("x", 1, 1, 5), func(f *geofence.Fence) { f.Geometry = square }), "wants a Point"},
		{"no radius", circle("x", 1, 1, 0), "radius 0 m"},
		{"negative radius", circle("x", 1, 1, -1), "radius -1 m"},
		{"radius not a number", circle("x", 1, 1, math.NaN()), "radius NaN m"},
		{"absurd radius", circle("x", 1, 1, 2e7), "radius 2e+07 m"},
		{"center swapped", circle("x", -97.7, 30, 5), "look swapped"},
		{"gate of a polygon", gate("x", square), "wants a LineString"},
		{"gate of one point", gate("x", line(position{1, 1})), "line"},
		{"gate without length", gate("x", line(position{1, 1}, position{1, 1})), "no length"},
		{"gate crossing itself", gate("x", line(position{0, 0}, position{2, 2}, position{2, 0}, position{0, 2})), "crosses or touches itself"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			require.ErrorContains(t, tt.give.Check(), tt.want)
			good := area("good", square)
			set, refused := geofence.NewSet([]geofence.Fence{tt.give, good})
			require.Len(t, refused, 1)
			require.Equal(t, 0, refused[0].Index)
			require.Equal(t, tt.give.ID, refused[0].ID)
			require.ErrorContains(t, refused[0], fmt.Sprintf("fence %q: ", tt.give.ID))
			require.Equal(t, []string{"good"}, idsAt(set, at(0.5, 0.5)), "the others are kept")
		})
	}
}

func TestFencesAsDrawnAreTaken(t *testing.T) {
	good := map[string]geofence.Fence{
		"three dimensions": area("x", `{"type":"Polygon","coordinates":[[[0,0,5],[1,0,5],[1,1,5],[0,0,5]]]}`),
		"feature":          area("x", `{"type":"Feature","properties":null,"geometry":`+polygon(box(0, 0, 1, 1))+`}`),
		"clockwise":        area("x", polygon([]position{{0, 0}, {0, 1}, {1, 1}, {1, 0}, {0, 0}})),
		"doubled position": area("x", polygon([]position{{0, 0}, {1, 0}, {1, 0}, {1, 1}, {0, 1}, {0, 0}})),
		"crs member":       area("x", strings.Replace(polygon(box(0, 0, 1, 1)), "{", `{"crs":null,`, 1)),
	}
	for name, f := range good {
		require.NoError(t, f.Check(), name)
		require.NotEmpty(t, setOf(t, f).At(nil, at(0.75, 0.5)), name)
	}
	rim := make([]position, geofence.MaxVertices)
	for i := range rim {
		a := float64(i) / float64(len(rim)-1) * 2 * math.Pi
		rim[i] = position{10 * math.Cos(a), 10 * math.Sin(a)}
	}
	rim[len(rim)-1] = rim[0]
	require.NoError(t, area("x", polygon(rim)).Check(), "the largest fence")
}

func TestTwoFencesWithOneIDAreVersionsOrOneIsRefused(t *testing.T) {
	version := func(from, to int64) geofence.Fence {
		f := area("a", polygon(box(0, 0, 1, 1)))
		f.Valid = geofence.Span{FromUS: from, ToUS: to}
		return f
	}
	set, refused := geofence.NewSet([]geofence.Fence{version(10, 20), version(0, 10), version(20, math.MaxInt64)})
	require.Empty(t, refused)
	require.Equal(t, 3, set.Len())

	set, refused = geofence.NewSet([]geofence.Fence{version(10, 20), version(0, 11)})
	require.Len(t, refused, 1)
	require.Equal(t, 0, refused[0].Index, "the one that begins first is kept")
	require.ErrorContains(t, refused[0], "overlaps another version of it, valid from 1970-01-01T00:00:00Z to")
	require.Equal(t, 1, set.Len())

	bad := version(0, math.MaxInt64)
	bad.Geometry = "null"
	_, refused = geofence.NewSet([]geofence.Fence{bad, version(5, 10)})
	require.Len(t, refused, 1, "a version that was refused holds no span")
}

func TestRenewedSetIsWhatANewOneWouldBe(t *testing.T) {
	fences := benchFences(400)
	old := setOf(t, fences...)
	moved := append([]geofence.Fence{}, fences[100:]...)
	for i := range moved {
		switch i % 3 {
		case 0:
			moved[i].Geometry = fences[i/3].Geometry // of another fence, perhaps of another kind
		case 1:
			moved[i].Name, moved[i].Enabled = "renamed", i%2 == 0
		}
		if moved[i].Kind == geofence.Circle {
			moved[i].RadiusM += float64(i % 2)
		}
	}
	moved = append(moved, area("", fences[2].Geometry), area("bad", "null"))
	want, wantRefused := geofence.NewSet(moved)
	got, gotRefused := old.Renew(moved)
	require.Equal(t, wantRefused, gotRefused)
	require.NotEmpty(t, gotRefused)
	require.Equal(t, want.Len(), got.Len())
	for i := range want.Len() {
		require.Equal(t, want.Fence(i), got.Fence(i))
	}
	fixes := benchWay()
	require.Equal(t, want.Track(nil, fixes, maxGap, true), got.Track(nil, fixes, maxGap, true))
	require.Equal(t, setOf(t, fences...).Track(nil, fixes, maxGap, true), old.Track(nil, fixes, maxGap, true), "the old set is untouched")
}

func TestFeaturesAreReadOneByOne(t *testing.T) {
	text := `{"type":"FeatureCollection","features":[
		{"type":"Feature","id":7,"properties":{"kind":"gate"},"geometry":` + line(position{0, 0}, position{1, 1}) + `},
		{"type":"Feature","id":"outer","properties":{"id":"depot","name":"Depot","kind":"our yard","enabled":false,
			"valid_from":"2026-01-01T00:00:00Z","valid_to":"2026-02-01T01:00:00+01:00"},"geometry":` + polygon(box(0, 0, 1, 1)) + `},
		{"type":"Feature","properties":{"id":"c","kind":"circle","radius_m":50},"geometry":{"type":"Point","coordinates":[8,47]}},
		{"type":"Feature","properties":{"id":"c2","kind":"area","radius_m":50},"geometry":{"type":"Point","coordinates":[8,47]}},
		{"type":"Feature","properties":{},"geometry":{"type":"Point","coordinates":[8,47]}},
		{"type":"Feature","properties":{"id":"late","valid_to":"tomorrow"},"geometry":{"type":"Point","coordinates":[8,47]}},
		{"type":"Feature","properties":{"id":["x"]},"geometry":{"type":"Point","coordinates":[8,47]}},
		{"type":"Feature","properties":{"id":"empty"},"geometry":null},
		null]}`
	fences, refused, err := geofence.ParseFeatures([]byte(text), geofence.Defaults{})
	require.NoError(t, err)
	depot := area("depot", polygon(box(0, 0, 1, 1)))
	depot.Name, depot.Enabled = "Depot", false
	depot.Valid = geofence.Span{FromUS: us(t, "2026-01-01T00:00:00Z"), ToUS: us(t, "2026-02-01T00:00:00Z")}
	require.Equal(t, []geofence.Fence{gate("7", line(position{0, 0}, position{1, 1})), depot, circle("c", 47, 8, 50)}, fences)
	reasons := map[int]string{
		3: "only circles have one", 4: "has no id", 5: `valid_to is "tomorrow", want a time`, 6: "neither text nor a number",
		7: "has no geometry", 8: "want a Feature",
	}
	require.Len(t, refused, len(reasons))
	for _, r := range refused {
		require.ErrorContains(t, r, reasons[r.Index])
	}

	one, refused, err := geofence.ParseFeatures([]byte(`{"type":"Feature","id":"a","geometry":`+polygon(box(0, 0, 1, 1))+`}`), geofence.Defaults{})
	require.NoError(t, err)
	require.Empty(t, refused)
	require.Len(t, one, 1)
	for _, text := range []string{"", "[]", "null", polygon(box(0, 0, 1, 1))} {
		_, _, err := geofence.ParseFeatures([]byte(text), geofence.Defaults{})
		require.Error(t, err, text)
	}
}

// A table may have it, since Postgres has infinite times. Written to a file and read again it
// must not become a fence for ever.
func TestAFenceThatIsNeverValidStaysInvalidInAFile(t *testing.T) {
	for text, valid := range map[string]geofence.Span{
		"infinity to no end": {FromUS: math.MaxInt64, ToUS: math.MaxInt64}, "the beginning to -infinity": {FromUS: math.MinInt64, ToUS: math.MinInt64},
	} {
		never := circle("never", 1, 1, 5)
		never.Valid = valid
		require.ErrorContains(t, never.Check(), "its valid span is empty: "+text)
		var file bytes.Buffer
		require.NoError(t, geofence.WriteFeatures(&file, []geofence.Fence{never}))
		fences, refused, err := geofence.ParseFeatures(file.Bytes(), geofence.Defaults{})
		require.NoError(t, err)
		require.Empty(t, fences)
		require.Len(t, refused, 1)
		require.ErrorContains(t, refused[0], `infinity", want a time`)
	}
}

func TestFenceWithoutNumbersIsNoPanic(t *testing.T) {
	set := setOf(t, area("a", polygon(box(0, 0, 1, 1))), circle("c", 0, 0, 5000))
	for _, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 181, -181, 1e300} {
		require.Empty(t, set.At(nil, at(v, 0)))
		require.Empty(t, set.At(nil, at(0, v)))
		w := way(at(0.5, 0.5), at(v, 0.5))
		require.Empty(t, set.Track(nil, w, noGap, false))
	}
	var none *geofence.Set
	require.Empty(t, none.At(nil, at(0, 0)))
	require.Empty(t, none.Track(nil, way(at(0, 0), at(1, 1)), noGap, true))
	require.Zero(t, none.Len())
}

func FuzzParse(f *testing.F) {
	f.Add(polygon(box(0, 0, 1, 1), box(0.2, 0.2, 0.4, 0.4)), "area", 0.0)
	f.Add(polygon(box(170, -10, -170, 10)), "area", 0.0)
	f.Add(polygon([]position{{0, 80}, {120, 80}, {-120, 80}, {0, 80}}, box(-5, 85, 5, 86)), "area", 0.0)
	f.Add(polygon(box(-180, -90, 180, 90)), "area", 0.0)
	f.Add(`{"type":"Point","coordinates":[179.9999,-17]}`, "circle", 500.0)
	f.Add(line(position{1, 1}, position{2, 2}), "gate", 0.0)
	f.Add(line(position{179.9, 1}, position{-179.9, 2}, position{179, -17}), "area", 500.0)
	f.Add(`{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[null]]]}}`, "area", 0.0)
	f.Fuzz(func(t *testing.T, text, kind string, radius float64) {
		features, _, _ := geofence.ParseFeatures([]byte(text), geofence.Defaults{})
		for _, feature := range features {
			require.NoError(t, feature.Check())
		}
		fence := geofence.Fence{
			ID: "f", Kind: geofence.Kind(kind), Geometry: text, RadiusM: radius,
			Valid: geofence.Always, Enabled: true,
		}
		if strings.Contains(text, "LineString") {
			fence.RadiusM, fence.WidthM = 0, radius
		}
		set, refused := geofence.NewSet([]geofence.Fence{fence})
		require.Equal(t, 1, set.Len()+len(refused))
		require.Equal(t, fence.Check() == nil, len(refused) == 0)
		fixes := way(at(0.3, 0.3), at(179.5, -17), at(-179.5, 5), at(0, 90), at(1.5, 1.6), at(1.6, 1.5), at(-180, -90), at(180, 85))
		for i := range fixes[1:] {
			requireConsistent(t, set, fixes[i], fixes[i+1], set.Crossings(nil, fixes[i], fixes[i+1], noGap))
		}
	})
}
