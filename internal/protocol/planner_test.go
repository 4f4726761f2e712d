package protocol_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trmtracking/processor/internal/protocol"
)

func loadOf(owners []string, loads []float64) map[string]float64 {
	of := make(map[string]float64)
	for i, m := range owners {
		of[m] += loads[i]
	}
	return of
}

func busiest(of map[string]float64, members []string) (most, mean float64) {
	for _, m := range members {
		most, mean = math.Max(most, of[m]), mean+of[m]/float64(len(members))
	}
	return most, mean
}

func TestPlacementByLoadLowersTheBusiestMemberAndMovesNoMoreThanAllowed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shards, count := rapid.IntRange(1, 96).Draw(t, "shards"), rapid.IntRange(1, 7).Draw(t, "members")
		var members []string
		for i := range count {
			members = append(members, fmt.Sprintf("m%d", i))
		}
		current, loads := make([]string, shards), make([]float64, shards)
		for i := range current {
			current[i] = rapid.SampledFrom(append([]string{"", "gone"}, members...)).Draw(t, "owner")
			loads[i] = rapid.Float64Range(0, 1000).Draw(t, "load")
		}
		limit, still := rapid.IntRange(0, 20).Draw(t, "limit"), rapid.IntRange(0, shards).Draw(t, "resting")
		may := func(shard int) bool { return shard >= still }

		next := protocol.Place(current, members, loads, 0.15, limit, may)
		require.Equal(t, next, protocol.Place(current, slices.Sorted(slices.Values(members)), loads, 0.15, limit, may))
		moves := 0
		for i := range next {
			require.Contains(t, members, next[i])
			if slices.Contains(members, current[i]) && next[i] != current[i] {
				moves++
				require.True(t, may(i), "shard %d rests", i)
			}
		}
		require.LessOrEqual(t, moves, limit)

		// Without a limit the busiest member is near the mean, or a single shard is
		// what makes it busy.
		free := protocol.Place(current, members, loads, 0.05, 4*shards, func(int) bool { return true })
		most, mean := busiest(loadOf(free, loads), members)
		require.LessOrEqual(t, most, 1.05*mean+slices.Max(loads)+0.2*mean)
		again := protocol.Place(free, members, loads, 0.15, 4*shards, func(int) bool { return true })
		require.Equal(t, free, again, "what was placed stays")
	})
}

// drift runs a planner for minutes over a fleet whose loads are measured with noise.
func drift(seed uint64, members []string, loads []float64, minutes int) (most, mean float64, perMinute []int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	var p protocol.Planner
	now := time.Unix(0, 0)
	owners := protocol.Assign(make([]string, len(loads)), members)
	seen := make([]float64, len(loads))
	for range minutes {
		moves := 0
		for range 60 {
			now = now.Add(time.Second)
			for i := range seen {
				seen[i] = loads[i] * (0.9 + 0.2*rng.Float64())
			}
			next := p.Plan(now, owners, members, nil, nil, seen)
			for i := range next {
				if next[i] != owners[i] {
					moves++
				}
			}
			owners = next
		}
		perMinute = append(perMinute, moves)
	}
	most, mean = busiest(loadOf(owners, loads), members)
	return most, mean, perMinute
}

func TestAnUnevenFleetIsEvenWithinAMinuteAndThenRests(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 2))
		loads := make([]float64, 64)
		for rank := range 500 { // devices, Zipf with s = 1.1
			loads[rng.IntN(64)] += 1000 / math.Pow(float64(rank+1), 1.1)
		}
		sum := 0.0
		for _, l := range loads {
			sum += l
		}
		loads[rng.IntN(64)] += sum * 3 / 7 // one device with 30 % of all
		for _, members := range [][]string{{"a", "b"}, {"a", "b", "c"}} {
			most, mean, moves := drift(seed, members, loads, 10)
			t.Logf("seed %d, %d members: busiest %.2f of the mean, moves a minute %v", seed, len(members), most/mean, moves)
			require.LessOrEqual(t, most, 1.2*mean, "seed %d", seed)
			require.LessOrEqual(t, slices.Max(moves), 10, "seed %d", seed)
			later := 0
			for _, n := range moves[2:] {
				later += n
			}
			require.LessOrEqual(t, later, 2, "seed %d: it rests, though loads are seen with noise", seed)
		}
	}
}

