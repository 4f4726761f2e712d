package geofence_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/testenv"
)

const yard = `{"type":"Feature","properties":{"id":"yard"},"geometry":{"type":"Polygon","coordinates":[[[11,48],[11.5,48],[11.5,48.5],[11,48]]]}}`

func TestAFileThatWouldEmptyTheSetIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"missing":  `{"type":"FeatureCollection"}`,
		"null":     `{"type":"FeatureCollection","features":null}`,
		"empty":    `{"type":"FeatureCollection","features":[]}`,
		"misspelt": `{"type":"FeatureCollection","feature":[` + yard + `]}`,
	} {
		t.Run(name, func(t *testing.T) {
			fences, refused, err := geofence.ParseFeatures([]byte(text), geofence.Defaults{})
			require.ErrorContains(t, err, "has no features")
			require.Empty(t, fences)
			require.Empty(t, refused)
		})
	}
}

func TestTextThatIsNotWhatItSeems(t *testing.T) {
	collection := `{"type":"FeatureCollection",%s"features":[` + yard + `]}`
	read := func(text string) ([]geofence.Fence, []*geofence.FenceError, error) {
		return geofence.ParseFeatures([]byte(text), geofence.Defaults{})
	}
	t.Run("a byte order mark", func(t *testing.T) {
		fences, refused, err := read("\xef\xbb\xbf" + fmt.Sprintf(collection, ""))
		require.NoError(t, err)
		require.Empty(t, refused)
		require.Len(t, fences, 1)
	})
	t.Run("Latin-1", func(t *testing.T) {
		_, _, err := read("{\n" + strings.Replace(fmt.Sprintf(collection, ""), "yard", "M\xfcnchen", 1)[1:])
		require.ErrorContains(t, err, "byte 0xfc at line 2, offset 80, is not UTF-8")
	})
	t.Run("WGS84 by name", func(t *testing.T) {
		fences, _, err := read(fmt.Sprintf(collection, `"crs":{"type":"name","properties":{"name":"urn:ogc:def:crs:OGC:1.3:CRS84"}},`))
		require.NoError(t, err)
		require.Len(t, fences, 1)
	})
	t.Run("another system of the file", func(t *testing.T) {
		_, _, err := read(fmt.Sprintf(collection, `"crs":{"type":"name","properties":{"name":"EPSG:3857"}},`))
		require.ErrorContains(t, err, `crs "EPSG:3857" is not WGS84`)
	})
	t.Run("another system of a geometry", func(t *testing.T) {
		_, refused, err := read(strings.Replace(fmt.Sprintf(collection, ""), `"type":"Polygon",`, `"type":"Polygon","crs":{"type":"name","properties":{"name":"EPSG:25832"}},`, 1))
		require.NoError(t, err)
		require.Len(t, refused, 1)
		require.ErrorContains(t, refused[0], `crs "EPSG:25832" is not WGS84`)
	})
	t.Run("a long ID", func(t *testing.T) {
		_, refused, err := read(strings.Replace(fmt.Sprintf(collection, ""), "yard", strings.Repeat("ü", 201), 1))
		require.NoError(t, err)
		require.Len(t, refused, 1)
		require.ErrorContains(t, refused[0], "id has 201 characters, at most 200 are allowed")
		fences, _, err := read(strings.Replace(fmt.Sprintf(collection, ""), "yard", strings.Repeat("ü", 200), 1))
		require.NoError(t, err)
		require.Len(t, fences, 1)
	})
}

func TestAShapePrintedDifferentlyIsTheSame(t *testing.T) {
	want := `{"type":"Polygon","coordinates":[[[11,48],[11.5,48],[11.5,48.5],[11,48]]]}`
	for _, text := range []string{
		want,
		`{"coordinates":[[[11.0,48.00],[1.15e1,48],[11.5,48.5],[11,48]]],"type":"Polygon"}`,
		`{"type":"Polygon","bbox":[11,48,11.5,48.5],"note":"\u0000","coordinates":[[[11,48,520],[11.5,48,520],[11.5,48.5,521],[11,48,520]]]}`,
		`{"type":"Feature","properties":{},"geometry":` + want + `}`,
	} {
		f, err := geofence.Fence{ID: "yard", Kind: geofence.Area, Geometry: text, Valid: geofence.Always}.Canonical()
		require.NoError(t, err)
		require.Equal(t, want, f.Geometry)
		require.NoError(t, f.Check())
	}
}

// one reads a file of one feature and returns its fence, or why it is refused.
func one(t *testing.T, feature string, d geofence.Defaults) (geofence.Fence, error) {
	t.Helper()
	fences, refused, err := geofence.ParseFeatures([]byte(`{"type":"FeatureCollection","features":[`+feature+`]}`), d)
	require.NoError(t, err)
	if len(refused) > 0 {
		return geofence.Fence{}, refused[0]
	}
	return fences[0], nil
}

