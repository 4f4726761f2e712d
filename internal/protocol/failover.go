package protocol

import (
	"slices"

	"github.com/trmtracking/processor/internal/telemetry"
)

// HighWatermark is what the fleet knows to have been in the stream.
type HighWatermark struct {
	Newest  telemetry.EntryID   // the newest entry at the last look; zero where there was none
	Gone    telemetry.EntryID   // up to where what is gone is accounted for; zero for nowhere
	Marks   []telemetry.EntryID // the progress marks of the shards
	Flushed bool                // a loss with the cause flush was recorded since the last look
}

// Known is the entries to look for, in order.
func (s *HighWatermark) Known() []telemetry.EntryID {
	known := append([]telemetry.EntryID{s.Newest}, s.Marks...)
	known = slices.DeleteFunc(known, func(id telemetry.EntryID) bool { return id.Compare(s.Gone) <= 0 })
	slices.SortFunc(known, telemetry.EntryID.Compare)
	return slices.Compact(known)
}

// StreamSnapshot is the stream at one moment.
type StreamSnapshot struct {
	Exists  bool                // the stream does, and the group
	First   telemetry.EntryID   // the oldest entry; zero in an empty stream
	Newest  telemetry.EntryID   // the newest entry; the same
	Last    telemetry.EntryID   // the newest ever added
	Deleted telemetry.EntryID   // the newest ever deleted by its ID
	Whole   bool                // nothing was ever removed from it
	Missing []telemetry.EntryID // of the entries looked for, in order
}

// LostInFailover is which of the entries missing, in order, were neither trimmed nor
// deleted. They are gone because Redis goes on with an older state of the stream,
// or with another of the same name, which no clock and no restart without a loss
// brings about.
func (s *StreamSnapshot) LostInFailover() []telemetry.EntryID {
	return slices.DeleteFunc(slices.Clone(s.Missing), func(id telemetry.EntryID) bool {
		trimmed := id.Less(s.First)
		if s.First.IsZero() {
			trimmed = id.Compare(s.Last) <= 0
		}
		return trimmed && !s.Whole || id.Compare(s.Deleted) <= 0
	})
}
