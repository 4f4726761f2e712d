package protocol_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trmtracking/processor/internal/protocol"
)

func TestAssignmentIsBalancedStickyAndMovesLeast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 128).Draw(t, "shards")
		names := make([]string, rapid.IntRange(1, 9).Draw(t, "known"))
		for i := range names {
			names[i] = fmt.Sprintf("m%d", i)
		}
		current := make([]string, n)
		for i := range current {
			current[i] = rapid.SampledFrom(append([]string{"", "gone"}, names...)).Draw(t, "owner")
		}
		members := rapid.Permutation(names).Draw(t, "members")[:rapid.IntRange(1, len(names)).Draw(t, "live")]

		next := protocol.Assign(current, members)
		require.Equal(t, next, protocol.Assign(current, slices.Sorted(slices.Values(members))), "order of members means nothing")
		require.Equal(t, next, protocol.Assign(next, members), "a balanced assignment stays")

		count := map[string]int{}
		for _, m := range next {
			require.Contains(t, members, m)
			count[m]++
		}
		least, most := n, 0
		for _, m := range members {
			least, most = min(least, count[m]), max(most, count[m])
		}
		require.LessOrEqual(t, most-least, 1)

		// Shards must move if unassigned or above a quota. With extra
		// members at the larger quota, no member can keep more than that.
		had := map[string]int{}
		for _, m := range current {
			had[m]++
		}
		var kept []int
		for _, m := range members {
			kept = append(kept, had[m])
		}
		slices.SortFunc(kept, func(a, b int) int { return b - a })
		bound := 0
		for i, k := range kept {
			quota := n / len(members)
			if i < n%len(members) {
				quota++
			}
			bound += min(k, quota)
		}
		stayed := 0
		for i := range next {
			if next[i] == current[i] {
				stayed++
			}
		}
		require.Equal(t, bound, stayed)
	})
}

func TestAJoinMovesAtMostItsShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, m := rapid.IntRange(1, 128).Draw(t, "shards"), rapid.IntRange(1, 10).Draw(t, "members")
		var members []string
		current := make([]string, n)
		for i := range m {
			members = append(members, fmt.Sprintf("m%d", i))
			current = protocol.Assign(current, members)
		}
		next := protocol.Assign(current, append(members, "new"))
		moved := 0
		for i := range next {
			if next[i] != current[i] {
				moved++
				require.Equal(t, "new", next[i])
			}
		}
		require.LessOrEqual(t, moved, (n+m)/(m+1))
	})
}

func TestWithoutMembersNothingMoves(t *testing.T) {
	require.Equal(t, []string{"a", ""}, protocol.Assign([]string{"a", ""}, nil))
}

var detectorCfg = protocol.FailureDetectorConfig{TTL: 5 * time.Second, SinkGrace: 5 * time.Second, Stall: 30 * time.Second}

// P10: whether a member is gone is not known from its key.
func TestAMemberIsGoneWhenItsBeatStopsNotWhenItsKeyDoes(t *testing.T) {
	now := time.Unix(0, 0)
	w := protocol.NewFailureDetector(detectorCfg)
	w.Observe(now, []protocol.Beat{{Member: "a", Number: 1}, {Member: "b", Number: 1}})
	require.Equal(t, []string{"a", "b"}, w.Eligible(now))

	// a's key is lost for a moment, b's stays but does not advance.
	w.Observe(now.Add(time.Second), []protocol.Beat{{Member: "b", Number: 1}})
	require.Equal(t, []string{"a", "b"}, w.Eligible(now.Add(time.Second)))
	w.Observe(now.Add(4*time.Second), []protocol.Beat{{Member: "a", Number: 4}, {Member: "b", Number: 1}})
	require.Equal(t, []string{"a"}, w.Eligible(now.Add(5*time.Second)))
	require.True(t, w.Gone(now.Add(5*time.Second), "b"))
	require.True(t, w.Gone(now, "never seen"))
}

func TestNoMemberIsGoneForOneTTLAfterRedisWasUnavailable(t *testing.T) {
	now := time.Unix(0, 0)
	w := protocol.NewFailureDetector(detectorCfg)
	w.Observe(now, []protocol.Beat{{Member: "a", Number: 1}})
	w.RedisUnavailable(now.Add(20 * time.Second))
	w.Observe(now.Add(21*time.Second), nil)
	require.Equal(t, []string{"a"}, w.Eligible(now.Add(24*time.Second)))
	require.False(t, w.Gone(now.Add(24*time.Second), "not heard of yet"))
	w.Observe(now.Add(25*time.Second), nil)
	require.Empty(t, w.Eligible(now.Add(25*time.Second)))
}

func TestALeavingMemberGetsNothingAndIsGoneAsSoonAsItsKeyIs(t *testing.T) {
	now := time.Unix(0, 0)
	w := protocol.NewFailureDetector(detectorCfg)
	w.Observe(now, []protocol.Beat{{Member: "a", Number: 1}, {Member: "b", Number: 1, Leaving: true}})
	require.Equal(t, []string{"a"}, w.Eligible(now))
	require.True(t, w.Leaving("b"))
	require.False(t, w.Gone(now, "b"))
	w.Observe(now.Add(time.Second), []protocol.Beat{{Member: "a", Number: 2}})
	require.True(t, w.Gone(now.Add(time.Second), "b"))
}

