package runbook_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// stages bring about what each page of the runbook is for.
var stages = map[string]func(dep *servicetest.Deployment) staged{
	"doctor":          stageWork,
	"lag":             stageLag,
	"lag-raw":         stageLag,
	"nothing-arrives": stageWrongName,
	"lag-grows":       stageLock,
	"stalled-shard":   stageStalledShard,
	"claim":           stageForeign,
	"stalled":         stageStalled,
	"duplicate":       stageTwin,
	"other-database":  stageOtherDatabase,
	"database-copy":   stageDatabaseCopy,
	"leaders":         stageWork,
	"no-leader":       stageWork,
	"forecast":        stageWork,
	"redis-errors":    stageRedisDown,
	"redis-slow":      stageWork,
	"rehydrate":       stageWork,
	"device":          stageDevice,
	"dlq":             stageDeadLetters,
	"dlq-raw":         stageDeadLettersByHand,
	"redis-lost":      stageRedisLost,
	"group-lost":      stageGroupLost,
	"all-down":        stageLag,
	"redis-refuses":   func(*servicetest.Deployment) staged { return staged{} },
	"restored":        stageRestored,
	"trimmed":         stageTrimmed,
	"postgres-down":   stagePostgresDown,
	"migration":       stageMigration,
	"recompute":       stageWork,
	"fence-query":     stageFenceQuery,
	"timing-feed":     stageTimingFeed,
	"dump":            stageDump,
	"resize":          stageResize,
	"roll":            stageRoll,
	"streams":         stageStreams,
	"switch":          stageSwitch,
}

func device() []string { return []string{"DEVICE=" + servicetest.IMEI} }

// stageWork is an instance that has done its work.
func stageWork(dep *servicetest.Deployment) staged {
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	dep.Publish(servicetest.Records(0, 3)...)
	dep.AwaitStored(3, 30*time.Second)
	return staged{settings: device()}
}

func stageLag(dep *servicetest.Deployment) staged {
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	p.Await("acquired shards")
	p.Await("consumer group created")
	require.Zero(dep.T, p.Terminate())
	dep.Publish(servicetest.Records(0, 5)...)
	return staged{}
}

func stageWrongName(dep *servicetest.Deployment) staged {
	right := *dep
	right.Stream = "telemetry:" + dep.Stream
	right.Publish(servicetest.Records(0, 2)...)
	p := dep.Run(servicetest.FourShards)
	p.Await("check REDIS_TELEMETRY_STREAM")
	return staged{}
}

func stageLock(dep *servicetest.Deployment) staged {
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	blocker(dep, "lock table positions in access exclusive mode")
	dep.Publish(servicetest.Records(0, 3)...)
	return staged{after: func() { dep.AwaitStored(3, 5*time.Second) }}
}

// blocker leaves a transaction open in which a statement was run.
func blocker(dep *servicetest.Deployment, sql string) {
	dep.T.Helper()
	u, err := url.Parse(dep.PostgresURL)
	require.NoError(dep.T, err)
	q := u.Query()
	q.Set("application_name", "reporting")
	u.RawQuery = q.Encode()
	conn, err := pgx.Connect(dep.T.Context(), u.String())
	require.NoError(dep.T, err)
	dep.T.Cleanup(func() { _ = conn.Close(context.Background()) })
	_, err = conn.Exec(dep.T.Context(), "begin; "+sql)
	require.NoError(dep.T, err)
}

// stageStalledShard is a lock on the row of one shard while others have work.
func stageStalledShard(dep *servicetest.Deployment) staged {
	dep.Run(append(eager(), "WORKERS=4")...).AwaitReady()
	stuck := telemetry.ShardOf(servicetest.IMEI, 4)
	awaitOwners(dep, func(o map[string]int) bool { return o[""] == 0 && len(o) == 1 })
	blocker(dep, fmt.Sprintf("select from processor.shards where shard = %d for update", stuck))
	dep.Publish(servicetest.Records(0, 3)...)
	busy := ""
	for n := 0; busy == "" || telemetry.ShardOf(busy, 4) == stuck; n++ {
		busy = fmt.Sprint("busy-", n)
	}
	ctx, cancel := context.WithCancel(dep.T.Context())
	var work sync.WaitGroup
	sent := 0
	work.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			dep.Publish(servicetest.Record(busy, int64(sent)))
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
	dep.T.Cleanup(stop)
	return staged{
		before: map[int]func(){2: stop},
		after:  func() { dep.AwaitStored(3+sent, 5*time.Second) },
	}
}

