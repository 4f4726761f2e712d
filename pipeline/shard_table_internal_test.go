package pipeline

import (
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
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

// P9: what a dispatcher keeps of a reply is not the text of others' entries as well, once that
// would be more than may be in flight.
func TestADispatcherKeepsNoRepliesForTheSakeOfAFewEntries(t *testing.T) {
	t.Parallel()
	const mebibyte = 1 << 20
	reply := strings.Repeat("x", 16)
	a := protocol.NewEntries{Shards: []int{0, 1}, Starts: []int{0, 1, 4}, Entries: make([]telemetry.Entry, 4)}
	for i := range a.Entries {
		a.Entries[i] = telemetry.Entry{ID: telemetry.EntryID{Ms: uint64(i + 1)}, Fields: []string{reply[4*i : 4*i+4], ""}}
	}
	for name, tt := range map[string]struct {
		owned []int
		bytes int64
		want  bool
	}{
		"all are ours":                  {[]int{0, 1}, mebibyte, false},
		"a quarter is, of little":       {[]int{0}, mebibyte / 4, false},
		"a quarter is, of more":         {[]int{0}, mebibyte/4 + 1, true},
		"three quarters are, of little": {[]int{1}, mebibyte * 3 / 4, false},
		"three quarters are, of more":   {[]int{1}, mebibyte*3/4 + 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table := newTable(Config{Shards: 2, Workers: 1, MaxInFlightRecords: 100, MaxInFlightBytes: mebibyte})
			table.workers = []*worker{{box: newMailbox()}}
			plan := dispatchPlan{known: map[int]bool{0: true, 1: true}, unqueued: make(map[int]uint64)}
			for _, shard := range tt.owned {
				require.NoError(t, table.grant(protocol.ShardLease{Shard: shard, Epoch: 1, Token: "t"}))
				plan.unqueued[shard] = table.slots[shard].grant
			}
			lease := table.nextLease(true)
			for _, shard := range tt.owned {
				queue := &table.slots[shard].queue
				queue.EndRead(queue.BeginRead(lease), nil, false, lease, nil) // it is empty
			}
			table.bytes = tt.bytes
			d := &dispatcher{table: table}
			d.bypass(lease, &a, &plan, nil)
			delivered := 0
			for _, m := range table.workers[0].box.items {
				for _, e := range m.entries {
					delivered++
					at := unsafe.StringData(reply)
					shared := uintptr(unsafe.Pointer(unsafe.StringData(e.Fields[0])))-uintptr(unsafe.Pointer(at)) < uintptr(len(reply))
					require.Equal(t, tt.want, !shared)
				}
			}
			require.NotZero(t, delivered)
		})
	}
}
