package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Run is entries of a shard that an owner takes on together while the shard is
// under suspicion. It is written down before the attempt.
type Run struct {
	Epoch   int64             // of the owner that made the attempt
	First   telemetry.EntryID // of the run
	Last    telemetry.EntryID
	Entries int
	Until   telemetry.EntryID // the suspicion ends with this entry; zero: with the first run that ends well
	Under   bool              // under way
}

// Standing is what is known of a shard at the moment it is taken.
type Standing struct {
	Owner    string // "" after a release
	Alive    bool   // the owner's process was not seen to end: it lost the shard otherwise
	Epoch    int64
	Since    time.Time // when the owner took it
	Progress time.Time // when its progress mark was last written
	Deaths   int
	RunLimit int // 0 for none
	Run      Run // the last one written down; zero where there is none
}

// FirstRunLimit is how many entries an owner may have in hand after a first
// death without progress: fewer than would be read at once.
const FirstRunLimit = 2048

// Suspect decides how carefully a shard must be run that is taken from an owner
// that did not release it, since it may have died of one of its entries. Only a
// process that was seen to end may have.
//
// An owner that made progress is not suspicious: whatever it died of, the next
// one gets further. Without progress the next owner takes on a limited run at a
// time, and writes it down first. Only a run that was under way is held against
// its entries: then the limit is half of that run, so that two runs which end
// well clear all of it. An entry that was alone under the smallest limit is
// condemned: it is given up without another attempt.
func Suspect(me string, s Standing) Suspicion {
	sus := Suspicion{Deaths: s.Deaths, Limit: s.RunLimit, Until: s.Run.Until}
	if s.Owner == "" || s.Owner == me {
		return sus
	}
	switch {
	case s.Alive:
		// It lost Postgres or its time: no evidence, and no acquittal.
	case s.Run.Under && s.Run.Epoch == s.Epoch:
		sus.Deaths++
		sus.Limit, sus.Until = (s.Run.Entries+1)/2, s.Run.Last
		if s.Run.Entries == 1 && s.RunLimit == 1 {
			sus.Condemned = s.Run.First
		}
	case s.RunLimit > 0:
		// Nothing of the shard was in hand: no evidence, and no acquittal.
	case s.Progress.After(s.Since):
		sus = Suspicion{}
	default:
		sus.Deaths++
		sus.Limit, sus.Until = FirstRunLimit, telemetry.EntryID{}
	}
	return sus
}
