package tasks

import (
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

const (
	// forecastOver is the window over which the trim rate is measured:
	// approximate trimming (~) advances in jumps.
	forecastOver = 2 * time.Minute
	// forecastMinimum is the shortest observation that yields a rate.
	forecastMinimum = 10 * time.Second
)

// forecast estimates the time until trimming reaches the oldest unfinished
// entry, if that one stays:
//
//	left = (oldest - trim point) / trim rate, less a margin
//
// All of it in stream time, so the number of entries in between is not needed.
type forecast struct {
	seen []snapshot
}

type snapshot struct {
	at        time.Time
	trimPoint protocol.TrimPoint
}

// see records the current trim point.
func (f *forecast) see(now time.Time, h protocol.TrimPoint) {
	if n := len(f.seen); n > 0 && (h.Removed < f.seen[n-1].trimPoint.Removed || h.First.Less(f.seen[n-1].trimPoint.First)) {
		f.seen = f.seen[:0] // the stream was recreated
	}
	f.seen = append(f.seen, snapshot{at: now, trimPoint: h})
	for len(f.seen) > 2 && now.Sub(f.seen[1].at) >= forecastOver {
		f.seen = f.seen[1:]
	}
}

// reaches returns the time left. It is unknown until the trim point was
// observed for forecastMinimum, while the trim point does not move, and when
// nothing is unfinished.
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
