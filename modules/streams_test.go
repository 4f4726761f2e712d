package modules

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// on is the same bench with another of its streams.
func (b *bench) on(name string) *bench {
	other, corner := *b, *b.redis
	corner.Stream += name
	other.redis = &corner
	return &other
}

// drive publishes fixes of devices that drive to and fro across a degree, one each
// minute of device time from the one given on.
func (b *bench) drive(devices, from, n int) {
	b.t.Helper()
	var entries [][]string
	for minute := from; minute < from+n; minute++ {
		for d := range devices {
			at := minute + 7*d
			m := fleet.Message{
				DeviceID: fmt.Sprintf("%s-%d", b.redis.Stream[len(b.redis.Stream)-1:], d), Codec: "8",
				Time:     time.Unix(1_700_000_000+60*int64(minute), 0).UTC(),
				Latitude: 42.5, Longitude: 1 + float64(min(at%20, 20-at%20))/10, Speed: 50, Satellites: 9,
			}
			entries = append(entries, fleet.EntryFields(&m))
		}
	}
	_, err := fleet.NewPublisher(b.redis.Client(), b.redis.Stream, 0).Publish(context.Background(), entries)
	require.NoError(b.t, err)
}

func (b *bench) pool() *pgxpool.Pool {
	pool, err := pgxpool.New(context.Background(), b.pgURL)
	require.NoError(b.t, err)
	b.t.Cleanup(pool.Close)
	return pool
}

// stripe is a fence of some width across the way.
func stripe(id string, from, to float64) geofence.Fence {
	return geofence.Fence{
		ID: id, Name: id, Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
		Geometry: fmt.Sprintf(`{"type":"Polygon","coordinates":[[[%[1]v,42],[%[2]v,42],[%[2]v,43],[%[1]v,43],[%[1]v,42]]]}`, from, to),
	}
}

// awaitRecomputed waits until no request is open.
func (b *bench) awaitRecomputed() {
	b.t.Helper()
	testenv.Wait(b.t, 60*time.Second, func() error {
		var open int
		err := b.query("select count(*) from processor.requests where state in ('waiting', 'running')", &open)
		if err == nil && open > 0 {
			err = fmt.Errorf("%d requests are open", open)
		}
		return err
	})
}

// verify compares the crossings of devices with one pass over their positions.
func (b *bench) verify(devices int) {
	b.t.Helper()
	operators, err := operator.Open(b.t.Context(), b.config(), "test", "test")
	require.NoError(b.t, err)
	defer operators.Close()
	for d := range devices {
		device := fmt.Sprintf("%s-%d", b.redis.Stream[len(b.redis.Stream)-1:], d)
		v, err := operators.Verify(b.t.Context(), device)
		require.NoError(b.t, err)
		require.True(b.t, v.Good(), "%s: missing %v, different %v, extra %v", device, v.Missing, v.Different, v.Extra)
		require.Positive(b.t, v.Crossings, device)
	}
}

// P5: whichever stream's leader or operator changes the fences, the crossings of all
// devices in the database are those of one pass.
func TestFencesChangedUnderLoadAreAppliedToTheDevicesOfEveryStream(t *testing.T) {
	testenv.Slow(t)
	b := newBench(t)
	streams := []*bench{b.on("-a"), b.on("-b")}
	var running []*instance
	for _, s := range streams {
		in := s.start("INSTANCE_ID=of" + s.redis.Stream[len(s.redis.Stream)-2:])
		in.awaitReady()
		running = append(running, in)
	}
	changeFencesUnderLoad(b, streams)
	// Each is asked about devices of the other.
	operators, err := operator.Open(t.Context(), streams[0].config(), "test", "test")
	require.NoError(t, err)
	defer operators.Close()
	d, err := operators.Device(t.Context(), "b-1")
	require.NoError(t, err)
	require.Contains(t, *d.Owner, "of-b", "the owner is of the device's stream")
	asked, err := operators.Ask(t.Context(), operator.Request{Kind: "recompute", Device: "b-1"})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done, err := operators.Await(ctx, asked.ID)
	require.NoError(t, err)
	require.Equal(t, "done", done.State)
	require.Contains(t, *done.RunBy, "of-b")
	for _, in := range running {
		in.stop()
		require.NoError(t, in.end())
	}
}

