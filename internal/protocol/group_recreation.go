package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// GroupRecreation is a recreation of the group, always at the start of the stream, and the
// stream at that moment.
type GroupRecreation struct {
	Receipt    string            // names it
	At         time.Time         // by the clock of Redis
	Ago        time.Duration     // by the same clock
	Dispatched telemetry.EntryID // up to where an earlier group had been dispatched; zero where there is no trace of one
	Entries    int64             // that the stream held, and that are redelivered
	Removed    int64             // entries that were removed from the stream by then
	First      telemetry.EntryID // zero where it held none
	Last       telemetry.EntryID // the newest ever added
}

// GroupHistory is what Postgres knows of a group from before a recreation of it.
type GroupHistory struct {
	Kind  string            // of the recreation's own incident; "" where none is noted yet
	Ever  bool              // a group was there before
	Known telemetry.EntryID // an entry that was stored before, as new as can be told; zero where none can
}

// Classify tells what a recreation is to be noted as, and what it shows to be lost of
// what was ours to do, the number of which cannot be known; nil for nothing.
func (m *GroupRecreation) Classify(history GroupHistory) (kind string, lost *Loss) {
	known := history.Known
	if known.Less(m.Dispatched) {
		known = m.Dispatched
	}
	kind = RedisLost
	switch {
	case !m.Dispatched.IsZero():
		kind = GroupLost
	case !history.Ever && known.IsZero():
		return GroupCreated, nil
	}
	first := m.First
	if first.IsZero() {
		first = m.Last.Next()
	}
	switch loss := (Loss{Entries: -1, Shard: -1}); {
	case known.IsZero(), m.Last.Less(known), m.Removed == 0 && known.Less(m.First):
		// Another stream of the same name, or an older state of it.
		loss.Cause, loss.Last = "flush", known
		return RedisLost, &loss
	case known.Next().Less(first):
		loss.Cause, loss.First, loss.Last = "trimmed_unread", known.Next(), first
		return kind, &loss
	}
	return kind, nil
}
