package geofence

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
)

// WriteFeatures writes the fences as a GeoJSON FeatureCollection that
// [ParseFeatures] reads back, one feature a line.
func WriteFeatures(w io.Writer, fences []Fence) error {
	out := bufio.NewWriter(w)
	_, _ = out.WriteString("{\"type\":\"FeatureCollection\",\"features\":[") // the last error is that of Flush
	for i, f := range fences {
		text, err := json.Marshal(f.exported())
		if err != nil {
			return fmt.Errorf("write fence %s: %w", f.ID, err)
		}
		if i > 0 {
			_ = out.WriteByte(',')
		}
		_ = out.WriteByte('\n')
		_, _ = out.Write(text)
	}
	_, _ = out.WriteString("\n]}\n")
	return out.Flush()
}

type exportedProperties struct {
	ID      string  `json:"id"`
	Name    string  `json:"name"`
	Kind    Kind    `json:"kind"`
	RadiusM float64 `json:"radius_m,omitempty"`
	WidthM  float64 `json:"width_m,omitempty"`

	ExitMarginM  float64 `json:"exit_margin_m,omitempty"`
	MinDwellS    float64 `json:"min_dwell_s,omitempty"`
	MinIntervalS float64 `json:"min_interval_s,omitempty"`

	ValidFrom *string `json:"valid_from,omitempty"`
	ValidTo   *string `json:"valid_to,omitempty"`
	Enabled   bool    `json:"enabled"`
}

type exportedFeature struct {
	Type       string             `json:"type"`
	Properties exportedProperties `json:"properties"`
	Geometry   json.RawMessage    `json:"geometry"`
}

func (f *Fence) exported() exportedFeature {
	end := func(us, open int64) *string {
		if us == open {
			return nil
		}
		return new(endOf(us)) // ParseFeatures refuses one that is never valid
	}
	return exportedFeature{
		Type: "Feature",
		Properties: exportedProperties{
			ID: f.ID, Name: f.Name, Kind: f.Kind, RadiusM: f.RadiusM, WidthM: f.WidthM,
			ExitMarginM: f.ExitMarginM, MinDwellS: f.MinDwellS, MinIntervalS: f.MinIntervalS,
			ValidFrom: end(f.Valid.FromUS, math.MinInt64), ValidTo: end(f.Valid.ToUS, math.MaxInt64), Enabled: f.Enabled,
		},
		Geometry: json.RawMessage(f.Geometry),
	}
}