// stageFenceQuery is a platform with a fence that is invalid.
func stageFenceQuery(dep *servicetest.Deployment) staged {
	const square = `{"type":"%s","coordinates":[[[%[2]d,48],[%[2]d.1,48],[%[2]d.1,48.1],[%[2]d,48.1],[%[2]d,48]]]}`
	dep.Exec("create table depots (name text primary key, area text not null)")
	dep.Exec("insert into depots values ('north', $1), ('south', $2)", fmt.Sprintf(square, "Polygon", 11), fmt.Sprintf(square, "Poligon", 12))
	dep.Run(servicetest.FourShards, "GEOFENCE_REFRESH=1s", "GEOFENCE_QUERY=select name as id, area as geometry from depots").AwaitReady()
	return staged{}
}

// stageTimingFeed is a transaction that was forgotten, in another database, one of an instance that is
// older and between two statements, and a crossing after them.
func stageTimingFeed(dep *servicetest.Deployment) staged {
	dep.Run(servicetest.FourShards).AwaitReady()
	u, err := url.Parse(dep.PostgresURL)
	require.NoError(dep.T, err)
	u.Path = "/postgres"
	open := func(url, name string) (conn *pgx.Conn, xid uint32) {
		conn, err := pgx.Connect(dep.T.Context(), url)
		require.NoError(dep.T, err)
		dep.T.Cleanup(func() { _ = conn.Close(context.Background()) })
		_, err = conn.Exec(dep.T.Context(), "set application_name = '"+name+"'; begin; create temporary table import (n int)")
		require.NoError(dep.T, err)
		require.NoError(dep.T, conn.QueryRow(dep.T.Context(), "select backend_xid from pg_stat_activity where pid = pg_backend_pid()").Scan(&xid))
		return conn, xid
	}
	instance, _ := open(dep.PostgresURL, "processor/a.AAAAAAAAAA")
	_, xid := open(u.String(), "forgotten")
	dep.Exec(`insert into processor.timing_records (device_id, fence_id, fence_version, kind, at, earlier_ts, later_ts, latitude, longitude)
		values ('a', 'f', 1, 'enter', now(), now(), now(), 48, 11)`)
	return staged{
		settings: []string{fmt.Sprintf("XID=%d", xid)},
		before: map[int]func(){2: func() {
			_, err := instance.Exec(dep.T.Context(), "commit")
			require.NoError(dep.T, err, "it goes on")
		}},
	}
}

// foreign has the service before us read some entries of the group.
func foreign(dep *servicetest.Deployment, consumer string, n int64) []redis.XMessage {
	dep.T.Helper()
	c, ctx := dep.Client(), dep.T.Context()
	require.NoError(dep.T, c.XGroupCreateMkStream(ctx, dep.Stream, dep.Group, "0").Err())
	got, err := c.XReadGroup(ctx, &redis.XReadGroupArgs{
		Group: dep.Group, Consumer: consumer, Streams: []string{dep.Stream, ">"}, Count: n,
	}).Result()
	require.NoError(dep.T, err)
	return got[0].Messages
}

// eager claims soon. The order of these three is checked by the service.
func eager() []string {
	return []string{servicetest.FourShards, "CLAIM_THRESHOLD_MS=2000", "CLAIM_INTERVAL_MS=200", "STATEMENT_TIMEOUT=1500ms", "LOCK_TIMEOUT=1s", "HANDOFF_BUDGET=1s"}
}

func stageForeign(dep *servicetest.Deployment) staged {
	dep.Publish(servicetest.Records(0, 6)...)
	foreign(dep, "old-service-1", 4)
	return staged{
		before: map[int]func(){1: func() { dep.Run(eager()...).AwaitReady() }},
		after:  func() { dep.AwaitStored(6, 5*time.Second) },
	}
}

