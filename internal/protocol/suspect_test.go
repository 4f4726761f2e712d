package protocol_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

func id(n int) telemetry.EntryID { return telemetry.EntryID{Ms: uint64(n)} }

func TestASuspicionNeedsADeathWithoutProgress(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	run := protocol.Run{Epoch: 7, First: id(1), Last: id(9), Entries: 9, Until: id(40), Under: true}
	idle := run
	idle.Under = false
	old := run
	old.Epoch = 6
	alone := protocol.Run{Epoch: 7, First: id(5), Last: id(5), Entries: 1, Until: id(6), Under: true}
	tests := []struct {
		name string
		give protocol.Standing
		want protocol.Suspicion
	}{
		{"never owned", protocol.Standing{}, protocol.Suspicion{}},
		{"released", protocol.Standing{Since: now, Epoch: 7}, protocol.Suspicion{}},
		{"ours already", protocol.Standing{Owner: "me", Since: now, Epoch: 7}, protocol.Suspicion{}},
		{"an ordinary death after progress", protocol.Standing{Owner: "it", Since: now, Progress: now.Add(1), Epoch: 7, Deaths: 1}, protocol.Suspicion{}},
		{
			"a death without progress",
			protocol.Standing{Owner: "it", Since: now, Progress: now.Add(-1), Epoch: 7},
			protocol.Suspicion{Deaths: 1, Limit: protocol.FirstRunLimit},
		},
		{
			"lost by a process that lives on",
			protocol.Standing{Owner: "it", Alive: true, Since: now, Progress: now.Add(-1), Epoch: 7},
			protocol.Suspicion{},
		},
		{
			"lost in the middle of a run by a process that lives on",
			protocol.Standing{Owner: "it", Alive: true, Since: now, Epoch: 7, Deaths: 5, RunLimit: 1, Run: alone},
			protocol.Suspicion{Deaths: 5, Limit: 1, Until: id(6)},
		},
		{
			"in the middle of a run",
			protocol.Standing{Owner: "it", Since: now, Epoch: 7, Deaths: 2, RunLimit: 20, Run: run},
			protocol.Suspicion{Deaths: 3, Limit: 5, Until: id(9)},
		},
		{
			"in the middle of a run, after another one ended well",
			protocol.Standing{Owner: "it", Since: now, Progress: now.Add(1), Epoch: 7, RunLimit: 20, Run: run},
			protocol.Suspicion{Deaths: 1, Limit: 5, Until: id(9)},
		},
		{
			"between two runs",
			protocol.Standing{Owner: "it", Since: now, Epoch: 7, Deaths: 2, RunLimit: 20, Run: idle},
			protocol.Suspicion{Deaths: 2, Limit: 20, Until: id(40)},
		},
		{
			"before its first run",
			protocol.Standing{Owner: "it", Since: now, Epoch: 7, Deaths: 2, RunLimit: 20, Run: old},
			protocol.Suspicion{Deaths: 2, Limit: 20, Until: id(40)},
		},
		{
			"released under suspicion",
			protocol.Standing{Since: now, Epoch: 7, Deaths: 2, RunLimit: 20, Run: idle},
			protocol.Suspicion{Deaths: 2, Limit: 20, Until: id(40)},
		},
		{
			"with one entry in hand for the first time",
			protocol.Standing{Owner: "it", Since: now, Epoch: 7, Deaths: 4, RunLimit: 2, Run: alone},
			protocol.Suspicion{Deaths: 5, Limit: 1, Until: id(5)},
		},
		{
			"with one entry in hand again",
			protocol.Standing{Owner: "it", Since: now, Epoch: 7, Deaths: 5, RunLimit: 1, Run: alone},
			protocol.Suspicion{Deaths: 6, Limit: 1, Until: id(5), Condemned: id(5)},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt.want, protocol.Suspect("me", tt.give))
		})
	}
}

// TestOneKillerAmongManyIsFoundAndNobodyElseIsCondemned plays owners that die.
func TestOneKillerAmongManyIsFoundAndNobodyElseIsCondemned(t *testing.T) {
	t.Parallel()
	for _, queue := range []int{1, 2, 3, 10, 1000, 5000} {
		for _, killer := range []int{0, 1, queue / 3, queue / 2, queue - 1} {
			killer %= queue
			next, deaths := 0, 0
			s := protocol.Standing{Owner: "dead", RunLimit: protocol.FirstRunLimit}
			for next <= killer {
				sus := protocol.Suspect("me", s)
				require.Less(t, deaths, 40, "queue %d, killer %d", queue, killer)
				s = protocol.Standing{Owner: "dead", Epoch: s.Epoch + 1, Deaths: sus.Deaths, RunLimit: sus.Limit, Since: time.Unix(1, 0)}
				s.Run.Until = sus.Until
				for {
					n := min(queue-next, max(sus.Limit, 1))
					if sus.Limit == 0 {
						n = min(queue-next, 4000)
					} else {
						s.Run = protocol.Run{Epoch: s.Epoch, First: id(next + 1), Last: id(next + n), Entries: n, Until: s.Run.Until, Under: true}
					}
					if sus.Condemned == id(next+1) {
						require.Equal(t, killer, next)
						next = killer + 1
						break
					}
					if next <= killer && killer < next+n {
						deaths++
						break
					}
					next += n
					s.Run.Under = false
					s.Progress = time.Unix(2, 0)
					if !s.Run.Last.Less(s.Run.Until) {
						sus, s.RunLimit, s.Deaths, s.Run = protocol.Suspicion{}, 0, 0, protocol.Run{}
					}
				}
			}
			t.Logf("queue of %d, killer at %d: %d deaths", queue, killer, deaths)
		}
	}
}
