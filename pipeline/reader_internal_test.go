package pipeline

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
)

// P7: with more queues than are read at once each has its turn, also while the first are never empty.
func TestP7NoQueueIsPreferred(t *testing.T) {
	t.Parallel()
	const shards = 3*readsAtOnce + 1
	cfg := Config{Shards: shards, Workers: 2, MaxInFlightRecords: 10_000, MaxInFlightBytes: 1 << 20, ReadBatchRecords: 10}
	r := &reader{cfg: cfg, table: newTable(cfg)}
	r.table.workers = []*worker{{box: newMailbox()}, {box: newMailbox()}}
	for shard := range shards {
		require.NoError(t, r.table.grant(protocol.ShardLease{Shard: shard, Epoch: 1, Token: "t"}))
	}
	read := make(map[int]bool)
	for range 4 {
		for _, a := range r.choose() {
			read[a.read.Shard] = true
		}
		r.table.markDue(nil)
	}
	require.Len(t, read, shards)
}
