package geofence

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/peterstace/simplefeatures/geom"
)

// unwrap makes the longitudes of a line continuous: an edge longer than 180
// degrees goes the short way round the world. An edge along a parallel that is
// exactly 360 degrees long goes all the way round, because the short way has
// no length. The line starts the given turns east of where it is written; turns
// is how often a ring goes round the world, eastward.
func unwrap(line []point, start float64) (unwrapped []point, turns int) {
	unwrapped = turned(line, start)
	for i := 1; i < len(line); i++ {
		d := line[i].x - line[i-1].x
		if math.Abs(d) != 360 || line[i].y != line[i-1].y {
			for ; d > 180; d -= 360 {
				turns--
			}
			for ; d < -180; d += 360 {
				turns++
			}
		}
		unwrapped[i].x = line[i].x + 360*(start+float64(turns))
	}
	return unwrapped, turns
}

// framePolygon gives the rings a common frame and checks that together they
// are a polygon.
func framePolygon(rings [][]point) (*polygon, error) {
	shell, turns := unwrap(rings[0], 0)
	switch turns {
	case 0:
	case -1, 1:
		return framePole(shell, turns, rings[1:])
	default:
		return nil, errors.New("ring 1 goes round the world more than once")
	}
	west, east := extent(shell)
	shift := -math.Floor((west + 180) / 360)
	west, east = west+360*shift, east+360*shift
	shell, _ = unwrap(rings[0], shift)
	if east-west > 360 {
		return nil, errors.New("ring 1 goes round the world more than once")
	}
	framed := [][]point{shell}
	for i, ring := range rings[1:] {
		hole, turns := unwrap(ring, 0)
		if turns != 0 {
			return nil, fmt.Errorf("ring %d goes round a pole, its shell does not", i+2)
		}
		holeWest, holeEast := extent(hole)
		for copies := -farthest; copies <= farthest; copies++ {
			shift := 360 * float64(copies)
			if holeWest+shift >= west && holeEast+shift <= east {
				hole, _ = unwrap(ring, float64(copies))
				break
			}
		}
		framed = append(framed, hole)
	}
	exact := east-west == 360
	if exact {
		snap(framed)
	}
	if err := checkPolygon(framed); err != nil {
		return nil, err
	}
	g := newPolygon(framed)
	g.exact = exact
	return g, nil
}

// framePole makes a polygon of a shell that goes once round the world. It
// holds the pole on the side where the area is the smaller one, whatever the
// direction in which the ring is drawn.
//
// The edges are there five times over, side by side around longitude 0, and
// closed along the pole. A leg lies between -360 and 360, so it meets no border
// of a copy, and every hole that it can meet is there as a whole.
func framePole(shell []point, turns int, holes [][]point) (*polygon, error) {
	if turns < 0 {
		slices.Reverse(shell)
	}
	snap([][]point{shell})
	tilt := 0.0
	for i := range len(shell) - 1 {
		tilt += (shell[i].y + shell[i+1].y) * (shell[i+1].x - shell[i].x)
	}
	if tilt == 0 {
		return nil, errors.New("ring 1 goes round the world and does not say round which pole")
	}
	const around = 2 // copies on either side
	home := shell[0].x - 360*math.Floor(shell[0].x/360) - 360
	start := home - shell[0].x
	var wide []point
	for copies := -around; copies <= around; copies++ {
		for _, p := range shell[:len(shell)-1] {
			wide = append(wide, point{p.x + start + 360*float64(copies), p.y})
		}
	}
	west, east := home-360*around, home+360*(around+1)
	pole := math.Copysign(90, tilt)
	wide = append(wide, point{east, shell[0].y}, point{east, pole}, point{west, pole}, point{west, shell[0].y})

	rings := [][]point{wide}
	if err := checkPolygon(rings); err != nil {
		return nil, err
	}
	whole := newPolygon(rings)
	for i, ring := range holes {
		hole, turns := unwrap(ring, 0)
		if turns != 0 {
			return nil, fmt.Errorf("ring %d goes round the world inside a shell that does", i+2)
		}
		snap([][]point{hole})
		if err := checkPolygon([][]point{hole}); err != nil {
			return nil, fmt.Errorf("ring %d: %w", i+2, err)
		}
		holeWest, _ := extent(hole)
		toHome := -math.Floor((holeWest - home) / 360)
		for copies := -around; copies <= around; copies++ {
			copied := turned(hole, toHome+float64(copies))
			if _, holeEast := extent(copied); holeEast > east {
				continue
			}
			if slices.ContainsFunc(copied, func(p point) bool { return whole.locate(p) == outside }) {
				return nil, fmt.Errorf("ring %d is not inside ring 1", i+2)
			}
			rings = append(rings, copied)
		}
	}
	g := newPolygon(rings)
	g.exact, g.pole = true, true
	return g, nil
}

// checkPolygon returns why the rings are not a valid polygon, or nil.
func checkPolygon(rings [][]point) error {
	lines := make([]geom.LineString, len(rings))
	for i, ring := range rings {
		lines[i] = geom.NewLineString(sequence(ring))
		if flat(ring) {
			return fmt.Errorf("ring %d has no area", i+1)
		}
	}
	if err := geom.NewPolygon(lines).Validate(); err != nil {
		return fmt.Errorf("not a valid polygon: %w", err)
	}
	return nil
}

// flat reports whether all positions of the ring lie on one line.
func flat(ring []point) bool {
	i := slices.IndexFunc(ring, func(p point) bool { return p != ring[0] })
	return i < 0 || !slices.ContainsFunc(ring, func(p point) bool { return orient(ring[0], ring[i], p) != 0 })
}

// joinAtAntimeridian puts the parts of an area that is cut at the antimeridian
// side by side, so that a leg meets the cut at one instant and not at two.
func joinAtAntimeridian(parts []*polygon) {
	east := -180.0
	for _, g := range parts {
		if !g.pole && g.max.x-g.min.x < 360 {
			east = max(east, g.max.x)
		}
	}
	if east < 180 {
		return
	}
	for _, g := range parts {
		if g.min.x+360 <= east && g.max.x < 180 && !g.pole {
			for i := range g.edges {
				g.edges[i].a.x += 360
				g.edges[i].b.x += 360
			}
			g.min.x, g.max.x = g.min.x+360, g.max.x+360
		}
	}
}

func turned(ring []point, turns float64) []point {
	moved := slices.Clone(ring)
	for i := range moved {
		moved[i].x += 360 * turns
	}
	return moved
}

func snap(rings [][]point) {
	for _, ring := range rings {
		for i := range ring {
			ring[i].x = onGrid(ring[i].x)
		}
	}
}

func extent(ring []point) (west, east float64) {
	west, east = math.Inf(1), math.Inf(-1)
	for _, p := range ring {
		west, east = min(west, p.x), max(east, p.x)
	}
	return west, east
}
