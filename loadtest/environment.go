package loadtest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
)

const (
	shards        = 64
	serverTimeout = 10 * time.Second
	askTimeout    = time.Second
	judgeTimeout  = time.Minute // for a page of what is judged, on a machine that is busy
	connections   = 4
	clearWithin   = 5 * time.Minute // of named servers, however much was stored
	// maxLen is far above any run: what is trimmed before it is read is lost, and
	// this is no test of that.
	maxLen = 100_000_000
)

// testbed is the servers of a run and our own way to them, past all proxies.
type testbed struct {
	env         *devenv.Env // nil on named servers
	redisURL    string
	postgresURL string
	stream      string
	group       string
	dlq         string // empty means the default

	publisher *fleet.RedisPublisher
	inspector *stream.Group // on a connection of its own
	dlqReader *stream.DeadLetters
	fences    *store.FenceEditor
	observer  *observer.Observer
	shards    *store.Shards
	positions func(ctx context.Context) iter.Seq2[oracle.Row, error]
	crossings func(ctx context.Context) iter.Seq2[oracle.Crossing, error]
	fenceRows func(ctx context.Context) ([]oracle.Fence, error)
	marked    func(ctx context.Context) (func(device string, timeUS int64) bool, error)
	dated     bool // commits have times
	fillRedis func(ctx context.Context, full bool) error
	unlink    func(ctx context.Context, keys []string) error
	found     observer.Found // on a named Postgres
	prepared  bool           // something of ours is on the named servers
	closers   []func() error
}

// openEnvironment starts servers or makes sure that the named ones are not in use.
// A durable Redis loses nothing that it has acknowledged when it is killed.
func openEnvironment(ctx context.Context, cfg Config, durable bool, log *slog.Logger) (_ *testbed, err error) {
	g := &testbed{redisURL: cfg.RedisURL, postgresURL: cfg.PostgresURL, stream: "telemetry:teltonika", group: "processor"}
	defer func() {
		if err != nil {
			past := context.WithoutCancel(ctx)
			err = errors.Join(err, g.clear(past, nil, 0), g.close(past))
		}
	}()
	if cfg.RedisURL == "" {
		options := devenv.Options{Redis: true, Postgres: true, PostgresArgs: cfg.World.PostgresArgs()}
		if durable {
			options.RedisArgs = []string{"--appendfsync", "always"}
		}
		g.env, err = devenv.Start(ctx, options)
		if err != nil {
			return nil, fmt.Errorf("start servers: %w", err)
		}
		g.redisURL, g.postgresURL = g.env.Redis.URL(), g.env.Postgres.URL()
		if err := cfg.World.Prepare(ctx, g.postgresURL); err != nil {
			return nil, err
		}
	} else {
		// The braces keep all keys on one node of a cluster.
		g.group = fmt.Sprintf("loadtest-%08x", rand.Uint32())
		g.stream = "{" + g.group + "}"
	}
	if err := g.connect(ctx); err != nil {
		return nil, err
	}
	if err := g.prepare(ctx, log); err != nil {
		return nil, err
	}
	return g, nil
}

func (g *testbed) connect(ctx context.Context) (err error) {
	where := stream.Config{
		URL: g.redisURL, Stream: g.stream, Group: g.group, Shards: shards, Timeout: serverTimeout, Name: "loadtest",
	}
	// The load and the looking do not wait for each other.
	client, err := stream.Connect(where)
	if err != nil {
		return fmt.Errorf("connect to Redis: %w", err)
	}
	g.closers = append(g.closers, client.Close)
	g.publisher = fleet.NewPublisher(client, g.stream, maxLen)
	where.Timeout = judgeTimeout
	looking, err := stream.Connect(where)
	if err != nil {
		return fmt.Errorf("connect to Redis: %w", err)
	}
	g.closers = append(g.closers, looking.Close)
	if g.inspector, err = stream.NewGroup(looking, where); err != nil {
		return fmt.Errorf("connect to Redis: %w", err)
	}
	if g.dlqReader, err = stream.NewDeadLetters(looking, where, g.deadLetters()); err != nil {
		return fmt.Errorf("connect to Redis: %w", err)
	}
	g.fillRedis = func(ctx context.Context, full bool) error {
		limit := "0"
		if full {
			limit = "1mb"
		}
		return looking.ConfigSet(ctx, "maxmemory", limit).Err()
	}
	g.unlink = func(ctx context.Context, keys []string) error { return looking.Unlink(ctx, keys...).Err() }
	pool, err := store.Open(ctx, store.Config{
		URL: g.postgresURL, Member: "loadtest", MaxConns: connections,
		ConnectTimeout: serverTimeout, StatementTimeout: serverTimeout, LockTimeout: serverTimeout,
	})
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	g.closers = append(g.closers, func() error { pool.Close(); return nil })
	scope := store.Scope{Stream: g.stream, Group: g.group}
	g.observer = observer.NewObserver(pool, scope)
	g.shards = store.NewShards(pool, scope, serverTimeout)
	g.fences = store.NewFenceEditor(pool, scope, shards, g.group)
	g.crossings = func(ctx context.Context) iter.Seq2[oracle.Crossing, error] { return observer.Timings(ctx, pool) }
	g.fenceRows = func(ctx context.Context) ([]oracle.Fence, error) { return observer.Fences(ctx, pool) }
	g.marked = func(ctx context.Context) (func(string, int64) bool, error) { return observer.Marked(ctx, pool) }
	g.positions = func(ctx context.Context) iter.Seq2[oracle.Row, error] { return observer.Positions(ctx, pool) }
	return nil
}