func TestWhatALineIs(t *testing.T) {
	text := func(properties string) string {
		return `{"type":"Feature","id":"x","properties":` + properties + `,"geometry":{"type":"LineString","coordinates":[[11,48],[11.1,48]]}}`
	}
	f, err := one(t, text(`{"kind":"gate"}`), geofence.Defaults{WidthM: 7})
	require.NoError(t, err)
	require.Equal(t, geofence.Gate, f.Kind)
	require.Zero(t, f.WidthM)
	f, err = one(t, text(`{"width_m":20}`), geofence.Defaults{WidthM: 7})
	require.NoError(t, err)
	require.Equal(t, geofence.Area, f.Kind)
	require.Equal(t, 20.0, f.WidthM)
	f, err = one(t, text(`{}`), geofence.Defaults{WidthM: 7})
	require.NoError(t, err)
	require.Equal(t, 7.0, f.WidthM)
	for properties, want := range map[string]string{
		`{}`:                            `feature 1, fence "x": a LineString is a gate or a corridor: add "kind":"gate", or width_m`,
		`null`:                          `add "kind":"gate", or width_m`,
		`{"width_m":0}`:                 `width_m 0 is not above 0`,
		`{"width_m":-4}`:                `width_m -4 is not above 0`,
		`{"width_m":1e9}`:               `width_m 1e+09 is not above 0 and at most 100000`,
		`{"width_m":1e999}`:             `width_m is 1e999, want a number of metres, such as 25`,
		`{"width_m":"wide"}`:            `width_m is "wide", want a number of metres, such as 25`,
		`{"width_m":3,"kind":"gate"}`:   `only a corridor has one`,
		`{"radius_m":{},"kind":"gate"}`: `radius_m is {}, want a number of metres, such as 25`,
		`{"enabled":"yes"}`:             `enabled is "yes", want true or false`,
		`{"valid_from":"yesterday"}`:    `valid_from is "yesterday", want a time such as "2026-01-31T08:00:00Z"`,
		`{"name":"a\u0000"}`:            `contains the character U+0000`,
		`[]`:                            `is not a GeoJSON feature`,
	} {
		_, err := one(t, text(properties), geofence.Defaults{})
		require.ErrorContains(t, err, want, properties)
	}
}

func TestWhatHoldsABorderStillIsChecked(t *testing.T) {
	text := func(properties, geometry string) string {
		return `{"type":"Feature","id":"x","properties":` + properties + `,"geometry":` + geometry + `}`
	}
	const line, disc = `{"type":"LineString","coordinates":[[11,48],[11.1,48]]}`, `{"type":"Point","coordinates":[11,48]}`
	f, err := one(t, text(`{"radius_m":50,"exit_margin_m":10.5,"min_dwell_s":90}`, disc), geofence.Defaults{})
	require.NoError(t, err)
	require.Equal(t, []float64{10.5, 90, 0}, []float64{f.ExitMarginM, f.MinDwellS, f.MinIntervalS})
	f, err = one(t, text(`{"width_m":50,"exit_margin_m":1000,"min_dwell_s":3600}`, line), geofence.Defaults{})
	require.NoError(t, err)
	require.Equal(t, []float64{1000, 3600, 0}, []float64{f.ExitMarginM, f.MinDwellS, f.MinIntervalS})
	f, err = one(t, text(`{"kind":"gate","min_interval_s":0.5,"exit_margin_m":null,"min_dwell_s":0}`, line), geofence.Defaults{})
	require.NoError(t, err)
	require.Equal(t, []float64{0, 0, 0.5}, []float64{f.ExitMarginM, f.MinDwellS, f.MinIntervalS})
	for _, tc := range []struct{ properties, geometry, want string }{
		{`{"radius_m":50,"exit_margin_m":-1}`, disc, `feature 1, fence "x": exit_margin_m -1 is not from 0 to 1000 metres`},
		{`{"radius_m":50,"exit_margin_m":1000.5}`, disc, `exit_margin_m 1000.5 is not from 0 to 1000 metres`},
		{`{"radius_m":50,"exit_margin_m":"10"}`, disc, `exit_margin_m is "10", want a number of metres, such as 25`},
		{`{"radius_m":50,"exit_margin_m":1e999}`, disc, `exit_margin_m is 1e999, want a number of metres`},
		{`{"radius_m":50,"min_dwell_s":-0.1}`, disc, `min_dwell_s -0.1 is not from 0 to 3600 seconds`},
		{`{"radius_m":50,"min_dwell_s":3601}`, disc, `min_dwell_s 3601 is not from 0 to 3600 seconds`},
		{`{"radius_m":50,"min_dwell_s":"1m"}`, disc, `min_dwell_s is "1m", want a number of seconds, such as 30`},
		{`{"radius_m":50,"min_interval_s":30}`, disc, `min_interval_s 30 given for kind "circle": only gates have one, min_dwell_s is for areas and circles`},
		{`{"width_m":50,"min_interval_s":30}`, line, `min_interval_s 30 given for kind "area"`},
		{`{"kind":"gate","min_interval_s":-30}`, line, `min_interval_s -30 is not from 0 to 3600 seconds`},
		{`{"kind":"gate","min_interval_s":[30]}`, line, `min_interval_s is [30], want a number of seconds, such as 30`},
		{`{"kind":"gate","exit_margin_m":5}`, line, `exit_margin_m 5 given for a gate, which no device is inside of: min_interval_s is for gates`},
		{`{"kind":"gate","min_dwell_s":5}`, line, `min_dwell_s 5 given for a gate`},
	} {
		_, err := one(t, text(tc.properties, tc.geometry), geofence.Defaults{})
		require.ErrorContains(t, err, tc.want, tc.properties)
	}
	_, refused := geofence.NewSet([]geofence.Fence{{
		ID: "nan", Kind: geofence.Circle, Geometry: disc, RadiusM: 50, ExitMarginM: math.NaN(), Valid: geofence.Always, Enabled: true,
	}})
	require.Len(t, refused, 1)
	require.ErrorContains(t, refused[0], "exit_margin_m NaN is not from 0 to 1000 metres")
}

