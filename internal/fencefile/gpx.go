package fencefile

import (
	"bytes"
	"cmp"
	"fmt"

	"github.com/twpayne/go-gpx"
)

// fromGPX makes a line of each route and each segment of a track, and a point of
// each waypoint. Times are not needed.
func fromGPX(text []byte) ([]feature, error) {
	g, err := gpx.Read(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("read GPX: %w", err)
	}
	var list []feature
	add := func(name, otherwise string, g any) {
		list = append(list, newFeature(map[string]any{"id": cmp.Or(name, otherwise), "name": name}, g))
	}
	for i, t := range g.Trk {
		for _, s := range t.TrkSeg {
			add(t.Name, fmt.Sprintf("track-%d", i+1), lineOf(s.TrkPt))
		}
	}
	for i, r := range g.Rte {
		add(r.Name, fmt.Sprintf("route-%d", i+1), lineOf(r.RtePt))
	}
	for i, w := range g.Wpt {
		add(w.Name, fmt.Sprintf("waypoint-%d", i+1), geometry{"Point", position{w.Lon, w.Lat}})
	}
	return list, nil
}

func lineOf(points []*gpx.WptType) geometry {
	line := []position{}
	for _, p := range points {
		line = append(line, position{p.Lon, p.Lat})
	}
	return geometry{"LineString", line}
}
