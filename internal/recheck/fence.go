package recheck

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Fence is one version of a fence, as the table geofences holds it.
type Fence struct {
	ID       string
	Version  int
	Kind     string  // area, circle or gate
	Geometry string  // GeoJSON
	RadiusM  float64 // of a circle
	WidthM   float64 // of a corridor, which is a LineString of kind area

	ExitMarginM  float64 // metres to be away before an exit counts; 0 is any
	MinDwellS    float64 // seconds to stay before a change counts
	MinIntervalS float64 // seconds between passages of a gate in one direction that count

	FromUS   int64 // device time from which it is valid, math.MinInt64 without begin
	ToUS     int64 // and until which, itself not included; math.MaxInt64 without end
	Disabled bool  // holds its span and contains nothing
}

func (f *Fence) valid(us int64) bool {
	return f.FromUS <= us && (us < f.ToUS || f.ToUS == math.MaxInt64)
}

// shape is the geometry of a version; one field is set.
type shape struct {
	area area
	lane *lane
	disc *disc
	gate *gate
	box  box
}

// drawn is a version whose geometry was read.
type drawn struct {
	Fence
	shape
	border []*lane // of an area with an exit margin
}

// contains reports whether a place is in the fence; none is in a gate.
func (d *drawn) contains(p point) bool {
	switch {
	case d.disc != nil:
		return d.disc.contains(p)
	case d.lane != nil:
		return d.lane.contains(p)
	case d.gate != nil:
		return false
	}
	return d.area.contains(p.exact(0))
}

// near reports whether a way can meet the fence.
func (d *drawn) near(l *line) bool {
	for n := -around; n <= around; n++ {
		if l.box().meets(d.box, n) {
			return true
		}
	}
	return false
}

// draw reads the geometries and returns the versions of each fence in the order
// of their spans. Fences that are invalid are passed over and told.
func draw(fences []Fence) (all [][]*drawn, passed []Passed) {
	sorted := slices.Clone(fences)
	slices.SortStableFunc(sorted, func(a, b Fence) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.FromUS, b.FromUS))
	})
	for _, f := range sorted {
		pass := func(err error) {
			passed = append(passed, Passed{f.ID, fmt.Errorf("fence %q version %d: %w", f.ID, f.Version, err)})
		}
		s, err := read(f)
		if err == nil && f.FromUS >= f.ToUS {
			err = errors.New("ends before it begins")
		}
		if err != nil {
			pass(err)
			continue
		}
		d := &drawn{Fence: f, shape: s}
		const highest = 85 // up to which distances are measured in degrees
		if d.ExitMarginM > 0 && s.area != nil && max(-s.box.south, s.box.north) > highest {
			pass(errors.New("an exit margin too near to a pole"))
			continue
		}
		d.drawBorder()
		if n := len(all); n > 0 && all[n-1][0].ID == f.ID {
			if last := all[n-1][len(all[n-1])-1]; last.ToUS <= f.FromUS {
				all[n-1] = append(all[n-1], d)
			} else {
				pass(errors.New("overlaps another version"))
			}
			continue
		}
		all = append(all, []*drawn{d})
	}
	return all, passed
}

func read(f Fence) (shape, error) {
	var g struct {
		Type        string          `json:"type"`
		Coordinates json.RawMessage `json:"coordinates"`
		Geometry    json.RawMessage `json:"geometry"`
	}
	if err := json.Unmarshal([]byte(f.Geometry), &g); err != nil {
		return shape{}, err
	}
	if g.Type == "Feature" {
		if err := json.Unmarshal(g.Geometry, &g); err != nil {
			return shape{}, err
		}
	}
	switch f.Kind + " " + g.Type {
	case "area Polygon":
		var rings [][][]float64
		if err := json.Unmarshal(g.Coordinates, &rings); err != nil {
			return shape{}, err
		}
		return readArea([][][][]float64{rings})
	case "area MultiPolygon":
		var parts [][][][]float64
		if err := json.Unmarshal(g.Coordinates, &parts); err != nil {
			return shape{}, err
		}
		return readArea(parts)
	case "circle Point":
		var at []float64
		if err := json.Unmarshal(g.Coordinates, &at); err != nil {
			return shape{}, err
		}
		points, err := places([][]float64{at})
		if err != nil || !(f.RadiusM > 0 && f.RadiusM <= earthRadiusM*math.Pi/2) {
			return shape{}, cmp.Or(err, errors.New("no radius"))
		}
		d := newDisc(points[0], f.RadiusM)
		return shape{disc: d, box: d.box}, nil
	case "gate LineString", "area LineString":
		var positions [][]float64
		if err := json.Unmarshal(g.Coordinates, &positions); err != nil {
			return shape{}, err
		}
		points, err := places(positions)
		if err != nil {
			return shape{}, err
		}
		if !slices.ContainsFunc(points, func(p point) bool { return p != points[0] }) {
			return shape{}, errors.New("no length")
		}
		turns, _ := unwind(points)
		if f.Kind == "area" {
			if f.WidthM <= 0 {
				return shape{}, errors.New("no width")
			}
			lane := newLane(points, turns, f.WidthM)
			return shape{lane: lane, box: lane.box}, nil
		}
		gate := newGate(points, turns)
		return shape{gate: gate, box: gate.box}, nil
	}
	return shape{}, fmt.Errorf("kind %q with geometry %q", f.Kind, g.Type)
}

