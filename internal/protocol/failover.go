package protocol

import (
	"math"
	"slices"

	"github.com/trmtracking/processor/internal/telemetry"
)

// HighWatermark is what the fleet knows to have been in the stream.
type HighWatermark struct {
	Newest  telemetry.EntryID   // the newest entry at the last poll; zero if there was none
	Gone    telemetry.EntryID   // losses up to here are recorded; zero for none
	Marks   []telemetry.EntryID // the applied IDs of the shards
	Flushed bool                // a loss with the cause flush was recorded since the last poll
}

// Known returns the entries to look for, ascending. The newest is one of them even if losses are recorded
// up to beyond it: an ID far ahead of the clock may be gone, and what is added then has lower ones.
func (s *HighWatermark) Known() []telemetry.EntryID {
	known := append([]telemetry.EntryID{s.Newest}, s.Marks...)
	known = slices.DeleteFunc(known, func(id telemetry.EntryID) bool { return id.IsZero() || id != s.Newest && id.Compare(s.Gone) <= 0 })
	slices.SortFunc(known, telemetry.EntryID.Compare)
	return slices.Compact(known)
}

// FarAhead reports whether an ID lies farther ahead of the clock, in milliseconds since 1970, than the clocks of
// two servers differ. A client chose it, or the clock has jumped.
func FarAhead(id telemetry.EntryID, now uint64) bool { return id.Ms > now+60_000 }

// StreamSnapshot is the state of the stream at one moment.
type StreamSnapshot struct {
	Exists  bool                // the stream and the group exist
	First   telemetry.EntryID   // the oldest entry; zero in an empty stream
	Newest  telemetry.EntryID   // the newest entry; zero in an empty stream
	Last    telemetry.EntryID   // the newest ever added
	Deleted telemetry.EntryID   // the newest ever deleted by its ID
	Now     uint64              // milliseconds since 1970, by the clock of Redis
	Whole   bool                // nothing was ever removed from it
	Missing []telemetry.EntryID // those of the entries looked for, ascending
}

// LostInFailover returns those missing entries, ascending, that were neither
// trimmed nor deleted, nor accounted for by losses up to gone, unless that lies ahead
// of the clock. Only an older state of the stream, or another stream of
// the same name, explains them; a clock step or a restart without a loss does
// not.
func (s *StreamSnapshot) LostInFailover(gone telemetry.EntryID) []telemetry.EntryID {
	return slices.DeleteFunc(slices.Clone(s.Missing), func(id telemetry.EntryID) bool {
		if id.Compare(gone) <= 0 && !FarAhead(gone, s.Now) {
			return true
		}
		trimmed := id.Less(s.First)
		if s.First.IsZero() {
			trimmed = id.Compare(s.Last) <= 0
		}
		return trimmed && !s.Whole || id.Compare(s.Deleted) <= 0
	})
}

// Until is where a loss ends that may go on beyond what is known to be gone:
// before the entry that follows, or now where there is none, since entries that
// come later have later IDs.
func Until(follows telemetry.EntryID, now uint64) telemetry.EntryID {
	switch {
	case follows.IsZero():
		return telemetry.EntryID{Ms: now - min(now, 1), Seq: math.MaxUint64}
	case follows.Seq == 0:
		return telemetry.EntryID{Ms: follows.Ms - 1, Seq: math.MaxUint64}
	default:
		return telemetry.EntryID{Ms: follows.Ms, Seq: follows.Seq - 1}
	}
}
