package fencefile

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"
)

// placemark is what is read of a placemark.
type placemark struct {
	ID   string `xml:"id,attr"`
	Name string `xml:"name"`
	Data []struct {
		Name  string `xml:"name,attr"`
		Value string `xml:"value"`
	} `xml:"ExtendedData>Data"`
	Simple []struct {
		Name  string `xml:"name,attr"`
		Value string `xml:",chardata"`
	} `xml:"ExtendedData>SchemaData>SimpleData"`
	shapes
}

type shapes struct {
	Points   []coordinates `xml:"Point"`
	Lines    []coordinates `xml:"LineString"`
	Rings    []coordinates `xml:"LinearRing"`
	Polygons []struct {
		Outer coordinates   `xml:"outerBoundaryIs>LinearRing"`
		Inner []coordinates `xml:"innerBoundaryIs>LinearRing"`
	} `xml:"Polygon"`
	Multi []shapes `xml:"MultiGeometry"`
}

type coordinates struct {
	Text string `xml:"coordinates"`
}

// fromKML reads the placemarks of a KML file, in whatever folders they are.
// A placemark has the properties of its extended data. Its ID is the one there,
// else its attribute, else its name behind those of its folders.
func fromKML(dec *xml.Decoder) ([]feature, error) {
	var list []feature
	var folders []string // with "" for elements that are none
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, xmlError(dec, err)
		}
		switch t := token.(type) {
		case xml.EndElement:
			folders = folders[:max(len(folders)-1, 0)]
		case xml.StartElement:
			if t.Name.Local == "Placemark" {
				var p placemark
				if err := dec.DecodeElement(&p, &t); err != nil {
					return nil, xmlError(dec, err)
				}
				list = append(list, p.features(folders)...)
				continue
			}
			if t.Name.Local == "name" && len(folders) > 0 && folders[len(folders)-1] == "Folder" {
				var name string
				if err := dec.DecodeElement(&name, &t); err != nil {
					return nil, xmlError(dec, err)
				}
				folders[len(folders)-1] = "Folder " + strings.TrimSpace(name)
				continue
			}
			folders = append(folders, t.Name.Local)
		}
	}
}

// features returns one feature for all polygons of the placemark, and one for
// each of its points and lines; if it has nothing to draw, one without geometry.
func (p *placemark) features(folders []string) []feature {
	properties := map[string]any{}
	for _, d := range p.Data {
		properties[d.Name] = value(d.Name, d.Value)
	}
	for _, d := range p.Simple {
		properties[d.Name] = value(d.Name, d.Value)
	}
	name := strings.TrimSpace(p.Name)
	if properties["name"] == nil {
		properties["name"] = name
	}
	if properties["id"] == nil {
		properties["id"] = p.ID
		if p.ID == "" && name != "" {
			properties["id"] = strings.Join(append(namesOf(folders), name), "/")
		}
	}
	drawn, err := p.drawn()
	if err != nil {
		f := newFeature(properties, nil)
		f.Unreadable = err.Error()
		return []feature{f}
	}
	if len(drawn) == 0 {
		drawn = []any{nil}
	}
	var list []feature
	for _, g := range drawn {
		list = append(list, newFeature(maps.Clone(properties), g))
	}
	return list
}

func namesOf(folders []string) []string {
	var names []string
	for _, f := range folders {
		if name, ok := strings.CutPrefix(f, "Folder "); ok {
			names = append(names, name)
		}
	}
	return names
}

func (s *shapes) drawn() ([]any, error) {
	areas, rest, err := s.split()
	if err != nil {
		return nil, err
	}
	switch len(areas) {
	case 0:
	case 1:
		rest = append(rest, geometry{"Polygon", areas[0]})
	default:
		rest = append(rest, geometry{"MultiPolygon", areas})
	}
	return rest, nil
}

// split returns the polygons of the shapes, and the geometries of all else.
func (s *shapes) split() (areas [][][]position, rest []any, err error) {
	for _, c := range s.Points {
		at, err := c.positions()
		if err != nil {
			return nil, nil, err
		}
		if len(at) != 1 {
			return nil, nil, fmt.Errorf("a Point has %d positions", len(at))
		}
		rest = append(rest, geometry{"Point", at[0]})
	}
	for _, c := range s.Lines {
		line, err := c.positions()
		if err != nil {
			return nil, nil, err
		}
		rest = append(rest, geometry{"LineString", line})
	}
	for _, c := range s.Rings {
		ring, err := c.positions()
		if err != nil {
			return nil, nil, err
		}
		areas = append(areas, [][]position{ring})
	}
	for _, g := range s.Polygons {
		var rings [][]position
		for _, c := range append([]coordinates{g.Outer}, g.Inner...) {
			ring, err := c.positions()
			if err != nil {
				return nil, nil, err
			}
			rings = append(rings, ring)
		}
		areas = append(areas, rings)
	}
	for i := range s.Multi {
		a, r, err := s.Multi[i].split()
		if err != nil {
			return nil, nil, err
		}
		areas, rest = append(areas, a...), append(rest, r...)
	}
	return areas, rest, nil
}

// positions reads "longitude,latitude[,altitude]", separated by spaces.
func (c coordinates) positions() ([]position, error) {
	list := []position{}
	for _, tuple := range strings.Fields(c.Text) {
		parts := strings.Split(tuple, ",")
		var p position
		if len(parts) < 2 {
			return nil, fmt.Errorf("position %q: want longitude,latitude", tuple)
		}
		for i := range p {
			v, err := strconv.ParseFloat(parts[i], 64)
			if err != nil || v-v != 0 {
				return nil, fmt.Errorf("position %q: %q is not a number of degrees", tuple, parts[i])
			}
			p[i] = v
		}
		list = append(list, p)
	}
	return list, nil
}
