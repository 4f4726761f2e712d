package pipeline

import (
	"testing"

	"github.com/stretchr/testify/require"

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
