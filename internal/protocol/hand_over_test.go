package protocol_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trmtracking/processor/internal/protocol"
)

// P8: a plan never takes more than a few percent of the shards out of service at once,
// what nobody serves waits for nothing, and the target is reached.
func TestAPlanMovesAFewShardsAtATime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"", "gone", "a", "b", "c", "d"}
		willing := func(m string) bool { return m != "gone" && m != "" }
		shards := make([]protocol.ShardRecord, rapid.IntRange(1, 128).Draw(t, "shards"))
		target := make([]string, len(shards))
		late := make([]bool, len(shards))
		for i := range shards {
			shards[i].Owner = rapid.SampledFrom(names).Draw(t, "owner")
			shards[i].Assigned = rapid.SampledFrom([]string{shards[i].Owner, shards[i].Owner, "a", ""}).Draw(t, "assigned")
			late[i] = rapid.Bool().Draw(t, "late")
			target[i] = rapid.SampledFrom(names[2:]).Draw(t, "target")
		}
		waits := func() (n int) {
			for i, s := range shards {
				if s.Owner != s.Assigned && willing(s.Owner) && !late[i] {
					n++
				}
			}
			return n
		}
		for round := 0; ; round++ {
			require.LessOrEqual(t, round, len(shards)+1, "it ends")
			before := waits()
			next := protocol.Pace(shards, target, willing, func(i int) bool { return late[i] })
			for i := range shards {
				if !willing(shards[i].Owner) || shards[i].Owner != shards[i].Assigned {
					require.Equal(t, target[i], next[i], "shard %d, which nobody serves, waits", i)
				}
				shards[i].Assigned = next[i]
			}
			require.LessOrEqual(t, waits(), max(before, protocol.HandOvers(len(shards))))
			if slices.Equal(next, target) {
				return
			}
			for i := range shards { // owners release
				if shards[i].Owner != shards[i].Assigned {
					shards[i].Owner = shards[i].Assigned
				}
			}
		}
	})
}

func TestHandOversAtOnce(t *testing.T) {
	for shards, want := range map[int]int{1: 1, 8: 1, 33: 1, 34: 2, 64: 2, 128: 4, 1024: 31} {
		require.Equal(t, want, protocol.HandOvers(shards), "%d shards", shards)
	}
}

func TestAShardThatHasWaitedForLongHoldsUpNoOther(t *testing.T) {
	const shards = 64
	records, target := make([]protocol.ShardRecord, shards), make([]string, shards)
	for i := range records {
		records[i], target[i] = protocol.ShardRecord{Assigned: "a", Owner: "a"}, "b"
	}
	for i := range protocol.HandOvers(shards) {
		records[i].Assigned = "b"
	}
	moves := func(late bool) (n int) {
		next := protocol.Pace(records, target, func(string) bool { return true }, func(i int) bool { return late && i < protocol.HandOvers(shards) })
		for i := range next {
			if next[i] != records[i].Assigned {
				n++
			}
		}
		return n
	}
	require.Zero(t, moves(false))
	require.Equal(t, protocol.HandOvers(shards), moves(true))
}