func TestAnEdgeAcrossHalfTheWorldIsRefused(t *testing.T) {
	text := func(geometry string) string {
		return `{"type":"Feature","id":"x","properties":{"kind":"gate"},"geometry":` + geometry + `}`
	}
	for _, geometry := range []string{
		`{"type":"LineString","coordinates":[[170,0],[-170,1]]}`,
		`{"type":"Polygon","coordinates":[[[170,0],[-170,0],[-170,1],[170,0]]]}`,
		`{"type":"MultiPolygon","coordinates":[[[[1,0],[2,0],[2,1],[1,0]]],[[[-180,0],[180,0],[180,1],[-180,0]]]]}`,
	} {
		_, err := one(t, text(geometry), geofence.Defaults{})
		require.ErrorContains(t, err, "degrees of longitude apart, more than half the world: add a position between them, or split the fence at the antimeridian")
	}
	_, err := one(t, text(`{"type":"LineString","coordinates":[[170,0],[190,1]]}`), geofence.Defaults{})
	require.NoError(t, err, "beyond the antimeridian, drawn as one line")
}

// Round the equator: valid, and in all ways' boxes.
func TestAFenceAsWideAsTheWorld(t *testing.T) {
	f, err := one(t, `{"type":"Feature","id":"x","properties":{},"geometry":{"type":"Polygon","coordinates":[[[-180,-1],[-60,-1],[60,-1],[180,-1],[180,1],[60,1],[-60,1],[-180,1],[-180,-1]]]}}`, geofence.Defaults{})
	require.NoError(t, err)
	set := setOf(t, f)
	require.Equal(t, []string{"enter x 0.500s", "exit x 2.500s"}, brief(set.Track(nil, way(at(100, -2), at(100, 0), at(-170, 0), at(-170, 2)), noGap, false)))
}

func TestSkippedFeaturesAreNamedByNumberAndID(t *testing.T) {
	fences, refused, err := geofence.ParseFeatures([]byte(`{"type":"FeatureCollection","features":[`+yard+`,
		{"type":"Feature","properties":{},"geometry":{"type":"Point","coordinates":[1,2]}},
		{"type":"Feature","id":"far","properties":{"radius_m":-5},"geometry":{"type":"Point","coordinates":[1,2]}},
		{"type":"Feature","id":7,"properties":{}},
		7]}`), geofence.Defaults{})
	require.NoError(t, err)
	require.Len(t, fences, 1)
	var got []string
	for _, r := range refused {
		got = append(got, r.Error())
	}
	require.Equal(t, []string{
		`feature 2: has no id`,
		`feature 3, fence "far": radius -5 m is not above 0 and at most 10007543`,
		`feature 4, fence "7": has no geometry`,
		`feature 5: is not a GeoJSON feature, or its properties are not an object`,
	}, got)
}

// A hundred thousand features are read, checked and indexed in seconds.
func TestManyFeatures(t *testing.T) {
	testenv.Slow(t)
	var b strings.Builder
	b.WriteString(`{"type":"FeatureCollection","features":[`)
	const many = 100_000
	for i := range many {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"type":"Feature","id":%d,"properties":{"radius_m":50},"geometry":{"type":"Point","coordinates":[%d.5,%d.5]}}`, i, i%360-180, i/360%179-89)
	}
	b.WriteString("]}")
	fences, refused, err := geofence.ParseFeatures([]byte(b.String()), geofence.Defaults{})
	require.NoError(t, err)
	require.Empty(t, refused)
	require.Len(t, fences, many)
	require.Equal(t, many, setOf(t, fences...).Len())
}
