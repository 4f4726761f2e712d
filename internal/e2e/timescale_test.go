package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// platformTable is positions as the platform makes it, before the service comes.
const platformTable = `
create table public.positions (
  device_id text not null, ts timestamptz not null, ingested_at timestamptz not null default now(),
  latitude double precision not null, longitude double precision not null, altitude real not null, angle real not null,
  speed real not null, satellites smallint not null, priority smallint not null, codec text not null,
  attributes jsonb not null, faulty boolean not null default false);`

// hypertable starts servers of its own, Postgres with the extension preloaded and the
// size of lock table that it has by default, and runs setup before the migration.
func hypertable(t *testing.T, setup ...string) (*servicetest.Deployment, *pgx.Conn) {
	t.Helper()
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{
		Redis: true, Postgres: true,
		World: devenv.Hypertable, PostgresArgs: []string{"-c", "max_connections=100", "-c", "max_locks_per_transaction=64"},
	})
	dep := &servicetest.Deployment{T: t, RedisURL: env.Redis.URL(), PostgresURL: env.Postgres.URL(), Stream: "telemetry:teltonika", Group: "processor"}
	conn, err := pgx.Connect(t.Context(), dep.PostgresURL)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	for _, sql := range setup {
		_, err := conn.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
	return dep, conn
}

// needTimescale skips a test where the extension is not installed. The server that
// would say so need not have it preloaded.
func needTimescale(t *testing.T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), testenv.Postgres(t))
	require.NoError(t, err)
	defer conn.Close(context.Background())
	var there bool
	require.NoError(t, conn.QueryRow(t.Context(), "select exists (select from pg_available_extensions where name = 'timescaledb')").Scan(&there))
	if !there {
		t.Skip("SKIPPED: Postgres has no extension timescaledb, so no hypertable was tried")
	}
}

// entryAt is a valid record of a device at a device time.
func entryAt(device string, at time.Time, n int) []string {
	return fleet.EntryFields(&fleet.Message{
		DeviceID: device, Codec: "8", Time: at.UTC().Truncate(time.Second),
		Latitude: 42.5 + float64(n%1000)/1e4, Longitude: 1.5, Altitude: 900, Angle: 10, Speed: 50, Satellites: 9,
	})
}

// mostLocks returns the most locks on relations that a session of the service was
// seen to hold, when ctx ends.
func mostLocks(ctx context.Context, url string, most chan<- int) {
	highest := 0
	defer func() { most <- highest }()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return
	}
	defer conn.Close(context.Background())
	for ctx.Err() == nil {
		var n int
		if conn.QueryRow(ctx, `select coalesce(max(n), 0) from (
			select count(*) as n from pg_locks l join pg_stat_activity a on a.pid = l.pid
			where l.locktype = 'relation' and a.application_name like 'processor/%' group by l.pid) x`).Scan(&n) == nil {
			highest = max(highest, n)
		}
	}
}

// longestLockWait returns how long a session of the service was seen to wait for the
// lock on all of positions that new chunks are made under, when ctx ends.
func longestLockWait(ctx context.Context, url string, longest chan<- time.Duration) {
	var most float64
	defer func() { longest <- time.Duration(most * float64(time.Second)) }()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return
	}
	defer conn.Close(context.Background())
	for ctx.Err() == nil {
		var s float64
		if conn.QueryRow(ctx, `select coalesce(extract(epoch from max(clock_timestamp() - l.waitstart)), 0)::float8
			from pg_locks l join pg_stat_activity a on a.pid = l.pid
			where not l.granted and l.mode = 'ShareUpdateExclusiveLock' and a.application_name like 'processor/%'`).Scan(&s) == nil {
			most = max(most, s)
		}
	}
}

