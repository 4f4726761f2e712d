package e2e_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// P6, P7, P10: what was in Redis alone is gone, nobody can tell how much that
// was, and this is what is shown.
func TestRedisBackWithoutItsDataIsNotedAndWorkGoesOn(t *testing.T) {
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true})
	dep := &servicetest.Deployment{T: t, RedisURL: env.Redis.URL(), PostgresURL: testenv.Postgres(t, servicetest.Migrated()), Stream: "telemetry:teltonika", Group: "processor"}
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	dep.Publish(servicetest.RecordsOfMany(0, 200)...)
	dep.AwaitStored(200, 40*time.Second)
	dep.AwaitCount(4, "select count(*) from processor.progress where applied_id <> '0-0'")

	before := strings.Count(p.Output(), "\n")
	require.NoError(t, env.Redis.RestartEmpty(t.Context()))
	back := time.Now()
	dep.Publish(servicetest.RecordsOfMany(200, 200)...)
	dep.AwaitStored(400, 40*time.Second)
	t.Logf("Redis restarted without its data: 200 new records stored %.2f s after", time.Since(back).Seconds())
	dep.AwaitCount(1, "select count(*) from processor.incidents where kind = 'redis_lost' and closed_at is not null")
	seconds := max(3, time.Since(back).Seconds())
	require.LessOrEqual(t, float64(strings.Count(p.Output(), "\n")-before)/seconds, maxLines)
	dep.AwaitCount(1, "select count(*) from processor.losses where cause = 'flush' and entries is null")
	l := awaitNoBacklog(dep)
	require.Nil(t, l.Lost, "unknown, not 0")
	require.Equal(t, "flush", l.Losses[0].Cause)
	require.Equal(t, "redis_lost", l.Incidents[0].Kind)
	p.AwaitMetric(`processor_coordination_data_loss_events_total{kind="redis_lost"}`, 1)
	require.Equal(t, 1, strings.Count(p.Output(), `"msg":"starting to process"`), "it never restarted")
	require.Zero(t, p.Terminate())
}

// What it costs to lose the group of a full stream.
func TestTheGroupOfAMillionEntriesIsLost(t *testing.T) {
	testenv.Full(t)
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true, Postgres: true})
	dep := &servicetest.Deployment{T: t, RedisURL: env.Redis.URL(), PostgresURL: env.Postgres.URL(), Stream: "telemetry:teltonika", Group: "processor"}
	const entries, devices = 1_000_000, 2000
	p := dep.Run()
	p.AwaitReady()
	began := time.Now()
	for second := range int64(entries / devices) {
		lot := make([][]string, devices)
		for d := range lot {
			lot[d] = servicetest.Record(fmt.Sprintf("device-%d", d), second)
		}
		dep.Publish(lot...)
	}
	dep.AwaitStored(entries, 10*time.Minute)
	t.Logf("%d entries stored for the first time, %.0f s after the first was sent", entries, time.Since(began).Seconds())
	duplicates := func() float64 {
		n, err := p.Metric(`processor_pipeline_records_total{outcome="duplicate"}`)
		require.NoError(t, err)
		return n
	}
	before := duplicates()
	require.NoError(t, dep.Client().XGroupDestroy(t.Context(), dep.Stream, dep.Group).Err())
	destroyed := time.Now()
	var detail string
	conn, err := pgx.Connect(t.Context(), dep.PostgresURL)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	testenv.Wait(t, 10*time.Minute, func() error {
		return conn.QueryRow(t.Context(), "select detail::text from processor.incidents where kind = 'group_lost' and closed_at is not null").Scan(&detail)
	})
	t.Logf("group lost: %.1f s from XGROUP DESTROY until all was done again, %.0f duplicates; incident %s", time.Since(destroyed).Seconds(), duplicates()-before, detail)
	require.Contains(t, detail, fmt.Sprintf(`"entries": %d`, entries))
	require.InDelta(t, entries, duplicates()-before, 1)
	have, err := dep.Stored()
	require.NoError(t, err)
	require.Equal(t, entries, have)
	require.Zero(t, p.Terminate())
}

// P6: entries that are trimmed before they were read, and while they lay on
// their queue, through the whole service.
func TestTrimmedEntriesAreAccountedForAndShown(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	c, ctx := dep.Client(), t.Context()
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	dep.Publish(servicetest.Records(0, 3)...)
	dep.AwaitStored(3, 40*time.Second)
	conn, err := pgx.Connect(ctx, dep.PostgresURL)
	require.NoError(t, err)
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "begin; lock table positions in access exclusive mode")
	require.NoError(t, err)
	pending := dep.Publish(servicetest.Records(10, 7)...)
	testenv.Wait(t, 10*time.Second, func() error {
		if n, err := p.Metric("processor_pipeline_in_flight_records"); err != nil || n != 7 {
			return fmt.Errorf("%v in flight, %w", n, err)
		}
		return nil
	})
	p.Signal(syscall.SIGKILL)
	require.Equal(t, -1, p.Exit(40*time.Second))
	// What the server was sent already would be stored all the same.
	_, err = conn.Exec(ctx, "select pg_terminate_backend(pid) "+serviceSessions+" and datname = current_database()")
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "rollback")
	require.NoError(t, err)
	unread := dep.Publish(servicetest.Records(20, 12)...)
	require.NoError(t, c.XTrimMinID(ctx, dep.Stream, unread[5].String()).Err())

	p = dep.Run(servicetest.FourShards)
	p.AwaitReady()
	dep.AwaitStored(3+7, 40*time.Second)
	dep.AwaitCount(12, "select coalesce(sum(entries), 0) from processor.losses")
	l := awaitNoBacklog(dep)
	require.EqualValues(t, 12, *l.Lost)
	sum := map[string]int64{}
	var gone []string
	for _, x := range l.Losses {
		sum[x.Cause] += *x.Entries
		if x.Cause == "trimmed_pending" {
			gone = append(gone, *x.First)
		}
	}
	require.Equal(t, map[string]int64{"trimmed_pending": 7, "trimmed_unread": 5}, sum)
	for _, id := range pending {
		require.Contains(t, gone, id.String())
	}
	tr := traceDevice(dep)
	require.Len(t, tr.Entries, 7, "what is left of the stream")
	require.Len(t, tr.Losses, len(l.Losses))
	p.AwaitMetric("processor_coordination_lost_entries_total", 12)
	p.Await("entries lost before completion")
	require.Zero(t, p.Terminate())
}

// What the service does in each outage is in the reference, and each that is
// there is tested.
func TestTheBookSaysWhatHappensInEachOutage(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/outages.md")
	require.NoError(t, err)
	var written []string
	for _, row := range regexp.MustCompile(`(?m)^\| ((?:Redis|Postgres): [^|]+) \|`).FindAllStringSubmatch(string(text), -1) {
		written = append(written, row[1])
	}
	tested := []string{ // in tests of their own
		"Redis: back without its data", "Redis: failed over to an older state",
		"Postgres: restored to an older state", "Postgres: away from one instance only",
		"Postgres: an old primary beside its promoted standby", "Postgres: a password rotated in the server before its file",
	}
	for _, o := range redisOutages() {
		tested = append(tested, "Redis: "+o.name)
	}
	for _, o := range postgresOutages() {
		tested = append(tested, "Postgres: "+o.name)
	}
	require.ElementsMatch(t, tested, written)
}
