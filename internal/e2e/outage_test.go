package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/demo"
)

// The bounds of every outage. What is logged and how often connections are
// made is measured from its begin until the service has caught up.
const (
	maxLines       = 15.0 // a second
	maxConnections = 40.0 // a second, to either server
	outageRecords  = 4096
	outageBytes    = 8 << 20
)

// turnstile passes connections on and counts them.
type turnstile struct {
	net.Listener
	upstream string
	count    atomic.Int64
}

func newTurnstile(t *testing.T, upstream string) *turnstile {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ts := &turnstile{Listener: l, upstream: upstream}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			ts.count.Add(1)
			all.Go(func() { ts.serve(client) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	return ts
}

func (ts *turnstile) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", ts.upstream)
	if err != nil {
		return
	}
	defer server.Close()
	var both sync.WaitGroup
	pump := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		_, _ = to.Close(), from.Close()
	}
	both.Go(func() { pump(server, client) })
	both.Go(func() { pump(client, server) })
	both.Wait()
}

// ward is a service under load whose servers fail one way after the other.
type ward struct {
	*testing.T
	env            *devenv.Env
	redis          *redis.Client
	black          *devenv.Proxy // before Postgres
	toRedis, toPG  *turnstile
	service        *servicetest.Process
	group          *stream.Group
	memory, record float64
}

// outage is one way to fail. It lasts until begin has returned and lasting has
// passed, and end is called.
type outage struct {
	name    string
	full    bool // only in long campaigns
	begin   func(w *ward)
	lasting time.Duration
	end     func(w *ward)
	within  time.Duration // to have caught up again
	after   func(w *ward) // what must be seen then, if anything
}

func (w *ward) do(args ...any) {
	w.Helper()
	require.NoError(w, w.redis.Do(w.Context(), args...).Err())
}

// sql runs on a connection of its own.
func (w *ward) sql(statements ...string) {
	w.Helper()
	conn, err := pgx.Connect(w.Context(), w.env.Postgres.URL())
	require.NoError(w, err)
	defer conn.Close(context.WithoutCancel(w.Context()))
	for _, s := range statements {
		_, err := conn.Exec(w.Context(), s)
		require.NoError(w, err, s)
	}
}

// every calls f every so often until the time is over.
func (w *ward) every(each, during time.Duration, f func()) {
	w.Helper()
	ticker, over := time.NewTicker(each), time.After(during)
	defer ticker.Stop()
	for {
		select {
		case <-over:
			return
		case <-ticker.C:
			f()
		}
	}
}

// names waits until readiness says which server is away.
func (w *ward) names(server string) {
	w.Helper()
	testenv.Wait(w, 30*time.Second, func() error {
		status, r, err := w.service.Readiness()
		if err == nil && (status != http.StatusServiceUnavailable || !slices.Contains(r.NotReady, server)) {
			err = fmt.Errorf("want 503 that names %s, have %d and %v", server, status, r.NotReady)
		}
		return err
	})
}

// incident waits until an incident of a kind is over, and returns its detail.
func (w *ward) incident(kind string) (detail string) {
	w.Helper()
	conn, err := pgx.Connect(w.Context(), w.env.Postgres.URL())
	require.NoError(w, err)
	defer conn.Close(context.WithoutCancel(w.Context()))
	testenv.Wait(w, 30*time.Second, func() error {
		return conn.QueryRow(w.Context(), `select detail::text from processor.incidents
			where kind = $1 and closed_at is not null order by id desc limit 1`, kind).Scan(&detail)
	})
	return detail
}

const serviceSessions = `from pg_stat_activity where application_name like 'processor/%' and pid <> pg_backend_pid()`

// raising makes every commit of positions fail with an SQLSTATE.
func raising(sqlstate string) (begin, end func(*ward)) {
	return func(w *ward) {
			w.sql(`create or replace function public.fail() returns trigger language plpgsql as
				$$ begin raise exception 'planted' using errcode = '`+sqlstate+`'; end $$`,
				`create trigger planted before insert on positions for each statement execute function public.fail()`)
		}, func(w *ward) {
			w.sql(`drop trigger planted on positions`)
		}
}