// Late records over years for which there are no chunks yet, while two instances work
// with a fence: the transactions that store them must not wait for each other's chunks.
func TestLateRecordsOverYearsWithoutChunks(t *testing.T) {
	needTimescale(t)
	days, late := 100, 1000
	if testenv.IsFull() {
		days, late = 1900, 8183
	}
	dep, _ := hypertable(t, daily)
	one, two := dep.Run(servicetest.FourShards, "INSTANCE_ID=one"), dep.Run(servicetest.FourShards, "INSTANCE_ID=two")
	one.AwaitReady()
	two.AwaitReady()
	dep.Ask(0, nil, "geofence", "import", servicetest.File(t, squareFence))
	now := time.Now()
	var first, batch [][]string
	for i := range 8 {
		first = append(first, entryAt(fmt.Sprintf("years-%d", i), now, i))
	}
	dep.Publish(first...)
	dep.AwaitStored(len(first), 20*time.Second)
	span := time.Duration(days-1) * 24 * time.Hour
	for i := range late { // newest first, as trackers send their logs
		batch = append(batch, entryAt(fmt.Sprintf("years-%d", i%8), now.Add(-time.Minute-time.Duration(i)*span/time.Duration(late)), i))
	}
	watching, stop := context.WithCancel(t.Context())
	longest, most := make(chan time.Duration, 1), make(chan int, 1)
	go longestLockWait(watching, dep.PostgresURL, longest)
	go mostLocks(watching, dep.PostgresURL, most)
	began := time.Now()
	dep.Publish(batch...)
	dep.AwaitDone(2 * time.Minute)
	took := time.Since(began)
	stop()
	t.Logf("%d new chunks, %d late records with a fence: %.2f s, %.0f/s, at most %d locks of one session, longest wait for the lock on positions %s",
		days, late, took.Seconds(), float64(late)/took.Seconds(), <-most, (<-longest).Round(time.Millisecond))
	require.Equal(t, late+len(first), count(t, dep, "select count(*) from positions"))
	for i := range 8 {
		dep.Ask(0, nil, "device", "verify", fmt.Sprintf("years-%d", i))
	}
	for _, in := range []*servicetest.Process{one, two} {
		require.Zero(t, in.Terminate())
		require.NotContains(t, in.Output(), "commit failed")
	}
}

const squareFence = `{"type": "Feature", "properties": {"id": "a", "name": "a"}, "geometry":
	{"type": "Polygon", "coordinates": [[[1, 42.51], [2, 42.51], [2, 42.55], [1, 42.55], [1, 42.51]]]}}`

const daily = `
create extension timescaledb;
` + platformTable + `
select create_hypertable('public.positions', 'ts', chunk_time_interval => interval '1 day', create_default_indexes => false)`

// Years of daily chunks are more than the lock table has room for: no statement may
// touch all of them, whatever a batch, a cold device, a recompute or an erase is about.
func TestManyDailyChunks(t *testing.T) {
	needTimescale(t)
	days, late, cold := 400, 3000, 400
	if testenv.IsFull() {
		days, late, cold = 1900, 12000, 2000
	}
	dep, conn := hypertable(t, daily)
	exec := func(sql string, args ...any) {
		t.Helper()
		_, err := conn.Exec(t.Context(), sql, args...)
		require.NoError(t, err, sql)
	}
	p := dep.Run(servicetest.FourShards) // which migrates
	p.AwaitReady()
	require.Zero(t, p.Terminate())
	for from := 0; from < days; from += 50 { // one transaction locks each chunk it makes
		exec(`insert into positions (device_id, ts, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
			select d, now() - make_interval(days => n), 1, 1, 1, 1, 1, 9, 1, '8', '{}'
			from generate_series($1::int, $2) n, unnest(array['old-1', 'old-2']) d`, from, min(from+49, days-1))
	}
	var chunks int
	require.NoError(t, conn.QueryRow(t.Context(), "select count(*) from timescaledb_information.chunks").Scan(&chunks))
	require.GreaterOrEqual(t, chunks, days)
	instances := []*servicetest.Process{dep.Run(servicetest.FourShards, "INSTANCE_ID=one"), dep.Run(servicetest.FourShards, "INSTANCE_ID=two")}
	for _, in := range instances {
		in.AwaitReady()
	}

	stored := 2 * days
	backlog := func(name string, entries [][]string, within time.Duration) {
		t.Helper()
		watching, stop := context.WithCancel(t.Context())
		most := make(chan int, 1)
		go mostLocks(watching, dep.PostgresURL, most)
		began := time.Now()
		dep.Publish(entries...)
		stored += len(entries)
		dep.AwaitDone(within)
		took := time.Since(began)
		stop()
		require.Equal(t, stored, count(t, dep, "select count(*) from positions"))
		t.Logf("%d chunks, %s: %d records in %.2f s, %.0f/s, at most %d locks of one session",
			chunks, name, len(entries), took.Seconds(), float64(len(entries))/took.Seconds(), <-most)
	}
	now := time.Now()
	var coldOnes, batch, live [][]string
	for i := range cold {
		coldOnes = append(coldOnes, entryAt(fmt.Sprintf("cold-%d", i), now, i))
		live = append(live, entryAt(fmt.Sprintf("cold-%d", i), now.Add(time.Minute), i))
	}
	span := time.Duration(days-1) * 24 * time.Hour
	for i := range late { // newest first, as trackers send their logs
		batch = append(batch, entryAt(fmt.Sprintf("years-%d", i%4), now.Add(-time.Duration(i)*span/time.Duration(late)), i))
	}
	backlog("cold devices", coldOnes, time.Minute)
	backlog("years of late records", batch, 2*time.Minute)
	backlog("known devices", live, time.Minute)

	fences := servicetest.File(t, squareFence)
	began := time.Now()
	dep.Ask(0, nil, "geofence", "import", fences)
	testenv.Wait(t, 4*time.Minute, func() error {
		n, err := dep.Count("select count(*) from processor.requests where state not in ('done', 'failed', 'cancelled')")
		if err != nil || n > 0 {
			return fmt.Errorf("%d requests are open: %w", n, err)
		}
		return nil
	})
	require.Zero(t, count(t, dep, "select count(*) from processor.requests where state = 'failed'"))
	t.Logf("%d chunks, a fence: all devices recomputed in %.2f s", chunks, time.Since(began).Seconds())
	// What one device has is changed under locks on its chunks, some at a time.
	change := func(name string, args ...string) {
		t.Helper()
		watching, stop := context.WithCancel(t.Context())
		most := make(chan int, 1)
		go mostLocks(watching, dep.PostgresURL, most)
		began := time.Now()
		dep.Ask(0, nil, append([]string{"device"}, args...)...)
		took := time.Since(began)
		stop()
		locks := <-most
		t.Logf("%d chunks, %s: %.2f s, at most %d locks of one session", chunks, name, took.Seconds(), locks)
		require.Less(t, locks, chunks)
	}
	change("60 days of a device are faulty", "faulty", "old-2", "--reason", "test",
		"--from", now.AddDate(0, 0, -160).Format(time.RFC3339), "--to", now.AddDate(0, 0, -100).Format(time.RFC3339))
	require.Equal(t, 60, count(t, dep, "select count(*) from positions where faulty"))
	change("erase of a device on all of them", "erase", "old-1", "--yes", "--reason", "test")
	require.Zero(t, count(t, dep, "select count(*) from positions where device_id = 'old-1'"))
	require.Equal(t, days, count(t, dep, "select count(*) from positions where device_id = 'old-2'"), "those of others are there")

	// Retention drops chunks while records come.
	for age := days; age > 100; age -= 50 { // a few at a time: each takes locks, of which the server has few
		exec("select drop_chunks('positions', older_than => now() - make_interval(days => $1::int))", age)
	}
	more := [][]string{entryAt("years-0", now.Add(2*time.Minute), 1), entryAt("cold-0", now.Add(3*time.Minute), 2)}
	left := count(t, dep, "select count(*) from positions")
	dep.Publish(more...)
	dep.AwaitStored(left+len(more), 20*time.Second)
	for _, in := range instances {
		require.Zero(t, in.Terminate())
		require.NotContains(t, in.Output(), "out of shared memory")
	}
}

