package protocol

import (
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// GroupRecreation records a creation of the group, always at the start of the
// stream, and the stream at that moment.
type GroupRecreation struct {
	Receipt    string            // identifies the record
	At         time.Time         // by Redis' clock
	Ago        time.Duration     // by the same clock
	Dispatched telemetry.EntryID // last-delivered ID of the earlier group; zero if there is no trace of one
	Entries    int64             // in the stream, to be redelivered
	Removed    int64             // entries removed from the stream before that
	First      telemetry.EntryID // zero if the stream was empty
	Last       telemetry.EntryID // the newest ever added
}

// GroupHistory is what Postgres knows of a group from before its recreation.
type GroupHistory struct {
	Kind  string            // of the recreation's incident; "" if none is open yet
	Ever  bool              // a group existed before
	Known telemetry.EntryID // the newest entry known to have been stored before; zero if none is
}

// Classify returns the incident kind for a recreated group, and the range of
// entries that must have been lost (count unknown), or nil.
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
		// What is known is gone, and what followed it.
		loss.Cause, loss.Last = LossFlush, Until(telemetry.EntryID{}, uint64(max(0, m.At.UnixMilli())))
		if known.Less(m.First) {
			loss.Last = Until(m.First, 0)
		}
		if loss.Last.Less(known) {
			loss.Last = known
		}
		return RedisLost, &loss
	case known.Next().Less(first):
		loss.Cause, loss.First, loss.Last = LossTrimmedUnread, known.Next(), first
		return kind, &loss
	}
	return kind, nil
}
