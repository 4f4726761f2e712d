package protocol_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

func id(n int) telemetry.EntryID { return telemetry.EntryID{Ms: uint64(n)} }

func TestAQuarantineNeedsACrashWithoutProgress(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	run := protocol.ProbeBatch{Epoch: 7, First: id(1), Last: id(9), Entries: 9, Until: id(40), InProgress: true}
	idle := run
	idle.InProgress = false
	old := run
	old.Epoch = 6
	alone := protocol.ProbeBatch{Epoch: 7, First: id(5), Last: id(5), Entries: 1, Until: id(6), InProgress: true}
	exclusive := alone
	exclusive.Exclusive = true
	tests := []struct {
		name string
		give protocol.ShardHistory
		want protocol.Quarantine
	}{
		{"never owned", protocol.ShardHistory{}, protocol.Quarantine{}},
		{"released", protocol.ShardHistory{Since: now, Epoch: 7}, protocol.Quarantine{}},
		{"ours already", protocol.ShardHistory{Owner: "me", Since: now, Epoch: 7}, protocol.Quarantine{}},
		{"an ordinary death after progress", protocol.ShardHistory{Owner: "it", Since: now, Progress: now.Add(1), Epoch: 7, CrashCount: 1}, protocol.Quarantine{}},
		{
			"a death without progress",
			protocol.ShardHistory{Owner: "it", Since: now, Progress: now.Add(-1), Epoch: 7},
			protocol.Quarantine{CrashCount: 1, Limit: protocol.InitialProbeSize},
		},
		{
			"lost by a process that lives on",
			protocol.ShardHistory{Owner: "it", Alive: true, Since: now, Progress: now.Add(-1), Epoch: 7},
			protocol.Quarantine{},
		},
		{
			"lost in the middle of a run by a process that lives on",
			protocol.ShardHistory{Owner: "it", Alive: true, Since: now, Epoch: 7, CrashCount: 5, MaxInFlight: 1, Probe: alone},
			protocol.Quarantine{CrashCount: 5, Limit: 1, Until: id(6)},
		},
		{
			"in the middle of a run",
			protocol.ShardHistory{Owner: "it", Since: now, Epoch: 7, CrashCount: 2, MaxInFlight: 20, Probe: run},
			protocol.Quarantine{CrashCount: 3, Limit: 5, Until: id(9)},
		},
		{
			"in the middle of a run, after another one ended well",
			protocol.ShardHistory{Owner: "it", Since: now, Progress: now.Add(1), Epoch: 7, MaxInFlight: 20, Probe: run},
			protocol.Quarantine{CrashCount: 1, Limit: 5, Until: id(9)},
		},
		{
			"between two runs",
			protocol.ShardHistory{Owner: "it", Since: now, Epoch: 7, CrashCount: 2, MaxInFlight: 20, Probe: idle},
			protocol.Quarantine{CrashCount: 2, Limit: 20, Until: id(40)},
		},
		{
			"before its first run",
			protocol.ShardHistory{Owner: "it", Since: now, Epoch: 7, CrashCount: 2, MaxInFlight: 20, Probe: old},
			protocol.Quarantine{CrashCount: 2, Limit: 20, Until: id(40)},
		},
		{
			"released in quarantine",
			protocol.ShardHistory{Since: now, Epoch: 7, CrashCount: 2, MaxInFlight: 20, Probe: idle},
			protocol.Quarantine{CrashCount: 2, Limit: 20, Until: id(40)},
		},
		{
			"with one entry in flight for the first time",
			protocol.ShardHistory{Owner: "it", Since: now, Epoch: 7, CrashCount: 4, MaxInFlight: 2, Probe: alone},
			protocol.Quarantine{CrashCount: 5, Limit: 1, Until: id(5)},
		},
		{
			"with one entry in flight again",
			protocol.ShardHistory{Owner: "it", Since: now, Epoch: 7, CrashCount: 5, MaxInFlight: 1, Probe: exclusive},
			protocol.Quarantine{CrashCount: 6, Limit: 1, Until: id(5), Culprit: id(5)},
		},
		{
			"with one entry in flight of this shard, and entries of others",
			protocol.ShardHistory{Owner: "it", Since: now, Epoch: 7, CrashCount: 5, MaxInFlight: 1, Probe: alone},
			protocol.Quarantine{CrashCount: 6, Limit: 1, Until: id(5)},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt.want, protocol.AssessCrash("me", tt.give))
		})
	}
}

// Owners crash on the culprit until it is found.
func TestOneCulpritAmongManyIsFoundAndNoOtherIsBlamed(t *testing.T) {
	t.Parallel()
	for _, queue := range []int{1, 2, 3, 10, 1000, 5000} {
		for _, killer := range []int{0, 1, queue / 3, queue / 2, queue - 1} {
			killer %= queue
			next, deaths := 0, 0
			s := protocol.ShardHistory{Owner: "dead", MaxInFlight: protocol.InitialProbeSize}
			for next <= killer {
				sus := protocol.AssessCrash("me", s)
				require.Less(t, deaths, 40, "queue %d, killer %d", queue, killer)
				s = protocol.ShardHistory{Owner: "dead", Epoch: s.Epoch + 1, CrashCount: sus.CrashCount, MaxInFlight: sus.Limit, Since: time.Unix(1, 0)}
				s.Probe.Until = sus.Until
				for {
					n := min(queue-next, max(sus.Limit, 1))
					if sus.Limit == 0 {
						n = min(queue-next, 4000)
					} else {
						s.Probe = protocol.ProbeBatch{Epoch: s.Epoch, First: id(next + 1), Last: id(next + n), Entries: n, Until: s.Probe.Until, InProgress: true, Exclusive: sus.Limit == 1}
					}
					if sus.Culprit == id(next+1) {
						require.Equal(t, killer, next)
						next = killer + 1
						break
					}
					if next <= killer && killer < next+n {
						deaths++
						break
					}
					next += n
					s.Probe.InProgress = false
					s.Progress = time.Unix(2, 0)
					if !s.Probe.Last.Less(s.Probe.Until) {
						sus, s.MaxInFlight, s.CrashCount, s.Probe = protocol.Quarantine{}, 0, 0, protocol.ProbeBatch{}
					}
				}
			}
			t.Logf("queue of %d, killer at %d: %d deaths", queue, killer, deaths)
		}
	}
}
