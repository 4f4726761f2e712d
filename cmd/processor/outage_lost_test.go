package main

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
)

// P6, P7, P10: what was in Redis alone is gone, nobody can tell how much that
// was, and this is what is shown.
func TestRedisBackWithoutItsDataIsNotedAndWorkGoesOn(t *testing.T) {
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true})
	pl := &place{t: t, redisURL: env.Redis.URL(), pgURL: testenv.Postgres(t, migrated()), stream: "telemetry:teltonika", group: "processor"}
	p := pl.run(fourShards)
	p.awaitReady()
	pl.publish(riders(0, 200)...)
	pl.awaitRows(200)
	pl.awaitCount(4, "select count(*) from processor.progress where applied_id <> '0-0'")

	before := strings.Count(p.output(), "\n")
	require.NoError(t, env.Redis.RestartEmpty(t.Context()))
	back := time.Now()
	pl.publish(riders(200, 200)...)
	pl.awaitRows(400)
	t.Logf("Redis restarted without its data: 200 new records stored %.2f s after", time.Since(back).Seconds())
	pl.awaitCount(1, "select count(*) from processor.incidents where kind = 'redis_lost' and closed_at is not null")
	seconds := max(3, time.Since(back).Seconds())
	require.LessOrEqual(t, float64(strings.Count(p.output(), "\n")-before)/seconds, maxLines)
	pl.awaitCount(1, "select count(*) from processor.losses where cause = 'flush' and entries is null")
	var l lagJSON
	pl.ask(exitClean, &l, "lag")
	require.Nil(t, l.Lost, "unknown, not 0")
	require.EqualValues(t, 0, *l.Undone)
	require.Equal(t, "flush", l.Losses[0].Cause)
	require.Equal(t, "redis_lost", l.Incidents[0].Kind)
	v, err := p.metric(`processor_coordination_lost_groups_total{kind="redis_lost"}`)
	require.NoError(t, err)
	require.EqualValues(t, 1, v)
	require.Equal(t, 1, strings.Count(p.output(), `"msg":"starting to process"`), "it never restarted")
	require.Zero(t, terminated(p))
}

// What it costs to lose the group of a full stream.
func TestTheGroupOfAMillionEntriesIsLost(t *testing.T) {
	testenv.Full(t)
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true, Postgres: true})
	pl := &place{t: t, redisURL: env.Redis.URL(), pgURL: env.Postgres.URL(), stream: "telemetry:teltonika", group: "processor"}
	const entries, devices = 1_000_000, 2000
	p := pl.run()
	p.awaitReady()
	began := time.Now()
	for second := range int64(entries / devices) {
		lot := make([][]string, devices)
		for d := range lot {
			lot[d] = good(fmt.Sprintf("device-%d", d), second)
		}
		pl.publish(lot...)
	}
	pl.awaitStored(entries, 10*time.Minute)
	t.Logf("%d entries stored for the first time, %.0f s after the first was sent", entries, time.Since(began).Seconds())
	duplicates := func() float64 {
		n, err := p.metric(`processor_pipeline_records_total{outcome="duplicate"}`)
		require.NoError(t, err)
		return n
	}
	before := duplicates()
	require.NoError(t, pl.client().XGroupDestroy(t.Context(), pl.stream, pl.group).Err())
	destroyed := time.Now()
	var detail string
	conn, err := pgx.Connect(t.Context(), pl.pgURL)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	testenv.Wait(t, 10*time.Minute, func() error {
		return conn.QueryRow(t.Context(), "select detail::text from processor.incidents where kind = 'group_lost' and closed_at is not null").Scan(&detail)
	})
	t.Logf("group lost: %.1f s from XGROUP DESTROY until all was done again, %.0f duplicates; incident %s", time.Since(destroyed).Seconds(), duplicates()-before, detail)
	require.Contains(t, detail, fmt.Sprintf(`"entries": %d`, entries))
	require.InDelta(t, entries, duplicates()-before, 1)
	have, err := pl.stored()
	require.NoError(t, err)
	require.Equal(t, entries, have)
	require.Zero(t, terminated(p))
}

// P6: entries that are trimmed before they were read, and while they lay on
// their queue, through the whole service.
func TestTrimmedEntriesAreAccountedForAndShown(t *testing.T) {
	pl := newPlace(t)
	c, ctx := pl.client(), t.Context()
	p := pl.run(fourShards)
	p.awaitReady()
	pl.publish(rides(0, 3)...)
	pl.awaitRows(3)
	conn, err := pgx.Connect(ctx, pl.pgURL)
	require.NoError(t, err)
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "begin; lock table positions in access exclusive mode")
	require.NoError(t, err)
	pending := pl.publish(rides(10, 7)...)
	testenv.Wait(t, 10*time.Second, func() error {
		if n, err := p.metric("processor_pipeline_in_flight_records"); err != nil || n != 7 {
			return fmt.Errorf("%v in flight, %w", n, err)
		}
		return nil
	})
	p.signal(syscall.SIGKILL)
	require.Equal(t, -1, p.exit(10*time.Second))
	// What the server was sent already would be stored all the same.
	_, err = conn.Exec(ctx, "select pg_terminate_backend(pid) "+serviceSessions+" and datname = current_database()")
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "rollback")
	require.NoError(t, err)
	unread := pl.publish(rides(20, 12)...)
	require.NoError(t, c.XTrimMinID(ctx, pl.stream, unread[5].String()).Err())

	p = pl.run(fourShards)
	p.awaitReady()
	pl.awaitRows(3 + 7)
	pl.awaitCount(12, "select coalesce(sum(entries), 0) from processor.losses")
	var l lagJSON
	pl.ask(exitClean, &l, "lag")
	require.EqualValues(t, 12, *l.Lost)
	require.EqualValues(t, 0, *l.Undone)
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
	tr := pl.traced()
	require.Len(t, tr.Entries, 7, "what is left of the stream")
	require.Len(t, tr.Losses, len(l.Losses))
	v, err := p.metric("processor_coordination_recorded_losses_total")
	require.NoError(t, err)
	require.EqualValues(t, 12, v)
	p.await("entries were lost before they could be finished")
	require.Zero(t, terminated(p))
}

// What the service does in each outage is in the book, and each that is in the
// book is tested.
func TestTheBookSaysWhatHappensInEachOutage(t *testing.T) {
	text, err := os.ReadFile(runbook)
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "\n## Outages\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n## ")
	var written []string
	for _, row := range regexp.MustCompile(`(?m)^\| ((?:Redis|Postgres): [^|]+) \|`).FindAllStringSubmatch(section, -1) {
		written = append(written, row[1])
	}
	tested := []string{ // in tests of their own
		"Redis: back without its data", "Redis: failed over to an older state",
		"Postgres: restored to an older state", "Postgres: away from one instance only",
	}
	for _, o := range redisOutages() {
		tested = append(tested, "Redis: "+o.name)
	}
	for _, o := range postgresOutages() {
		tested = append(tested, "Postgres: "+o.name)
	}
	require.ElementsMatch(t, tested, written)
}
