package fleet

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"time"
)

// gpxPoint is what is read of a track point; the rest of GPX is passed over.
type gpxPoint struct {
	Latitude   float64  `xml:"lat,attr"`
	Longitude  float64  `xml:"lon,attr"`
	Elevation  float64  `xml:"ele"`
	Time       string   `xml:"time"`
	Course     float64  `xml:"course"`
	Speed      *float64 `xml:"speed"` // metres a second, GPX 1.0
	Extended   *float64 `xml:"extensions>TrackPointExtension>speed"`
	Satellites *int     `xml:"sat"`
}

// AddGPX adds the track points of a GPX file as fixes of one device. Points
// without a time cannot be sent and are left out.
func (t *Tracks) AddGPX(r io.Reader, device string) error {
	dec := xml.NewDecoder(r)
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		start, ok := token.(xml.StartElement)
		if !ok || start.Name.Local != "trkpt" {
			continue
		}
		var p gpxPoint
		if err := dec.DecodeElement(&p, &start); err != nil {
			return err
		}
		if p.Time == "" {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, p.Time)
		if err != nil {
			line, _ := dec.InputPos()
			return fmt.Errorf("line %d: time %q: want a time like 2026-01-02T03:04:05Z", line, p.Time)
		}
		m := Message{
			DeviceID: device, Codec: "8", Time: at.UTC().Truncate(time.Millisecond),
			Latitude: p.Latitude, Longitude: p.Longitude,
			Altitude: p.Elevation, Angle: p.Course, Satellites: fewestSatellites,
		}
		if p.Satellites != nil {
			m.Satellites = *p.Satellites
		}
		if p.Speed == nil {
			p.Speed = p.Extended
		}
		if p.Speed != nil {
			m.Speed = *p.Speed * 3.6
		}
		t.fixes = append(t.fixes, m)
	}
}
