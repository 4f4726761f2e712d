package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// ProbeBatch is entries of a shard that an owner takes on together while the shard is
// in quarantine. It is written down before the attempt.
type ProbeBatch struct {
	Epoch      int64             // of the owner that made the attempt
	First      telemetry.EntryID // of the run
	Last       telemetry.EntryID
	Entries    int
	Until      telemetry.EntryID // the quarantine ends with this entry; zero: with the first run that ends well
	InProgress bool              // under way
}

// ShardHistory is what is known of a shard at the moment it is taken.
type ShardHistory struct {
	Owner       string // "" after a release
	Alive       bool   // the owner's process was not seen to end: it lost the shard otherwise
	Epoch       int64
	Since       time.Time // when the owner took it
	Progress    time.Time // when its progress mark was last written
	CrashCount  int
	MaxInFlight int        // 0 for none
	Probe       ProbeBatch // the last one written down; zero where there is none
}

// InitialProbeSize is how many entries an owner may have in flight after a first
// death without progress: fewer than would be read at once.
const InitialProbeSize = 2048

// AssessCrash decides how carefully a shard must be run that is taken from an owner
// that did not release it, since it may have died of one of its entries. Only a
// process that was seen to end may have.
//
// An owner that made progress is not suspicious: whatever it died of, the next
// one gets further. Without progress the next owner takes on a limited run at a
// time, and writes it down first. Only a run that was under way is held against
// its entries: then the limit is half of that run, so that two runs which end
// well clear all of it. An entry that was alone under the smallest limit is
// dead-lettered: it is given up without another attempt.
func AssessCrash(me string, s ShardHistory) Quarantine {
	sus := Quarantine{CrashCount: s.CrashCount, Limit: s.MaxInFlight, Until: s.Probe.Until}
	if s.Owner == "" || s.Owner == me {
		return sus
	}
	switch {
	case s.Alive:
		// It lost Postgres or its time: no evidence, and no acquittal.
	case s.Probe.InProgress && s.Probe.Epoch == s.Epoch:
		sus.CrashCount++
		sus.Limit, sus.Until = (s.Probe.Entries+1)/2, s.Probe.Last
		if s.Probe.Entries == 1 && s.MaxInFlight == 1 {
			sus.Culprit = s.Probe.First
		}
	case s.MaxInFlight > 0:
		// Nothing of the shard was in flight: no evidence, and no acquittal.
	case s.Progress.After(s.Since):
		sus = Quarantine{}
	default:
		sus.CrashCount++
		sus.Limit, sus.Until = InitialProbeSize, telemetry.EntryID{}
	}
	return sus
}