func count(t *testing.T, dep *servicetest.Deployment, sql string) int {
	t.Helper()
	n, err := dep.Count(sql)
	require.NoError(t, err)
	return n
}

// The extension is updated while an instance works: its sessions are told to end, and
// the process goes on.
func TestAnUpdateOfTheExtensionIsAnOutageOfSessions(t *testing.T) {
	needTimescale(t)
	dep, conn := hypertable(t)
	var versions []string
	require.NoError(t, conn.QueryRow(t.Context(), `select array_agg(version order by string_to_array(version, '.')::int[])
		from pg_available_extension_versions where name = 'timescaledb'`).Scan(&versions))
	if len(versions) < 2 {
		t.Skipf("SKIPPED: the extension is there in one version only (%v), so no update was tried", versions)
	}
	older := versions[len(versions)-2]
	// Only a session that has not loaded another version may make it.
	fresh, err := pgx.Connect(t.Context(), dep.PostgresURL)
	require.NoError(t, err)
	_, err = fresh.Exec(t.Context(), "create extension timescaledb version '"+older+"'")
	if err != nil && strings.Contains(err.Error(), "could not access file") {
		t.Skipf("SKIPPED: version %s has its scripts here but no library: %v", older, err)
	}
	require.NoError(t, err)
	require.NoError(t, fresh.Close(t.Context()))
	dep.Exec(platformTable + `select create_hypertable('public.positions', 'ts', chunk_time_interval => interval '1 day', create_default_indexes => false)`)
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	now := time.Now()
	n := 0
	send := func(k int) {
		t.Helper()
		for range k {
			dep.Publish(entryAt(fmt.Sprintf("device-%d", n%7), now.Add(time.Duration(n)*time.Second), n))
			n++
		}
	}
	send(20)
	dep.AwaitStored(20, 20*time.Second)
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			c, err := pgx.Connect(context.Background(), dep.PostgresURL)
			if err != nil {
				return err
			}
			defer c.Close(context.Background())
			// As psql -X: the first command of a session.
			_, err = c.PgConn().Exec(context.Background(), "alter extension timescaledb update").ReadAll()
			return err
		}()
	}()
	for waiting := true; waiting; {
		send(5)
		select {
		case err := <-done:
			require.NoError(t, err)
			waiting = false
		default:
		}
	}
	send(20)
	dep.AwaitStored(n, 40*time.Second)
	require.True(t, p.Running(), p.Output())
	have := ""
	require.NoError(t, conn.QueryRow(t.Context(), "select extversion from pg_extension where extname = 'timescaledb'").Scan(&have))
	require.NotEqual(t, older, have)
	p.AwaitReady()
	require.Zero(t, p.Terminate())
}

