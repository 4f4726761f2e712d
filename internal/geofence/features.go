package geofence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"
)

// feature is one fence in a file. Properties that are not listed are ignored.
type feature struct {
	Type       string          `json:"type"`
	ID         json.RawMessage `json:"id"`
	Geometry   json.RawMessage `json:"geometry"`
	CRS        json.RawMessage `json:"crs"`
	Properties struct {
		ID        json.RawMessage `json:"id"`
		Name      string          `json:"name"`
		Kind      any             `json:"kind"`
		RadiusM   float64         `json:"radius_m"`
		ValidFrom *time.Time      `json:"valid_from"`
		ValidTo   *time.Time      `json:"valid_to"`
		Enabled   *bool           `json:"enabled"`
	} `json:"properties"`
}

// ParseFeatures reads the fences of a GeoJSON FeatureCollection, or of a single
// Feature, and checks each. A feature that is invalid is skipped and reported in
// the second result; the error reports that the text as a whole cannot be read.
//
// The properties of a feature are id (or the feature's own), name, radius_m,
// valid_from and valid_to (RFC 3339, open where missing), enabled (true where
// missing) and kind. A kind other than area, circle and gate is
// ignored, and the geometry's type decides.
func ParseFeatures(text []byte) ([]Fence, []*FenceError, error) {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")) // editors on Windows put a byte order mark first
	if err := checkUTF8(text); err != nil {
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
		f, err := parseFeature(raw)
		if err == nil {
			err = f.Check()
		}
		if err != nil {
			refused = append(refused, &FenceError{Index: i, ID: f.ID, Err: err})
			continue
		}
		fences = append(fences, f)
	}
	return fences, refused, nil
}

func parseFeature(raw json.RawMessage) (Fence, error) {
	var in feature
	if err := json.Unmarshal(raw, &in); err != nil {
		return Fence{}, fmt.Errorf("read GeoJSON feature: %w", err)
	}
	if in.Type != "Feature" {
		return Fence{}, fmt.Errorf("want a Feature, not %q", in.Type)
	}
	f := Fence{
		Name:     in.Properties.Name,
		Geometry: string(in.Geometry),
		RadiusM:  in.Properties.RadiusM,
		Valid:    Always,
		Enabled:  in.Properties.Enabled == nil || *in.Properties.Enabled,
	}
	id := in.Properties.ID
	if len(id) == 0 || string(id) == "null" {
		id = in.ID
	}
	var err error
	if f.ID, err = textOf(id); err != nil {
		return f, err
	}
	if err := checkCRS(in.CRS); err != nil {
		return f, err
	}
	if t := in.Properties.ValidFrom; t != nil {
		f.Valid.FromUS = t.UnixMicro()
	}
	if t := in.Properties.ValidTo; t != nil {
		f.Valid.ToUS = t.UnixMicro()
	}
	if kind, ok := in.Properties.Kind.(string); ok {
		f.Kind = Kind(kind)
	}
	if f.Kind != Area && f.Kind != Circle && f.Kind != Gate {
		f.Kind, err = kindOf(in.Geometry)
	}
	return f, err
}

// textOf returns an id as text: a JSON string, or a number as it is written.
func textOf(id json.RawMessage) (string, error) {
	if len(id) == 0 || string(id) == "null" {
		return "", errors.New("has no id")
	}
	var text string
	if json.Unmarshal(id, &text) == nil {
		return text, nil
	}
	var number json.Number
	if json.Unmarshal(id, &number) == nil {
		return number.String(), nil
	}
	return "", fmt.Errorf("id %s is neither text nor a number", id)
}

// kindOf returns the only kind that a geometry can have.
func kindOf(geometry json.RawMessage) (Kind, error) {
	g, err := parseGeometry(string(geometry))
	switch {
	case err != nil:
		return "", err
	case g.IsPoint():
		return Circle, nil
	case g.IsLineString():
		return Gate, nil
	}
	return Area, nil
}

// checkUTF8 names the place of the first byte that is not UTF-8. The decoder of
// JSON would replace it, and two IDs might become one.
func checkUTF8(text []byte) error {
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
