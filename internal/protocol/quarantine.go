package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// ProbeBatch is a batch of entries that the owner of a quarantined shard takes
// in together. It is written to Postgres before the attempt.
type ProbeBatch struct {
	Epoch      int64             // of the owner that made the attempt
	First      telemetry.EntryID // of the batch
	Last       telemetry.EntryID
	Entries    int
	Until      telemetry.EntryID // the quarantine ends with this entry; zero: with the first batch that succeeds
	InProgress bool              // the attempt has not finished
	Exclusive  bool              // nothing else is applied in the process: a crash is of its only entry
}

// ShardHistory is what is known of a shard at the moment it is acquired.
type ShardHistory struct {
	Owner       string // "" after a release
	Released    bool   // by its last owner, so recently that the state it left holds
	Alive       bool   // the owner's process was not seen to end: it lost the shard for another reason
	Epoch       int64
	Since       time.Time // when the owner acquired it
	Progress    time.Time // when its applied ID was last written
	CrashCount  int
	MaxInFlight int        // 0 for none
	Probe       ProbeBatch // the last one written; zero if there was none
}

// InitialProbeSize is how many entries an owner may have in flight after the
// first crash without progress: fewer than one read returns.
const InitialProbeSize = 2048

// AssessCrash decides how a shard must be run that is acquired from an owner
// that did not release it, since one of its entries may have crashed that
// owner. Only a process that was seen to end counts as crashed.
//
// An owner that made progress raises no suspicion: whatever it crashed on, the
// next one gets further. Without progress the next owner takes in probe batches
// and records each first. Only a batch that was in progress is evidence against
// its entries: the limit becomes half of that batch, so that two batches that
// succeed clear all of it. An entry that was alone in the whole process is the
// culprit and is dead-lettered without another attempt.
func AssessCrash(me string, s ShardHistory) Quarantine {
	sus := Quarantine{CrashCount: s.CrashCount, Limit: s.MaxInFlight, Until: s.Probe.Until}
	if s.Owner == "" || s.Owner == me {
		return sus
	}
	switch {
	case s.Alive:
		// It lost Postgres or its budget: no evidence for or against its
		// entries.
	case s.Probe.InProgress && s.Probe.Epoch == s.Epoch:
		sus.CrashCount++
		sus.Limit, sus.Until = (s.Probe.Entries+1)/2, s.Probe.Last
		if s.Probe.Exclusive {
			sus.Culprit = s.Probe.First
		}
	case s.MaxInFlight > 0:
		// Nothing of the shard was in flight: no evidence for or against its
		// entries.
	case s.Progress.After(s.Since):
		sus = Quarantine{}
	default:
		sus.CrashCount++
		sus.Limit, sus.Until = InitialProbeSize, telemetry.EntryID{}
	}
	return sus
}