func TestFencesChangedUnderLoadOfOneProcessWithTwoStreams(t *testing.T) {
	testenv.Slow(t)
	b := newBench(t)
	streams := []*bench{b.on("-a"), b.on("-b")}
	list := "REDIS_TELEMETRY_STREAM=" + streams[0].redis.Stream + "," + streams[1].redis.Stream
	first, second := b.start("INSTANCE_ID=first", list), b.start("INSTANCE_ID=second", list)
	first.awaitReady()
	second.awaitReady()
	changeFencesUnderLoad(b, streams)
	for _, in := range []*instance{first, second} {
		in.stop()
		require.NoError(t, in.end())
	}
}

// changeFencesUnderLoad compares the crossings with one pass after some changes.
func changeFencesUnderLoad(b *bench, streams []*bench) {
	t := b.t
	t.Helper()
	const devices, steps, each = 6, 8, 40
	for i := range steps {
		for _, s := range streams {
			s.drive(devices, i*each, each)
		}
		if i == steps/2 { // what the change is about is stored and derived already
			b.awaitStored(2 * devices * (i + 1) * each)
			b.awaitRecomputed()
		}
		if i%2 == 0 { // by the one and the other
			s := streams[(i/4+1)%2]
			scope := store.Scope{Stream: s.redis.Stream, Group: s.redis.Group}
			edited, err := store.NewFenceEditor(s.pool(), scope, 8, "test").
				Import(t.Context(), []geofence.Fence{stripe("stripe", 1.25+float64(i)/100, 1.55), stripe(fmt.Sprint("stripe", i), 1.1, 1.65)}, "import", false)
			require.NoError(t, err)
			require.Positive(t, edited.Added)
		}
	}
	b.awaitStored(2 * devices * steps * each)
	b.awaitRecomputed()
	for _, s := range streams {
		s.verify(devices)
	}
}

// P3, P6: what one stream suffers does not stop the others.
func TestOneInstanceServesSeveralStreams(t *testing.T) {
	b := newBench(t)
	streams := []*bench{b.on("-a"), b.on("-b"), b.on("-c")}
	broken := b.on("-x")
	letters := streams[0].redis.Stream + ":dlq" // of a stream that goes on
	for _, key := range []string{broken.redis.Stream, letters} {
		require.NoError(t, b.redis.Client().Set(t.Context(), key, "no stream", 0).Err())
	}
	var names []string
	for _, s := range append(streams, broken) {
		names = append(names, s.redis.Stream)
	}
	list := "REDIS_TELEMETRY_STREAM=" + strings.Join(names, ",")
	first := b.start("INSTANCE_ID=first", list)
	first.awaitReady()
	second := b.start("INSTANCE_ID=second", list)
	second.awaitReady()
	const devices, each = 5, 40
	for _, s := range streams {
		s.drive(devices, 0, each)
	}
	b.awaitStored(len(streams) * devices * each)
	for _, s := range streams {
		testenv.Wait(t, 20*time.Second, func() error {
			var owners, shards int
			err := b.query("select count(distinct owner), count(owner) from processor.shards where stream = '"+s.redis.Stream+"'", &owners, &shards)
			if err != nil || owners != 2 || shards != 8 {
				return fmt.Errorf("want 8 shards of two owners, have %d of %d: %w", shards, owners, err)
			}
			return nil
		})
	}
	for _, key := range []string{broken.redis.Stream, letters} {
		testenv.Wait(t, 20*time.Second, func() error {
			var stream string
			return b.query("select stream from processor.incidents where kind = 'not_a_stream' and closed_at is null and subject = '"+key+"'", &stream)
		})
	}
	families, err := first.Metrics().Gather()
	require.NoError(t, err)
	labelled := map[string]bool{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "stream" {
					labelled[f.GetName()+" "+l.GetValue()] = true
				}
			}
		}
	}
	for line := range strings.Lines(first.logs.String()) {
		require.LessOrEqual(t, strings.Count(line, `"stream":`), 1, "one line names one stream once: %s", line)
	}
	for _, name := range names {
		require.True(t, labelled["processor_coordination_leader "+name], "%v", labelled)
	}

	first.stop()
	require.NoError(t, first.end(), first.logs.String())
	for _, s := range streams {
		s.drive(devices, each, each)
	}
	b.awaitStored(2 * len(streams) * devices * each)
	// What is corrected goes on without a restart.
	require.NoError(t, b.redis.Client().Del(t.Context(), broken.redis.Stream).Err())
	broken.drive(devices, 0, each)
	b.awaitStored(2*len(streams)*devices*each + devices*each)
	second.stop()
	require.NoError(t, second.end(), second.logs.String())
	var owned int
	require.NoError(t, b.query("select count(owner) from processor.shards", &owned))
	require.Zero(t, owned, "every shard of every stream was released")
}