func places(positions [][]float64) ([]point, error) {
	points := make([]point, len(positions))
	for i, p := range positions {
		if len(p) < 2 || math.Abs(p[0]) > 360 || math.Abs(p[1]) > 90 {
			return nil, fmt.Errorf("no position: %v", p)
		}
		points[i] = point{p[0], p[1]}
	}
	if len(points) == 0 {
		return nil, errors.New("no position")
	}
	return points, nil
}

// unwind returns how many turns east of where it is written each point of a line
// lies, when each edge goes the short way round the world, and how often the
// line goes round it. An edge of 360 degrees along a parallel goes all the way.
func unwind(points []point) (turns []int, total int) {
	turns = make([]int, len(points))
	for i := 1; i < len(points); i++ {
		d := points[i].x - points[i-1].x
		if math.Abs(d) != 360 || points[i].y != points[i-1].y {
			total -= int(math.Round(d / 360 * (1 - 1e-15)))
		}
		turns[i] = total
	}
	return turns, total
}

func readArea(parts [][][][]float64) (shape, error) {
	s := shape{box: box{math.Inf(1), math.Inf(1), math.Inf(-1), math.Inf(-1)}}
	if len(parts) == 0 {
		return s, errors.New("no part")
	}
	for _, rings := range parts {
		g, err := readPart(rings)
		if err != nil {
			return s, err
		}
		s.area = append(s.area, g)
		b := g.shell.box
		s.box = box{min(s.box.west, b.west), min(s.box.south, b.south), max(s.box.east, b.east), max(s.box.north, b.north)}
	}
	s.area.shareBorders()
	return s, nil
}

func readPart(rings [][][]float64) (*part, error) {
	if len(rings) == 0 {
		return nil, errors.New("no ring")
	}
	g := &part{}
	for i, positions := range rings {
		points, err := places(positions)
		if err != nil {
			return nil, err
		}
		if len(points) < 4 || points[0] != points[len(points)-1] {
			return nil, errors.New("a ring is open")
		}
		turns, total := unwind(points)
		switch {
		case i == 0 && total != 0:
			if math.Abs(float64(total)) > 1 {
				return nil, errors.New("round the world more than once")
			}
			g.shell, g.pole = roundPole(points, turns, total), true
		case total != 0:
			return nil, errors.New("a hole round the world")
		default:
			r := newRing(points, turns)
			if crossesItself(r) {
				return nil, errors.New("a ring crosses itself")
			}
			if i == 0 {
				g.shell = r
				continue
			}
			for n := -around - 1; n <= around+1; n++ { // to where the shell is, all of them where it goes round
				moved := slices.Clone(turns)
				for k := range moved {
					moved[k] += n
				}
				h := newRing(points, moved)
				if h.box.west >= g.shell.box.west && h.box.east <= g.shell.box.east {
					g.holes = append(g.holes, h)
					if !g.pole {
						break
					}
				}
			}
		}
	}
	return g, nil
}

// roundPole draws a ring that goes once round the world several times side by
// side, and closes it along the pole on its smaller side.
func roundPole(points []point, turns []int, total int) *ring {
	var sum float64
	for i := range len(points) - 1 {
		dx := points[i+1].x + 360*float64(turns[i+1]) - points[i].x - 360*float64(turns[i])
		sum += (points[i].y + points[i+1].y) * dx * float64(total)
	}
	pole := math.Copysign(90, sum)
	var wide []point
	var at []int
	for n := -around - 1; n <= around+1; n++ {
		for i := range len(points) - 1 {
			wide, at = append(wide, points[i]), append(at, turns[i]+n*total)
		}
	}
	wide = append(wide, points[0], point{points[0].x, pole}, point{points[0].x, pole}, points[0])
	first := at[0]
	at = append(at, (around+2)*total+turns[0], (around+2)*total+turns[0], first, first)
	return newRing(wide, at)
}

// crossesItself reports whether two sides of a ring cross. It looks at rings of
// a size that fences of tests have.
func crossesItself(r *ring) bool {
	const largest = 400
	n := len(r.points) - 1
	if n > largest {
		return false
	}
	for i := range n {
		for j := i + 1; j < n; j++ {
			if !r.edge(i).meets(r.edge(j), 0) {
				continue
			}
			a, b, c, d := r.exacts[i], r.exacts[i+1], r.exacts[j], r.exacts[j+1]
			if cross(a, b, c).Sign()*cross(a, b, d).Sign() < 0 && cross(c, d, a).Sign()*cross(c, d, b).Sign() < 0 {
				return true
			}
		}
	}
	return false
}
