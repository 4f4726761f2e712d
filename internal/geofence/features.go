package geofence

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/peterstace/simplefeatures/geom"
)

// feature is one fence in a file.
type feature struct {
	Type       string          `json:"type"`
	ID         json.RawMessage `json:"id"`
	Geometry   json.RawMessage `json:"geometry"`
	CRS        json.RawMessage `json:"crs"`
	Properties properties      `json:"properties"`
	// Unreadable is why a file of another format has no geometry here.
	Unreadable string `json:"unreadable"`
}

// Defaults are for fences of a file that do not say it themselves.
type Defaults struct {
	RadiusM float64 // of points
	WidthM  float64 // of lines that are no gates
}

// ParseFeatures reads the fences of a GeoJSON FeatureCollection, or of a single
// Feature, and checks each. A feature that is invalid is skipped and reported in
// the second result; the error reports that the text as a whole cannot be read.
//
// The properties of a feature are id (or the feature's own), name, radius_m,
// width_m, exit_margin_m, min_dwell_s, min_interval_s, valid_from and valid_to (RFC
// 3339, open where missing), enabled (true where missing) and kind. A kind other than area, circle and gate is ignored,
// and the geometry decides: a line is a corridor if it has a width, and nothing
// without.
func ParseFeatures(text []byte, d Defaults) ([]Fence, []*FenceError, error) {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")) // editors on Windows put a byte order mark first
	if err := CheckUTF8(text); err != nil {
		return nil, nil, err
	}
	var file struct {
		Type     string            `json:"type"`
		CRS      json.RawMessage   `json:"crs"`
		Features []json.RawMessage `json:"features"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, nil, fmt.Errorf("read GeoJSON: %w", err)
	}
	switch file.Type {
	case "FeatureCollection":
		// An export that went wrong looks like this, and would withdraw every fence.
		if len(file.Features) == 0 {
			return nil, nil, errors.New("the FeatureCollection has no features: the member \"features\" is missing, misspelt, null or empty")
		}
	case "Feature":
		file.Features = []json.RawMessage{text}
	default:
		return nil, nil, fmt.Errorf("want a FeatureCollection or a Feature, not %q", file.Type)
	}
	if err := checkCRS(file.CRS); err != nil {
		return nil, nil, err
	}
	var fences []Fence
	var refused []*FenceError
	for i, raw := range file.Features {
		f, err := parseFeature(raw, d)
		if err == nil {
			err = f.Check()
		}
		if err != nil {
			refused = append(refused, &FenceError{Index: i, Number: i + 1, ID: f.ID, Err: err})
			continue
		}
		fences = append(fences, f)
	}
	return fences, refused, nil
}

func parseFeature(raw json.RawMessage, d Defaults) (Fence, error) {
	var in feature
	if err := json.Unmarshal(raw, &in); err != nil {
		return Fence{}, errors.New("is not a GeoJSON feature, or its properties are not an object")
	}
	if in.Type != "Feature" {
		return Fence{}, fmt.Errorf("want a Feature, not %q", in.Type)
	}
	f := Fence{Geometry: string(in.Geometry), Valid: Always, Enabled: true}
	id := in.Properties["id"]
	if missing(id) {
		id = in.ID
	}
	var err error
	if f.ID, err = textOf("id", id); err != nil {
		return f, err
	}
	if f.ID == "" {
		return f, errors.New("has no id")
	}
	if err := in.Properties.into(&f); err != nil {
		return f, err
	}
	if strings.ContainsRune(f.ID+f.Name, 0) {
		return f, errors.New("its id or name contains the character U+0000, which no database text can hold: remove it")
	}
	if err := checkCRS(in.CRS); err != nil {
		return f, err
	}
	if in.Unreadable != "" {
		return f, errors.New(in.Unreadable)
	}
	if missing(in.Geometry) {
		return f, errors.New("has no geometry")
	}
	g, err := parseGeometry(f.Geometry)
	if err != nil {
		return f, err
	}
	if err := checkEdges(g); err != nil {
		return f, err
	}
	return f, f.decide(g, in.Properties, d)
}

// properties are the properties of a feature. Those that are not asked for are
// ignored.
type properties map[string]json.RawMessage

func missing(v json.RawMessage) bool { return len(v) == 0 || string(v) == "null" }

// read reads a property that the feature has.
func (p properties) read(name, want string, into any) error {
	v := p[name]
	if missing(v) {
		return nil
	}
	if json.Unmarshal(v, into) != nil {
		return fmt.Errorf("%s is %s, want %s", name, short(v), want)
	}
	return nil
}

// short returns the beginning of a value.
func short(v json.RawMessage) string {
	const most = 60
	if len(v) > most {
		return strings.ToValidUTF8(string(v[:most]), "") + " …"
	}
	return string(v)
}

const (
	wantMetres  = "a number of metres, such as 25"
	wantSeconds = "a number of seconds, such as 30"
	wantTime    = "a time such as \"2026-01-31T08:00:00Z\""
)

// into reads the properties of the fence.
func (p properties) into(f *Fence) error {
	if name := p["name"]; !missing(name) {
		var err error
		if f.Name, err = textOf("name", name); err != nil {
			return err
		}
	}
	var from, to *time.Time
	if err := cmp.Or(
		p.read("radius_m", wantMetres, &f.RadiusM),
		p.read("width_m", wantMetres, &f.WidthM),
		p.read("exit_margin_m", wantMetres, &f.ExitMarginM),
		p.read("min_dwell_s", wantSeconds, &f.MinDwellS),
		p.read("min_interval_s", wantSeconds, &f.MinIntervalS),
		p.read("valid_from", wantTime, &from),
		p.read("valid_to", wantTime, &to),
		p.read("enabled", "true or false", &f.Enabled),
	); err != nil {
		return err
	}
	if from != nil {
		f.Valid.FromUS = from.UnixMicro()
	}
	if to != nil {
		f.Valid.ToUS = to.UnixMicro()
	}
	return nil
}

// decide finds the kind of the fence, and what it does not say itself.
func (f *Fence) decide(g geom.Geometry, p properties, d Defaults) error {
	var kind Kind
	if json.Unmarshal(p["kind"], &kind) == nil && (kind == Area || kind == Circle || kind == Gate) {
		f.Kind = kind
	}
	switch {
	case g.IsPoint():
		f.Kind = cmp.Or(f.Kind, Circle)
		if missing(p["radius_m"]) {
			f.RadiusM = d.RadiusM
		}
	case g.IsLineString() && f.Kind != Gate:
		if missing(p["width_m"]) {
			f.WidthM = d.WidthM
		}
		if f.Kind == "" && f.WidthM == 0 && missing(p["width_m"]) {
			return errors.New("a LineString is a gate or a corridor: add \"kind\":\"gate\", or width_m in metres")
		}
		f.Kind = cmp.Or(f.Kind, Area)
	default:
		f.Kind = cmp.Or(f.Kind, Area)
	}
	return nil
}

// textOf returns an id or a name as text: a JSON string, or a number as it is
// written.
func textOf(what string, v json.RawMessage) (string, error) {
	if missing(v) {
		return "", fmt.Errorf("has no %s", what)
	}
	var text string
	if json.Unmarshal(v, &text) == nil {
		return text, nil
	}
	var number json.Number
	if json.Unmarshal(v, &number) == nil {
		return number.String(), nil
	}
	return "", fmt.Errorf("%s %s is neither text nor a number", what, short(v))
}

// checkEdges refuses edges that span more than half the world: whether such an
// edge is meant to cross the antimeridian cannot be told.
func checkEdges(g geom.Geometry) error {
	var lines []geom.Sequence
	switch {
	case g.IsLineString():
		lines = append(lines, g.MustAsLineString().Coordinates())
	case g.IsPolygon():
		lines = g.MustAsPolygon().Coordinates()
	case g.IsMultiPolygon():
		for _, part := range g.MustAsMultiPolygon().Dump() {
			lines = append(lines, part.Coordinates()...)
		}
	}
	for n, line := range lines {
		for i := 1; i < line.Length(); i++ {
			if d := math.Abs(line.GetXY(i).X - line.GetXY(i-1).X); d > 180 {
				return fmt.Errorf("line %d, positions %d and %d are %g degrees of longitude apart, more than half the world: "+
					"add a position between them, or split the fence at the antimeridian", n+1, i, i+1, d)
			}
		}
	}
	return nil
}

// CheckUTF8 names the place of the first byte that is not UTF-8. The decoder of
// JSON would replace it, and two IDs might become one.
func CheckUTF8(text []byte) error {
	if utf8.Valid(text) {
		return nil
	}
	at := 0
	for at < len(text) {
		r, n := utf8.DecodeRune(text[at:])
		if r == utf8.RuneError && n <= 1 {
			break
		}
		at += n
	}
	return fmt.Errorf("byte 0x%02x at line %d, offset %d, is not UTF-8: save the file as UTF-8",
		text[at], 1+bytes.Count(text[:at], []byte("\n")), at)
}

// wgs84 are the names that files give the one coordinate system that is read.
var wgs84 = []string{
	"urn:ogc:def:crs:OGC:1.3:CRS84", "urn:ogc:def:crs:OGC::CRS84", "OGC:CRS84", "CRS84",
	"urn:ogc:def:crs:EPSG::4326", "EPSG:4326", "http://www.opengis.net/def/crs/OGC/1.3/CRS84",
}

// checkCRS refuses coordinates of another system: read as degrees they would be
// somewhere else, or nowhere.
func checkCRS(raw json.RawMessage) error {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	var crs struct {
		Properties struct {
			Name string `json:"name"`
		} `json:"properties"`
	}
	if err := json.Unmarshal(raw, &crs); err != nil || crs.Properties.Name == "" {
		return errors.New("crs has no name: leave it out, or name urn:ogc:def:crs:OGC:1.3:CRS84")
	}
	if !slices.Contains(wgs84, crs.Properties.Name) {
		return fmt.Errorf("crs %q is not WGS84: export the fences as EPSG:4326", crs.Properties.Name)
	}
	return nil
}
