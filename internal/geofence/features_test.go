package geofence_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
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
			fences, refused, err := geofence.ParseFeatures([]byte(text))
			require.ErrorContains(t, err, "has no features")
			require.Empty(t, fences)
			require.Empty(t, refused)
		})
	}
}

func TestTextThatIsNotWhatItSeems(t *testing.T) {
	collection := `{"type":"FeatureCollection",%s"features":[` + yard + `]}`
	read := func(text string) ([]geofence.Fence, []*geofence.FenceError, error) {
		return geofence.ParseFeatures([]byte(text))
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