// Devices that are all alike fall on shards by chance. A newcomer is as busy as the others,
// and not by the few heaviest shards.
func TestANewcomerGetsAsManyShardsAsTheOthers(t *testing.T) {
	for seed := range uint64(200) {
		rng, loads := rand.New(rand.NewPCG(seed, 3)), make([]float64, 64)
		for range 300 {
			loads[rng.IntN(64)] += 5
		}
		var p protocol.Planner
		now, three := time.Unix(0, 0), []string{"a", "b", "c"}
		owners := p.Plan(now, make([]string, 64), three[:2], nil, nil, loads)
		next := p.Plan(now.Add(time.Minute), owners, three, nil, nil, loads)
		counts := loadOf(next, slices.Repeat([]float64{1}, 64))
		most, mean := busiest(loadOf(next, loads), three)
		require.LessOrEqual(t, most, 1.16*mean, "seed %d: %v", seed, counts)
		moves := 0
		for i := range next {
			if next[i] != owners[i] {
				moves++
			}
		}
		require.LessOrEqual(t, moves, 30, "seed %d", seed)
		for _, m := range three {
			require.InDelta(t, 64.0/3, counts[m], 6, "seed %d: %v, moves %d", seed, counts, moves)
		}
	}
}

func TestANewLeaderKeepsWhatWasPlacedByLoad(t *testing.T) {
	current := []string{"a", "a", "a", "b", "b", "b", "b", "b"}
	var p protocol.Planner
	require.Equal(t, current, p.Plan(time.Unix(1, 0), current, []string{"a", "b"}, nil, nil, nil))
	require.Len(t, slices.DeleteFunc(p.Plan(time.Unix(2, 0), current, []string{"a", "c"}, nil, nil, nil), func(m string) bool { return m == "a" }), 4,
		"members changed, and loads are unknown: by count")

	var q protocol.Planner
	alone := []string{"a", "a", "a", "a", "a", "a", "a", "b"}
	require.Equal(t, alone, q.Plan(time.Unix(1, 0), alone, []string{"a", "b"}, nil, nil, nil), "it may be so for its load")
	require.Equal(t, protocol.Assign(alone, []string{"a", "b"}), q.Plan(time.Unix(61, 0), alone, []string{"a", "b"}, nil, nil, nil), "a join that was under way is completed")
	hot := []float64{10, 10, 10, 10, 10, 10, 10, 100}
	var r protocol.Planner
	require.Equal(t, alone, r.Plan(time.Unix(1, 0), alone, []string{"a", "b"}, nil, nil, nil))
	require.Equal(t, alone, r.Plan(time.Unix(31, 0), alone, []string{"a", "b"}, nil, nil, hot), "and it is")
	require.Equal(t, alone, q.Plan(time.Unix(1, 0), alone, nil, nil, nil, nil), "without members nothing moves")
}

// A member that does half of what its shards need is not idle.
func TestAnOverloadedMemberDoesNotLookIdle(t *testing.T) {
	l, now := protocol.NewLoadTracker(2, 20*time.Second), time.Unix(0, 0)
	var a, b uint64
	for second := range 300 {
		now = now.Add(time.Second)
		a += 100
		if b += 100; second > 60 {
			b -= 50
		}
		l.Observe(now, "fast", []int{0}, []uint64{a}, idle)
		l.Observe(now, "slow", []int{1}, []uint64{b}, func(int, float64) bool { return second > 62 })
	}
	loads := l.Loads(now)
	require.InDelta(t, loads[0], loads[1], 10)
}

func idle(int, float64) bool { return false }

