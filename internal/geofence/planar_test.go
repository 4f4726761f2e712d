package geofence_test

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
)

// Data sets in a plane of any size are shrunk by a power of two, which changes
// no answer, until they fit into the world and no side is longer than half of
// it.
type shape struct {
	Type        string          `json:"type"`
	Coordinates json.RawMessage `json:"coordinates"`
}

func (s shape) value(t testing.TB) any {
	t.Helper()
	var v any
	require.NoError(t, json.Unmarshal(s.Coordinates, &v))
	return v
}

func largest(v any) float64 {
	switch v := v.(type) {
	case float64:
		return math.Abs(v)
	case []any:
		m := 0.0
		for _, e := range v {
			m = max(m, largest(e))
		}
		return m
	}
	return 0
}

func scaled(v any, factor float64) any {
	switch v := v.(type) {
	case float64:
		return v * factor
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = scaled(e, factor)
		}
		return out
	}
	return v
}

// fit returns both shapes' coordinates, shrunk.
func fit(t testing.TB, a, b shape) (va, vb any) {
	t.Helper()
	va, vb = a.value(t), b.value(t)
	factor := 1.0
	for max(largest(va), largest(vb))*factor > 60 {
		factor /= 2
	}
	return scaled(va, factor), scaled(vb, factor)
}

// chains returns the coordinates of a line or of several as fixes.
func chains(kind string, v any) [][]geofence.Fix {
	switch kind {
	case "Point":
		p := v.([]any)
		return [][]geofence.Fix{way(at(p[0].(float64), p[1].(float64)))}
	case "LineString":
		var fixes []geofence.Fix
		for _, e := range v.([]any) {
			p := e.([]any)
			fixes = append(fixes, at(p[0].(float64), p[1].(float64)))
		}
		return [][]geofence.Fix{way(fixes...)}
	}
	var all [][]geofence.Fix
	for _, e := range v.([]any) {
		inner := map[string]string{"MultiPoint": "Point", "MultiLineString": "LineString"}[kind]
		all = append(all, chains(inner, e)...)
	}
	return all
}

func isArea(kind string) bool { return kind == "Polygon" || kind == "MultiPolygon" }

func isPath(kind string) bool {
	return kind == "Point" || kind == "MultiPoint" || kind == "LineString" || kind == "MultiLineString"
}

// relation is what the crossings and the point test say of a path and an area.
type relation struct{ meets, leaves bool }

func relate(t testing.TB, set *geofence.Set, paths [][]geofence.Fix) relation {
	t.Helper()
	var r relation
	for _, fixes := range paths {
		for i, fix := range fixes {
			in := len(set.At(nil, fix)) > 0
			r.meets = r.meets || in
			r.leaves = r.leaves || !in
			if i > 0 {
				crossings := set.Crossings(nil, fixes[i-1], fix, noGap)
				requireConsistent(t, set, fixes[i-1], fix, crossings)
				r.meets = r.meets || len(crossings) > 0
				r.leaves = r.leaves || len(crossings) > 0
			}
		}
	}
	return r
}

func TestPointInPolygonVectorsHoldExactly(t *testing.T) {
	refused := map[string]string{}
	type vector struct {
		ID      string
		Point   position
		Polygon [][]position
		Where   string
	}
	for _, v := range lines[vector](t, "geofence/point_in_polygon.jsonl") {
		set, errs := geofence.NewSet([]geofence.Fence{area(v.ID, polygon(v.Polygon...))})
		if len(errs) > 0 {
			refused[v.ID] = errs[0].Error()
			continue
		}
		require.Equal(t, v.Where != "outside", len(set.At(nil, at(v.Point[0], v.Point[1]))) > 0, v.ID)
	}
	requireRefused(t, "polygon ring not simple", refused,
		"pip-d002", "pip-d003") // the border has one stray position, its ring crosses itself twice
}

// requireRefused checks that exactly the listed fences were refused, for the
// stated reason.
func requireRefused(t testing.TB, reason string, refused map[string]string, ids ...string) {
	t.Helper()
	require.ElementsMatch(t, ids, slices.Collect(maps.Keys(refused)))
	for _, err := range refused {
		require.Contains(t, err, reason)
	}
}

// selfTouchingLines are lines of the JTS set that cross or touch themselves. As
// gates they have no sides, so they are refused.
var selfTouchingLines = []string{
	"jts-d012", "jts-d014", "jts-d021", "jts-d077", "jts-d079", "jts-d092", "jts-d093", "jts-d094",
	"jts-d095", "jts-d096", "jts-d097", "jts-d098", "jts-d100", "jts-d153", "jts-d154", "jts-d155",
	"jts-d156", "jts-d158", "jts-d159", "jts-d160", "jts-d161", "jts-d162", "jts-d163", "jts-d164",
}

