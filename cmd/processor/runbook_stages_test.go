package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// imei is the device of the runbook.
const imei = "352093081452251"

// stages bring about what each part of OPERATIONS.md is for.
var stages = map[string]func(pl *place) staged{
	"doctor":          stageWork,
	"lag":             stageLag,
	"nothing-arrives": stageWrongName,
	"lag-grows":       stageLock,
	"stalled-shard":   stageStalledShard,
	"claim":           stageForeign,
	"stalled":         stageStalled,
	"duplicate":       stageTwin,
	"leaders":         stageWork,
	"rehydrate":       stageWork,
	"device":          stageDevice,
	"dlq":             stageDeadLetters,
	"dlq-raw":         stageDeadLetters,
	"redis-lost":      stageRedisLost,
	"group-lost":      stageGroupLost,
	"redis-full":      func(*place) staged { return staged{} },
	"restored":        stageRestored,
	"trimmed":         stageTrimmed,
	"postgres-down":   stagePostgresDown,
	"migration":       stageMigration,
	"recompute":       stageWork,
	"fence-query":     stageFenceQuery,
	"dump":            stageDump,
	"resize":          stageResize,
	"roll":            stageRoll,
	"switch":          stageSwitch,
}

const fourShards = "SHARDS=4"

// client is the test's own connection to Redis, as an administrator.
func (pl *place) client() *redis.Client {
	opts, err := redis.ParseURL(pl.redisURL)
	require.NoError(pl.t, err)
	c := redis.NewClient(opts)
	pl.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (pl *place) exec(sql string, args ...any) {
	pl.t.Helper()
	conn, err := pgx.Connect(pl.t.Context(), pl.pgURL)
	require.NoError(pl.t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(pl.t.Context(), sql, args...)
	require.NoError(pl.t, err)
}

// rides is n valid entries of the device, from a second on.
func rides(from, n int64) [][]string {
	var list [][]string
	for i := range n {
		list = append(list, good(imei, from+i))
	}
	return list
}

func device() []string { return []string{"DEVICE=" + imei} }

// stageWork is an instance that has done its work.
func stageWork(pl *place) staged {
	p := pl.run(fourShards)
	p.awaitReady()
	pl.publish(rides(0, 3)...)
	pl.awaitStored(3, 30*time.Second)
	return staged{settings: device()}
}

func stageLag(pl *place) staged {
	p := pl.run(fourShards)
	p.awaitReady()
	p.await("took shards")
	p.await("consumer group made")
	require.Zero(pl.t, terminated(p))
	pl.publish(rides(0, 5)...)
	return staged{}
}

func stageWrongName(pl *place) staged {
	right := *pl
	right.stream = "telemetry:" + pl.stream
	right.publish(rides(0, 2)...)
	p := pl.run(fourShards)
	p.await("is REDIS_TELEMETRY_STREAM the right one?")
	return staged{}
}

func stageLock(pl *place) staged {
	p := pl.run(fourShards)
	p.awaitReady()
	pl.somebody("lock table positions in access exclusive mode")
	pl.publish(rides(0, 3)...)
	return staged{after: func() { pl.awaitStored(3, 5*time.Second) }}
}

// somebody leaves a transaction open in which a statement was run.
func (pl *place) somebody(sql string) {
	pl.t.Helper()
	u, err := url.Parse(pl.pgURL)
	require.NoError(pl.t, err)
	q := u.Query()
	q.Set("application_name", "somebody")
	u.RawQuery = q.Encode()
	conn, err := pgx.Connect(pl.t.Context(), u.String())
	require.NoError(pl.t, err)
	pl.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	_, err = conn.Exec(pl.t.Context(), "begin; "+sql)
	require.NoError(pl.t, err)
}

// stageStalledShard is a lock on the row of one shard while others have work.
func stageStalledShard(pl *place) staged {
	pl.run(append(eager(), "WORKERS=4")...).awaitReady()
	stuck := telemetry.ShardOf(imei, 4)
	pl.awaitOwners(func(o map[string]int) bool { return o[""] == 0 && len(o) == 1 })
	pl.somebody(fmt.Sprintf("select from processor.shards where shard = %d for update", stuck))
	pl.publish(rides(0, 3)...)
	busy := ""
	for n := 0; busy == "" || telemetry.ShardOf(busy, 4) == stuck; n++ {
		busy = fmt.Sprint("busy-", n)
	}
	ctx, cancel := context.WithCancel(pl.t.Context())
	var work sync.WaitGroup
	sent := 0
	work.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			pl.publish(good(busy, int64(sent)))
			sent++
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	stop := func() {
		cancel()
		work.Wait()
	}
	pl.t.Cleanup(stop)
	return staged{
		before: map[int]func(){2: stop},
		after:  func() { pl.awaitStored(3+sent, 5*time.Second) },
	}
}

// stageFenceQuery is a platform with a fence that is no good.
func stageFenceQuery(pl *place) staged {
	const square = `{"type":"%s","coordinates":[[[%[2]d,48],[%[2]d.1,48],[%[2]d.1,48.1],[%[2]d,48.1],[%[2]d,48]]]}`
	pl.exec("create table depots (name text primary key, area text not null)")
	pl.exec("insert into depots values ('north', $1), ('south', $2)", fmt.Sprintf(square, "Polygon", 11), fmt.Sprintf(square, "Poligon", 12))
	pl.run(fourShards, "GEOFENCE_REFRESH=1s", "GEOFENCE_QUERY=select name as id, area as geometry from depots").awaitReady()
	return staged{}
}

// foreign has the service before us read some entries of the group.
func (pl *place) foreign(consumer string, n int64) []redis.XMessage {
	pl.t.Helper()
	c, ctx := pl.client(), pl.t.Context()
	require.NoError(pl.t, c.XGroupCreateMkStream(ctx, pl.stream, pl.group, "0").Err())
	got, err := c.XReadGroup(ctx, &redis.XReadGroupArgs{
		Group: pl.group, Consumer: consumer, Streams: []string{pl.stream, ">"}, Count: n,
	}).Result()
	require.NoError(pl.t, err)
	return got[0].Messages
}

// eager claims soon. The order of these three is checked by the service.
func eager() []string {
	return []string{fourShards, "CLAIM_THRESHOLD_MS=2000", "CLAIM_INTERVAL_MS=200", "STATEMENT_TIMEOUT=1500ms", "LOCK_TIMEOUT=1s", "HANDOFF_BUDGET=1s"}
}

func stageForeign(pl *place) staged {
	pl.publish(rides(0, 6)...)
	pl.foreign("old-service-1", 4)
	return staged{
		before: map[int]func(){1: func() { pl.run(eager()...).awaitReady() }},
		after:  func() { pl.awaitStored(6, 5*time.Second) },
	}
}

func (pl *place) awaitOwners(want func(owners map[string]int) bool) {
	pl.t.Helper()
	conn, err := pgx.Connect(pl.t.Context(), pl.pgURL)
	require.NoError(pl.t, err)
	defer conn.Close(context.Background())
	testenv.Wait(pl.t, 30*time.Second, func() error {
		rows, err := conn.Query(pl.t.Context(), "select coalesce(owner, ''), count(*) from processor.shards group by 1")
		if err != nil {
			return err
		}
		owners := map[string]int{}
		var owner string
		var n int
		if _, err := pgx.ForEachRow(rows, []any{&owner, &n}, func() error {
			owner, _, _ = strings.Cut(owner, ".")
			owners[owner] = n
			return nil
		}); err != nil {
			return err
		}
		if !want(owners) {
			return fmt.Errorf("shards are owned by %v", owners)
		}
		return nil
	})
}

// pair is two instances that share the shards.
func (pl *place) pair(one, other string) (a, b *process) {
	pl.t.Helper()
	a, b = pl.run("INSTANCE_ID="+one, fourShards), pl.run("INSTANCE_ID="+other, fourShards)
	a.awaitReady()
	b.awaitReady()
	pl.awaitOwners(func(o map[string]int) bool { return o[one] == 2 && o[other] == 2 })
	return a, b
}

func pid(p *process) string { return fmt.Sprintf("PID=%d", p.cmd.Process.Pid) }

func stageStalled(pl *place) staged {
	asleep, awake := pl.pair("asleep", "awake")
	asleep.signal(syscall.SIGSTOP)
	pl.publish(rides(0, 3)...)
	return staged{
		settings: []string{pid(asleep)},
		before:   map[int]func(){1: func() { pl.awaitStored(3, 20*time.Second) }},
		after: func() {
			require.Equal(pl.t, -1, asleep.exit(10*time.Second))
			require.Regexp(pl.t, `"took over without a release".*"member":"asleep\..*"host":"[^"]+","pid":\d+`, awake.output())
		},
	}
}

func stageTwin(pl *place) staged {
	pl.run("INSTANCE_ID=twin", fourShards).awaitReady()
	return staged{}
}

// letter is an entry that is read well and makes no record.
func letter(device string, second int64) []string {
	fields := good(device, second)
	payload := &fields[len(fields)-1]
	*payload = strings.Replace(*payload, `"latitude":42.5`, `"latitude":91`, 1)
	return fields
}

func (pl *place) awaitLetters(n int64) {
	pl.t.Helper()
	c := pl.client()
	testenv.Wait(pl.t, 30*time.Second, func() error {
		if have, err := c.XLen(context.Background(), pl.stream+":dlq").Result(); err != nil || have != n {
			return fmt.Errorf("want %d dead letters, have %d, %w", n, have, err)
		}
		return nil
	})
}

// stageDevice is a device with a dead letter and a fix 1,100 km away, in a fence.
func stageDevice(pl *place) staged {
	st := stageWork(pl)
	var imported fencesImported
	pl.ask(exitClean, &imported, "geofence", "import", fileOf(pl.t, `{"type":"FeatureCollection","features":[{"type":"Feature","id":"far",
		"properties":{},"geometry":{"type":"Polygon","coordinates":[[[1,52],[2,52],[2,53],[1,53],[1,52]]]}}]}`))
	far := good(imei, 20)
	payload := &far[len(far)-1]
	*payload = strings.Replace(*payload, `"latitude":42.5`, `"latitude":52.5`, 1)
	pl.publish(letter(imei, 10), far, good(imei, 30))
	pl.awaitStored(5, 30*time.Second)
	pl.awaitLetters(1)
	return st
}

func stageDeadLetters(pl *place) staged {
	pl.run(fourShards).awaitReady()
	pl.publish(letter("another-device", 1))
	pl.awaitLetters(1)
	pl.publish(letter(imei, 1), letter(imei, 2), letter(imei, 3))
	pl.awaitLetters(4)
	return staged{settings: device()}
}

func stageRedisLost(pl *place) staged {
	st := stageWork(pl)
	c, ctx := pl.client(), pl.t.Context()
	keys := c.Scan(ctx, 0, "*"+pl.stream+"*", 1000).Iterator()
	for keys.Next(ctx) {
		require.NoError(pl.t, c.Unlink(ctx, keys.Val()).Err())
	}
	require.NoError(pl.t, keys.Err())
	pl.publish(rides(100, 3)...)
	st.after = func() { pl.awaitStored(6, 5*time.Second) }
	return st
}

func stageGroupLost(pl *place) staged {
	st := stageWork(pl)
	require.NoError(pl.t, pl.client().XGroupDestroy(pl.t.Context(), pl.stream, pl.group).Err())
	st.after = func() { pl.awaitStored(3, 5*time.Second) }
	return st
}

// stageRestored has the tables fall behind what was acknowledged.
func stageRestored(pl *place) staged {
	p := pl.run(fourShards)
	p.awaitReady()
	ids := pl.publish(rides(0, 10)...)
	pl.awaitStored(10, 30*time.Second)
	require.Zero(pl.t, terminated(p))
	pl.exec("delete from positions where ts >= (select ts from positions order by ts offset 5 limit 1)")
	pl.exec("update processor.progress set applied_id = $1", ids[4].String())
	pl.awaitStored(5, time.Second)
	pl.run(fourShards)
	return staged{}
}

func stageTrimmed(pl *place) staged {
	p := pl.run(fourShards)
	p.awaitReady()
	pl.publish(rides(0, 2)...)
	pl.awaitStored(2, 30*time.Second)
	require.Zero(pl.t, terminated(p))
	pl.publish(rides(10, 10)...)
	require.NoError(pl.t, pl.client().XTrimMaxLen(pl.t.Context(), pl.stream, 4).Err())
	pl.run(fourShards)
	return staged{after: func() { pl.awaitStored(6, 10*time.Second) }}
}

func stagePostgresDown(pl *place) staged {
	u, err := url.Parse(pl.pgURL)
	require.NoError(pl.t, err)
	proxy := testenv.Proxy(pl.t, u.Host)
	through, err := proxy.URL(pl.pgURL)
	require.NoError(pl.t, err)
	p := pl.run(fourShards, "POSTGRES_URL="+through)
	p.awaitReady()
	require.NoError(pl.t, proxy.Refuse())
	return staged{
		settings: []string{portOf(p)},
		after: func() {
			require.NoError(pl.t, proxy.Resume())
			p.awaitReady()
		},
	}
}

func stageMigration(pl *place) staged {
	pl.exec("drop index positions_device_ts")
	return staged{}
}

func stageDump(pl *place) staged {
	dir := pl.t.TempDir()
	settings := []string{"INSTANCE_ID=crasher", "PANIC_DUMP_DIR=" + dir, fourShards}
	p := pl.run(settings...)
	p.awaitReady()
	pl.publish(rides(0, 3)...)
	pl.awaitStored(3, 30*time.Second)
	p.signal(syscall.SIGQUIT)
	require.Equal(pl.t, exitCrash, p.exit(20*time.Second))
	again := pl.run(settings...)
	again.await("an earlier process crashed, its dump is kept")
	return staged{settings: []string{"PANIC_DUMP_DIR=" + dir}}
}

func stageRoll(pl *place) staged {
	goes, _ := pl.pair("goes", "stays")
	return staged{
		settings: []string{pid(goes)},
		after:    func() { require.Equal(pl.t, exitClean, goes.exit(10*time.Second)) },
	}
}

// stageResize is an operator who stops the instance once the queues are empty.
func stageResize(pl *place) staged {
	p := pl.run(fourShards)
	p.awaitReady()
	pl.publish(rides(0, 3)...)
	pl.awaitStored(3, 30*time.Second)
	return staged{
		before: map[int]func(){0: func() {
			stop := time.AfterFunc(2*time.Second, func() { _ = p.cmd.Process.Signal(syscall.SIGTERM) })
			pl.t.Cleanup(func() { stop.Stop() })
		}},
		after: func() {
			require.Equal(pl.t, exitClean, p.exit(time.Second))
			pl.publish(rides(10, 3)...)
			pl.run("SHARDS=8").awaitReady()
			pl.awaitStored(6, 30*time.Second)
		},
	}
}

// stageSwitch is the service before us: it has stored two entries, holds two,
// and is stopped.
func stageSwitch(pl *place) staged {
	pl.publish(rides(0, 6)...)
	held := pl.foreign("old-service-1", 4)
	for i, m := range held[:2] {
		pl.exec(`insert into positions (device_id, ts, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
			values ($1, to_timestamp($2), 42.5, 1.5, 900, 10, 50, 9, 0, '8', '{}')`, imei, 1_700_000_000+i)
		require.NoError(pl.t, pl.client().XAck(pl.t.Context(), pl.stream, pl.group, m.ID).Err())
	}
	return staged{before: map[int]func(){1: func() { pl.run(eager()...).awaitReady() }}}
}
