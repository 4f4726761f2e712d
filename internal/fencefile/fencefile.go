package fencefile

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/trmtracking/processor/internal/geofence"
)

// GeoJSON returns the text of a file as GeoJSON. What kind of file it is, its
// content says; name is that of the file, which names what has no name itself.
// GeoJSON is returned as it is.
func GeoJSON(text []byte, name string) ([]byte, error) {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	begin := bytes.TrimSpace(text)
	switch {
	case bytes.HasPrefix(begin, []byte("PK\x03\x04")):
		return nil, errors.New("is a compressed archive (KMZ?): unpack it and give the .kml inside")
	case len(begin) == 0:
		return nil, errors.New("is empty")
	case begin[0] == '{' || begin[0] == '[':
		return text, nil
	}
	if err := geofence.CheckUTF8(text); err != nil {
		return nil, err
	}
	var list []feature
	var err error
	if begin[0] == '<' {
		list, err = fromXML(begin)
	} else {
		list, err = fromText(begin, strings.TrimSuffix(path.Base(name), path.Ext(name)))
	}
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, errors.New("has no placemark, track, route, waypoint or geometry")
	}
	distinct(list)
	return json.Marshal(map[string]any{"type": "FeatureCollection", "features": list})
}

// feature is a GeoJSON feature.
type feature struct {
	Type       string         `json:"type"`
	Properties map[string]any `json:"properties"`
	Geometry   any            `json:"geometry"` // nil is none
	// Unreadable is why it cannot be read; package geofence reports it.
	Unreadable string `json:"unreadable,omitempty"`
}

func newFeature(properties map[string]any, geometry any) feature {
	return feature{Type: "Feature", Properties: properties, Geometry: geometry}
}

type geometry struct {
	Type        string `json:"type"`
	Coordinates any    `json:"coordinates"`
}

type position = [2]float64

// distinct gives features with the same ID different ones that no other has, in the order
// of the file: without spans of time they cannot be versions of one fence.
func distinct(list []feature) {
	taken := make(map[string]bool)
	for _, f := range list {
		id, _ := f.Properties["id"].(string)
		taken[id] = true
	}
	seen := make(map[string]int)
	for _, f := range list {
		id, _ := f.Properties["id"].(string)
		if _, from := f.Properties["valid_from"]; id == "" || from || f.Properties["valid_to"] != nil {
			continue
		}
		if seen[id]++; seen[id] == 1 {
			continue
		}
		other := id + "-" + strconv.Itoa(seen[id])
		for taken[other] {
			seen[id]++
			other = id + "-" + strconv.Itoa(seen[id])
		}
		taken[other] = true
		f.Properties["id"] = other
	}
}

// value returns the text of a property as the number or truth that it is.
func value(name, text string) any {
	text = strings.TrimSpace(text)
	if name != "id" && name != "name" && json.Valid([]byte(text)) {
		return json.RawMessage(text)
	}
	return text
}

func fromXML(text []byte) ([]feature, error) {
	dec := xml.NewDecoder(bytes.NewReader(text))
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("is XML without an element")
		}
		if err != nil {
			return nil, xmlError(dec, err)
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		switch start.Name.Local {
		case "kml":
			return fromKML(dec)
		case "gpx":
			return fromGPX(text)
		}
		return nil, fmt.Errorf("is XML of %s, which is neither KML nor GPX", start.Name.Local)
	}
}

func xmlError(dec *xml.Decoder, err error) error {
	line, _ := dec.InputPos()
	if strings.Contains(err.Error(), "CharsetReader") {
		return errors.New("is not in UTF-8: save it as UTF-8")
	}
	return fmt.Errorf("line %d: %w", line, err)
}
