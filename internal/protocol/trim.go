package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// TrimPoint is where trimming has got to: what lies before First is gone.
type TrimPoint struct {
	First   telemetry.EntryID // the oldest entry that is left; zero in an empty stream
	Length  int64
	Removed int64 // entries removed since the stream was made
}

// Margin is how far the trim point is behind the oldest unfinished entry, in the
// time of the stream: how long it takes to get there when entries are removed
// as fast as they were added then. It is unknown while nothing was ever
// removed, and where nothing is unfinished there is no margin to lose.
func (h TrimPoint) Margin(oldest telemetry.EntryID) (margin time.Duration, known bool) {
	if h.Removed <= 0 || h.First.IsZero() || oldest.IsZero() {
		return 0, false
	}
	return max(0, oldest.Time().Sub(h.First.Time())), true
}