func TestJTSRelateVectorsHold(t *testing.T) {
	type vector struct {
		ID         string
		A, B       shape
		DE9IM      string
		Intersects bool
		Where      string
		WhereSet   []string `json:"where_set"`
	}
	refused := map[string]string{}
	areas, gates := 0, 0
	for _, v := range lines[vector](t, "geofence/relate_jts.jsonl") {
		va, vb := fit(t, v.A, v.B)
		if isArea(v.B.Type) {
			set, errs := geofence.NewSet([]geofence.Fence{area(v.ID, geometry(v.B.Type, vb))})
			if len(errs) > 0 {
				refused[v.ID] = errs[0].Error()
				continue
			}
			areas++
			r := relate(t, set, chains(v.A.Type, va))
			require.Equal(t, v.Intersects, r.meets, v.ID)
			require.Equal(t, v.DE9IM[2] != 'F', r.leaves, v.ID)
			continue
		}
		if v.B.Type != "LineString" {
			continue
		}
		set, errs := geofence.NewSet([]geofence.Fence{gate(v.ID, geometry(v.B.Type, vb))})
		if len(errs) > 0 {
			refused[v.ID] = errs[0].Error()
			continue
		}
		gates++
		crossed := false
		for _, fixes := range chains(v.A.Type, va) {
			crossed = crossed || len(set.Track(nil, fixes, noGap, false)) > 0
		}
		if crossed {
			require.True(t, v.Intersects, v.ID)
		}
	}
	require.Equal(t, 90, areas)
	require.Equal(t, 69, gates)
	requireRefused(t, "crosses or touches itself", refused, selfTouchingLines...)
}

func TestTurfPredicatesHold(t *testing.T) {
	type vector struct {
		ID       string
		Op       string
		A, B     shape
		Expected bool
	}
	var onEdge []string
	checked := 0
	for _, v := range lines[vector](t, "geofence/predicates_turf.jsonl") {
		path, fence, op := v.A, v.B, v.Op
		if isArea(v.A.Type) {
			path, fence = v.B, v.A
			op = map[string]string{
				"contains": "within", "disjoint": "disjoint", "intersects": "intersects", "touches": "touches",
			}[v.Op]
		}
		if !isArea(fence.Type) || !isPath(path.Type) || op == "" {
			continue
		}
		vp, vf := fit(t, path, fence)
		set := setOf(t, area(v.ID, geometry(fence.Type, vf)))
		r := relate(t, set, chains(path.Type, vp))
		switch op {
		case "intersects":
			require.Equal(t, v.Expected, r.meets, v.ID)
		case "disjoint":
			require.Equal(t, !v.Expected, r.meets, v.ID)
		case "within":
			if r.leaves == v.Expected {
				onEdge = append(onEdge, v.ID)
			}
		case "crosses":
			require.Equal(t, v.Expected, r.meets && r.leaves, v.ID)
		case "touches":
			if v.Expected {
				require.True(t, r.meets, v.ID)
			}
		}
		checked++
	}
	require.Equal(t, 93, checked)
	// These lie on the edge and nowhere else. Turf does not call that within;
	// here the edge counts as inside.
	require.Equal(t, []string{
		"turf-d004", "turf-d007", "turf-d009", "turf-d015", "turf-d017", "turf-d019", "turf-d176",
	}, onEdge)
}

func TestAntimeridianVectorsHold(t *testing.T) {
	type vector struct {
		ID, Name string
		Input    shape
		Probes   [][3]any
	}
	refused, differ, probes := map[string]string{}, map[string]int{}, 0
	for _, v := range lines[vector](t, "geofence/antimeridian.jsonl") {
		set, errs := geofence.NewSet([]geofence.Fence{area(v.Name, geometry(v.Input.Type, v.Input.Coordinates))})
		if len(errs) > 0 {
			refused[v.Name] = errs[0].Error()
			continue
		}
		for _, p := range v.Probes {
			probes++
			if in := len(set.At(nil, at(p[0].(float64), p[1].(float64)))) > 0; in != (p[2] == "inside") {
				differ[v.Name]++
			}
		}
	}
	require.Equal(t, 580, probes)
	require.ElementsMatch(t, []string{"issues-187", "overlap"}, slices.Collect(maps.Keys(refused)))
	require.Contains(t, refused["issues-187"], "is open")              // upstream closes the ring
	require.Contains(t, refused["overlap"], "polygon ring not simple") // upstream unites it with itself
	// A ring that goes round neither pole: upstream takes the side that its
	// direction names, which is the outside here, where direction means nothing.
	require.Equal(t, map[string]int{"both-poles": 28}, differ)
}
