package pipeline

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// A commit of deferred entries that waited for a refusal ends the pause that it began:
// on a quiet shard nothing else does, and no deferred entry is claimed meanwhile.
func TestAPauseThatDeferredEntriesBeganEnds(t *testing.T) {
	t.Parallel()
	table := newTable(Config{Shards: 1, Workers: 1})
	table.slots[0].owned = true
	parts := []part{{again: map[telemetry.EntryID]protocol.Deferred{}}}
	table.pause(parts, protocol.Refusal{Reason: "53400/"})
	require.Empty(t, table.working())
	require.Equal(t, "53400/", table.resume(parts))
	require.Len(t, table.working(), 1)
}

// A rival that replaces a row is behind the late records in what a commit reports.
func TestARivalThatIsStoredCountsForItsShard(t *testing.T) {
	t.Parallel()
	s, b := newState(10, 1, func() {}), &batch{}
	b.reset(1, true)
	b.rules.Fences = &protocol.Fences{Set: &geofence.Set{}}
	d := s.learn("1", 0, geofence.Fix{TimeUS: never})
	noFix, fix := telemetry.Record{DeviceID: "1", TimeUS: 1}, telemetry.Record{DeviceID: "1", TimeUS: 1, Satellites: 7}
	b.place(d, &noFix, false)
	b.place(d, &fix, true)
	require.Len(t, b.late, 1)
	require.Len(t, b.rivals, 1)

	k := newBreaker()
	k.refuse("23514/", 0, "2", time.Now())
	k.stored(time.Now(), b, protocol.CommitResult{Stored: []bool{true, true}}, 1)
	require.Equal(t, map[int]uint64{allShards: 2, 0: 2}, k.storedRows)
}
