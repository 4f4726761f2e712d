package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// beside returns the deployment with another stream.
func beside(dep *servicetest.Deployment, name string) *servicetest.Deployment {
	other := *dep
	other.Stream += name
	return &other
}

// command runs a command with settings, which must end with a code.
func command(dep *servicetest.Deployment, want int, settings []string, args ...string) (text, errs string) {
	dep.T.Helper()
	p := servicetest.Spawn(dep.T, dep.Environ(settings...), args...)
	require.Equal(dep.T, want, p.Exit(40*time.Second), "%v: %s%s", args, p.Output(), p.Errors())
	return p.Output(), p.Errors()
}

func TestAStreamIsAddedToAFleetDrainedAndRemovedAgain(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	other := beside(dep, "-b")
	both := "REDIS_TELEMETRY_STREAM=" + dep.Stream + "," + other.Stream
	p := dep.Run(servicetest.FourShards, "INSTANCE_ID=one")
	p.AwaitReady()
	dep.Publish(servicetest.Record("device-1", 1), servicetest.Record("device-2", 1))

	var added addedStreams
	dep.Ask(0, &added, "streams", "add", other.Stream)
	require.Equal(t, strings.TrimPrefix(both, "REDIS_TELEMETRY_STREAM="), added.List)
	require.Equal(t, []operator.AddedStream{{Stream: other.Stream, Group: dep.Group, Changed: true, Shards: 4}}, added.Streams)
	dep.Ask(0, &added, "streams", "add", other.Stream)
	require.False(t, added.Streams[0].Changed)
	// From now on what is trimmed unread is accounted for, though no instance serves it yet.
	groups, err := dep.Client().XInfoGroups(t.Context(), other.Stream).Result()
	require.NoError(t, err)
	require.Len(t, groups, 1)
	require.Equal(t, "0-0", groups[0].LastDeliveredID)
	other.Publish(servicetest.Record("device-2", 2), servicetest.Record("device-3", 1), servicetest.Record("device-4", 1))
	require.NoError(t, dep.Client().XTrimMaxLen(t.Context(), other.Stream, 2).Err())
	_, errs := command(dep, 1, nil, "streams", "remove", dep.Stream)
	require.Contains(t, errs, "it is in the list of one.")
	require.Contains(t, errs, "2 devices came from it last")

	require.Zero(t, p.Terminate())
	p = dep.Run(both, servicetest.FourShards, "INSTANCE_ID=two")
	p.AwaitReady()
	dep.AwaitStored(4, 20*time.Second)
	dep.AwaitCount(1, "select coalesce(sum(entries), 0) from processor.losses where stream = '"+other.Stream+"' and cause = 'trimmed_unread'")

	text, _ := command(dep, 0, nil, "streams", "drain", dep.Stream, "--quiet", "1s")
	require.Contains(t, text, "drained")
	require.Zero(t, p.Terminate())
	p = dep.Run("REDIS_TELEMETRY_STREAM="+other.Stream, servicetest.FourShards, "INSTANCE_ID=three")
	p.AwaitReady()

	_, errs = command(dep, 1, nil, "streams", "remove", dep.Stream)
	require.Contains(t, errs, "2 devices came from it last")
	require.NotContains(t, errs, "in the list of")
	_, errs = command(dep, 3, nil, "streams", "remove", dep.Stream, "--devices-to", "elsewhere")
	require.Contains(t, errs, "want another stream of the group")
	var removed operator.RemovedStream
	dep.Ask(0, &removed, "streams", "remove", dep.Stream, "--devices-to", other.Stream)
	require.Equal(t, operator.RemovedStream{Stream: dep.Stream, Group: dep.Group, Shards: 4, Given: 2, GivenTo: other.Stream}, removed)
	for _, table := range []string{"shards", "assignments", "leader", "progress", "holds", "shard_states"} {
		n, err := dep.Count("select count(*) from processor." + table + " where stream = '" + dep.Stream + "'")
		require.NoError(t, err)
		require.Zero(t, n, table)
	}
	dep.AwaitCount(4, "select count(*) from processor.devices where stream = '"+other.Stream+"'")
	dep.AwaitCount(0, "select count(*) from processor.settings where name like '%"+dep.Stream+"/%' or name = 'GROUP/"+dep.Stream+"'")
	dep.AwaitCount(2, "select count(*) from processor.audit where action in ('streams add', 'streams remove')")
	keys, err := dep.Client().Keys(t.Context(), "{"+dep.Stream+"}*").Result()
	require.NoError(t, err)
	require.Equal(t, []string{"{" + dep.Stream + "}:" + dep.Group + ":removed"}, keys)
	groups, err = dep.Client().XInfoGroups(t.Context(), dep.Stream).Result()
	require.NoError(t, err)
	require.Empty(t, groups)

	// Changes of fences reach the devices that were given.
	fence := servicetest.File(t, `{"type": "Feature", "properties": {"id": "a", "name": "a", "kind": "circle", "radius_m": 500}, "geometry": {"type": "Point", "coordinates": [1.5, 42.5]}}`)
	command(dep, 0, []string{"REDIS_TELEMETRY_STREAM=" + other.Stream}, "geofence", "import", fence)
	dep.AwaitCount(4, "select count(distinct device_id) from processor.timing_records")
	dep.AwaitCount(0, "select count(*) from processor.requests where state in ('waiting', 'running')")

	// Added again, what is still in the stream is delivered again, and changes nothing.
	command(dep, 0, []string{"REDIS_TELEMETRY_STREAM=" + other.Stream}, "streams", "add", dep.Stream)
	require.Zero(t, p.Terminate())
	p = dep.Run(both, servicetest.FourShards, "INSTANCE_ID=four")
	p.AwaitReady()
	dep.AwaitDone(20 * time.Second)
	n, err := dep.Stored()
	require.NoError(t, err)
	require.Equal(t, 4, n)
	require.Zero(t, p.Terminate())
}

