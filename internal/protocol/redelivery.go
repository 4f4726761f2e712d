package protocol

import (
	"slices"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Marks is how far a shard is finished according to Postgres and to Redis.
type Marks struct {
	// Applied is the applied ID in Postgres: when it was written, everything of
	// the shard up to it that had been on its queue was committed.
	Applied telemetry.EntryID
	// Acked is the highest entry ever acknowledged. AckedKnown is false if the
	// mark is missing, after a flush of the coordination keys.
	Acked      telemetry.EntryID
	AckedKnown bool
	// Dispatched is the group's last-delivered ID, or the highest on a queue or read by the dispatcher if that
	// lies beyond it.
	Dispatched telemetry.EntryID
}

// RangeToRedeliver returns the entries of a shard, after one ID and up to
// another, that must be put on its queue again before an acquired shard's queue
// is read.
//
// Invariant: acked <= committed. So acked > applied means that Postgres lost
// commits, or that the applied ID was not written yet. Redeliver (applied,
// acked]; if acked is unknown, (applied, dispatched]. Rows that are stored
// already end as duplicates. The range may reach beyond the last-delivered ID,
// where that was moved back or the group recreated: what was dispatched before
// may still be on the queue, and must not overtake what Postgres lost.
func RangeToRedeliver(m Marks) (after, upTo telemetry.EntryID, ok bool) {
	upTo = m.Dispatched
	if m.AckedKnown {
		upTo = m.Acked
	}
	return m.Applied, upTo, m.Applied.Less(upTo)
}

// Entered is what Redis knows of shards at the moment they are acquired.
type Entered struct {
	Dispatched telemetry.EntryID         // as in Marks
	Trimmed    telemetry.EntryID         // entries before it may have been removed from the stream; zero for none
	Acked      map[int]telemetry.EntryID // the acked marks that are known
	Applied    map[int]telemetry.EntryID // the applied IDs that Postgres had when it last committed one
}

// Restored returns the loss of a shard that is to be redelivered, after one ID and
// up to another, nil for none. Postgres lost commits if its applied ID is older
// than the one that it had; what the stream holds of them is redelivered, and
// what was trimmed is lost. How many entries these are cannot be known.
func (e *Entered) Restored(r Range) *Loss {
	had, known := e.Applied[r.Shard]
	if !known || had.Compare(r.From) <= 0 || e.Trimmed.Compare(r.From.Next()) <= 0 {
		return nil
	}
	loss := Loss{Cause: LossRestored, Last: r.To, Entries: -1, Shard: r.Shard}
	if !r.From.IsZero() {
		loss.First = r.From.Next()
	}
	if e.Trimmed.Less(loss.Last) {
		loss.Last = e.Trimmed
	}
	return &loss
}

// Spans sorts ranges by where they begin and divides them where there is a gap,
// so that no part of the stream is read which none of them covers.
func Spans(ranges []Range) (spans [][]Range) {
	ranges = slices.SortedFunc(slices.Values(ranges), func(a, b Range) int { return a.From.Compare(b.From) })
	var end telemetry.EntryID
	for _, r := range ranges {
		if len(spans) == 0 || end.Less(r.From) {
			spans = append(spans, nil)
		}
		if end.Less(r.To) {
			end = r.To
		}
		spans[len(spans)-1] = append(spans[len(spans)-1], r)
	}
	return spans
}
