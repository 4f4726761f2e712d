package e2e_test

import (
	"bytes"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// router adds entries to one of several streams, and keeps one send log. It chooses the IDs, so
// that no two streams have the same.
type router struct {
	t      *testing.T
	client *redis.Client
	log    *fleet.LogWriter
	to     func(device string) string
	seq    uint64
}

func (r *router) send(items []fleet.Item) error {
	pipe := r.client.Pipeline()
	for i := range items {
		fields := items[i].Fields()
		r.seq++
		id := telemetry.EntryID{Ms: uint64(time.Now().UnixMilli()), Seq: r.seq}
		pipe.XAdd(r.t.Context(), &redis.XAddArgs{Stream: r.to(items[i].Message.DeviceID), ID: id.String(), Values: fields})
		sent := fleet.Sent{ID: id, Message: items[i].Message, Class: fleet.ClassOf(&items[i].Message)}
		if err := r.log.Append(&sent); err != nil {
			return err
		}
	}
	_, err := pipe.Exec(r.t.Context())
	return err
}

// P5: from one stream to three as docs/reference/routing.md says, under load, with a publisher that switches
// by a hash of the device: the tables are what one pass over everything makes.
func TestAFleetRollsFromOneStreamToThreeAndRemovesTheFirst(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	_, err := schema.Migrate(t.Context(), dep.PostgresURL, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	pool, err := pgxpool.New(t.Context(), dep.PostgresURL)
	require.NoError(t, err)
	t.Cleanup(pool.Close)

	const seed = 20261129
	profile := fleet.Rally(seed)
	profile.Devices, profile.Duration = 40, 300*time.Second
	profile.BadClocks = 0 // what is no record becomes a dead letter, and a stream with one is not removed
	source, err := profile.Source()
	require.NoError(t, err)
	items := fleet.Collect(source)
	t.Logf("fleet seed %d, %d items", seed, len(items))

	running := make([]*servicetest.Process, 2)
	roll := func(list string) { // one instance after the other
		for n, name := range []string{"a", "b"} {
			if running[n] != nil {
				require.Zero(t, running[n].Terminate())
			}
			running[n] = dep.Run("REDIS_TELEMETRY_STREAM="+list, servicetest.FourShards, "INSTANCE_ID="+name, "LEADER_TTL=1s")
			running[n].AwaitReady()
		}
	}
	roll(dep.Stream)
	dep.Ask(fault.Clean, nil, "geofence", "import", servicetest.File(t, profile.Fences()))

	var log bytes.Buffer
	writer, err := fleet.NewLogWriter(&log)
	require.NoError(t, err)
	first := func(string) string { return dep.Stream }
	r := &router{t: t, client: dep.Client(), log: writer, to: first}
	third := len(items) / 3
	require.NoError(t, r.send(items[:third]))

	names := dep.Stream + ":{0..2}"
	var added struct{ List string }
	dep.Ask(fault.Clean, &added, "streams", "add", names)
	require.Equal(t, dep.Stream+","+dep.Stream+":0,"+dep.Stream+":1,"+dep.Stream+":2", added.List)
	sending := make(chan error, 1)
	go func() {
		var err error
		for rest := items[third : 2*third]; len(rest) > 0 && err == nil; {
			n := min(20, len(rest))
			err = r.send(rest[:n])
			rest = rest[n:]
		}
		sending <- err
	}()
	roll(added.List)
	require.NoError(t, <-sending)
	dep.Ask(fault.Clean, nil, "streams", "drain", dep.Stream, "--quiet", "1s") // the publisher waits meanwhile

	r.to = func(device string) string {
		return []string{dep.Stream + ":0", dep.Stream + ":1", dep.Stream + ":2"}[telemetry.StreamOf(device, 3)]
	}
	require.NoError(t, r.send(items[2*third:2*third+third/2]))
	roll(dep.Stream + ":0," + dep.Stream + ":1," + dep.Stream + ":2")
	dep.Ask(fault.Clean, nil, "streams", "remove", dep.Stream, "--devices-to", dep.Stream+":0")
	require.NoError(t, r.send(items[2*third+third/2:]))
	require.NoError(t, writer.Flush())
	for _, name := range []string{":0", ":1", ":2"} {
		of := *dep
		of.Stream += name
		of.AwaitDone(60 * time.Second)
	}
	dep.AwaitCount(0, "select count(*) from processor.requests where state in ('waiting', 'running')")
	for _, p := range running {
		require.Zero(t, p.Terminate())
	}

	o, err := oracle.New(fleet.NewLog(bytes.NewReader(log.Bytes()), int64(log.Len())))
	require.NoError(t, err)
	fences, err := observer.Fences(t.Context(), pool)
	require.NoError(t, err)
	report, err := o.Judge(oracle.Observed{
		Positions: observer.Positions(t.Context(), pool), Crossings: observer.Timings(t.Context(), pool),
		Rules: oracle.Rules{Fences: fences, Limits: oracle.Limits{MaxFutureSkew: 5 * time.Minute, MinSatellites: 1, MaxCrossingGap: 10 * time.Minute}},
	})
	require.NoError(t, err)
	require.True(t, report.Good(), "%+v\n%v", report.Account, report.Examples)
	require.Positive(t, report.Crossings)
	require.EqualValues(t, len(items), report.Account.Entries)
	dep.AwaitCount(0, "select count(*) from processor.incidents where kind = 'device_in_two_streams'")
}