func TestAStreamIsNotRemovedWhileAnythingOfItIsLeft(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	other := beside(dep, "-b")
	both := "REDIS_TELEMETRY_STREAM=" + dep.Stream + "," + other.Stream
	p := dep.Run(both, servicetest.FourShards)
	p.AwaitReady()
	other.Publish(servicetest.Record("device-1", 1), servicetest.InvalidRecord("device-1", 2))
	dep.AwaitStored(1, 20*time.Second)
	other.AwaitDeadLetters(1)
	other.AwaitDone(20 * time.Second)
	dep.AwaitCount(0, "select count(*) from processor.unconfirmed_letters")
	require.Zero(t, p.Terminate())
	p = dep.Run(servicetest.FourShards)
	p.AwaitReady()
	refused := func(want ...string) {
		t.Helper()
		_, errs := command(dep, 1, nil, "streams", "remove", other.Stream, "--devices-to", dep.Stream)
		require.Contains(t, errs, "nothing was changed")
		for _, w := range want {
			require.Contains(t, errs, w)
		}
		n, err := dep.Count("select count(*) from processor.shards where stream = '" + other.Stream + "'")
		require.NoError(t, err)
		require.Equal(t, 4, n)
	}
	refused("1 dead letter: replay or drop them")
	require.NoError(t, dep.Client().Del(t.Context(), other.Stream+":dlq").Err())

	late := other.Publish(servicetest.Record("device-1", 3))
	refused("1 entry not dispatched")
	_, errs := command(dep, 1, nil, "streams", "drain", other.Stream, "--timeout", "2s")
	require.Contains(t, errs, "no instance serves the stream")
	require.Contains(t, errs, "not drained in time")

	require.NoError(t, dep.Client().Do(t.Context(), "xclaim", other.Stream, dep.Group, "shard-00", 0, late[0].String(), "force", "justid").Err())
	require.NoError(t, dep.Client().XGroupSetID(t.Context(), other.Stream, dep.Group, late[0].String()).Err())
	refused("1 entry pending")
	require.NoError(t, dep.Client().XAck(t.Context(), other.Stream, dep.Group, late[0].String()).Err())

	dep.Exec(`insert into processor.deferred (stream, group_name, entry_id, shard, fields, class, error, fingerprint, attempts, first_failed_at, last_failed_at, next_attempt_at, instance, version, digest)
values ($1, $2, '1-1', 0, '{}', 'decode', 'x', 'x', 1, now(), now(), now(), 'i', 'v', 'd')`, other.Stream, dep.Group)
	refused("1 entry deferred")
	dep.Exec("delete from processor.deferred where stream = $1", other.Stream)

	dep.Exec("insert into processor.requests (stream, group_name, kind, shard, requested_by) values ($1, $2, 'recompute', 0, 'test')", other.Stream, dep.Group)
	refused("1 request not finished")
	dep.Exec("delete from processor.requests where stream = $1", other.Stream)

	require.NoError(t, dep.Client().RPush(t.Context(), "{"+other.Stream+"}:"+dep.Group+":losses", "{}").Err())
	refused("1 loss not in the ledger yet")
	require.NoError(t, dep.Client().Del(t.Context(), "{"+other.Stream+"}:"+dep.Group+":losses").Err())

	// Nothing is left to do of an entry that was deleted unread, but to record it.
	late = other.Publish(servicetest.Record("device-1", 4))
	require.NoError(t, dep.Client().XDel(t.Context(), other.Stream, late[0].String()).Err())
	_, errs = command(dep, 1, nil, "streams", "remove", other.Stream, "--devices-to", dep.Stream)
	require.Contains(t, errs, "losses are not in the ledger yet: start an instance")
	require.Contains(t, errs, "1 device was given to "+dep.Stream+" all the same")
	refused("1 loss not in the ledger yet")
	require.NoError(t, dep.Client().Del(t.Context(), "{"+other.Stream+"}:"+dep.Group+":losses").Err())

	// In a Redis that is not the fleet's nothing is left to do, and nothing is there.
	elsewhere, err := url.Parse(dep.RedisURL)
	require.NoError(t, err)
	elsewhere.Path = "/9"
	_, errs = command(dep, 3, []string{"REDIS_URL=" + elsewhere.String()}, "streams", "remove", other.Stream, "--devices-to", dep.Stream)
	require.Contains(t, errs, "knows nothing of them: correct REDIS_URL; nothing was changed")
	dep.AwaitCount(4, "select count(*) from processor.shards where stream = '"+other.Stream+"'")

	// What it lost stays in the ledger, and is listed.
	dep.Exec("insert into processor.losses (dedupe_key, stream, group_name, cause, entries, detected_by) values ('x', $1, $2, 'trimmed_unread', 3, 'test')", other.Stream, dep.Group)
	command(dep, 0, nil, "streams", "remove", other.Stream, "--devices-to", dep.Stream)
	_, errs = command(dep, 3, nil, "streams", "remove", other.Stream)
	require.Contains(t, errs, "no stream of this database is called "+other.Stream)
	var s operator.Streams
	dep.Ask(0, &s, "streams")
	require.Len(t, s.Streams, 2)
	require.Equal(t, operator.StreamRemoved, s.Streams[1].State)
	require.EqualValues(t, 3, *s.Streams[1].Lost)
	require.Zero(t, p.Terminate())
}

