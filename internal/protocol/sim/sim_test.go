package sim_test

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol/sim"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/testenv"
)

// SIM_SEED replays a failing run, SIM_FROM searches from another seed.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(v, 10, 64)
	require.NoError(t, err, name)
	return n
}

func full() bool { return os.Getenv("TEST_FULL") != "" }

// show prints a shrunk run.
func show(t *testing.T, r sim.Result) {
	t.Helper()
	t.Logf("shrunk to %d faults, %d entries, %d devices, %d shards, %d members, %d steps", len(r.Config.Faults),
		r.Config.Entries, r.Config.Devices, r.Config.Shards, r.Config.Members, r.Steps)
	for _, f := range r.Config.Faults {
		t.Log(f)
	}
	trace := r.Trace
	if len(trace) > 400 {
		trace = trace[len(trace)-400:]
	}
	t.Log("\n" + strings.Join(trace, "\n"))
}

func TestPromisesHoldInEveryInterleaving(t *testing.T) {
	runs := uint64(700)
	if full() {
		runs = 40000
	}
	first := number(t, "SIM_FROM", 1)
	if one := number(t, "SIM_SEED", 0); one != 0 {
		first, runs = one, 1
	}
	var steps, commits, acks, unqueued, limit atomic.Int64
	var broken atomic.Uint64
	var mu sync.Mutex
	reached := make(rare.Counts)
	var next atomic.Uint64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for n := next.Add(1) - 1; n < runs && broken.Load() == 0; n = next.Add(1) - 1 {
				r := sim.Run(sim.FromSeed(first+n, sim.Sound))
				steps.Add(int64(r.Steps))
				commits.Add(int64(r.Commits))
				acks.Add(int64(r.Acks))
				unqueued.Add(int64(r.Unqueued))
				limit.Add(int64(r.Limit))
				mu.Lock()
				reached.Add(r.Reached)
				mu.Unlock()
				if r.Violation != "" {
					broken.Store(first + n)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("seeds %d to %d: %d steps, %d commits, %d acknowledgements, %d of entries that were unqueued, %d entries lost within the known limit",
		first, first+runs-1, steps.Load(), commits.Load(), acks.Load(), unqueued.Load(), limit.Load())
	t.Logf("reached: %v", reached)
	if seed := broken.Load(); seed != 0 {
		c := sim.FromSeed(seed, sim.Sound)
		show(t, sim.Shrink(c))
		t.Fatalf("SIM_SEED=%d: %s", seed, sim.Run(c).Violation)
	}
	if runs >= 10_000 {
		require.Empty(t, reached.Missing(everyBranch()), "rare branches that no run has reached")
	}
}

func TestARunIsReplayedExactly(t *testing.T) {
	for seed := range uint64(20) {
		c := sim.FromSeed(seed+1, sim.Sound)
		c.Trace = true
		first, second := sim.Run(c), sim.Run(c)
		require.Equal(t, first, second, "seed %d", seed+1)
	}
}

// provoking returns the faults that must combine to reveal a mutant, so that the short run
// does not depend on chance, and where to begin: those that take long have a seed that reveals
// them at once, and are searched for from there when the model has changed.
func provoking(m sim.Mutant) (first uint64, theme []sim.Kind) {
	switch m {
	case sim.UnqueuedAgain:
		return 3440, nil
	case sim.LookedForOnce:
		return 402, nil
	case sim.EpochAfterReading:
		return 1902, []sim.Kind{sim.Freeze, sim.PostgresSlow}
	case sim.NoTermCheck:
		return 1, []sim.Kind{sim.HoldLeader, sim.Crash, sim.LeaveFleet, sim.ExpireLock, sim.Join}
	case sim.AckOutlivesGrant:
		return 1, []sim.Kind{sim.RedisDown, sim.CutRedis, sim.PostgresFailover, sim.PostgresSlow, sim.HoldRedis}
	case sim.InFlightKeptOverRun, sim.KeptOverRun:
		return 1, []sim.Kind{sim.RedisFailover, sim.PostgresSlow, sim.RedisSlow}
	case sim.LockIsOutage, sim.LockedKeptInFlight:
		return 1, []sim.Kind{sim.LockRow, sim.Crash, sim.Join}
	case sim.SweptAhead:
		return 1, []sim.Kind{sim.MoveForward, sim.LoseRedis, sim.CutRedis, sim.ForeignRead}
	case sim.FeedKnownLate:
		return 1, []sim.Kind{sim.GroupMovedManually, sim.PostgresDown}
	case sim.RefusedAckFinishes:
		return 534, []sim.Kind{sim.CutPostgres, sim.Freeze, sim.PostgresSlow, sim.Join}
	case sim.ClaimedAheadOfUnqueued:
		return 1, []sim.Kind{sim.CutPostgres, sim.Freeze, sim.PostgresSlow, sim.Join}
	case sim.FeedRead:
		return 722, []sim.Kind{sim.GroupMovedManually, sim.ForeignRead, sim.PostgresSlow}
	case sim.SettledUnknown:
		return 1987, []sim.Kind{sim.LeaveFleet, sim.Join, sim.RedisSlow, sim.PostgresSlow}
	default:
		return 1, nil
	}
}

func TestEveryPlantedFaultIsCaught(t *testing.T) {
	const within = 5000
	for _, m := range sim.Mutants() {
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			first, theme := provoking(m)
			runs := uint64(within)
			if full() {
				first, runs = 1, 8*within
				if m != sim.FeedRead && m != sim.SettledUnknown { // by chance in more runs than that
					theme = nil
				}
			}
			first = number(t, "SIM_FROM", first)
			for n := range runs {
				r := sim.Run(sim.Themed(first+n, m, theme...))
				if r.Violation == "" {
					continue
				}
				sound := r.Config // with the same faults
				sound.Mutant = sim.Sound
				require.Empty(t, sim.Run(sound).Violation, "broken without the fault too, SIM_FROM=%d, theme %v", first+n, theme)
				t.Logf("after %d runs, SIM_FROM=%d: %s", n+1, first+n, r.Violation)
				if os.Getenv("SIM_SHOW") != "" {
					show(t, sim.Shrink(r.Config))
				}
				return
			}
			t.Fatalf("not caught in %d runs from seed %d", runs, first)
		})
	}
}

