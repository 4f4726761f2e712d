package fencefile_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fencefile"
	"github.com/trmtracking/processor/internal/geofence"
)

// read returns the fences of a file as short lines, and what is refused.
func read(t *testing.T, text, name string, d geofence.Defaults) []string {
	t.Helper()
	geojson, err := fencefile.GeoJSON([]byte(text), name)
	require.NoError(t, err)
	fences, refused, err := geofence.ParseFeatures(geojson, d)
	require.NoError(t, err)
	var lines []string
	for _, f := range fences {
		f, err := f.Canonical()
		require.NoError(t, err)
		lines = append(lines, fmt.Sprintf("%s|%s|%s|r%v w%v|%s", f.ID, f.Name, f.Kind, f.RadiusM, f.WidthM, f.Geometry))
	}
	for _, r := range refused {
		lines = append(lines, r.Error())
	}
	return lines
}

const kml = `<?xml version="1.0" encoding="UTF-8"?>
<kml xmlns="http://www.opengis.net/kml/2.2"><Document><name>Site</name><Style id="s"><LineStyle><width>3</width></LineStyle></Style>
<Folder><name>Depots</name>
  <Folder><name>South</name>
    <Placemark><name>Yard</name><Polygon><outerBoundaryIs><LinearRing><coordinates>
      11,48,0 11.1,48,0
      11.1,48.1,0 11,48,0
    </coordinates></LinearRing></outerBoundaryIs><innerBoundaryIs><LinearRing><coordinates>11.05,48.01 11.06,48.01 11.06,48.02 11.05,48.01</coordinates></LinearRing></innerBoundaryIs></Polygon></Placemark>
  </Folder>
  <Placemark id="pm1"><name>Gate</name><ExtendedData><Data name="kind"><value>gate</value></Data></ExtendedData>
    <LineString><coordinates>11,48 11.1,48</coordinates></LineString></Placemark>
</Folder>
<Placemark><name>Stop</name><ExtendedData><SchemaData schemaUrl="#x"><SimpleData name="id">stop-7</SimpleData><SimpleData name="radius_m">30.5</SimpleData><SimpleData name="lines">[9]</SimpleData></SchemaData></ExtendedData>
  <Point><coordinates>11,48,500</coordinates></Point></Placemark>
<Placemark><name>Two</name><MultiGeometry>
  <Polygon><outerBoundaryIs><LinearRing><coordinates>1,1 2,1 2,2 1,1</coordinates></LinearRing></outerBoundaryIs></Polygon>
  <Polygon><outerBoundaryIs><LinearRing><coordinates>3,1 4,1 4,2 3,1</coordinates></LinearRing></outerBoundaryIs></Polygon>
</MultiGeometry></Placemark>
<Placemark><name>Road</name><LineString><coordinates>11,48 11.1,48</coordinates></LineString></Placemark>
<Placemark><name>Road</name><LineString><coordinates>11,49 11.1,49</coordinates></LineString></Placemark>
<Placemark><name>Broken</name><Point><coordinates>11;48</coordinates></Point></Placemark>
<Placemark><name>Empty</name></Placemark>
</Document></kml>`

func TestKML(t *testing.T) {
	require.Equal(t, []string{
		`Depots/South/Yard|Yard|area|r0 w0|{"type":"Polygon","coordinates":[[[11,48],[11.1,48],[11.1,48.1],[11,48]],[[11.05,48.01],[11.06,48.01],[11.06,48.02],[11.05,48.01]]]}`,
		`pm1|Gate|gate|r0 w0|{"type":"LineString","coordinates":[[11,48],[11.1,48]]}`,
		`stop-7|Stop|circle|r30.5 w0|{"type":"Point","coordinates":[11,48]}`,
		`Two|Two|area|r0 w0|{"type":"MultiPolygon","coordinates":[[[[1,1],[2,1],[2,2],[1,1]]],[[[3,1],[4,1],[4,2],[3,1]]]]}`,
		`Road|Road|area|r0 w12|{"type":"LineString","coordinates":[[11,48],[11.1,48]]}`,
		`Road-2|Road|area|r0 w12|{"type":"LineString","coordinates":[[11,49],[11.1,49]]}`,
		`feature 7, fence "Broken": position "11;48": want longitude,latitude`,
		`feature 8, fence "Empty": has no geometry`,
	}, read(t, "\xef\xbb\xbf"+kml, "site.kml", geofence.Defaults{WidthM: 12, RadiusM: 99}))
}