// What a platform may have made of positions, with the extension there.
func TestWhatPlatformsMakeOfPositionsWorks(t *testing.T) {
	needTimescale(t)
	const key = "alter table positions add primary key (device_id, ts);"
	for name, setup := range map[string]string{
		"chunks of a week and a primary key": "create extension timescaledb;" + platformTable +
			"select create_hypertable('positions', 'ts', chunk_time_interval => interval '7 days');" + key,
		"space partitions": "create extension timescaledb;" + platformTable +
			"select create_hypertable('positions', 'ts', partitioning_column => 'device_id', number_partitions => 4, chunk_time_interval => interval '1 day');",
		"compressed chunks": "create extension timescaledb;" + platformTable +
			"select create_hypertable('positions', 'ts', chunk_time_interval => interval '1 day');" +
			"alter table positions set (timescaledb.compress, timescaledb.compress_segmentby = 'device_id', timescaledb.compress_orderby = 'ts desc');",
		"a continuous aggregate": "create extension timescaledb;" + platformTable +
			"select create_hypertable('positions', 'ts', chunk_time_interval => interval '1 day');",
		"native partitions although the extension is there": "create extension timescaledb;" +
			strings.TrimSuffix(strings.TrimSpace(platformTable), ";") + " partition by range (ts); create table positions_all partition of positions for values from (minvalue) to (maxvalue);",
	} {
		t.Run(name, func(t *testing.T) {
			dep, conn := hypertable(t, setup)
			if name == "a continuous aggregate" { // not in a transaction
				_, err := conn.Exec(t.Context(), `create materialized view hourly with (timescaledb.continuous) as
					select device_id, time_bucket('1 hour', ts) as hour, count(*) as n from positions group by 1, 2 with no data`)
				require.NoError(t, err)
			}
			p := dep.Run(servicetest.FourShards)
			p.AwaitReady()
			now := time.Now().Truncate(time.Hour)
			var first, late [][]string
			for i := range 60 {
				first = append(first, entryAt(fmt.Sprintf("device-%d", i%5), now.Add(-time.Duration(i)*time.Hour), i))
				late = append(late, entryAt(fmt.Sprintf("device-%d", i%5), now.Add(-time.Duration(i)*time.Hour-time.Minute), i))
			}
			dep.Publish(first...)
			dep.AwaitStored(60, 20*time.Second)
			if name == "compressed chunks" {
				_, err := conn.Exec(t.Context(), "select compress_chunk(c) from show_chunks('positions') c")
				require.NoError(t, err)
			}
			fences := servicetest.File(t, `{"type": "Feature", "properties": {"id": "a", "name": "a"}, "geometry":
				{"type": "Polygon", "coordinates": [[[1, 42.501], [2, 42.501], [2, 42.503], [1, 42.503], [1, 42.501]]]}}`)
			dep.Ask(0, nil, "geofence", "import", fences)
			dep.Publish(late...)
			dep.AwaitStored(120, 20*time.Second)
			dep.Publish(first[:5]...) // again: nothing more
			dep.Exec("update positions set faulty = true where device_id = 'device-1' and ts = $1", now.Add(-time.Hour).UTC())
			dep.Ask(0, nil, "device", "recompute", "device-1")
			dep.AwaitCount(0, "select count(*) from processor.requests where state not in ('done', 'failed', 'cancelled')")
			require.Zero(t, count(t, dep, "select count(*) from processor.requests where state = 'failed'"))
			for i := range 5 {
				dep.Ask(0, nil, "device", "verify", fmt.Sprintf("device-%d", i))
			}
			require.Equal(t, 120, count(t, dep, "select count(*) from positions"))
			if name == "a continuous aggregate" {
				_, err := conn.Exec(t.Context(), "call refresh_continuous_aggregate('hourly', null, null)")
				require.NoError(t, err)
				require.Equal(t, 120, count(t, dep, "select sum(n)::int from hourly"))
			}
			dep.Ask(0, nil, "device", "erase", "device-2", "--yes", "--reason", "test")
			require.Equal(t, 96, count(t, dep, "select count(*) from positions"))
			if name == "a continuous aggregate" {
				_, err := conn.Exec(t.Context(), "call refresh_continuous_aggregate('hourly', null, null)")
				require.NoError(t, err)
				require.Equal(t, 96, count(t, dep, "select sum(n)::int from hourly"))
			}
			require.Zero(t, p.Terminate())
			require.Zero(t, count(t, dep, "select count(*) from processor.incidents where closed_at is null"), errors.New("incidents are open"))
		})
	}
}