func TestShrinkingKeepsTheFaultAndDropsTheRest(t *testing.T) {
	for seed := uint64(1); ; seed++ {
		c := sim.FromSeed(seed, sim.GroupNotAtZero)
		whole := sim.Run(c)
		if whole.Violation == "" {
			continue
		}
		small := sim.Shrink(c)
		require.NotEmpty(t, small.Violation)
		require.Less(t, len(small.Config.Faults), len(c.Faults))
		require.LessOrEqual(t, small.Config.Entries, c.Entries)
		require.NotEmpty(t, small.Trace)
		return
	}
}

// everyBranch is what a campaign reaches: the rare branches that the model has.
func everyBranch() []rare.Branch {
	return []rare.Branch{
		rare.Fenced, rare.OutcomeUnknown, rare.GenerationChanged, rare.SetAside, rare.Recomputed, rare.AckRefused, rare.Trimmed,
		rare.DispatchRefused, rare.LastIDMoved, rare.GroupCreated, rare.HandedOver, rare.ForceAcquired, rare.ReleaseOverdue,
		rare.AcquisitionBlocked, rare.ShardLost, rare.Redelivered, rare.RedeliveredTrimmed, rare.SilentMember, rare.Swept,
		rare.TermRefused, rare.RedisFailedOver, rare.ServerChanged, rare.Inherited, rare.UnqueuedOverdue, rare.Orphaned, rare.DispatchedAgain,
	}
}

// themes are combinations of faults without which some branches are reached in one
// run of hundreds.
func themes() [][]sim.Kind {
	return [][]sim.Kind{
		nil, // as the seed draws them
		{sim.HoldLeader, sim.Crash, sim.LeaveFleet, sim.ExpireLock, sim.Join},
		{sim.PostgresRestart, sim.PostgresFailover, sim.PostgresDown, sim.PostgresSlow},
		{sim.LockRow, sim.Crash, sim.Join},
		{sim.Freeze, sim.Replace, sim.Resume},
		{sim.ForeignRead, sim.FlushKeys, sim.ExpireDispatchLease},
	}
}

// What is never reached is not shown to be right. A campaign without a kind of fault
// names the branches that it has not reached.
func TestACampaignNamesTheRareBranchesItDoesNotReach(t *testing.T) {
	testenv.Slow(t)
	first := number(t, "SIM_FROM", 1)
	campaign := func(seeds uint64, without ...sim.Kind) rare.Counts {
		reached := make(rare.Counts)
		for n := range seeds {
			for _, theme := range themes() {
				c := sim.Themed(first+n, sim.Sound, theme...)
				c.Faults = slices.DeleteFunc(c.Faults, func(f sim.Fault) bool { return slices.Contains(without, f.Kind) })
				r := sim.Run(c)
				require.Empty(t, r.Violation, "SIM_FROM=%d, theme %v, without %v", first+n, theme, without)
				reached.Add(r.Reached)
			}
			if len(reached.Missing(everyBranch())) == 0 {
				break
			}
		}
		return reached
	}
	reached := campaign(300)
	t.Logf("from seed %d: %v", first, reached)
	require.Empty(t, reached.Missing(everyBranch()), "rare branches that were not reached from seed %d on", first)
	for _, tt := range []struct {
		without sim.Kind
		missing []rare.Branch
	}{
		{sim.LockRow, []rare.Branch{rare.AcquisitionBlocked, rare.SetAside}},
		{sim.ForeignRead, []rare.Branch{rare.Swept}},
		{sim.RedisFailover, []rare.Branch{rare.RedisFailedOver}},
	} {
		require.Subset(t, campaign(20, tt.without).Missing(everyBranch()), tt.missing, "without: %s", tt.without)
	}
}