func awaitOwners(dep *servicetest.Deployment, want func(owners map[string]int) bool) {
	dep.T.Helper()
	conn, err := pgx.Connect(dep.T.Context(), dep.PostgresURL)
	require.NoError(dep.T, err)
	defer conn.Close(context.Background())
	testenv.Wait(dep.T, 30*time.Second, func() error {
		rows, err := conn.Query(dep.T.Context(), "select coalesce(owner, ''), count(*) from processor.shards group by 1")
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
func pair(dep *servicetest.Deployment, one, other string) (a, b *servicetest.Process) {
	dep.T.Helper()
	a, b = dep.Run("INSTANCE_ID="+one, servicetest.FourShards), dep.Run("INSTANCE_ID="+other, servicetest.FourShards)
	a.AwaitReady()
	b.AwaitReady()
	awaitOwners(dep, func(o map[string]int) bool { return o[one] == 2 && o[other] == 2 })
	return a, b
}

func pid(p *servicetest.Process) string { return fmt.Sprintf("PID=%d", p.PID()) }

func stageStalled(dep *servicetest.Deployment) staged {
	asleep, awake := pair(dep, "asleep", "awake")
	asleep.Signal(syscall.SIGSTOP)
	dep.Publish(servicetest.Records(0, 3)...)
	return staged{
		settings: []string{pid(asleep)},
		before:   map[int]func(){1: func() { dep.AwaitStored(3, 20*time.Second) }},
		after: func() {
			require.Equal(dep.T, -1, asleep.Exit(40*time.Second))
			awake.AwaitMatch(`"force-acquired shards from a dead member".*"member":"asleep\..*"host":"[^"]+","pid":\d+`)
		},
	}
}

func stageTwin(dep *servicetest.Deployment) staged {
	dep.Run("INSTANCE_ID=twin", servicetest.FourShards).AwaitReady()
	return staged{}
}

// stageOtherDatabase is a fleet that worked with another database before.
func stageOtherDatabase(dep *servicetest.Deployment) staged {
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	require.Zero(dep.T, p.Terminate())
	key := stream.Names{Stream: dep.Stream, Group: dep.Group}.Database()
	require.NoError(dep.T, dep.Client().Set(dep.T.Context(), key, "ANOTHER 192.0.2.1:5432/other", 0).Err())
	return staged{after: func() {
		p := dep.Run(servicetest.FourShards)
		p.AwaitReady()
		require.Zero(dep.T, p.Terminate())
	}}
}

// stageDatabaseCopy is a fleet at work, and commands that lead to a copy of its database.
func stageDatabaseCopy(dep *servicetest.Deployment) staged {
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	require.Zero(dep.T, p.Terminate())
	u, err := url.Parse(dep.PostgresURL)
	require.NoError(dep.T, err)
	original := strings.TrimPrefix(u.Path, "/")
	u.Path = "/postgres"
	conn, err := pgx.Connect(dep.T.Context(), u.String())
	require.NoError(dep.T, err)
	dep.T.Cleanup(func() { _ = conn.Close(context.Background()) })
	_, err = conn.Exec(dep.T.Context(), fmt.Sprintf("create database %s template %s", pgx.Identifier{original + "_copy"}.Sanitize(), pgx.Identifier{original}.Sanitize()))
	require.NoError(dep.T, err)
	dep.T.Cleanup(func() {
		_, err := conn.Exec(context.Background(), "drop database "+pgx.Identifier{original + "_copy"}.Sanitize()+" with (force)")
		require.NoError(dep.T, err)
	})
	dep.Run(servicetest.FourShards, "INSTANCE_ID=production").AwaitReady()
	u.Path = "/" + original + "_copy"
	return staged{
		settings: []string{"POSTGRES_URL=" + u.String()},
		after: func() {
			refused := dep.Run(servicetest.FourShards, "INSTANCE_ID=staging", "POSTGRES_URL="+u.String())
			require.Equal(dep.T, 3, refused.Exit(60*time.Second))
			require.Contains(dep.T, refused.Output()+refused.Errors(), "leads to a copy of it")
		},
	}
}

// stageDevice is a device with a dead letter and a fix 1,100 km away, in a fence.
func stageDevice(dep *servicetest.Deployment) staged {
	st := stageWork(dep)
	dep.Ask(0, nil, "geofence", "import", servicetest.File(dep.T, `{"type":"FeatureCollection","features":[{"type":"Feature","id":"far",
		"properties":{},"geometry":{"type":"Polygon","coordinates":[[[1,52],[2,52],[2,53],[1,53],[1,52]]]}}]}`))
	far := servicetest.Record(servicetest.IMEI, 20)
	payload := &far[len(far)-1]
	*payload = strings.Replace(*payload, `"latitude":42.5`, `"latitude":52.5`, 1)
	dep.Publish(servicetest.InvalidRecord(servicetest.IMEI, 10), far, servicetest.Record(servicetest.IMEI, 30))
	dep.AwaitStored(5, 30*time.Second)
	dep.AwaitDeadLetters(1)
	return st
}

func stageDeadLetters(dep *servicetest.Deployment) staged {
	dep.Run(servicetest.FourShards).AwaitReady()
	dep.Publish(servicetest.InvalidRecord("another-device", 1))
	dep.AwaitDeadLetters(1)
	dep.Publish(servicetest.InvalidRecord(servicetest.IMEI, 1), servicetest.InvalidRecord(servicetest.IMEI, 2), servicetest.InvalidRecord(servicetest.IMEI, 3))
	dep.AwaitDeadLetters(4)
	return staged{settings: device()}
}

// stageDeadLettersByHand is the same, and the oldest of the device has a payload of two lines and a field that
// no instance knows.
func stageDeadLettersByHand(dep *servicetest.Deployment) staged {
	dep.Run(servicetest.FourShards).AwaitReady()
	dep.Publish(servicetest.InvalidRecord("another-device", 1))
	dep.AwaitDeadLetters(1)
	lines := append(servicetest.InvalidRecord(servicetest.IMEI, 1), "vendor", "a")
	payload := &lines[len(lines)-3]
	*payload = strings.Replace(*payload, `"latitude":91,`, "\"latitude\":91,\n", 1)
	dep.Publish(lines, servicetest.InvalidRecord(servicetest.IMEI, 2), servicetest.InvalidRecord(servicetest.IMEI, 3))
	dep.AwaitDeadLetters(4)
	return staged{settings: device(), after: func() {
		sent, err := dep.Client().XRevRangeN(dep.T.Context(), dep.Stream, "+", "-", 1).Result()
		require.NoError(dep.T, err)
		require.Equal(dep.T, "a", sent[0].Values["vendor"], "%v", sent[0].Values)
		require.Equal(dep.T, strings.Replace(*payload, "91", "41", 1), sent[0].Values["payload"])
	}}
}

func stageRedisLost(dep *servicetest.Deployment) staged {
	st := stageWork(dep)
	c, ctx := dep.Client(), dep.T.Context()
	keys := c.Scan(ctx, 0, "*"+dep.Stream+"*", 1000).Iterator()
	for keys.Next(ctx) {
		require.NoError(dep.T, c.Unlink(ctx, keys.Val()).Err())
	}
	require.NoError(dep.T, keys.Err())
	dep.Publish(servicetest.Records(100, 3)...)
	st.after = func() { dep.AwaitStored(6, 5*time.Second) }
	return st
}

func stageGroupLost(dep *servicetest.Deployment) staged {
	st := stageWork(dep)
	require.NoError(dep.T, dep.Client().XGroupDestroy(dep.T.Context(), dep.Stream, dep.Group).Err())
	st.after = func() { dep.AwaitStored(3, 5*time.Second) }
	return st
}

// stageRestored has the tables fall behind what was acknowledged.
func stageRestored(dep *servicetest.Deployment) staged {
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	ids := dep.Publish(servicetest.Records(0, 10)...)
	dep.AwaitStored(10, 30*time.Second)
	require.Zero(dep.T, p.Terminate())
	dep.Exec("delete from positions where ts >= (select ts from positions order by ts offset 5 limit 1)")
	dep.Exec("update processor.progress set applied_id = $1", ids[4].String())
	dep.AwaitStored(5, time.Second)
	dep.Run(servicetest.FourShards)
	return staged{}
}

func stageTrimmed(dep *servicetest.Deployment) staged {
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	dep.Publish(servicetest.Records(0, 2)...)
	dep.AwaitStored(2, 30*time.Second)
	require.Zero(dep.T, p.Terminate())
	dep.Publish(servicetest.Records(10, 10)...)
	require.NoError(dep.T, dep.Client().XTrimMaxLen(dep.T.Context(), dep.Stream, 4).Err())
	dep.Run(servicetest.FourShards)
	return staged{after: func() { dep.AwaitStored(6, 10*time.Second) }}
}

func stagePostgresDown(dep *servicetest.Deployment) staged {
	u, err := url.Parse(dep.PostgresURL)
	require.NoError(dep.T, err)
	proxy := testenv.Proxy(dep.T, u.Host)
	through, err := proxy.URL(dep.PostgresURL)
	require.NoError(dep.T, err)
	p := dep.Run(servicetest.FourShards, "POSTGRES_URL="+through)
	p.AwaitReady()
	require.NoError(dep.T, proxy.Refuse())
	return staged{
		settings: []string{portOf(dep.T, p)},
		after: func() {
			require.NoError(dep.T, proxy.Resume())
			p.AwaitReady()
		},
	}
}

func stageRedisDown(dep *servicetest.Deployment) staged {
	u, err := url.Parse(dep.RedisURL)
	require.NoError(dep.T, err)
	proxy := testenv.Proxy(dep.T, u.Host)
	through, err := proxy.URL(dep.RedisURL)
	require.NoError(dep.T, err)
	p := dep.Run(servicetest.FourShards, "REDIS_URL="+through)
	p.AwaitReady()
	require.NoError(dep.T, proxy.Refuse())
	return staged{
		settings: []string{portOf(dep.T, p)},
		after: func() {
			require.NoError(dep.T, proxy.Resume())
			p.AwaitReady()
		},
	}
}

func stageMigration(dep *servicetest.Deployment) staged {
	dep.Exec("drop index positions_device_ts")
	return staged{}
}

func stageDump(dep *servicetest.Deployment) staged {
	dir := filepath.Join(dep.T.TempDir(), "dumps")
	settings := []string{"INSTANCE_ID=crasher", "PANIC_DUMP_DIR=" + dir, servicetest.FourShards}
	p := dep.Run(settings...)
	p.AwaitReady()
	dep.Publish(servicetest.Records(0, 3)...)
	dep.AwaitStored(3, 30*time.Second)
	p.Signal(syscall.SIGQUIT)
	require.Equal(dep.T, 2, p.Exit(20*time.Second))
	again := dep.Run(settings...)
	again.Await("earlier process crashed; dump kept")
	return staged{settings: []string{"PANIC_DUMP_DIR=" + dir}}
}

func stageRoll(dep *servicetest.Deployment) staged {
	goes, _ := pair(dep, "goes", "stays")
	return staged{
		settings: []string{pid(goes)},
		after:    func() { require.Equal(dep.T, 0, goes.Exit(40*time.Second)) },
	}
}

// stageResize is an operator who stops the instance once the queues are empty.
func stageResize(dep *servicetest.Deployment) staged {
	p := dep.Run(servicetest.FourShards)
	p.AwaitReady()
	dep.Publish(servicetest.Records(0, 3)...)
	dep.AwaitStored(3, 30*time.Second)
	return staged{
		before: map[int]func(){0: func() {
			stop := time.AfterFunc(2*time.Second, func() { p.Signal(syscall.SIGTERM) })
			dep.T.Cleanup(func() { stop.Stop() })
		}},
		after: func() {
			require.Equal(dep.T, 0, p.Exit(time.Second))
			dep.Publish(servicetest.Records(10, 3)...)
			dep.Run("SHARDS=8").AwaitReady()
			dep.AwaitStored(6, 30*time.Second)
		},
	}
}

// stageStreams is a fleet with one stream, beside which another one comes and goes.
func stageStreams(dep *servicetest.Deployment) staged {
	dep.T.Cleanup(func() {
		require.NoError(dep.T, dep.Client().Del(context.Background(), "telemetry:queclink", "{telemetry:queclink}:"+dep.Group+":removed").Err())
	})
	return stageWork(dep)
}

// stageSwitch is the service before us: it has stored two entries, holds two,
// and is stopped. On the way back an entry that cannot be decoded comes after the look.
func stageSwitch(dep *servicetest.Deployment) staged {
	dep.Publish(servicetest.Records(0, 6)...)
	held := foreign(dep, "old-service-1", 4)
	for i, m := range held[:2] {
		dep.Exec(`insert into positions (device_id, ts, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
			values ($1, to_timestamp($2), 42.5, 1.5, 900, 10, 50, 9, 0, '8', '{}')`, servicetest.IMEI, 1_700_000_000+i)
		require.NoError(dep.T, dep.Client().XAck(dep.T.Context(), dep.Stream, dep.Group, m.ID).Err())
	}
	var last *servicetest.Process
	return staged{before: map[int]func(){
		1: func() {
			last = dep.Run(eager()...)
			last.AwaitReady()
		},
		3: func() {
			later := servicetest.Record(servicetest.IMEI, 10)
			later[len(later)-1] = "of a later version"
			dep.Publish(later)
			testenv.Wait(dep.T, 10*time.Second, func() error {
				n, err := dep.Count("select count(*) from processor.deferred")
				if err == nil && n == 0 {
					err = errors.New("nothing is deferred")
				}
				return err
			})
			require.Zero(dep.T, last.Terminate())
		},
	}}
}