func redisOutages() []outage {
	const second = time.Second
	nothing := func(*ward) {}
	return []outage{
		{"restart with its data", true, func(w *ward) { require.NoError(w, w.env.Redis.Restart(w.Context())) }, 0, nothing, 10 * second, nil},
		{
			"killed, back later", false, func(w *ward) { require.NoError(w, w.env.Redis.Kill()) }, 2 * second,
			func(w *ward) { w.names("redis"); require.NoError(w, w.env.Redis.Start(w.Context())) }, 10 * second, nil,
		},
		{
			"group destroyed", false, func(w *ward) { w.do("xgroup", "destroy", "telemetry:teltonika", "processor") }, 0, nothing, 15 * second,
			func(w *ward) {
				text := w.incident("group_lost")
				w.Logf("incident: %s", text)
				require.Regexp(w, `"entries": [1-9]`, text)
			},
		},
		{
			"full", true, func(w *ward) { w.do("config", "set", "maxmemory", "1mb") }, 2 * second,
			func(w *ward) { w.do("config", "set", "maxmemory", "0") }, 10 * second, nil,
		},
		{
			"a replica now", true, func(w *ward) { w.do("replicaof", "127.0.0.1", "1") }, 3 * second,
			func(w *ward) { w.do("replicaof", "no", "one") }, 10 * second, nil,
		},
		{"paused", true, func(w *ward) { w.do("client", "pause", "2000", "all") }, 2 * second, nothing, 10 * second, nil},
		{"slow", true, func(w *ward) {
			w.every(400*time.Millisecond, 4*second, func() { w.do("debug", "sleep", "0.2") })
		}, 0, nothing, 10 * second, nil},
		{
			"frozen", true, func(w *ward) { require.NoError(w, w.env.Redis.Pause()) }, 12 * second,
			func(w *ward) { require.NoError(w, w.env.Redis.Resume()) }, 15 * second, nil,
		},
		{
			"loading", true, func(w *ward) {
				w.do("config", "set", "key-load-delay", "200000")
				w.do("config", "set", "loading-process-events-interval-bytes", "1024")
				require.NoError(w, w.redis.Do(w.Context(), "debug", "reload").Err())
			}, 0, func(w *ward) { w.do("config", "set", "key-load-delay", "0") }, 15 * second, nil,
		},
	}
}

func postgresOutages() []outage {
	const second = time.Second
	nothing := func(*ward) {}
	var crowd []*pgx.Conn
	var locker *pgx.Conn
	deadlock, deadlockOver := raising("40P01")
	full, fullOver := raising("53100")
	return []outage{
		{"restart", true, func(w *ward) { require.NoError(w, w.env.Postgres.Restart(w.Context())) }, 0, nothing, 10 * second, nil},
		{
			"killed, back later", false, func(w *ward) { require.NoError(w, w.env.Postgres.Kill()) }, 2 * second,
			func(w *ward) { w.names("postgres"); require.NoError(w, w.env.Postgres.Start(w.Context())) }, 20 * second, nil,
		},
		{
			"read-only", true, func(w *ward) {
				w.sql("alter system set default_transaction_read_only = on", "select pg_reload_conf()")
			}, 2 * second,
			func(w *ward) {
				w.sql("set default_transaction_read_only = off", "alter system reset default_transaction_read_only", "select pg_reload_conf()")
			}, 10 * second, nil,
		},
		{
			"too many connections", true, func(w *ward) {
				for len(crowd) < 200 {
					conn, err := pgx.Connect(w.Context(), w.env.Postgres.URL())
					if err != nil {
						break
					}
					crowd = append(crowd, conn)
				}
				require.NotEmpty(w, crowd)
				_, err := crowd[0].Exec(w.Context(), "select pg_terminate_backend(pid) "+serviceSessions)
				require.NoError(w, err)
			}, 3 * second, func(w *ward) {
				for _, conn := range crowd {
					_ = conn.Close(w.Context())
				}
			}, 10 * second, nil,
		},
		{
			"positions locked", true, func(w *ward) {
				conn, err := pgx.Connect(w.Context(), w.env.Postgres.URL())
				require.NoError(w, err)
				locker = conn
				_, err = conn.Exec(w.Context(), "begin; lock table positions in access exclusive mode")
				require.NoError(w, err)
			}, 3 * second, func(w *ward) { require.NoError(w, locker.Close(w.Context())) }, 10 * second, nil,
		},
		{"queries cancelled", true, func(w *ward) {
			w.every(20*time.Millisecond, second, func() { w.sql("select pg_cancel_backend(pid) " + serviceSessions) })
		}, 0, nothing, 10 * second, nil},
		{"sessions ended", true, func(w *ward) {
			w.every(300*time.Millisecond, second, func() { w.sql("select pg_terminate_backend(pid) " + serviceSessions) })
		}, 0, nothing, 10 * second, nil},
		{
			"a black hole", true, func(w *ward) { require.NoError(w, w.black.Stall()) }, 4 * second,
			func(w *ward) { require.NoError(w, w.black.Resume()) }, 20 * second, nil,
		},
		{
			"slow commits", true, func(w *ward) {
				w.sql(`create or replace function public.dawdle() returns trigger language plpgsql as $$ begin perform pg_sleep(0.5); return null; end $$`,
					`create trigger slow after insert on positions for each statement execute function public.dawdle()`)
			}, 5 * second, func(w *ward) { w.sql(`drop trigger slow on positions`) }, 15 * second, nil,
		},
		{"deadlocks", true, deadlock, second, deadlockOver, 10 * second, nil},
		{"disk full", false, full, 2 * second, fullOver, 10 * second, nil},
	}
}