// Without times, which a route of a map has none of.
const gpx = `<?xml version="1.0"?><gpx version="1.1" creator="x" xmlns="http://www.topografix.com/GPX/1/1">
<wpt lat="48" lon="11"><name>Start</name></wpt><wpt lat="48.5" lon="11"/>
<rte><name>Tour</name><rtept lat="48" lon="11"/><rtept lat="48.1" lon="11.1"/></rte>
<trk><trkseg><trkpt lat="1" lon="2"><ele>5</ele></trkpt><trkpt lat="1" lon="3"/></trkseg><trkseg><trkpt lat="5" lon="2"/><trkpt lat="5" lon="3"/></trkseg></trk>
</gpx>`

func TestGPX(t *testing.T) {
	require.Equal(t, []string{
		`track-1||area|r0 w40|{"type":"LineString","coordinates":[[2,1],[3,1]]}`,
		`track-1-2||area|r0 w40|{"type":"LineString","coordinates":[[2,5],[3,5]]}`,
		`Tour|Tour|area|r0 w40|{"type":"LineString","coordinates":[[11,48],[11.1,48.1]]}`,
		`Start|Start|circle|r100 w0|{"type":"Point","coordinates":[11,48]}`,
		`waypoint-2||circle|r100 w0|{"type":"Point","coordinates":[11,48.5]}`,
	}, read(t, gpx, "tour.gpx", geofence.Defaults{WidthM: 40, RadiusM: 100}))
	require.Contains(t, read(t, gpx, "tour.gpx", geofence.Defaults{})[0], `feature 1, fence "track-1": a LineString is a gate or a corridor`)

	var ids []string
	const named = `<wpt lat="48" lon="11"><name>%s</name></wpt>`
	text := "<gpx>"
	for _, name := range []string{"A", "A", "A-2", "A", "A-2", "A-2-2"} {
		text += fmt.Sprintf(named, name)
	}
	for _, line := range read(t, text+"</gpx>", "points.gpx", geofence.Defaults{RadiusM: 100}) {
		id, _, _ := strings.Cut(line, "|")
		ids = append(ids, id)
	}
	require.Equal(t, []string{"A", "A-3", "A-2", "A-4", "A-2-3", "A-2-2"}, ids, "those that are given stay")
}

func TestWKT(t *testing.T) {
	require.Equal(t, []string{
		`zones||area|r0 w0|{"type":"Polygon","coordinates":[[[1,1],[2,1],[2,2],[1,1]]]}`,
		`zones-2||circle|r9 w0|{"type":"Point","coordinates":[11,48]}`,
		`feature 3, fence "zones-3": SRID=3857 is not WGS84: export the fences as EPSG:4326`,
	}, read(t, "POLYGON ((1 1,2 1,\n2 2,1 1))\nSRID=4326;POINT Z (11 48 500);\nSRID=3857;POINT(1 1)", "dir/zones.wkt", geofence.Defaults{RadiusM: 9}))
	require.Equal(t, []string{
		`7|Yard, south|circle|r25 w0|{"type":"Point","coordinates":[11,48]}`,
		`a|007|gate|r0 w0|{"type":"LineString","coordinates":[[1,1],[2,2]]}`,
		`feature 3, fence "c": read WKT: `,
		`feature 4, fence "d": has no geometry`,
	}, prefixes(read(t, "id;Name;WKT;radius_m;kind\n7;\"Yard, south\";POINT(11 48);25;\na;007;LINESTRING(1 1,2 2);;gate\nc;;CIRCLE(1 1);;\nd;;;;\n", "t.csv", geofence.Defaults{}), 2, `feature 3, fence "c": read WKT: `))
}

func prefixes(lines []string, n int, prefix string) []string {
	if strings.HasPrefix(lines[n], prefix) {
		lines[n] = prefix
	}
	return lines
}

func TestFilesThatCannotBeRead(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "is empty",
		"PK\x03\x04xyz":             "compressed archive (KMZ?): unpack it",
		"hello":                     "is neither GeoJSON, KML, GPX, WKT nor a table with a column wkt, geometry, geom, the_geom",
		"<html><body/></html>":      "is XML of html, which is neither KML nor GPX",
		"<kml><Placemark></kml>":    "line 1: ",
		"<kml><Document/></kml>":    "has no placemark, track, route, waypoint or geometry",
		"<gpx><wpt lat='x'/></gpx>": "read GPX: ",
		"<kml><Placemark><name>M\xfcnchen</name></Placemark></kml>":          "byte 0xfc at line 1, offset 23, is not UTF-8",
		"<?xml version='1.0' encoding='ISO-8859-1'?><kml><Placemark/></kml>": "save it as UTF-8",
		"id,wkt\n1,POINT(1 1)\n2\n":                                          "wrong number of fields",
	} {
		_, err := fencefile.GeoJSON([]byte(text), "f")
		require.ErrorContains(t, err, want, text)
	}
	text := []byte(` {"type":"Feature"}`)
	same, err := fencefile.GeoJSON(text, "f")
	require.NoError(t, err)
	require.Equal(t, text, same, "GeoJSON as it is")
}
