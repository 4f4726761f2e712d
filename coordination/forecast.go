package coordination

import (
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

const (
	// forecastOver is the time over which the pace of trimming is measured:
	// trimming with ~ goes in jumps.
	forecastOver = 2 * time.Minute
	// forecastLeast is how long must have been watched to tell a pace.
	forecastLeast = 10 * time.Second
)

// forecast tells how long it takes until trimming reaches the oldest unfinished
// entry, if that one stays. Both are compared in the time of the stream, which
// needs no count of what lies between them: the horizon moves through that time
// at a pace, and a margin is left.
type forecast struct {
	seen []sight
}

type sight struct {
	at      time.Time
	horizon protocol.Horizon
}

// see takes in where the horizon is now.
func (f *forecast) see(now time.Time, h protocol.Horizon) {
	if n := len(f.seen); n > 0 && (h.Removed < f.seen[n-1].horizon.Removed || h.First.Less(f.seen[n-1].horizon.First)) {
		f.seen = f.seen[:0] // another stream of the same name
	}
	f.seen = append(f.seen, sight{at: now, horizon: h})
	for len(f.seen) > 2 && now.Sub(f.seen[1].at) >= forecastOver {
		f.seen = f.seen[1:]
	}
}

// reaches is the time left, and whether it can be told: not before the horizon
// was watched for a while, not while it stands still, and not when nothing is
// unfinished.
func (f *forecast) reaches(oldest telemetry.EntryID) (left time.Duration, known bool) {
	if len(f.seen) < 2 {
		return 0, false
	}
	first, last := f.seen[0], f.seen[len(f.seen)-1]
	margin, known := last.horizon.Margin(oldest)
	watched := last.at.Sub(first.at)
	moved := last.horizon.First.Time().Sub(first.horizon.First.Time())
	if !known || watched < forecastLeast || last.horizon.Removed == first.horizon.Removed || moved <= 0 {
		return 0, false
	}
	return time.Duration(float64(margin) * float64(watched) / float64(moved)), true
}