func TestTheLoadOfAShardLastsOverItsOwners(t *testing.T) {
	l, now := protocol.NewLoadTracker(2, 20*time.Second), time.Unix(0, 0)
	var a, b uint64
	for range 120 {
		now = now.Add(time.Second)
		a, b = a+300, b+100
		l.Observe(now, "m", []int{0, 1}, []uint64{a, b}, idle)
		if now.Unix() < 21 {
			require.Nil(t, l.Loads(now), "at %v", now.Unix())
		}
	}
	require.InDeltaSlice(t, []float64{300, 100}, l.Loads(now), 3)
	// Another owner counts from 0, and goes on as fast.
	for n := range uint64(3) {
		now = now.Add(time.Second)
		l.Observe(now, "n", []int{0, 1, 9}, []uint64{n * 300, n * 100, 5}, idle)
	}
	require.InDeltaSlice(t, []float64{300, 100}, l.Loads(now), 5)
	for range 300 {
		now = now.Add(time.Second)
		l.Observe(now, "n", []int{0, 1}, []uint64{600, 200}, idle)
	}
	require.Nil(t, l.Loads(now), "a fleet at rest has no load that matters")
}

// With one more instance at a time, a deploy moves each shard once: from the one that
// leaves to the one that has come.
func TestADeployThatAnnouncesItselfMovesEachShardOnce(t *testing.T) {
	for _, loads := range [][]float64{nil, slices.Repeat([]float64{50}, 64)} {
		now, moves := time.Unix(0, 0), 0
		var p protocol.Planner
		members := []string{"a1", "b1", "c1"}
		owners := p.Plan(now, make([]string, 64), members, nil, nil, loads)
		first := slices.Clone(owners)
		step := func(members ...string) {
			now = now.Add(10 * time.Second)
			outdated := slices.DeleteFunc(slices.Clone(members), func(m string) bool { return m[1] == '2' })
			next := p.Plan(now, owners, members, outdated, nil, loads)
			for i := range next {
				if next[i] != owners[i] {
					moves++
				}
			}
			owners = next
		}
		step("a1", "a2", "b1", "c1")
		require.Equal(t, first, owners, "a newcomer waits for what those that leave hand over")
		step("a2", "b1", "c1")
		step("a2", "b1", "b2", "c1")
		step("a2", "b2", "c1")
		step("a2", "b2", "c1", "c2")
		step("a2", "b2", "c2")
		require.LessOrEqual(t, moves, 64+4, "loads %v", loads != nil)
		most, mean := busiest(loadOf(owners, slices.Repeat([]float64{1}, 64)), []string{"a2", "b2", "c2"})
		require.LessOrEqual(t, most, 1.1*mean)

		// A deploy that stands still is no reason to leave a newcomer idle.
		step("a2", "b2", "c2", "d1")
		before := moves
		for range 7 {
			step("a2", "b2", "c2", "d1")
		}
		require.Greater(t, moves, before)
	}
}

// A shard that is paused is assigned to nobody, and no reason for anything else.
func TestAPausedShardStopsNoPlan(t *testing.T) {
	loads := slices.Repeat([]float64{100}, 8)
	held := func(shard int) bool { return shard == 0 }
	var p protocol.Planner
	now, current := time.Unix(0, 0), []string{"", "a", "a", "a", "b", "b", "b", "b"}
	require.Equal(t, current[1:], p.Plan(now, current, []string{"a", "b"}, nil, held, nil)[1:])
	now = now.Add(time.Minute)
	p.Plan(now, current, []string{"a", "b"}, nil, held, loads)
	loads[4] = 900 // b becomes hot: it is relieved all the same
	now = now.Add(time.Minute)
	next := p.Plan(now, current, []string{"a", "b"}, nil, held, loads)
	require.NotEqual(t, current[1:], next[1:])
	// Once it goes on, it has an owner.
	current = slices.Clone(next)
	current[0] = ""
	require.Contains(t, []string{"a", "b"}, p.Plan(now.Add(time.Second), current, []string{"a", "b"}, nil, nil, loads)[0])
}

