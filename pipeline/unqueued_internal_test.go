package pipeline

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
)

// P6: an entry that is acknowledged is no orphan. One that was trimmed would be noted as lost when it
// is put on its queue.
func TestP6OnlyWhatIsUnfinishedOfABatchIsOrphaned(t *testing.T) {
	t.Parallel()
	id := func(n uint64) telemetry.EntryID { return telemetry.EntryID{Ms: 1, Seq: n} }
	entries := []telemetry.Entry{{ID: id(1)}, {ID: id(2)}, {ID: id(3)}}
	for name, tc := range map[string]struct {
		batch   batch
		dropped bool // the shard was given up while they were being acknowledged
		want    []telemetry.EntryID
	}{
		"acknowledged":                       {},
		"acknowledgement refused":            {batch: batch{stale: map[int]bool{0: true}}, want: []telemetry.EntryID{id(1), id(2), id(3)}},
		"a dead letter on no queue":          {batch: batch{deadLettered: map[telemetry.EntryID]struct{}{id(3): {}}, reread: map[int]bool{0: true}}, want: []telemetry.EntryID{id(3)}},
		"a dead letter":                      {batch: batch{deadLettered: map[telemetry.EntryID]struct{}{id(2): {}}}},
		"a dead letter refused":              {batch: batch{deadLettered: map[telemetry.EntryID]struct{}{id(2): {}}, refused: map[int]string{0: "OOM"}}, want: []telemetry.EntryID{id(2)}},
		"dropped":                            {dropped: true, want: []telemetry.EntryID{id(9)}},
		"dropped, a dead letter refused":     {batch: batch{deadLettered: map[telemetry.EntryID]struct{}{id(2): {}}, refused: map[int]string{0: "OOM"}}, dropped: true, want: []telemetry.EntryID{id(2), id(9)}},
		"dropped, acknowledgement refused":   {batch: batch{stale: map[int]bool{0: true}}, dropped: true, want: []telemetry.EntryID{id(1), id(2), id(3), id(9)}},
		"dropped, refused for another shard": {batch: batch{refused: map[int]string{1: "OOM"}}, dropped: true, want: []telemetry.EntryID{id(9)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &worker{table: newTable(Config{Shards: 2, Workers: 1, MaxInFlightRecords: 100, MaxInFlightBytes: 1 << 20})}
			s := &w.table.slots[0]
			s.owned, s.grant, w.table.leaseHeld = true, 1, true
			s.queue.LeaveUnqueued(id(1), id(2), id(3), id(9))
			s.queue.Acknowledge(id(1), 3, func(int) {})
			if tc.dropped {
				w.table.orphan(0, s.queue.Discard())
				s.grant++
			}
			w.orphan(&tc.batch, part{shard: 0, grant: 1, entries: entries})
			require.Equal(t, tc.want, w.table.orphans[0])
		})
	}
}
