package geofence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/peterstace/simplefeatures/geom"
)

// drawing is the part of a fence that determines its shape.
type drawing struct {
	kind     Kind
	geometry string
	radiusM  float64
	widthM   float64
	marginM  float64
}

// compile checks the fence and prepares its shape for the tests, unless it is
// already among the known ones.
func (f Fence) compile(known map[drawing]*shape) (*shape, error) {
	if f.ID == "" {
		return nil, errors.New("has no id")
	}
	if n := utf8.RuneCountInString(f.ID); n > maxIDLength {
		return nil, fmt.Errorf("id has %d characters, at most %d are allowed", n, maxIDLength)
	}
	if f.Valid.FromUS >= f.Valid.ToUS {
		return nil, fmt.Errorf("its valid span is empty: %v", f.Valid)
	}
	if err := f.checkHold(); err != nil {
		return nil, err
	}
	if s := known[f.drawing()]; s != nil {
		return s, nil
	}
	if f.Kind != Circle && f.RadiusM != 0 {
		return nil, fmt.Errorf("radius %v m given for kind %q: only circles have one", f.RadiusM, f.Kind)
	}
	g, err := parseGeometry(f.Geometry)
	if err != nil {
		return nil, err
	}
	corridor := f.Kind == Area && g.IsLineString()
	if f.WidthM != 0 && !corridor {
		return nil, fmt.Errorf("width_m %v given for a %v of kind %s: only a corridor has one, a LineString of kind area", f.WidthM, g.Type(), f.Kind)
	}
	switch f.Kind {
	case Area:
		if corridor {
			return compileCorridor(g, f.WidthM, f.ExitMarginM)
		}
		s, err := compileArea(g)
		if err == nil && f.ExitMarginM > 0 {
			s.margin, err = s.around(f.ExitMarginM)
		}
		return s, err
	case Circle:
		s, err := compileCircle(g, f.RadiusM)
		if err == nil && f.ExitMarginM > 0 {
			s.margin = &shape{circle: newCircle(s.circle.center, f.RadiusM+f.ExitMarginM)}
		}
		return s, err
	case Gate:
		return compileGate(g)
	case "":
		return nil, errors.New("has no kind: want area, circle or gate")
	}
	return nil, fmt.Errorf("unknown kind %q: want area, circle or gate", f.Kind)
}

// checkHold checks what holds the border of the fence still.
func (f Fence) checkHold() error {
	for _, p := range []struct {
		name   string
		value  float64
		most   float64
		unit   string
		ofGate bool
	}{
		{"exit_margin_m", f.ExitMarginM, maxExitMarginM, "metres", false},
		{"min_dwell_s", f.MinDwellS, maxHoldS, "seconds", false},
		{"min_interval_s", f.MinIntervalS, maxHoldS, "seconds", true},
	} {
		switch {
		case p.value == 0:
		case p.ofGate && f.Kind != Gate:
			return fmt.Errorf("%s %v given for kind %q: only gates have one, min_dwell_s is for areas and circles", p.name, p.value, f.Kind)
		case !p.ofGate && f.Kind == Gate:
			return fmt.Errorf("%s %v given for a gate, which no device is inside of: min_interval_s is for gates", p.name, p.value)
		case !(p.value > 0 && p.value <= p.most):
			return fmt.Errorf("%s %v is not from 0 to %v %s", p.name, p.value, p.most, p.unit)
		}
	}
	return nil
}

// Canonical returns the fence with a geometry of only type and coordinates in
// two dimensions, printed in one way: the same shape is the same text, however a
// file has it.
func (f Fence) Canonical() (Fence, error) {
	g, err := parseGeometry(f.Geometry)
	if err != nil {
		return f, err
	}
	text, err := g.MarshalJSON()
	f.Geometry = string(text)
	return f, err
}

func (f Fence) drawing() drawing {
	return drawing{f.Kind, f.Geometry, f.RadiusM, f.WidthM, f.ExitMarginM}
}

// parseGeometry reads a GeoJSON geometry, or the geometry of a feature.
func parseGeometry(text string) (geom.Geometry, error) {
	var none geom.Geometry
	if len(text) > maxGeometryBytes {
		return none, fmt.Errorf("geometry has %d bytes, at most %d are allowed: simplify it", len(text), maxGeometryBytes)
	}
	raw := []byte(text)
	var head struct {
		Type        string          `json:"type"`
		Coordinates json.RawMessage `json:"coordinates"`
		Geometry    json.RawMessage `json:"geometry"`
		CRS         json.RawMessage `json:"crs"` // PostGIS names one here unless it is WGS84
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return none, fmt.Errorf("read GeoJSON: %w", err)
	}
	if head.Type == "Feature" {
		raw = head.Geometry
		head.Coordinates, head.Type = nil, ""
		if err := json.Unmarshal(raw, &head); err != nil {
			return none, fmt.Errorf("read GeoJSON feature: %w", err)
		}
	}
	if err := checkCRS(head.CRS); err != nil {
		return none, err
	}
	switch head.Type {
	case "Polygon", "MultiPolygon", "Point", "LineString":
	case "":
		return none, errors.New("geometry is null or has no type")
	default:
		return none, fmt.Errorf("geometry type %q is not one of Polygon, MultiPolygon, Point, LineString", head.Type)
	}
	// The library would read a null as the number zero.
	if len(head.Coordinates) == 0 || bytes.Contains(head.Coordinates, []byte("null")) {
		return none, errors.New("geometry has no coordinates, or a null among them")
	}
	g, err := geom.UnmarshalGeoJSON(raw, geom.NoValidate{})
	if err != nil {
		return none, fmt.Errorf("read GeoJSON: %w", err)
	}
	return g.Force2D(), nil
}