// What an operator claims stays where it is for a while, with its former owner idle, whatever
// loads say and after a change of leaders; then it is evened out.
func TestWhatIsClaimedStaysUntilMembersChangeOrAMinuteHasPassed(t *testing.T) {
	even := []string{"a", "a", "a", "a", "b", "b", "b", "b"}
	claimed := slices.Repeat([]string{"a"}, 8)
	both := []string{"a", "b"}
	balanced := func(next []string) {
		t.Helper()
		most, mean := busiest(loadOf(next, slices.Repeat([]float64{1}, 8)), both)
		require.InDelta(t, mean, most, 1e-9, "%v", next)
	}
	for _, loads := range [][]float64{nil, slices.Repeat([]float64{100}, 8)} {
		var p protocol.Planner
		at := func(second int64, current []string, members ...string) []string {
			return p.Plan(time.Unix(second, 0), current, members, nil, nil, loads)
		}
		require.Equal(t, even, at(0, even, both...))
		for second := range int64(60) {
			require.Equal(t, claimed, at(100+second, claimed, both...), "second %d, loads %v", second, loads != nil)
			require.False(t, p.Settled())
		}
		next := at(160, claimed, both...)
		balanced(next)
		require.True(t, p.Settled())

		// The member that had them goes, and comes back.
		require.Equal(t, next, at(199, next, both...))
		require.Equal(t, claimed, at(200, claimed, both...))
		require.Equal(t, claimed, at(205, claimed, "a"))
		balanced(at(206, claimed, both...))

		// A leader that was elected meanwhile is told.
		p = protocol.Planner{}
		for second := range int64(60) {
			p.Claimed()
			require.Equal(t, claimed, at(300+second, claimed, both...), "second %d, loads %v", second, loads != nil)
		}
		balanced(at(360, claimed, both...))
		p = protocol.Planner{}
		balanced(at(400, claimed, both...))
	}
	// One shard that is claimed has nothing planned anew that was arranged by load.
	loads := []float64{70, 10, 10, 10, 10, 10, 10, 10}
	placed := []string{"a", "b", "b", "b", "b", "b", "b", "a"}
	one := slices.Clone(placed)
	one[1] = "a"
	var q protocol.Planner
	require.Equal(t, placed, q.Plan(time.Unix(0, 0), placed, both, nil, nil, loads))
	require.Equal(t, one, q.Plan(time.Unix(100, 0), one, both, nil, nil, loads))
	require.False(t, q.Settled())
	require.Equal(t, one, q.Plan(time.Unix(160, 0), one, both, nil, nil, loads))
	require.True(t, q.Settled())
	require.NotEqual(t, "b", q.Plan(time.Unix(170, 0), one, both, nil, nil, loads)[0])
	// To a member that may own nothing, a claim is not followed.
	var p protocol.Planner
	require.Equal(t, even, p.Plan(time.Unix(0, 0), even, both, nil, nil, nil))
	require.Equal(t, even, p.Plan(time.Unix(1, 0), slices.Repeat([]string{"drained"}, 8), both, nil, nil, nil))
}

// A plan that is written a few shards at a time is no claim of an operator, and what is
// claimed on the way neither moves back nor is in the way of the rest.
func TestAPlanThatIsWrittenStepByStepIsFollowedToItsEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members := []string{"a", "b", "c", "d"}
		rows := make([]protocol.ShardRecord, rapid.IntRange(1, 70).Draw(t, "shards"))
		var p protocol.Planner
		now := time.Unix(0, 0)
		var target []string
		pass := func(here []string) {
			current := make([]string, len(rows))
			for i, r := range rows {
				current[i] = r.Assigned
			}
			target = p.Plan(now, current, here, nil, nil, nil)
			next := protocol.Pace(rows, target, func(string) bool { return true }, func(int) bool { return false })
			p.Assigned(next)
			for i, m := range next {
				if rows[i].Assigned = m; rapid.Bool().Draw(t, "released") {
					rows[i].Owner = m
				}
			}
		}
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			here := members[:rapid.IntRange(1, 4).Draw(t, "members")]
			for range rapid.IntRange(1, 40).Draw(t, "passes") {
				pass(here)
				require.Equal(t, protocol.Assign(target, here), target, "balanced")
				require.True(t, p.Settled())
			}
		}
		here := members[:2]
		pass(here)
		shard := rapid.IntRange(0, len(rows)-1).Draw(t, "claimed")
		to := rapid.SampledFrom(here).Draw(t, "to")
		if to == rows[shard].Assigned {
			t.Skip("nothing is claimed")
		}
		before := slices.Clone(target)
		before[shard], rows[shard] = to, protocol.ShardRecord{Assigned: to}
		for range 5 {
			pass(here)
			if rows[shard].Assigned != before[shard] {
				t.Fatalf("shard %d was moved back", shard)
			}
			require.Equal(t, before, target)
		}
	})
}
