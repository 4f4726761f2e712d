package pipeline

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
)

// Dispatch waits for queues that are about to be read, and for nothing that waits for
// something else: it would stop for all shards.
func TestDispatchWaitsOnlyForQueuesThatAreAboutToBeRead(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, tt := range map[string]struct {
		change func(s *slot, l *load)
		want   bool
	}{
		"it is read back":                   {func(*slot, *load) {}, true},
		"it has no room but for an entry":   {func(_ *slot, l *load) { l.records = 99 }, false},
		"it does not advance":               {func(s *slot, _ *load) { s.advanced = now.Add(-catchUp) }, false},
		"it may not be read yet":            {func(s *slot, _ *load) { s.notBefore = now.Add(time.Second) }, false},
		"Postgres refuses its rows":         {func(s *slot, _ *load) { s.pause = new(pause) }, false},
		"it is quarantined":                 {func(s *slot, _ *load) { s.quarantine.Limit = 10 }, false},
		"it is to be released":              {func(s *slot, _ *load) { s.stopping = true }, false},
		"it is another member's":            {func(s *slot, _ *load) { s.owned = false }, false},
		"another shard of its worker works": {func(_ *slot, l *load) { l.records = 50 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table := newTable(Config{Shards: 2, Workers: 1, MaxInFlightRecords: 100, MaxInFlightBytes: 1 << 20})
			table.workers = []*worker{{box: newMailbox()}}
			require.NoError(t, table.grant(protocol.ShardLease{Shard: 1, Epoch: 1, Token: "t"}))
			tt.change(&table.slots[1], &table.load[0])
			_, behind := table.behind(now)
			require.Equal(t, tt.want, behind)
		})
	}
}