// look notes what the service takes. It asks the service alone: a server that is
// frozen would hold up the test.
func (w *ward) look() {
	for name, most := range map[string]*float64{"process_resident_memory_bytes": &w.memory, "processor_pipeline_in_flight_records": &w.record} {
		if v, err := w.service.Metric(name); err == nil {
			*most = max(*most, v)
		}
	}
}

// caughtUp reports whether the service is ready, has committed since the outage
// was over, and has next to nothing to do.
func (w *ward) caughtUp(over time.Time) error {
	w.look()
	status, r, err := w.service.Readiness()
	if err != nil || status != http.StatusOK {
		return errors.Join(fmt.Errorf("not ready: %v", r.NotReady), err)
	}
	committed, err := w.service.Metric("processor_pipeline_last_record_timestamp_seconds")
	if err != nil || committed < float64(over.UnixMilli())/1000 {
		return errors.Join(errors.New("nothing committed yet"), err)
	}
	info, err := w.group.Info(w.Context())
	if err != nil {
		return err
	}
	if !info.Lag.Known || info.Lag.N+info.Pending > 300 {
		return fmt.Errorf("lag %+v, pending %d", info.Lag, info.Pending)
	}
	return nil
}

// suffer goes through one outage.
func (w *ward) suffer(o outage) {
	w.Helper()
	lines, redisBefore, pgBefore, began := strings.Count(w.service.Output(), "\n"), w.toRedis.count.Load(), w.toPG.count.Load(), time.Now()
	o.begin(w)
	over := time.After(o.lasting)
	for waiting := true; waiting; {
		select {
		case <-over:
			waiting = false
		case <-time.After(100 * time.Millisecond):
			w.look()
		}
	}
	o.end(w)
	ended := time.Now()
	testenv.Wait(w, slack*o.within, func() error { return w.caughtUp(ended) })
	seconds := time.Since(began).Seconds()
	logged := float64(strings.Count(w.service.Output(), "\n")-lines) / max(3, seconds)
	toRedis, toPG := float64(w.toRedis.count.Load()-redisBefore)/max(3, seconds), float64(w.toPG.count.Load()-pgBefore)/max(3, seconds)
	w.Logf("%-22s %5.1f s, caught up %5.2f s after; a second: %4.1f log lines, %4.1f connections to Redis, %4.1f to Postgres",
		o.name, ended.Sub(began).Seconds(), time.Since(ended).Seconds(), logged, toRedis, toPG)
	require.LessOrEqual(w, logged, maxLines, "%s: log lines a second", o.name)
	require.LessOrEqual(w, max(toRedis, toPG), maxConnections, "%s: connections a second", o.name)
	if o.after != nil {
		o.after(w)
	}
}