func compileArea(g geom.Geometry) (*shape, error) {
	var parts []geom.Polygon
	switch {
	case g.IsPolygon():
		parts = []geom.Polygon{g.MustAsPolygon()}
	case g.IsMultiPolygon():
		parts = g.MustAsMultiPolygon().Dump()
	default:
		return nil, fmt.Errorf("kind area wants a Polygon, a MultiPolygon or a LineString with width_m, not a %v", g.Type())
	}
	if g.IsEmpty() {
		return nil, errors.New("geometry is empty")
	}
	vertices := 0
	for _, part := range parts {
		for _, ring := range part.Coordinates() {
			vertices += ring.Length()
		}
	}
	if err := checkVertices(vertices); err != nil {
		return nil, err
	}
	s := &shape{}
	for i, part := range parts {
		p, err := compilePart(part)
		if err != nil {
			if len(parts) > 1 {
				err = fmt.Errorf("part %d: %w", i+1, err)
			}
			return nil, err
		}
		s.area = append(s.area, p)
	}
	joinAtAntimeridian(s.area)
	share(s.area)
	return s, nil
}

func compilePart(part geom.Polygon) (*polygon, error) {
	if part.IsEmpty() {
		return nil, errors.New("polygon is empty")
	}
	var rings [][]point
	for i, seq := range part.Coordinates() {
		ring, err := positions(seq)
		if err == nil {
			err = checkRing(ring)
		}
		if err != nil {
			return nil, fmt.Errorf("ring %d %w", i+1, err)
		}
		rings = append(rings, ring)
	}
	return framePolygon(rings)
}

func checkRing(ring []point) error {
	switch {
	case len(ring) < 4:
		return fmt.Errorf("has %d positions: a ring has at least 4, the first again at the end", len(ring))
	case ring[0] != ring[len(ring)-1]:
		return errors.New("is open: its last position is not its first")
	}
	return nil
}

func compileCircle(g geom.Geometry, radiusM float64) (*shape, error) {
	if !g.IsPoint() {
		return nil, fmt.Errorf("kind circle wants a Point, not a %v", g.Type())
	}
	if g.IsEmpty() {
		return nil, errors.New("geometry is empty")
	}
	if !(radiusM > 0 && radiusM <= maxRadiusM) {
		return nil, fmt.Errorf("radius %v m is not above 0 and at most %.0f", radiusM, maxRadiusM)
	}
	xy, _ := g.MustAsPoint().XY()
	center, err := position(xy)
	if err != nil {
		return nil, fmt.Errorf("center: %w", err)
	}
	return &shape{circle: newCircle(center, radiusM)}, nil
}

func compileGate(g geom.Geometry) (*shape, error) {
	if !g.IsLineString() {
		return nil, fmt.Errorf("kind gate wants a LineString, not a %v", g.Type())
	}
	line, err := compileLine(g)
	if err != nil {
		return nil, err
	}
	gate := newGate(line)
	if !geom.NewLineString(sequence(line)).IsSimple() {
		return nil, errors.New("line crosses or touches itself, which leaves its sides undefined")
	}
	return &shape{gate: gate}, nil
}

// compileLine returns the positions of a LineString with continuous longitudes.
func compileLine(g geom.Geometry) ([]point, error) {
	if g.IsEmpty() {
		return nil, errors.New("geometry is empty")
	}
	seq := g.MustAsLineString().Coordinates()
	if err := checkVertices(seq.Length()); err != nil {
		return nil, err
	}
	line, err := positions(seq)
	if err != nil {
		return nil, fmt.Errorf("line %w", err)
	}
	line, _ = unwrap(line, 0)
	if !slices.ContainsFunc(line, func(p point) bool { return p != line[0] }) {
		return nil, errors.New("line has no length")
	}
	if west, east := extent(line); east-west > 360 {
		return nil, errors.New("line goes round the world more than once")
	}
	return line, nil
}

func checkVertices(n int) error {
	if n > MaxVertices {
		return fmt.Errorf("has %d vertices, at most %d are allowed: simplify it", n, MaxVertices)
	}
	return nil
}

func positions(seq geom.Sequence) ([]point, error) {
	line := make([]point, seq.Length())
	for i := range line {
		p, err := position(seq.GetXY(i))
		if err != nil {
			return nil, fmt.Errorf("position %d: %w", i+1, err)
		}
		line[i] = p
	}
	return line, nil
}

// position checks one position. Longitudes beyond 180 are common for fences
// across the antimeridian, so one more turn is accepted.
func position(xy geom.XY) (point, error) {
	switch {
	case math.IsNaN(xy.X) || math.IsNaN(xy.Y):
		return point{}, errors.New("is not a number")
	case math.Abs(xy.Y) > 90 && math.Abs(xy.X) <= 90:
		return point{}, fmt.Errorf("latitude %v is out of range: latitude and longitude look swapped (longitude comes first)", xy.Y)
	case math.Abs(xy.Y) > 90:
		return point{}, fmt.Errorf("latitude %v is out of range", xy.Y)
	case math.Abs(xy.X) > 360:
		return point{}, fmt.Errorf("longitude %v is out of range", xy.X)
	}
	return point{settle(xy.X), settle(xy.Y)}, nil
}

func sequence(line []point) geom.Sequence {
	floats := make([]float64, 0, 2*len(line))
	for _, p := range line {
		floats = append(floats, p.x, p.y)
	}
	return geom.NewSequence(floats, geom.DimXY)
}