func TestAStreamThatWasAddedByMistakeIsRemovedWithWhatIsInIt(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	other := beside(dep, "-b")
	_, errs := command(dep, 1, nil, "streams", "add", other.Stream)
	require.Contains(t, errs, "no instance has ever started")
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	other.Publish(servicetest.Record("device-1", 1))
	text, _ := command(dep, 0, nil, "streams", "add", other.Stream)
	require.Contains(t, text, other.Stream+": added, with 4 shards, 1 entry in it")
	command(dep, 0, nil, "streams", "remove", other.Stream)
	groups, err := dep.Client().XInfoGroups(t.Context(), other.Stream).Result()
	require.NoError(t, err)
	require.Empty(t, groups)
	// Nor does its group need to be there.
	command(dep, 0, nil, "streams", "add", other.Stream)
	require.NoError(t, dep.Client().XGroupDestroy(t.Context(), other.Stream, dep.Group).Err())
	other.Publish(servicetest.Record("device-1", 2))
	command(dep, 0, nil, "streams", "remove", other.Stream)
	require.Zero(t, p.Terminate())
}

func TestAStreamWhoseNameContinuesAnothersIsNotRemovedWithIt(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	long := beside(dep, "-b")
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	long.Stream += "/" + dep.Group + "/north"
	command(dep, 0, nil, "streams", "add", dep.Stream+"-b", long.Stream)
	pinned := "select count(*) from processor.settings where name like '" + long.Stream + "/" + dep.Group + "/%'"
	before, err := dep.Count(pinned)
	require.NoError(t, err)
	require.Greater(t, before, 3)
	command(dep, 0, nil, "streams", "remove", dep.Stream+"-b")
	dep.AwaitCount(before, pinned)
	command(dep, 0, nil, "streams", "add", dep.Stream+"-b")
	dep.AwaitCount(before, "select count(*) from processor.settings where name like '"+dep.Stream+"-b/%' and name not like '%/north/%'")
	require.Zero(t, p.Terminate())
}