// sufferAll runs a service under load through outages, and judges its tables.
func sufferAll(t *testing.T, outages []outage) {
	t.Helper()
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{
		Redis: true, Postgres: true, RedisArgs: []string{"--enable-debug-command", "yes"}, PostgresArgs: []string{"-c", "max_connections=60"},
	})
	w := &ward{T: t, env: env, black: testenv.Proxy(t, env.Postgres.Addr()), toRedis: newTurnstile(t, env.Redis.Addr())}
	w.toPG = newTurnstile(t, w.black.Addr())
	opts, err := redis.ParseURL(env.Redis.URL())
	require.NoError(t, err)
	opts.ReadTimeout = 30 * time.Second
	w.redis = redis.NewClient(opts)
	t.Cleanup(func() { _ = w.redis.Close() })
	w.group, err = stream.NewGroup(w.redis, stream.Config{Stream: "telemetry:teltonika", Group: "processor", Shards: 1})
	require.NoError(t, err)
	dep := &servicetest.Deployment{T: t, RedisURL: env.Redis.URL(), PostgresURL: env.Postgres.URL(), Stream: "telemetry:teltonika", Group: "processor"}
	w.service = dep.Run("REDIS_URL=redis://"+w.toRedis.Addr().String(), "POSTGRES_URL=postgres://postgres@"+w.toPG.Addr().String()+"/postgres?sslmode=disable",
		"STATEMENT_TIMEOUT=3s", "LOCK_TIMEOUT=2s", "CONNECT_TIMEOUT=2s", "SHARDS=16",
		fmt.Sprintf("MAX_IN_FLIGHT_RECORDS=%d", outageRecords), fmt.Sprintf("MAX_IN_FLIGHT_BYTES=%d", outageBytes))
	w.service.AwaitReady()

	long := time.Duration(0)
	for _, o := range outages {
		if !o.full || testenv.IsFull() {
			long += o.lasting + 3*time.Second
		}
	}
	type outcome struct {
		result *demo.Result
		err    error
	}
	judged := make(chan outcome, 1)
	load := rally(t, 20, 10*long, 10) // 200 records/s
	go func() {
		r, err := demo.Run(t.Context(), demo.Config{
			RedisURL: dep.RedisURL, PostgresURL: dep.PostgresURL, Stream: dep.Stream, Group: dep.Group, Load: load,
			Metrics: prometheus.NewRegistry(), Show: func(demo.Snapshot) {}, Every: time.Second, StallLimit: 60 * time.Second,
		}, slog.New(slog.DiscardHandler))
		judged <- outcome{r, err}
	}()
	for _, o := range outages {
		if !o.full || testenv.IsFull() {
			w.suffer(o)
		}
	}
	end := <-judged
	require.NoError(t, end.err)
	requireGood(dep, end.result)
	t.Logf("account %+v; at most %.0f MB resident, %.0f records in flight", end.result.Account, w.memory/1e6, w.record)
	require.Less(t, w.memory, 512e6)
	require.LessOrEqual(t, w.record, float64(outageRecords))
	for _, used := range []string{`dead_letters_total{class="sink"}`, `dead_letters_total{class="crash"}`, `records_total{outcome="deferred"}`} {
		n, err := w.service.Metric("processor_pipeline_" + used)
		require.NoError(t, err)
		require.Zero(t, n, "an attempt was used: %s", used)
	}
	require.Equal(t, 1, strings.Count(w.service.Output(), `"msg":"starting to process"`), "it never restarted")
	require.Zero(t, w.service.Terminate())
}

// P7, P9.
func TestRedisFailsInManyWaysAndNothingIsLostOrGivenUp(t *testing.T) {
	testenv.Slow(t)
	sufferAll(t, redisOutages())
}

// P7, P9.
func TestPostgresFailsInManyWaysAndNothingIsLostOrGivenUp(t *testing.T) {
	testenv.Slow(t)
	sufferAll(t, postgresOutages())
}
