package equivalence_test

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// TestTheTablesAreAFunctionOfTheInput is promise P5: the tables depend
// only on the input, not on order, repetition, batches, or which instance works
// on it, crashes or loses its shards. They equal those of one pass over the input.
// TEST_SEED is the first seed, TEST_SEEDS the number of seeds; those are played in every world.
func TestTheTablesAreAFunctionOfTheInput(t *testing.T) {
	t.Parallel()
	seeds := 30
	if os.Getenv("TEST_FULL") != "" {
		seeds = 3000
	}
	first := uint64(time.Now().UnixNano()) % 1_000_000
	replay := false
	if text := os.Getenv("TEST_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
		first, seeds, replay = n, 1, true
	}
	if text := os.Getenv("TEST_SEEDS"); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(t, err)
		seeds = n
	}
	t.Logf("seeds %d to %d", first, first+uint64(seeds)-1)
	worlds := []devenv.World{devenv.Plain, devenv.Partitioned} // every other seed in each, however few lanes run at once
	next := make([]atomic.Int64, len(worlds))
	for lane := range 4 {
		t.Run(fmt.Sprintf("lane%d", lane), func(t *testing.T) {
			t.Parallel()
			world := lane % len(worlds)
			b := newBench(t, testenv.InWorld(worlds[world]))
			number := func() uint64 { return share(uint64(next[world].Add(1)-1), world, len(worlds), replay) }
			for n := number(); n < uint64(seeds) && !t.Failed(); n = number() {
				playSeed(t, b, first+n)
			}
		})
	}
}

// share returns which seed is the nth of a world: every other one, or each where they are
// played again, since in which world one failed is not known.
func share(n uint64, world, worlds int, replay bool) uint64 {
	if replay {
		return n
	}
	return n*uint64(worlds) + uint64(world)
}

func TestASeedIsPlayedAgainInEveryWorld(t *testing.T) {
	t.Parallel()
	for world := range 2 {
		for n := range uint64(3) {
			require.Equal(t, n, share(n, world, 2, true))
			require.Equal(t, 2*n+uint64(world), share(n, world, 2, false))
		}
	}
}

// playSeed plays one scenario; one that fails is made as small as can be.
func playSeed(t *testing.T, b *bench, seed uint64) {
	t.Helper()
	t.Run(fmt.Sprintf("seed%d", seed), func(t *testing.T) {
		sc := newScenario(seed)
		plays := 0
		play := func(sc scenario) (err error) {
			plays++
			t.Run("play", func(t *testing.T) {
				err = sc.play(newWorld(t, b, fmt.Sprintf("%s-%d-%d", b.Stream, seed, plays), sc.options()))
			})
			return err
		}
		err := play(sc)
		if err == nil {
			return
		}
		sc, err = shrink(sc, err, play)
		t.Fatalf("run again with TEST_SEED=%d: %v\n%s", seed, err, sc.String())
	})
}

// shrink takes steps and messages away as long as what is left fails.
func shrink(sc scenario, err error, play func(scenario) error) (scenario, error) {
	until := time.Now().Add(time.Minute)
	attempt := func(smaller scenario) bool {
		if time.Now().After(until) {
			return false
		}
		got := play(smaller)
		if got != nil {
			sc, err = smaller, got
		}
		return got != nil
	}
	for size := max(1, len(sc.steps)/2); size > 0; size /= 2 {
		for i := 0; i < len(sc.steps); {
			smaller := sc
			smaller.steps = append([]step{}, sc.steps[:i]...)
			smaller.steps = append(smaller.steps, sc.steps[min(len(sc.steps), i+size):]...)
			if !attempt(smaller) {
				i += size
			}
		}
	}
	for i := 0; i < len(sc.steps); i++ {
		for j := 0; j < len(sc.steps[i].send) && len(sc.steps[i].send) > 1; {
			smaller := sc
			smaller.steps = append([]step{}, sc.steps...)
			s := &smaller.steps[i]
			s.send = append(append([]fleet.Message{}, s.send[:j]...), s.send[j+1:]...)
			s.ahead = append(append([]time.Duration{}, s.ahead[:j]...), s.ahead[j+1:]...)
			if !attempt(smaller) {
				j++
			}
		}
		for j := 0; j < len(sc.steps[i].fences) && len(sc.steps[i].fences) > 1; {
			smaller := sc
			smaller.steps = append([]step{}, sc.steps...)
			s := &smaller.steps[i]
			s.fences = append(append(s.fences[:0:0], s.fences[:j]...), s.fences[j+1:]...)
			if !attempt(smaller) {
				j++
			}
		}
	}
	return sc, err
}
