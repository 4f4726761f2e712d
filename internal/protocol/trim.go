package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// TrimPoint is how far trimming has got: entries before First are gone.
type TrimPoint struct {
	First   telemetry.EntryID // the oldest retained entry; zero in an empty stream
	Last    telemetry.EntryID // the newest ID ever added
	Length  int64
	Removed int64 // entries removed since the stream was created
}

// Margin returns the distance of the oldest unfinished entry from the trim point, in
// stream time: how long trimming takes to reach it if entries are removed at
// the rate at which they were added. It is unknown while nothing was ever
// removed, and when nothing is unfinished.
func (h TrimPoint) Margin(oldest telemetry.EntryID) (margin time.Duration, known bool) {
	if h.Removed <= 0 || h.First.IsZero() || oldest.IsZero() {
		return 0, false
	}
	return max(0, oldest.Time().Sub(h.First.Time())), true
}
