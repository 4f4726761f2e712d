package operator

import (
	"errors"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/protocol"
	storeadmin "github.com/trmtracking/processor/internal/store/admin"
	"github.com/trmtracking/processor/internal/stream"
	streamadmin "github.com/trmtracking/processor/internal/stream/admin"
)

func TestEachIncidentHasAGuide(t *testing.T) {
	file, err := os.ReadFile("../protocol/incident.go")
	require.NoError(t, err)
	var kinds []string
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ += "(\w+)"`).FindAllStringSubmatch(string(file), -1) {
		kinds = append(kinds, m[1])
	}
	require.ElementsMatch(t, kinds, slices.Collect(maps.Keys(incidentGuides)))
	for kind, g := range incidentGuides {
		require.NotEmpty(t, g.section, kind)
		require.NotEmpty(t, g.remedy, kind)
	}
}

func TestTheDoctorSaysThatAStreamBelongsToAnotherGroup(t *testing.T) {
	d := &Diagnosis{}
	d.fleet(config.Config{}, &storeadmin.FleetStatus{Group: "b", Foreign: true}, nil, false)
	require.Equal(t, LevelError, levelOf(d, "in this database the stream is processed by group b"))
}

func TestAFleetWithoutALiveMemberIsTroubleWhateverTheOwnerColumnsSay(t *testing.T) {
	status := &storeadmin.FleetStatus{Pinned: map[string]string{"SHARDS": "4"}, Owners: map[string]int{"a.1": 4}, Term: 3}
	judged := func(alive map[string]bool, known bool) *Diagnosis {
		d := &Diagnosis{}
		d.fleet(config.Config{}, status, alive, known)
		d.conclude()
		return d
	}
	d := judged(map[string]bool{}, true)
	require.True(t, d.Trouble)
	require.Equal(t, "trouble: fleet: no instance is alive: nothing is processed", d.Verdict)
	require.Equal(t, "none", levelOf(d, "no leader"), "what follows from it is not said again: %+v", d.Findings)
	require.Equal(t, LevelWarning, levelOf(judged(map[string]bool{"b.1": true}, true), "4 of 4 shards are owned by members that are gone"))
	require.Equal(t, LevelOK, levelOf(judged(map[string]bool{"a.1": true}, true), "every shard has an owner, alive: 1 instance"))
	d = judged(nil, false)
	require.Equal(t, LevelOK, levelOf(d, "every shard has an owner by the tables"), "heartbeats are unknown: %+v", d.Findings)
	require.Equal(t, LevelOK, levelOf(d, "SHARDS is 4"), "no number in the settings is none to complain of")

	// A server that is away goes before what it hides.
	d.add(LevelError, "incident", "a", "b").Count = 59
	d.unreachable("Redis", errors.New("away"), "start", "start")
	d.conclude()
	require.Equal(t, "trouble: Redis: away (and 1 more)", d.Verdict)
}

func TestTheDoctorComparesWhatPositionsIsMadeOfWithTheLockTable(t *testing.T) {
	judged := func(heaps, locks int) *Diagnosis {
		d := &Diagnosis{}
		d.locks(&storeadmin.ServerStatus{Heaps: heaps, HeapLocks: locks, MaxLocks: 6400, LocksPerSession: 64})
		return d
	}
	require.Empty(t, judged(0, 5).Findings, "one heap")
	require.Equal(t, LevelOK, levelOf(judged(640, 3200), "all 640 chunks or partitions of positions take 3,200 locks, the lock table holds 6,400"))
	d := judged(1900, 7604)
	const text = "all 1,900 chunks or partitions of positions take 7,604 locks in one statement, such as a dump's; the lock table holds 6,400 for all sessions"
	require.Equal(t, LevelWarning, levelOf(d, text))
	require.Contains(t, remedyOf(d, text), "set max_locks_per_transaction = 192 and restart Postgres")
}

// A managed server or a proxy may cut the reply to INFO.
func TestTheDoctorTakesWhatRedisDoesNotTellAsUnknown(t *testing.T) {
	d := &Diagnosis{}
	d.redisServer(&streamadmin.ServerStatus{})
	for _, text := range []string{"version unknown", "does not tell its maxmemory-policy", "does not tell whether it keeps an append-only file"} {
		require.Equal(t, LevelOK, levelOf(d, text), text)
	}
	for _, f := range d.Findings {
		require.Equal(t, LevelOK, f.Level, f.What)
	}
	d = &Diagnosis{}
	d.redisServer(&streamadmin.ServerStatus{Server: stream.Server{Version: "6.2.1", TellsAppendOnly: true}})
	require.Equal(t, LevelError, levelOf(d, `version "6.2.1" is older than 7.0`))
	require.Equal(t, LevelWarning, levelOf(d, "append-only file is off: a restart loses what was added since the last snapshot"))
}

func TestTheDoctorDistinguishesForeignConsumers(t *testing.T) {
	d := &Diagnosis{}
	d.stream(config.Redis{Group: "g"}, &streamadmin.ServerStatus{Foreign: []protocol.Consumer{
		{Name: "a", Pending: 3, Idle: time.Second},
		{Name: "b", Idle: time.Second},
		{Name: "c", Pending: 3, Idle: time.Hour},
		{Name: "d", Idle: time.Hour},
	}}, true)
	for _, tt := range []struct{ what, level, remedy string }{
		{`"a" reads in our group, and holds 3 entries that it did not finish`, LevelError, "ProcessorForeignConsumer"},
		{`"b" reads in our group, and holds nothing`, LevelError, "ProcessorForeignConsumer"},
		{`"c" is silent for 1h0m0s, and holds 3 entries`, LevelWarning, "ProcessorForeignConsumer"},
		{`"d" is silent for 1h0m0s, and holds nothing`, LevelWarning, "the leader removes it"},
	} {
		require.Equal(t, tt.level, levelOf(d, tt.what))
		require.Contains(t, remedyOf(d, tt.what), tt.remedy)
	}
}

// about returns the first finding that contains a text.
func about(d *Diagnosis, text string) Finding {
	i := slices.IndexFunc(d.Findings, func(f Finding) bool { return strings.Contains(f.About+": "+f.What, text) })
	if i < 0 {
		return Finding{Level: "none", Remedy: "no such finding"}
	}
	return d.Findings[i]
}

func levelOf(d *Diagnosis, text string) string  { return about(d, text).Level }
func remedyOf(d *Diagnosis, text string) string { return about(d, text).Remedy }
