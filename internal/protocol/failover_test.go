package protocol_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// P6: an older state of the stream is told from one that was trimmed.
func TestAnOlderStateIsDistinguishedFromATrimmedOne(t *testing.T) {
	t.Parallel()
	ids := func(ms ...uint64) (list []telemetry.EntryID) {
		for _, n := range ms {
			list = append(list, telemetry.EntryID{Ms: n})
		}
		return list
	}
	at := func(ms uint64) telemetry.EntryID { return ids(ms)[0] }
	for name, c := range map[string]struct {
		snapshot protocol.StreamSnapshot
		gone     []telemetry.EntryID
	}{
		"all there":                     {protocol.StreamSnapshot{First: at(1), Newest: at(9), Last: at(9)}, nil},
		"trimmed":                       {protocol.StreamSnapshot{First: at(5), Newest: at(9), Last: at(9), Missing: ids(3, 4)}, nil},
		"trimmed to nothing":            {protocol.StreamSnapshot{Last: at(9), Missing: ids(3, 9)}, nil},
		"deleted":                       {protocol.StreamSnapshot{First: at(1), Newest: at(8), Last: at(9), Deleted: at(9), Missing: ids(9)}, nil},
		"older":                         {protocol.StreamSnapshot{First: at(1), Newest: at(6), Last: at(6), Missing: ids(7, 9)}, ids(7, 9)},
		"older, and filled since":       {protocol.StreamSnapshot{First: at(1), Newest: at(20), Last: at(20), Missing: ids(7, 9)}, ids(7, 9)},
		"older, and trimmed before":     {protocol.StreamSnapshot{First: at(5), Newest: at(20), Last: at(20), Missing: ids(3, 9)}, ids(9)},
		"older, and empty":              {protocol.StreamSnapshot{Last: at(6), Missing: ids(5, 9)}, ids(9)},
		"another of the same name":      {protocol.StreamSnapshot{First: at(10), Newest: at(11), Last: at(11), Whole: true, Missing: ids(7, 9)}, ids(7, 9)},
		"another, and empty":            {protocol.StreamSnapshot{Whole: true, Missing: ids(7, 9)}, ids(7, 9)},
		"older, deleted from before it": {protocol.StreamSnapshot{First: at(1), Newest: at(6), Last: at(6), Deleted: at(4), Missing: ids(4, 9)}, ids(9)},
	} {
		require.ElementsMatch(t, c.gone, c.snapshot.LostInFailover(telemetry.EntryID{}), name)
	}

	seen := protocol.HighWatermark{Newest: at(7), Marks: ids(9, 2, 7, 0, 4)}
	require.Equal(t, ids(2, 4, 7, 9), seen.Known())
	seen.Gone = at(8)
	require.Equal(t, ids(7, 9), seen.Known(), "the newest, and what is not accounted for")
	older := protocol.StreamSnapshot{First: at(1), Newest: at(6), Last: at(6), Missing: ids(7, 9), Now: 10}
	require.Equal(t, ids(9), older.LostInFailover(at(8)), "once is enough")
	ahead := at(older.Now + 60_001)
	require.Equal(t, ids(7, 9), older.LostInFailover(ahead), "an ID ahead of the clock accounts for no entry that was added later")
}
