package protocol_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// P6: a loss that a group recreation implies is always reported.
func TestAGroupRecreationIsClassifiedByWhatWasKnownBefore(t *testing.T) {
	t.Parallel()
	at := func(ms uint64) telemetry.EntryID { return telemetry.EntryID{Ms: ms} }
	flush := func(last telemetry.EntryID) *protocol.Loss {
		return &protocol.Loss{Cause: "flush", Last: last, Entries: -1, Shard: -1}
	}
	before := func(ms uint64) telemetry.EntryID { return telemetry.EntryID{Ms: ms - 1, Seq: math.MaxUint64} }
	trimmed := func(known, first uint64) *protocol.Loss {
		return &protocol.Loss{Cause: "trimmed_unread", First: at(known).Next(), Last: at(first), Entries: -1, Shard: -1}
	}
	for name, c := range map[string]struct {
		recreation protocol.GroupRecreation
		history    protocol.GroupHistory
		kind       string
		loss       *protocol.Loss
	}{
		"the first, of an empty stream":      {protocol.GroupRecreation{}, protocol.GroupHistory{}, protocol.GroupCreated, nil},
		"the first, of a stream with a past": {protocol.GroupRecreation{First: at(5), Last: at(9), Entries: 5, Removed: 4}, protocol.GroupHistory{}, protocol.GroupCreated, nil},
		"destroyed": {
			protocol.GroupRecreation{Dispatched: at(8), First: at(1), Last: at(9)}, protocol.GroupHistory{Ever: true, Known: at(7)}, protocol.GroupLost, nil,
		},
		"destroyed before anything was stored": {
			protocol.GroupRecreation{Dispatched: at(8), First: at(1), Last: at(9)}, protocol.GroupHistory{}, protocol.GroupLost, nil,
		},
		"destroyed, the stream trimmed up to what was dispatched": {
			protocol.GroupRecreation{Dispatched: at(4), First: at(4).Next(), Last: at(9), Removed: 3}, protocol.GroupHistory{Ever: true, Known: at(2)}, protocol.GroupLost, nil,
		},
		"destroyed, the stream trimmed beyond it": {
			protocol.GroupRecreation{Dispatched: at(4), First: at(6), Last: at(9), Removed: 3}, protocol.GroupHistory{Ever: true, Known: at(5)}, protocol.GroupLost, trimmed(5, 6),
		},
		"destroyed, the stream trimmed to nothing": {
			protocol.GroupRecreation{Dispatched: at(4), Last: at(9), Removed: 9}, protocol.GroupHistory{Ever: true}, protocol.GroupLost, &protocol.Loss{Cause: "trimmed_unread", First: at(4).Next(), Last: at(9).Next(), Entries: -1, Shard: -1},
		},
		"destroyed, the stream trimmed to nothing and all of it done": {
			protocol.GroupRecreation{Dispatched: at(9), Last: at(9), Removed: 9}, protocol.GroupHistory{Ever: true}, protocol.GroupLost, nil,
		},
		"the stream deleted and begun again": {
			protocol.GroupRecreation{Dispatched: at(8), First: at(10), Last: at(11)}, protocol.GroupHistory{Ever: true, Known: at(8)}, protocol.RedisLost, flush(before(10)),
		},
		"all keys gone": {
			protocol.GroupRecreation{At: time.UnixMilli(20)}, protocol.GroupHistory{Ever: true, Known: at(8)}, protocol.RedisLost, flush(before(20)),
		},
		"all keys gone, and no telling up to where": {
			protocol.GroupRecreation{First: at(10), Last: at(11)}, protocol.GroupHistory{Ever: true}, protocol.RedisLost, flush(before(10)),
		},
		"only our keys gone": {
			protocol.GroupRecreation{First: at(1), Last: at(11)}, protocol.GroupHistory{Ever: true, Known: at(8)}, protocol.RedisLost, nil,
		},
		"an older state without a group": {
			protocol.GroupRecreation{At: time.UnixMilli(20), First: at(1), Last: at(6)}, protocol.GroupHistory{Ever: true, Known: at(8)}, protocol.RedisLost, flush(before(20)),
		},
	} {
		kind, loss := c.recreation.Classify(c.history)
		require.Equal(t, c.kind, kind, name)
		require.Equal(t, c.loss, loss, name)
	}
}