func TestAStreamThatCannotBeProcessedIsNotAdded(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	require.NoError(t, dep.Client().Set(t.Context(), dep.Stream+"-text", "x", 0).Err())
	dep.Exec("insert into processor.shards (stream, group_name, shard) values ($1, 'another', 0)", dep.Stream+"-foreign")
	for name, want := range map[string]string{
		dep.Stream + ":dlq": "is the stream of the dead letters of " + dep.Stream,
		"{" + dep.Stream + "}:" + dep.Group + ":members": "has the name of a key that the group keeps for " + dep.Stream,
		dep.Stream + "-text":                             "the key is not a stream",
		dep.Stream + "-foreign":                          "is processed by group another",
		dep.Stream + "-c,":                               "one of them is empty",
		dep.Stream + "-c d":                              "without spaces",
		dep.Stream + strings.Repeat("-", 200):            "must be at most 200 bytes",
		"recompute:requests":                             "must differ from RECOMPUTE_STREAM",
		dep.Stream + "-{9..1}":                           "a range whose begin is behind its end",
	} {
		_, errs := command(dep, 3, nil, "streams", "add", dep.Stream+"-good", name)
		require.Contains(t, errs, want, name)
	}
	n, err := dep.Count("select count(distinct stream) from processor.shards")
	require.NoError(t, err)
	require.Equal(t, 2, n, "nothing was changed for the good ones")
	// A name that no other key of a Cluster can share its slot with.
	_, errs := command(dep, 3, []string{"REDIS_URL=redis://127.0.0.1:1,127.0.0.1:2"}, "streams", "add", "a}b")
	require.Contains(t, errs, "hash tag")
	require.Zero(t, p.Terminate())
}

func TestTheShardsOfAllStreamsAreResizedTogether(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	other := beside(dep, "-b")
	both := "REDIS_TELEMETRY_STREAM=" + dep.Stream + "," + other.Stream
	p := dep.Run(both, servicetest.FourShards)
	p.AwaitReady()
	dep.Publish(servicetest.Record("device-1", 1))
	other.Publish(servicetest.Record("device-2", 1))
	dep.AwaitStored(2, 20*time.Second)
	resize := servicetest.Spawn(t, dep.Environ(both), "shards", "resize", "8")
	testenv.Wait(t, 30*time.Second, func() error {
		if !strings.Contains(resize.Errors(), "stop the instances now") {
			return fmt.Errorf("it says %q", resize.Errors())
		}
		return nil
	})
	require.Zero(t, p.Terminate())
	require.Zero(t, resize.Exit(30*time.Second), resize.Errors())
	require.Contains(t, resize.Output(), "stream "+other.Stream+": 8 shards instead of 4")
	p = dep.Run(both, "SHARDS=8")
	p.AwaitReady()
	other.Publish(servicetest.Record("device-2", 2))
	dep.AwaitStored(3, 20*time.Second)
	var again struct{ Streams []operator.Resized }
	text, _ := command(dep, 0, []string{both}, "shards", "resize", "8", "--json")
	require.NoError(t, json.Unmarshal([]byte(text), &again))
	require.Len(t, again.Streams, 2)
	require.False(t, again.Streams[1].Changed)
	require.Zero(t, p.Terminate())
}
