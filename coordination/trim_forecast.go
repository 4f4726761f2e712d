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
	// forecastMinimum is how long must have been watched to tell a pace.
	forecastMinimum = 10 * time.Second
)

// forecast tells how long it takes until trimming reaches the oldest unfinished
// entry, if that one stays. Both are compared in the time of the stream, which
// needs no count of what lies between them: the trim point moves through that time
// at a pace, and a margin is left.
type forecast struct {
	seen []snapshot
}

type snapshot struct {
	at        time.Time
	trimPoint protocol.TrimPoint
}

// see takes in where the trim point is now.
func (f *forecast) see(now time.Time, h protocol.TrimPoint) {
	if n := len(f.seen); n > 0 && (h.Removed < f.seen[n-1].trimPoint.Removed || h.First.Less(f.seen[n-1].trimPoint.First)) {
		f.seen = f.seen[:0] // another stream of the same name
	}
	f.seen = append(f.seen, snapshot{at: now, trimPoint: h})
	for len(f.seen) > 2 && now.Sub(f.seen[1].at) >= forecastOver {
		f.seen = f.seen[1:]
	}
}

// reaches is the time left, and whether it can be told: not before the trim point
// was watched for a while, not while it stands still, and not when nothing is
// unfinished.
func (f *forecast) reaches(oldest telemetry.EntryID) (left time.Duration, known bool) {
	if len(f.seen) < 2 {
		return 0, false
	}
	first, last := f.seen[0], f.seen[len(f.seen)-1]
	margin, known := last.trimPoint.Margin(oldest)
	watched := last.at.Sub(first.at)
	moved := last.trimPoint.First.Time().Sub(first.trimPoint.First.Time())
	if !known || watched < forecastMinimum || last.trimPoint.Removed == first.trimPoint.Removed || moved <= 0 {
		return 0, false
	}
	return time.Duration(float64(margin) * float64(watched) / float64(moved)), true
}
