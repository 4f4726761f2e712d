package modules

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/fx"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/httpserver"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// bench is one stream, one database and the services that run on them.
type bench struct {
	t     *testing.T
	redis *testenv.RedisCorner
	pgURL string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	t.Parallel()
	return &bench{t: t, redis: testenv.Redis(t), pgURL: database(t)}
}

// database is an empty database with the schema.
func database(t *testing.T) string {
	t.Helper()
	return testenv.Postgres(t, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
}

// config is the configuration of an instance, with settings like "NAME=value".
func (b *bench) config(settings ...string) config.Config {
	cfg, err := config.Load(append([]string{
		"REDIS_URL=" + b.redis.URL, "POSTGRES_URL=" + b.pgURL,
		"REDIS_TELEMETRY_STREAM=" + b.redis.Stream, "REDIS_CONSUMER_GROUP=" + b.redis.Group,
		"METRICS_HOST=127.0.0.1", "METRICS_PORT=0", "SHARDS=8", "WORKERS=2", "LOG_LEVEL=info", "LOG_FORMAT=json",
	}, settings...))
	require.NoError(b.t, err)
	return cfg
}

// logs keeps what is logged.
type logs struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// instance is a service that runs.
type instance struct {
	*Service
	t    *testing.T
	logs *logs
	stop context.CancelFunc
	done chan error
}

func (b *bench) start(settings ...string) *instance {
	l := &logs{}
	cfg := b.config(settings...)
	s, err := New(cfg, NewLogger(cfg.Log, cfg.Instance.ID, l), Build{Version: "test"})
	require.NoError(b.t, err)
	ctx, stop := context.WithCancel(context.Background())
	in := &instance{Service: s, t: b.t, logs: l, stop: stop, done: make(chan error, 1)}
	go func() { in.done <- s.Run(ctx) }()
	b.t.Cleanup(func() {
		stop()
		if b.t.Failed() {
			b.t.Log(l.String())
		}
	})
	return in
}

// end waits for the end of the instance.
func (in *instance) end() error {
	in.t.Helper()
	select {
	case err := <-in.done:
		return err
	case <-time.After(30 * time.Second):
		require.FailNow(in.t, "the service does not end")
		return nil
	}
}

// readiness asks /readyz.
func (in *instance) readiness() (httpserver.Readiness, error) {
	var r httpserver.Readiness
	if in.Addr() == "" {
		return r, fmt.Errorf("the endpoint does not listen yet")
	}
	res, err := http.Get("http://" + in.Addr() + "/readyz")
	if err != nil {
		return r, err
	}
	defer res.Body.Close()
	return r, json.NewDecoder(res.Body).Decode(&r)
}

func (in *instance) awaitReady() {
	in.t.Helper()
	testenv.Wait(in.t, 20*time.Second, func() error {
		r, err := in.readiness()
		if err == nil && !r.Ready {
			err = fmt.Errorf("want ready, have %v", r.Checks)
		}
		return err
	})
}

// members returns those that have a heartbeat and have not left.
func (b *bench) members() []coordination.Member {
	b.t.Helper()
	keys := coordination.Keys{Prefix: stream.Names{Stream: b.redis.Stream, Group: b.redis.Group}.Members()}
	members, err := coordination.ReadMembers(b.t.Context(), b.redis.Client(), keys)
	require.NoError(b.t, err)
	return members
}

func (b *bench) publish(n int) {
	var entries [][]string
	for i := range n {
		m := fleet.Message{
			DeviceID: fmt.Sprintf("device-%d", i%20), Codec: "8",
			Time: time.Unix(1_700_000_000+int64(i), 0).UTC(), Latitude: 42.5, Longitude: 1.5, Satellites: 9,
		}
		entries = append(entries, fleet.EntryFields(&m))
	}
	_, err := fleet.NewPublisher(b.redis.Client(), b.redis.Stream, 0).Publish(context.Background(), entries)
	require.NoError(b.t, err)
}

func (b *bench) query(sql string, into ...any) error {
	conn, err := pgx.Connect(context.Background(), b.pgURL)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	return conn.QueryRow(context.Background(), sql).Scan(into...)
}

func (b *bench) exec(sql string) {
	conn, err := pgx.Connect(context.Background(), b.pgURL)
	require.NoError(b.t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(context.Background(), sql)
	require.NoError(b.t, err)
}

func (b *bench) awaitStored(n int) {
	b.t.Helper()
	testenv.Wait(b.t, 20*time.Second, func() error {
		var have int
		if err := b.query("select count(*) from positions", &have); err != nil || have != n {
			return fmt.Errorf("want %d rows, have %d: %w", n, have, err)
		}
		return nil
	})
}

func code(t *testing.T, err error) int {
	t.Helper()
	var e interface{ ExitCode() int }
	require.ErrorAs(t, err, &e)
	return e.ExitCode()
}

func TestTheGraphIsComplete(t *testing.T) {
	cfg, err := config.Load([]string{"REDIS_URL=redis://r", "POSTGRES_URL=postgres://p/d"})
	require.NoError(t, err)
	require.NoError(t, fx.ValidateApp(graph(cfg, slog.New(slog.DiscardHandler), Build{})))
}

func TestTheStartIsAMetric(t *testing.T) {
	families, err := newRegistry(Build{}).Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "processor_start_time_seconds" {
			require.InDelta(t, time.Now().Unix(), f.GetMetric()[0].GetGauge().GetValue(), 60)
			return
		}
	}
	require.Fail(t, "it is missing")
}

func TestAnInstanceStartsWorksAndLeavesNothingBehind(t *testing.T) {
	b := newBench(t)
	b.publish(100)
	in := b.start()
	in.awaitReady()
	b.awaitStored(100)
	require.Contains(t, in.logs.String(), `"msg":"starting to process"`)
	require.Contains(t, in.logs.String(), `"length":100,"lag":100`)
	require.NotContains(t, in.logs.String(), `"level":"ERROR"`)

	in.stop()
	require.NoError(t, in.end())
	var owned int
	require.NoError(t, b.query("select count(owner) from processor.shards", &owned))
	require.Zero(t, owned, "every shard was released")
	ctx := t.Context()
	require.Empty(t, b.members(), "it has left")
	require.Empty(t, b.redis.Client().Keys(ctx, "*"+b.redis.Token+"*:leader").Val(), "it does not lead")
	require.Empty(t, b.redis.Client().Keys(ctx, "*"+b.redis.Token+"*:dispatch-lease").Val(), "it does not hold the dispatch lease")
	testenv.Wait(t, 10*time.Second, func() error { // the server notices the end of a connection a little later
		var sessions int
		err := b.query("select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()", &sessions)
		if err == nil && sessions > 0 {
			err = fmt.Errorf("%d sessions are left", sessions)
		}
		return err
	})
	_, err := in.readiness()
	require.Error(t, err, "the endpoint is closed")

	again := b.start()
	again.awaitReady()
	again.stop()
	require.NoError(t, again.end())
}

func TestRequestsOfNeighboursAreReadFromTheConfiguredStream(t *testing.T) {
	b := newBench(t)
	requests := b.redis.Stream + ":recompute"
	ctx := t.Context()
	require.NoError(t, b.redis.Client().XAdd(ctx, &redis.XAddArgs{Stream: requests, Values: []any{"device_id", "d"}}).Err())
	b.start("RECOMPUTE_STREAM=" + requests).awaitReady()
	testenv.Wait(t, 10*time.Second, func() error {
		groups, err := b.redis.Client().XInfoGroups(ctx, requests).Result()
		if err == nil && len(groups) != 1 {
			err = fmt.Errorf("%d groups read %s", len(groups), requests)
		}
		return err
	})
}

func TestTwoInstancesShareAndTheSecondGoesOnWhenTheFirstLeaves(t *testing.T) {
	b := newBench(t)
	first, second := b.start("INSTANCE_ID=first"), b.start("INSTANCE_ID=second")
	first.awaitReady()
	second.awaitReady()
	shared := func(want string) {
		testenv.Wait(t, 20*time.Second, func() error {
			var have string
			err := b.query(`select coalesce(string_agg(owner || '=' || n, ' ' order by owner), '') from (
				select split_part(owner, '.', 1) as owner, count(*) as n from processor.shards where owner is not null group by 1) s`, &have)
			if err != nil || have != want {
				return fmt.Errorf("want %q, have %q: %w", want, have, err)
			}
			return nil
		})
	}
	shared("first=4 second=4")
	b.publish(200)
	b.awaitStored(200)
	first.stop()
	require.NoError(t, first.end())
	shared("second=8")
	require.Contains(t, first.logs.String(), `"handed_over":4`)
	b.publish(400)
	b.awaitStored(400)
	second.stop()
	require.NoError(t, second.end())
}

func TestAComponentThatFailsEndsTheServiceWithCode2(t *testing.T) {
	b := newBench(t)
	in := b.start()
	in.awaitReady()
	b.exec("alter table positions rename to moved_away")
	b.publish(10)
	require.Equal(t, 2, code(t, in.end()))
	require.Contains(t, in.logs.String(), `"msg":"component ended; shutting down"`)
	require.Contains(t, in.logs.String(), `"clean":true`, "the others stopped in order")
}

func TestAnIdentityInUseIsRefusedWithCode6(t *testing.T) {
	b := newBench(t)
	first := b.start("INSTANCE_ID=same")
	first.awaitReady()
	second := b.start("INSTANCE_ID=same")
	require.Equal(t, 6, code(t, second.end()))
	r, err := first.readiness()
	require.NoError(t, err)
	require.True(t, r.Ready)
	first.stop()
	require.NoError(t, first.end())
}

func TestAServerThatNeverComesUpEndsTheStartWithCode4(t *testing.T) {
	b := newBench(t)
	for _, missing := range []string{"REDIS_URL=redis://127.0.0.1:1", "POSTGRES_URL=postgres://p@127.0.0.1:1/d"} {
		in := b.start(missing, "START_TIMEOUT=1s")
		testenv.Wait(t, 5*time.Second, func() error { // the endpoint is up before the servers
			r, err := in.readiness()
			if err == nil && (r.Ready || len(r.NotReady) == 0) {
				err = fmt.Errorf("ready: %v", r)
			}
			return err
		})
		err := in.end()
		require.Equal(t, 4, code(t, err))
		require.ErrorContains(t, err, "START_TIMEOUT=1s")
		require.ErrorContains(t, err, "refused")
	}
}

func TestAStartThatWaitsEndsCleanWhenStopped(t *testing.T) {
	b := newBench(t)
	in := b.start("POSTGRES_URL=postgres://p@127.0.0.1:1/d")
	testenv.Wait(t, 5*time.Second, func() error {
		if !strings.Contains(in.logs.String(), "waiting for a dependency") {
			return fmt.Errorf("it does not wait")
		}
		return nil
	})
	in.stop()
	require.NoError(t, in.end())
}

func TestAWrongSchemaIsNamedAndEndsTheStartWithCode5(t *testing.T) {
	b := newBench(t)
	b.exec("alter table positions drop column faulty")
	in := b.start("MIGRATE=verify")
	err := in.end()
	require.Equal(t, 5, code(t, err))
	require.ErrorContains(t, err, "faulty")
}

func TestAServerThatForgetsCommitsIsRefusedWithCode3(t *testing.T) {
	b := newBench(t)
	b.exec("do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$")
	err := b.start().end()
	require.Equal(t, 3, code(t, err))
	require.ErrorContains(t, err, "synchronous_commit = off")
}

func TestADatabaseThatCannotHoldEveryTextIsRefusedWithCode3(t *testing.T) {
	b := newBench(t)
	b.exec("create database latin1 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0")
	utf8 := b.pgURL
	t.Cleanup(func() {
		b.pgURL = utf8
		b.exec("drop database latin1 with (force)")
	})
	u, err := url.Parse(b.pgURL)
	require.NoError(t, err)
	u.Path = "/latin1"
	b.pgURL = u.String()
	err = b.start().end()
	require.Equal(t, 3, code(t, err))
	require.ErrorContains(t, err, "encoding LATIN1")
	var schemas int
	require.NoError(t, b.query("select count(*) from pg_namespace where nspname = 'processor'", &schemas))
	require.Zero(t, schemas, "refused before anything is changed")
}

func TestAFleetConfiguredOtherwiseRefuses(t *testing.T) {
	b := newBench(t)
	first := b.start("SHARDS=8")
	first.awaitReady()
	err := b.start("SHARDS=16").end()
	require.Equal(t, 3, code(t, err))
	require.ErrorContains(t, err, "SHARDS is 16 here and 8 for the fleet")
	first.stop()
	require.NoError(t, first.end())

	// It is refused before it takes part in anything.
	b.exec("update processor.settings set value = '99' where name like '%/PROTOCOL'")
	const standing = "select md5(string_agg(s::text || a::text, ',' order by shard)) from processor.shards s join processor.assignments a using (stream, group_name, shard)"
	conn, err := pgx.Connect(t.Context(), b.pgURL)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	var before, after string
	require.NoError(t, conn.QueryRow(t.Context(), standing).Scan(&before))
	err = b.start().end()
	require.Equal(t, 5, code(t, err))
	require.ErrorContains(t, err, "PROTOCOL is 1 here and 99 for the fleet")
	require.NoError(t, conn.QueryRow(t.Context(), standing).Scan(&after))
	require.Equal(t, before, after, "no shard was taken or assigned")
	require.Empty(t, b.members())
}

// P1: what an instance commits to another database than the fleet's must never
// be acknowledged: it does not join, however it comes to the fleet's Redis.
func TestAnInstanceWithAnotherDatabaseIsRefusedWithCode3(t *testing.T) {
	b := newBench(t)
	first := b.start()
	first.awaitReady()
	b.publish(3)
	b.awaitStored(3)
	wrong := database(t)
	refused := func() {
		t.Helper()
		err := b.start("POSTGRES_URL=" + wrong).end()
		require.Equal(t, fault.Config, code(t, err))
	}
	another := b.start("POSTGRES_URL=" + wrong)
	require.Equal(t, fault.Config, code(t, another.end()))
	require.Contains(t, another.logs.String(), "the fleet on Redis at "+b.config().Redis.URL.Addresses())
	require.Contains(t, another.logs.String(), fault.PostgresDatabase(b.config().Postgres.URL))
	require.Contains(t, another.logs.String(), fault.PostgresDatabase(b.config("POSTGRES_URL="+wrong).Postgres.URL))

	// A flush takes what Redis knew of it, the heartbeats too. The other one began
	// before, so it leaves the entry to those that know.
	names := stream.Names{Stream: b.redis.Stream, Group: b.redis.Group}
	require.NoError(t, b.redis.Client().Del(t.Context(), append(names.All(), names.Heartbeat(first.cfg.Instance.ID))...).Err())
	refused()
	b.publish(6) // three of them are known
	b.awaitStored(6)
	first.stop()
	require.NoError(t, first.end())
	refused()
	again := b.start()
	again.awaitReady()
}

// P1: a stream that a database does not know yet is no sign that the database is the right one.
func TestAStreamThatIsNewInAnotherDatabaseIsRefusedAfterAFlushOfRedis(t *testing.T) {
	b := newBench(t)
	wrong := database(t)
	there := b.on("-another")
	another := there.start("POSTGRES_URL=" + wrong)
	another.awaitReady()
	another.stop()
	require.NoError(t, another.end())

	first := b.start()
	first.awaitReady()
	names := stream.Names{Stream: b.redis.Stream, Group: b.redis.Group}
	require.NoError(t, b.redis.Client().Del(t.Context(), append(names.All(), names.Heartbeat(first.cfg.Instance.ID))...).Err())
	require.Equal(t, fault.Config, code(t, b.start("POSTGRES_URL="+wrong).end()))
	b.publish(3)
	b.awaitStored(3)
}

func TestASecondGroupOfAStreamInOneDatabaseIsRefusedWithCode3(t *testing.T) {
	b := newBench(t)
	first := b.start()
	first.awaitReady()
	other := b.redis.Group + "-other"
	err := b.start("REDIS_CONSUMER_GROUP=" + other).end()
	require.Equal(t, fault.Config, code(t, err))
	require.ErrorContains(t, err, "stream "+b.redis.Stream+" is processed by group "+b.redis.Group)
	require.ErrorContains(t, err, other)
	require.ErrorContains(t, err, "a database of its own")
}

// During a roll-out the newer version's migrations come first.
func TestANewerSchemaDoesNotStopAnOlderBinary(t *testing.T) {
	b := newBench(t)
	b.exec("alter table positions add column hdop real")
	b.exec("alter table processor.shards add column weight integer not null default 1")
	b.exec("create table processor.splits (id bigint primary key)")
	b.exec("insert into processor.goose_db_version (version_id, is_applied) values (99, true)")
	for _, migrate := range []string{"auto", "verify"} {
		in := b.start("MIGRATE=" + migrate)
		in.awaitReady()
		in.stop()
		require.NoError(t, in.end())
	}
}

func TestATakenPortEndsTheStartWithCode3(t *testing.T) {
	b := newBench(t)
	first := b.start()
	first.awaitReady()
	_, port, _ := strings.Cut(first.Addr(), ":")
	err := b.start("METRICS_PORT=" + port).end()
	require.Equal(t, 3, code(t, err))
	require.ErrorContains(t, err, "another process has this port")
	first.stop()
	require.NoError(t, first.end())
}

func TestADrainThatTakesTooLongEndsWithCode1AndLosesNothing(t *testing.T) {
	b := newBench(t)
	in := b.start("DRAIN_TIMEOUT=500ms")
	in.awaitReady()
	// A lock on the table blocks every commit.
	conn, err := pgx.Connect(t.Context(), b.pgURL)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "begin; lock table positions in access exclusive mode")
	require.NoError(t, err)
	b.publish(50)
	testenv.Wait(t, 10*time.Second, func() error {
		var waiting int
		if err := b.query("select count(*) from pg_locks where not granted and relation = 'positions'::regclass and database = (select oid from pg_database where datname = current_database())", &waiting); err != nil || waiting == 0 {
			return fmt.Errorf("no session waits for the lock: %w", err)
		}
		// The first one waits there while the others gather in the stream.
		groups, err := b.redis.Client().XInfoGroups(t.Context(), b.redis.Stream).Result()
		if err != nil || len(groups) != 1 || groups[0].Pending != 50 {
			return fmt.Errorf("not all entries are on their queues: %v (%w)", groups, err)
		}
		return nil
	})
	in.stop()
	err = in.end()
	require.Equal(t, 1, code(t, err))
	require.ErrorContains(t, err, "50 entries stay on their queues")
	_, err = conn.Exec(t.Context(), "rollback")
	require.NoError(t, err)
	next := b.start()
	b.awaitStored(50)
	next.stop()
	require.NoError(t, next.end())
}

func TestMigrateOffLooksAtNothingAndAMissingSchemaEndsWithCode5(t *testing.T) {
	t.Parallel()
	b := &bench{t: t, redis: testenv.Redis(t), pgURL: testenv.Postgres(t)}
	err := b.start("MIGRATE=off").end()
	require.Equal(t, 5, code(t, err))
	require.ErrorContains(t, err, "processor migrate up")

	in := b.start("MIGRATE=auto")
	in.awaitReady()
	in.stop()
	require.NoError(t, in.end())
	off := b.start("MIGRATE=off")
	off.awaitReady()
	off.stop()
	require.NoError(t, off.end())
}
