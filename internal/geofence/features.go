package geofence

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// feature is one fence in a file. Properties that are not listed are ignored.
type feature struct {
	Type       string          `json:"type"`
	ID         json.RawMessage `json:"id"`
	Geometry   json.RawMessage `json:"geometry"`
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
	var file struct {
		Type     string            `json:"type"`
		Features []json.RawMessage `json:"features"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, nil, fmt.Errorf("read GeoJSON: %w", err)
	}
	switch file.Type {
	case "FeatureCollection":
	case "Feature":
		file.Features = []json.RawMessage{text}
	default:
		return nil, nil, fmt.Errorf("want a FeatureCollection or a Feature, not %q", file.Type)
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
