package protocol_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// P6: what a making of the group shows to be lost is never taken for nothing.
func TestAMakingIsJudgedByWhatWasKnownBefore(t *testing.T) {
	t.Parallel()
	at := func(ms uint64) telemetry.EntryID { return telemetry.EntryID{Ms: ms} }
	flush := func(last uint64) *protocol.Loss {
		return &protocol.Loss{Cause: "flush", Last: at(last), Entries: -1, Shard: -1}
	}
	trimmed := func(known, first uint64) *protocol.Loss {
		return &protocol.Loss{Cause: "trimmed_unread", First: at(known).Next(), Last: at(first), Entries: -1, Shard: -1}
	}
	for name, c := range map[string]struct {
		making protocol.Making
		past   protocol.Past
		kind   string
		loss   *protocol.Loss
	}{
		"the first, of an empty stream":      {protocol.Making{}, protocol.Past{}, protocol.GroupMade, nil},
		"the first, of a stream with a past": {protocol.Making{First: at(5), Last: at(9), Entries: 5, Removed: 4}, protocol.Past{}, protocol.GroupMade, nil},
		"destroyed": {
			protocol.Making{Dealt: at(8), First: at(1), Last: at(9)}, protocol.Past{Ever: true, Known: at(7)}, protocol.GroupLost, nil,
		},
		"destroyed before anything was stored": {
			protocol.Making{Dealt: at(8), First: at(1), Last: at(9)}, protocol.Past{}, protocol.GroupLost, nil,
		},
		"destroyed, the stream trimmed up to what was dealt": {
			protocol.Making{Dealt: at(4), First: at(4).Next(), Last: at(9), Removed: 3}, protocol.Past{Ever: true, Known: at(2)}, protocol.GroupLost, nil,
		},
		"destroyed, the stream trimmed beyond it": {
			protocol.Making{Dealt: at(4), First: at(6), Last: at(9), Removed: 3}, protocol.Past{Ever: true, Known: at(5)}, protocol.GroupLost, trimmed(5, 6),
		},
		"destroyed, the stream trimmed to nothing": {
			protocol.Making{Dealt: at(4), Last: at(9), Removed: 9}, protocol.Past{Ever: true}, protocol.GroupLost, &protocol.Loss{Cause: "trimmed_unread", First: at(4).Next(), Last: at(9).Next(), Entries: -1, Shard: -1},
		},
		"destroyed, the stream trimmed to nothing and all of it done": {
			protocol.Making{Dealt: at(9), Last: at(9), Removed: 9}, protocol.Past{Ever: true}, protocol.GroupLost, nil,
		},
		"the stream deleted and begun anew": {
			protocol.Making{Dealt: at(8), First: at(10), Last: at(11)}, protocol.Past{Ever: true, Known: at(8)}, protocol.RedisLost, flush(8),
		},
		"all keys gone": {
			protocol.Making{}, protocol.Past{Ever: true, Known: at(8)}, protocol.RedisLost, flush(8),
		},
		"all keys gone, and no telling up to where": {
			protocol.Making{First: at(10), Last: at(11)}, protocol.Past{Ever: true}, protocol.RedisLost, flush(0),
		},
		"only our keys gone": {
			protocol.Making{First: at(1), Last: at(11)}, protocol.Past{Ever: true, Known: at(8)}, protocol.RedisLost, nil,
		},
		"an older state without a group": {
			protocol.Making{First: at(1), Last: at(6)}, protocol.Past{Ever: true, Known: at(8)}, protocol.RedisLost, flush(8),
		},
	} {
		kind, loss := c.making.Judge(c.past)
		require.Equal(t, c.kind, kind, name)
		require.Equal(t, c.loss, loss, name)
	}
}
