package protocol_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

func TestWhatPostgresMayHaveLostIsRedelivered(t *testing.T) {
	id := ids(1, 2, 3, 4, 5, 6)
	tests := []struct {
		name        string
		marks       protocol.Marks
		again       bool
		after, upTo uint64
	}{
		{"nothing was acknowledged beyond the mark", protocol.Marks{Applied: id[3], Acked: id[3], AckedKnown: true, Dispatched: id[5]}, false, 0, 0},
		{"acknowledged beyond the mark", protocol.Marks{Applied: id[1], Acked: id[3], AckedKnown: true, Dispatched: id[5]}, true, 2, 4},
		{"no mark in Postgres", protocol.Marks{Acked: id[3], AckedKnown: true, Dispatched: id[5]}, true, 0, 4},
		{"the acked mark is lost", protocol.Marks{Applied: id[1], Dispatched: id[5]}, true, 2, 6},
		{"the group was recreated and has not come so far", protocol.Marks{Applied: id[1], Acked: id[5], AckedKnown: true, Dispatched: id[2]}, true, 2, 6},
		{"the group was recreated just now", protocol.Marks{Applied: id[1], Acked: id[5], AckedKnown: true}, true, 2, 6},
		{"both are lost", protocol.Marks{Applied: id[1]}, false, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			after, upTo, ok := protocol.RangeToRedeliver(tt.marks)
			require.Equal(t, tt.again, ok)
			if ok {
				require.Equal(t, tt.after, after.Seq)
				require.Equal(t, tt.upTo, upTo.Seq)
			}
		})
	}
}

func TestP6WhatPostgresLostAndTheStreamNoLongerHoldsIsALoss(t *testing.T) {
	t.Parallel()
	id := ids(1, 2, 3, 4, 5, 6)
	r := protocol.Range{Shard: 7, From: id[1], To: id[4]}
	had := func(had, trimmed telemetry.EntryID) *protocol.Entered {
		return &protocol.Entered{Trimmed: trimmed, Applied: map[int]telemetry.EntryID{7: had}}
	}
	lost := func(last telemetry.EntryID) *protocol.Loss {
		return &protocol.Loss{Cause: "restored", First: id[1].Next(), Last: last, Entries: -1, Shard: 7}
	}
	for name, c := range map[string]struct {
		in   *protocol.Entered
		loss *protocol.Loss
	}{
		"the stream holds all of it":           {had(id[4], id[1].Next()), nil},
		"nothing was ever trimmed":             {had(id[4], telemetry.EntryID{}), nil},
		"Postgres lost nothing":                {had(id[1], id[5]), nil},
		"it is not known what Postgres had":    {&protocol.Entered{Trimmed: id[5]}, nil},
		"trimmed in the middle":                {had(id[4], id[3]), lost(id[3])},
		"trimmed beyond what was acknowledged": {had(id[4], id[5]), lost(id[4])},
	} {
		require.Equal(t, c.loss, c.in.Restored(r), name)
	}
}

func TestRangesAreJoinedOnlyWhereTheyOverlap(t *testing.T) {
	t.Parallel()
	id := ids(1, 2, 3, 4, 5, 6)
	a, b, c := protocol.Range{Shard: 1, From: id[0], To: id[2]}, protocol.Range{Shard: 2, From: id[1], To: id[1]}, protocol.Range{Shard: 3, From: id[3], To: id[5]}
	require.Equal(t, [][]protocol.Range{{a, b}, {c}}, protocol.Spans([]protocol.Range{c, b, a}))
	require.Empty(t, protocol.Spans(nil))
}