func TestShardsLeaveAMemberCutOffFromPostgresOnlyIfAnotherIsNot(t *testing.T) {
	now := time.Unix(0, 0)
	w := protocol.NewFailureDetector(detectorCfg)
	w.Observe(now, []protocol.Beat{{Member: "a", Number: 1, SinkDown: time.Second}, {Member: "b", Number: 1}})
	now = now.Add(detectorCfg.SinkGrace)
	w.Observe(now, []protocol.Beat{{Member: "a", Number: 2, SinkDown: 6 * time.Second}, {Member: "b", Number: 2}})
	require.Equal(t, []string{"b"}, w.Eligible(now))
	w.Observe(now, []protocol.Beat{{Member: "a", Number: 3, SinkDown: 6 * time.Second}, {Member: "b", Number: 3, SinkDown: time.Second}})
	require.Equal(t, []string{"a", "b"}, w.Eligible(now))
}

func TestAMemberWithWorkAndWithoutProgressIsStalled(t *testing.T) {
	now := time.Unix(0, 0)
	w := protocol.NewFailureDetector(detectorCfg)
	for s := range 31 {
		w.Observe(now.Add(time.Duration(s)*time.Second), []protocol.Beat{
			{Member: "idle", Number: uint64(s)},
			{Member: "busy", Number: uint64(s), InFlight: 9, Progress: uint64(s)},
			{Member: "stuck", Number: uint64(s), InFlight: 9, Progress: 7},
		})
	}
	then := now.Add(30 * time.Second)
	require.Equal(t, []string{"busy", "idle"}, w.Eligible(then))
	require.Equal(t, []string{"stuck"}, w.Stalled(then))
}

// fleetUnder runs members for some minutes on what Assign gives them, each with
// entries in flight while it has shards, and counts the shards that move. beat returns what a
// member with shards reports at a second.
func fleetUnder(t *testing.T, members []string, beat func(member string, second uint64) protocol.Beat) (moved map[string]int) {
	t.Helper()
	w, now := protocol.NewFailureDetector(detectorCfg), time.Unix(0, 0)
	assigned := protocol.Assign(make([]string, 64), members)
	moved = make(map[string]int)
	last := make(map[string]protocol.Beat)
	for s := range uint64(600) {
		now = now.Add(time.Second)
		var beats []protocol.Beat
		for _, m := range members {
			b := last[m]
			if slices.Contains(assigned, m) {
				b = beat(m, s)
			} else {
				b.InFlight = 0
			}
			b.Member, b.Number = m, s
			last[m] = b
			beats = append(beats, b)
		}
		w.Observe(now, beats)
		next := protocol.Assign(assigned, w.Eligible(now))
		for i := range next {
			if next[i] != assigned[i] {
				moved[assigned[i]]++
			}
		}
		assigned = next
	}
	return moved
}

func TestNothingMovesWhileNoMemberAdvances(t *testing.T) {
	// A table lock: every commit of every member fails.
	locked := func(_ string, s uint64) protocol.Beat {
		return protocol.Beat{InFlight: 100, Progress: 7, CallsReturned: s / 5}
	}
	require.Empty(t, fleetUnder(t, []string{"a", "b", "c"}, locked))
	// The lock came while members worked, and not all had committed just before.
	require.Empty(t, fleetUnder(t, []string{"a", "b", "c"}, func(m string, s uint64) protocol.Beat {
		return protocol.Beat{InFlight: 100, Progress: min(s, 100+3*uint64(m[0]-'a')), CallsReturned: s / 5}
	}))
	// Nor do shards of a stuck member move to one that is merely idle.
	require.Empty(t, fleetUnder(t, []string{"a", "b"}, func(m string, s uint64) protocol.Beat {
		if m == "a" {
			return locked(m, s)
		}
		return protocol.Beat{}
	}))
	// No call of any member returns: a fleet without any eligible member would stop.
	require.Empty(t, fleetUnder(t, []string{"a", "b"}, func(string, uint64) protocol.Beat { return protocol.Beat{InFlight: 1} }))
}

func TestAMemberThatIsStuckKeepsNoShardsWhetherOthersAreBusyOrNot(t *testing.T) {
	for _, busy := range []uint64{0, 1} {
		moved := fleetUnder(t, []string{"stuck", "well"}, func(m string, s uint64) protocol.Beat {
			if m == "stuck" {
				return protocol.Beat{InFlight: 100, Progress: 7, CallsReturned: 9}
			}
			return protocol.Beat{InFlight: int(busy), Progress: s * busy, CallsReturned: s * busy}
		})
		require.Equal(t, map[string]int{"stuck": 32}, moved, "they move once and do not come back")
	}
}

