package fleet

import (
	"fmt"
	"strings"
)

// Fences returns some fences on the course of a profile, as GeoJSON: circles that
// every vehicle crosses on each lap.
func (p Profile) Fences() string {
	c := newCourse(p.Seed)
	var features []string
	for i, name := range []string{"Start", "Bridge", "Service park", "Finish"} {
		at := c.at(c.length*float64(i)/4, 0)
		features = append(features, fmt.Sprintf(
			`{"type":"Feature","properties":{"id":"rally-%d","name":%q,"kind":"circle","radius_m":250},"geometry":{"type":"Point","coordinates":[%.6f,%.6f]}}`,
			i+1, name, at.longitude, at.latitude))
	}
	return `{"type":"FeatureCollection","features":[` + strings.Join(features, ",\n") + "]}"
}
