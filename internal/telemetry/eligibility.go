package telemetry

import "time"

// Eligibility says which records take part in what is derived: state,
// watermark, rehydration and crossings. The others are stored, and that is all.
// It is pinned for the fleet. The store has the same rules as SQL, see
// exclusion there.
type Eligibility struct {
	MaxFutureSkew time.Duration // how far a device clock may be ahead of the stream time
	MaxPast       time.Duration // how far it may be behind the stream time; 0 is off
	MinSatellites int           // fewer are no fix; 0 is off
	// MaxSpeed is the speed in km/h above which two neighbouring eligible fixes are
	// implausible; 0 is off. It decides about crossings only, and no record by
	// itself: Of does not know it.
	MaxSpeed int
}

// Exclusion is why a record takes no part; empty for an eligible one.
type Exclusion string

// The exclusions, in the order in which they are looked for.
const (
	Eligible Exclusion = ""
	NoFix    Exclusion = "no_fix"  // no position of its own: trackers repeat the last one, with 0 satellites, or send (0, 0)
	Future   Exclusion = "future"  // its clock is too far ahead
	Ancient  Exclusion = "ancient" // it is too far behind: a clock that was never set
)

// What the neighbours of an eligible record decide, so that Of does not know it.
const (
	Jump      Exclusion = "jump"      // too far from both: it makes no crossings
	Undecided Exclusion = "undecided" // the newest, too far from the one before
)

// Exclusions returns all reasons for good.
func Exclusions() []Exclusion { return []Exclusion{NoFix, Future, Ancient, Jump} }

// Of returns why a record takes no part, or Eligible.
func (e Eligibility) Of(r *Record) Exclusion {
	switch {
	case r.Latitude == 0 && r.Longitude == 0, int(r.Satellites) < e.MinSatellites:
		return NoFix
	case r.TimeUS > r.StreamUS+e.MaxFutureSkew.Microseconds():
		return Future
	case e.MaxPast > 0 && r.TimeUS < r.StreamUS-e.MaxPast.Microseconds():
		return Ancient
	}
	return Eligible
}