func TestAMemberWhoseCommitsFailLosesItsShardsToOneThatAdvances(t *testing.T) {
	moved := fleetUnder(t, []string{"fails", "works"}, func(m string, s uint64) protocol.Beat {
		if m == "fails" {
			return protocol.Beat{InFlight: 100, Progress: 7, CallsReturned: s / 5}
		}
		return protocol.Beat{InFlight: 5, Progress: s, CallsReturned: s}
	})
	// It becomes eligible again after another Stall.
	require.Positive(t, moved["fails"])
	require.LessOrEqual(t, moved["fails"], 32*600/60)
}

func TestAMemberThatWasStuckHasItsShareAgainOnceACallComesBack(t *testing.T) {
	w, now := protocol.NewFailureDetector(detectorCfg), time.Unix(0, 0)
	for s := range uint64(40) {
		now = now.Add(time.Second)
		w.Observe(now, []protocol.Beat{{Member: "stuck", Number: s, InFlight: 9}, {Member: "well", Number: s}})
	}
	require.Equal(t, []string{"well"}, w.Eligible(now))
	for s := range uint64(100) { // its shards are gone
		now = now.Add(time.Second)
		w.Observe(now, []protocol.Beat{{Member: "stuck", Number: 40 + s}, {Member: "well", Number: 40 + s}})
		require.Equal(t, []string{"well"}, w.Eligible(now))
		require.Equal(t, []string{"stuck"}, w.Stalled(now))
	}
	now = now.Add(time.Second)
	w.Observe(now, []protocol.Beat{{Member: "stuck", Number: 141, CallsReturned: 1}, {Member: "well", Number: 141}})
	require.Equal(t, []string{"stuck", "well"}, w.Eligible(now))
	require.Empty(t, w.Stalled(now))
}

func TestNextActionOfAnOwner(t *testing.T) {
	b := protocol.Budgets{HandOff: 5 * time.Second, Drain: 20 * time.Second}
	held := protocol.LocalShard{Owned: true, Epoch: 3}
	tests := []struct {
		name  string
		claim protocol.ShardRecord
		hold  protocol.LocalShard
		owner protocol.OwnerState
		want  protocol.Action
	}{
		{"ours", protocol.ShardRecord{Assigned: "me", Owner: "me", Epoch: 3}, held, protocol.OwnerState{}, protocol.Leave},
		{"assigned away", protocol.ShardRecord{Assigned: "b", Owner: "me", Epoch: 3}, held, protocol.OwnerState{}, protocol.HandOver},
		{"acquired by another member", protocol.ShardRecord{Assigned: "b", Owner: "b", Epoch: 4}, held, protocol.OwnerState{}, protocol.Lose},
		{"acquired again under a later epoch", protocol.ShardRecord{Assigned: "me", Owner: "me", Epoch: 4}, held, protocol.OwnerState{}, protocol.Lose},
		{"another member's", protocol.ShardRecord{Assigned: "b", Owner: "b", Epoch: 4}, protocol.LocalShard{}, protocol.OwnerState{}, protocol.Leave},
		{"released", protocol.ShardRecord{Assigned: "me"}, protocol.LocalShard{}, protocol.OwnerState{}, protocol.Acquire},
		{"ours, given up", protocol.ShardRecord{Assigned: "me", Owner: "me", Epoch: 3}, protocol.LocalShard{}, protocol.OwnerState{}, protocol.Acquire},
		{"being handed over, and ours again", protocol.ShardRecord{Assigned: "me", Owner: "me", Epoch: 3}, protocol.LocalShard{Stopping: true}, protocol.OwnerState{}, protocol.Leave},
		{"owner at work", protocol.ShardRecord{Assigned: "me", Owner: "b"}, protocol.LocalShard{}, protocol.OwnerState{Waited: time.Second}, protocol.Await},
		{"owner gone", protocol.ShardRecord{Assigned: "me", Owner: "b"}, protocol.LocalShard{}, protocol.OwnerState{Gone: true}, protocol.ForceAcquire},
		{"owner too slow", protocol.ShardRecord{Assigned: "me", Owner: "b"}, protocol.LocalShard{}, protocol.OwnerState{Waited: 5 * time.Second}, protocol.ForceAcquire},
		{"owner slow, but at work", protocol.ShardRecord{Assigned: "me", Owner: "b"}, protocol.LocalShard{}, protocol.OwnerState{Waited: 29 * time.Second, Works: true}, protocol.Await},
		{"owner at work, and never releases", protocol.ShardRecord{Assigned: "me", Owner: "b"}, protocol.LocalShard{}, protocol.OwnerState{Waited: 30 * time.Second, Works: true}, protocol.ForceAcquire},
		{"owner drains", protocol.ShardRecord{Assigned: "me", Owner: "b"}, protocol.LocalShard{}, protocol.OwnerState{Waited: 5 * time.Second, Leaving: true}, protocol.Await},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, protocol.Next("me", tt.claim, tt.hold, tt.owner, b), tt.want.String())
		})
	}
}