// prepare makes the schema and begins to observe.
func (g *testbed) prepare(ctx context.Context, log *slog.Logger) error {
	found, used, err := g.observer.Find(ctx)
	if err != nil {
		return err
	}
	if len(used) > 0 {
		return fmt.Errorf("the Postgres named is in use: %s hold rows already; name a database without any, this one may be in production",
			strings.Join(used, ", "))
	}
	g.found, g.prepared = found, g.env == nil
	if _, err := schema.Migrate(ctx, g.postgresURL, log); err != nil {
		return fmt.Errorf("make the schema: %w", err)
	}
	if g.dated, err = g.observer.Dated(ctx); err != nil {
		return err
	}
	if !g.dated {
		log.Warn("commit order not checked: Postgres has track_commit_timestamp = off")
		return nil
	}
	return g.observer.Install(ctx)
}

// deadLetters returns the stream of dead letters.
func (g *testbed) deadLetters() string {
	if g.dlq != "" {
		return g.dlq
	}
	return stream.Names{Stream: g.stream, Group: g.group}.DeadLetters(false)
}

// recomputes returns the stream of requests of other services.
func (g *testbed) recomputes() string { return g.stream + ":recompute" }

// environ returns the variables that lead an instance to the servers, through
// proxies where there are some.
func (g *testbed) environ(redisProxy, postgresProxy *devenv.Proxy) ([]string, error) {
	redisURL, postgresURL := g.redisURL, g.postgresURL
	var err error
	if redisProxy != nil {
		if redisURL, err = redisProxy.URL(redisURL); err != nil {
			return nil, err
		}
	}
	if postgresProxy != nil {
		if postgresURL, err = postgresProxy.URL(postgresURL); err != nil {
			return nil, err
		}
	}
	return []string{
		"REDIS_URL=" + redisURL, "POSTGRES_URL=" + postgresURL,
		"REDIS_TELEMETRY_STREAM=" + g.stream, "REDIS_CONSUMER_GROUP=" + g.group,
		"REDIS_DLQ_STREAM=" + g.deadLetters(), "RECOMPUTE_STREAM=" + g.recomputes(),
		fmt.Sprintf("SHARDS=%d", shards),
		"DLQ_RETRY_DELAYS=10s", // all attempts are over before patience is
	}, nil
}

// addrOf returns the host and port of a server that a proxy can stand before.
func addrOf(rawURL, port string) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" || strings.Contains(u.Host, ",") {
		return "", errors.New("this scenario puts proxies before the servers: name each by one host and port")
	}
	if u.Port() == "" {
		return u.Host + ":" + port, nil
	}
	return u.Host, nil
}

// clear removes everything of a run from named servers. The keys are those of
// the group, of its members, and its streams.
func (g *testbed) clear(ctx context.Context, members []string, devices int) error {
	if !g.prepared {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, clearWithin)
	defer cancel()
	names := stream.Names{Stream: g.stream, Group: g.group}
	keys := append(names.All(), g.stream, g.deadLetters(), g.recomputes())
	for _, m := range members {
		keys = append(keys, names.Members()+":"+m)
	}
	var errs []error
	if err := g.unlink(ctx, keys); err != nil {
		errs = append(errs, fmt.Errorf("remove the keys of %s from Redis: %w", g.stream, err))
	}
	if g.dated {
		errs = append(errs, g.observer.Remove(ctx))
	}
	// One more than there are: the hot device.
	errs = append(errs, g.observer.Clear(ctx, g.found, func(yield func(string) bool) {
		for n := 0; n <= devices && yield(fleet.DeviceID(n)); n++ {
		}
	}))
	return errors.Join(errs...)
}

func (g *testbed) close(ctx context.Context) error {
	var errs []error
	for _, c := range g.closers {
		errs = append(errs, c())
	}
	if g.env != nil {
		errs = append(errs, g.env.Close())
	}
	return errors.Join(errs...)
}
