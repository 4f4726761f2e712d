package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/admin"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// newFewLocks is a database whose server has locks for a fraction of what
// positions is made of: a statement that touches all of it fails.
func newFewLocks(t *testing.T, days int) *bench {
	t.Helper()
	testenv.SameInEveryWorld(t)
	env := testenv.OwnServers(t, devenv.Options{Postgres: true, PostgresArgs: []string{
		"-c", "max_connections=16", "-c", "max_locks_per_transaction=10", "-c", "autovacuum=off", "-c", "fsync=off",
	}})
	b := &bench{tb: t, url: env.Postgres.URL()}
	_, err := schema.Migrate(t.Context(), b.url, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	b.pool = b.open("bench", b.url)
	b.shards = store.NewShards(b.pool, scope, 10*time.Second)
	require.NoError(t, b.shards.Ensure(t.Context(), shards))
	b.partitionByDay(0)
	conn := connect(t, b.url) // a block that commits as it goes
	exec(t, conn, `set synchronous_commit = off`)
	exec(t, conn, fmt.Sprintf(`do $$
begin
  for i in 0 .. %d loop
    execute format('create table public.positions_%%s partition of public.positions for values from (%%L) to (%%L)',
      i, timestamptz '%s' + i * interval '1 day', timestamptz '%s' + (i + 1) * interval '1 day');
    commit;
  end loop;
end
$$`, days-1, dayOf(0).Format(time.RFC3339), dayOf(0).Format(time.RFC3339)))
	b.fences = protocolFences(t)
	return b
}

// square is a fence about the place where fill puts odd days.
func protocolFences(t *testing.T) *protocol.Fences {
	t.Helper()
	set, bad := geofence.NewSet([]geofence.Fence{{
		ID: "square", Name: "square", Kind: geofence.Area, Enabled: true, Valid: geofence.Always,
		Geometry: `{"type":"Polygon","coordinates":[[[0,41],[2,41],[2,43],[0,43],[0,41]]]}`,
	}})
	require.Empty(t, bad)
	return &protocol.Fences{Set: set, Versions: []int{1}}
}

// at is a record of a device at noon of a day, inside the square on odd days.
func at(device string, day int) telemetry.Record {
	us := dayOf(day).Add(12 * time.Hour).UnixMicro()
	r := telemetry.Record{DeviceID: device, Codec: "8", TimeUS: us, StreamUS: us, Latitude: 42, Longitude: 1, Attributes: []byte(`{}`)}
	if day%2 == 0 {
		r.Longitude = 5
	}
	return r
}

func TestNoStatementTouchesMoreHeapsThanItsRowsNeed(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	const days = 600
	b := newFewLocks(t, days)
	_, err := b.pool.Exec(t.Context(), "select count(*) from positions where device_id = 'nobody'")
	require.ErrorContains(t, err, "out of shared memory", "the test has enough partitions")

	status, err := admin.Diagnose(t.Context(), b.pool)
	require.NoError(t, err)
	require.Equal(t, []int{days, (days + 1) * 2, 160, 10}, []int{status.Heaps, status.HeapLocks, status.MaxLocks, status.LocksPerSession})

	held := b.take("a.1", telemetry.ShardOf("long", shards))
	w := store.NewWriter(b.pool, scope, "a.1", 10*time.Second)
	write := func(batch *protocol.Batch) protocol.CommitResult {
		batch.Leases = held
		batch.Rules = protocol.Rules{Fences: b.fences, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute}
		done, err := w.Write(t.Context(), batch)
		require.NoError(t, err)
		return done
	}
	write(&protocol.Batch{Late: []telemetry.Record{at("long", 399), at("recent", 398), at("old", 0), at("middle", 200)}})
	// The neighbours of each lie hundreds of days away.
	done := write(&protocol.Batch{Late: []telemetry.Record{at("long", 1), at("long", 200), at("recent", 397), at("old", 2)}})
	require.Equal(t, []bool{true, true, true, true}, done.Stored)

	found := make(map[int]time.Time)
	devices := []string{"long", "nobody", "recent", "old", "middle"}
	look := func() {
		clear(found)
		require.NoError(t, store.NewReader(b.pool, 10*time.Second).LastFixes(t.Context(), devices, telemetry.Eligibility{MaxFutureSkew: time.Minute}, func(i int, last geofence.Fix) {
			found[i] = time.UnixMicro(last.TimeUS).UTC().Add(-12 * time.Hour)
		}))
	}
	look()
	require.Equal(t, map[int]time.Time{0: dayOf(399), 2: dayOf(398), 3: dayOf(2), 4: dayOf(200)}, found)
	for range 8 { // as often as it takes until the driver or the server keep a plan
		look()
	}

	crossings := func() (list []string) {
		rows, err := b.pool.Query(t.Context(), "select device_id || ' ' || kind || ' ' || extract(day from later_ts - $1::timestamptz)::int || ' ' || initial from processor.timing_records order by later_ts, device_id", dayOf(0))
		require.NoError(t, err)
		defer rows.Close()
		for rows.Next() {
			var s string
			require.NoError(t, rows.Scan(&s))
			list = append(list, s)
		}
		return list
	}
	want := []string{"long enter 1 true", "long exit 200 false", "recent enter 397 true", "recent exit 398 false", "long enter 399 false"}
	require.Equal(t, want, crossings())

	b.exec("update positions set faulty = true where device_id = 'long' and ts = $1", dayOf(200).Add(12*time.Hour))
	require.Equal(t, 1, b.count("select count(*) from positions where faulty and ts > $1 and ts < $2", dayOf(199), dayOf(202)))
	for _, device := range []string{"long", ""} {
		b.runRequest(protocol.RequestRecompute, device, held[0], "a.1")
	}
	want = []string{"long enter 1 true", "recent enter 397 true", "recent exit 398 false"}
	require.Equal(t, want, crossings())

	ask := store.NewDevices(b.pool, scope, store.FleetSettings{Shards: shards, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute}, "test")
	known, err := ask.Known(t.Context(), "old")
	require.NoError(t, err)
	require.True(t, known)
	known, err = ask.Known(t.Context(), "nobody")
	require.NoError(t, err)
	require.False(t, known)
	shown, err := ask.Show(t.Context(), "long")
	require.NoError(t, err)
	require.Len(t, shown.Recent, 3)
	require.Equal(t, dayOf(399).Add(12*time.Hour), shown.Last.Time.UTC())
	require.Equal(t, dayOf(200).Add(12*time.Hour), shown.Recent[1].Time.UTC())
	_, err = ask.Verify(t.Context(), "long")
	require.NoError(t, err)
	b.exec("delete from processor.device_scans")
	lists := store.NewLists(b.pool, scope, 10*time.Second)
	listed, err := lists.Devices(t.Context(), "", "", 3)
	require.NoError(t, err)
	require.Equal(t, []string{"long", "middle", "old"}, listed)
	first, last, err := lists.Span(t.Context(), "long", dayOf(days))
	require.NoError(t, err)
	require.Equal(t, []time.Time{dayOf(1).Add(12 * time.Hour), dayOf(399).Add(12 * time.Hour)}, []time.Time{first.UTC(), last.UTC()})
	for _, limit := range []int{2, 3} {
		points, sampled, err := lists.Track(t.Context(), "long", dayOf(0), dayOf(days), limit, telemetry.Eligibility{})
		require.NoError(t, err)
		require.Equal(t, limit < 3, sampled)
		require.Len(t, points, limit)
	}
	trace, err := store.TraceDevice(t.Context(), b.pool, scope, "long", 5, []store.TraceQuery{{ID: telemetry.EntryID{Ms: 1}, TimeUS: at("long", 1).TimeUS, Known: true}})
	require.NoError(t, err)
	require.Equal(t, dayOf(399).Add(12*time.Hour), trace.Last.UTC())
	require.True(t, trace.Stored[telemetry.EntryID{Ms: 1}])

	p, _ := b.runRequest(protocol.RequestErase, "long", held[0], "a.1")
	require.EqualValues(t, 4, p.Removed, "three positions and a crossing")
	look()
	require.Equal(t, map[int]time.Time{2: dayOf(398), 3: dayOf(2), 4: dayOf(200)}, found)
}

// Others look for what lies far while a transaction waits for it, that of late records or
// that of an operator's question. However long that takes in all, the server does not end
// its session for it.
func TestATransactionOutlivesTheLookUpsItWaitsFor(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	const limit = 2 * time.Second // of a statement, and of a session that is idle
	b := newBench(t)
	b.partitionByDay(30)
	b.fences = protocolFences(t)
	held := b.take("patient.1", telemetry.ShardOf("far", shards))
	pool, err := store.Open(t.Context(), store.Config{
		URL: b.url, Member: "patient.1", MaxConns: 4, ConnectTimeout: 10 * time.Second, StatementTimeout: limit, LockTimeout: time.Minute,
	})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	w := store.NewWriter(pool, scope, "patient.1", time.Minute)
	write := func(days ...int) error {
		batch := b.batch(held, nil)
		for _, day := range days {
			batch.Late = append(batch.Late, at("far", day))
		}
		_, err := w.Write(t.Context(), batch)
		return err
	}
	require.NoError(t, write(0, 29))

	// A look-up into a heap before the newest ones has to wait.
	waits := func(do func() error) error {
		tx, err := b.pool.Begin(t.Context())
		require.NoError(t, err)
		defer tx.Rollback(context.WithoutCancel(t.Context()))
		_, err = tx.Exec(t.Context(), "lock table public.positions_10")
		require.NoError(t, err)
		done := make(chan error, 1)
		go func() { done <- do() }()
		var since time.Time
		testenv.Wait(t, time.Minute, func() error {
			if since.IsZero() && b.count("select count(*) from pg_stat_activity where application_name = 'processor/patient.1' and wait_event_type = 'Lock'") > 0 {
				since = time.Now()
			}
			if since.IsZero() || time.Since(since) < limit+limit/4 {
				return errors.New("it did not wait for long enough")
			}
			return nil
		})
		require.NoError(t, tx.Rollback(t.Context()))
		return <-done
	}
	require.NoError(t, waits(func() error { return write(25) }))
	require.Equal(t, 1, b.count("select count(*) from processor.timing_records where later_ts = $1 and earlier_ts = $2", dayOf(25).Add(12*time.Hour), dayOf(0).Add(12*time.Hour)))
	devices := store.NewDevices(pool, scope, store.FleetSettings{Shards: shards}, "test")
	show := func() error {
		_, err := devices.Show(t.Context(), "far")
		return err
	}
	require.NoError(t, show()) // and how positions is divided is known
	require.NoError(t, waits(show))
}
