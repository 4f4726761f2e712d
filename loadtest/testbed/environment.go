package testbed

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"slices"
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

// What all scenarios share.
const (
	Shards        = 64
	ServerTimeout = 10 * time.Second
	askTimeout    = time.Second
	JudgeTimeout  = time.Minute // for a page of what is judged, on a machine that is busy
	connections   = 4
	clearWithin   = 5 * time.Minute // of named servers, however much was stored
	// maxLen is far above any run: what is trimmed before it is read is lost, and
	// this is no test of that.
	maxLen = 100_000_000
)

// Servers is the servers of a run and our own way to them, past all proxies.
type Servers struct {
	Env         *devenv.Env // nil on named servers
	RedisURL    string
	PostgresURL string
	Stream      string
	Group       string
	DLQ         string     // empty means the default
	Others      []*Servers // the same servers with further streams; none in most runs

	Publisher *fleet.RedisPublisher
	Inspector *stream.Group // on a connection of its own
	DLQReader *stream.DeadLetters
	Fences    *store.FenceEditor
	Observer  *observer.Observer
	Feed      *observer.Feed         // of crossings, one reader
	Published *observer.TimingStream // where an instance has TIMING_STREAM, see Publishing
	shards    *store.Shards
	Positions func(ctx context.Context) iter.Seq2[oracle.Row, error]
	Crossings func(ctx context.Context) iter.Seq2[oracle.Crossing, error]
	FenceRows func(ctx context.Context) ([]oracle.Fence, error)
	Marked    func(ctx context.Context) (func(device string, timeUS int64) bool, error)
	Dated     bool // commits have times
	FillRedis func(ctx context.Context, full bool) error
	// Estrange makes some of the oldest entries, which are done, pending under a consumer
	// that is no shard, as one that died long ago leaves them. It returns how many.
	Estrange func(ctx context.Context, most int64) (int, error)
	unlink   func(ctx context.Context, keys []string) error
	found    observer.Found // on a named Postgres
	prepared bool           // something of ours is on the named servers
	closers  []func() error
	first    int // number of the first device of the stream
	last     int // and of the last; 0 where the stream is the only one
}

// Options says which servers to use.
type Options struct {
	RedisURL    string       // empty means private servers
	PostgresURL string       // empty with RedisURL
	World       devenv.World // what a private Postgres has before the service comes; empty means Plain
	Durable     bool         // a private Redis loses nothing that it has acknowledged when it is killed
	Streams     int          // 0 means one
	Cluster     bool         // the streams are on a private Redis Cluster, not on a server
	Devices     int          // of each of them
}

// All returns the servers with each of the streams.
func (g *Servers) All() []*Servers { return append([]*Servers{g}, g.Others...) }

// First returns the number of the first device of the stream.
func (g *Servers) First() int { return g.first }

// Of yields what is about devices of the stream.
func Of[T any](g *Servers, rows iter.Seq2[T, error], device func(*T) string) iter.Seq2[T, error] {
	if len(g.Others) == 0 && g.last == 0 {
		return rows
	}
	first, last := fleet.DeviceID(g.first), fleet.DeviceID(g.last)
	return func(yield func(T, error) bool) {
		for row, err := range rows {
			if d := device(&row); err == nil && (d < first || d > last) {
				continue
			}
			if !yield(row, err) {
				return
			}
		}
	}
}

// Open starts servers or makes sure that the named ones are not in use.
func Open(ctx context.Context, o Options, log *slog.Logger) (_ *Servers, err error) {
	g := &Servers{RedisURL: o.RedisURL, PostgresURL: o.PostgresURL, Stream: "telemetry:teltonika", Group: "processor"}
	defer func() {
		if err != nil {
			past := context.WithoutCancel(ctx)
			err = errors.Join(err, g.Clear(past, nil, 0), g.Close(past))
		}
	}()
	if o.RedisURL == "" {
		options := devenv.Options{Redis: !o.Cluster, Cluster: o.Cluster, Postgres: true, World: o.World}
		if o.Durable {
			options.RedisArgs = []string{"--appendfsync", "always"}
		}
		g.Env, err = devenv.Start(ctx, options)
		if err != nil {
			return nil, fmt.Errorf("start servers: %w", err)
		}
		if o.Streams > 0 {
			g.Stream, g.last = streamName(0), o.Devices
		}
		if o.Cluster {
			g.RedisURL = g.Env.Cluster.URL()
		} else {
			g.RedisURL = g.Env.Redis.URL()
		}
		if g.PostgresURL, err = o.World.Prepare(ctx, g.Env.Postgres.URL()); err != nil {
			return nil, err
		}
	} else {
		// The braces keep all keys on one node of a cluster.
		g.Group = fmt.Sprintf("loadtest-%08x", rand.Uint32())
		g.Stream = "{" + g.Group + "}"
	}
	if err := g.Connect(ctx); err != nil {
		return nil, err
	}
	if err := g.prepare(ctx, log); err != nil {
		return nil, err
	}
	for n := 1; n < o.Streams; n++ {
		other := &Servers{
			Env: g.Env, RedisURL: g.RedisURL, PostgresURL: g.PostgresURL, Stream: streamName(n), Group: g.Group, Dated: g.Dated,
			first: n * (o.Devices + 1), last: n*(o.Devices+1) + o.Devices, // one more than there are: the hot device
		}
		g.Others = append(g.Others, other)
		if err := other.Connect(ctx); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// streamName returns the name of a stream of several.
func streamName(n int) string { return fmt.Sprintf("telemetry:%d", n) }

// clustered reports whether the run has a Redis Cluster of its own.
func (g *Servers) clustered() bool { return g.Env != nil && g.Env.Cluster != nil }

// Connect opens the clients of the load test itself to both servers.
func (g *Servers) Connect(ctx context.Context) (err error) {
	where := stream.Config{
		URL: g.RedisURL, Stream: g.Stream, Group: g.Group, Shards: Shards, Timeout: ServerTimeout, Name: "loadtest",
	}
	// The load and the looking do not wait for each other.
	client, err := stream.Connect(where)
	if err != nil {
		return fmt.Errorf("connect to Redis: %w", err)
	}
	g.closers = append(g.closers, client.Close)
	g.Publisher = fleet.NewPublisher(client, g.Stream, maxLen)
	if g.clustered() {
		var addrs []string
		for _, n := range g.Env.Cluster.Nodes() {
			addrs = append(addrs, n.Addr())
		}
		g.Publisher = fleet.NewClusterPublisher(addrs, g.Stream, maxLen)
		g.closers = append(g.closers, g.Publisher.Close)
	}
	where.Timeout = JudgeTimeout
	looking, err := stream.Connect(where)
	if err != nil {
		return fmt.Errorf("connect to Redis: %w", err)
	}
	g.closers = append(g.closers, looking.Close)
	if g.Inspector, err = stream.NewGroup(looking, where); err != nil {
		return fmt.Errorf("connect to Redis: %w", err)
	}
	if g.DLQReader, err = stream.NewDeadLetters(looking, where, g.deadLetters()); err != nil {
		return fmt.Errorf("connect to Redis: %w", err)
	}
	had := ""
	g.FillRedis = func(ctx context.Context, full bool) error {
		if had == "" {
			now, err := looking.ConfigGet(ctx, "maxmemory").Result()
			if err != nil {
				return err
			}
			had = now["maxmemory"]
		}
		limit := had
		if full {
			limit = "1mb"
		}
		return looking.ConfigSet(ctx, "maxmemory", limit).Err()
	}
	g.Estrange = func(ctx context.Context, most int64) (n int, err error) {
		old, err := looking.XRangeN(ctx, g.Stream, "-", "+", most).Result()
		if err != nil || len(old) == 0 {
			return 0, err
		}
		pending, err := looking.Do(ctx, "xpending", g.Stream, g.Group, "-", old[len(old)-1].ID, most).Slice()
		if err != nil {
			return 0, err
		}
		claim := []any{"xclaim", g.Stream, g.Group, "stranger", 0}
		for _, m := range old {
			if !slices.ContainsFunc(pending, func(p any) bool { return p.([]any)[0] == m.ID }) {
				claim, n = append(claim, m.ID), n+1
			}
		}
		if n == 0 {
			return 0, nil
		}
		return n, looking.Do(ctx, append(claim, "idle", time.Hour.Milliseconds(), "force", "justid")...).Err()
	}
	g.unlink = func(ctx context.Context, keys []string) error { return looking.Unlink(ctx, keys...).Err() }
	pool, err := store.Open(ctx, store.Config{
		URL: g.PostgresURL, Member: "loadtest", MaxConns: connections,
		ConnectTimeout: ServerTimeout, StatementTimeout: ServerTimeout, LockTimeout: ServerTimeout,
	})
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	g.closers = append(g.closers, func() error { pool.Close(); return nil })
	scope := store.Scope{Stream: g.Stream, Group: g.Group}
	g.Observer = observer.NewObserver(pool, scope)
	g.shards = store.NewShards(pool, scope, ServerTimeout)
	g.Fences = store.NewFenceEditor(pool, scope, Shards, g.Group)
	g.Feed = observer.NewFeed(pool)
	g.Published = observer.NewTimingStream(pool, func(ctx context.Context, from string, most int64) (ids []string, fields []map[string]any, err error) {
		find := looking.XRangeN(ctx, g.published(), from, "+", most)
		if from == "+" {
			find = looking.XRevRangeN(ctx, g.published(), "+", "-", most)
		}
		found, err := find.Result()
		for _, m := range found {
			ids, fields = append(ids, m.ID), append(fields, m.Values)
		}
		return ids, fields, err
	})
	g.Crossings = func(ctx context.Context) iter.Seq2[oracle.Crossing, error] { return observer.Timings(ctx, pool) }
	g.FenceRows = func(ctx context.Context) ([]oracle.Fence, error) { return observer.Fences(ctx, pool) }
	g.Marked = func(ctx context.Context) (func(string, int64) bool, error) { return observer.Marked(ctx, pool) }
	g.Positions = func(ctx context.Context) iter.Seq2[oracle.Row, error] { return observer.Positions(ctx, pool) }
	return nil
}

// prepare makes the schema and begins to observe.
func (g *Servers) prepare(ctx context.Context, log *slog.Logger) error {
	found, used, err := g.Observer.Find(ctx)
	if err != nil {
		return err
	}
	if len(used) > 0 {
		return fmt.Errorf("the Postgres named is in use: %s hold rows already; name a database without any, this one may be in production",
			strings.Join(used, ", "))
	}
	g.found, g.prepared = found, g.Env == nil
	if _, err := schema.Migrate(ctx, g.PostgresURL, log); err != nil {
		return fmt.Errorf("make the schema: %w", err)
	}
	if g.Dated, err = g.Observer.Dated(ctx); err != nil {
		return err
	}
	if !g.Dated {
		return nil
	}
	return g.Observer.Install(ctx)
}

// deadLetters returns the stream of dead letters.
func (g *Servers) deadLetters() string {
	if g.DLQ != "" {
		return g.DLQ
	}
	return stream.Names{Stream: g.Stream, Group: g.Group}.DeadLetters(g.clustered())
}

// recomputes returns the stream of requests of other services.
func (g *Servers) recomputes() string { return g.Stream + ":recompute" }

// Environ returns the variables that lead an instance to the servers, through
// proxies where there are some.
func (g *Servers) Environ(redisProxy, postgresProxy *devenv.Proxy) ([]string, error) {
	redisURL, postgresURL, err := g.Reached()
	if err != nil {
		return nil, err
	}
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
	var names []string
	for _, s := range g.All() {
		names = append(names, s.Stream)
	}
	environ := []string{
		"REDIS_URL=" + redisURL, "POSTGRES_URL=" + postgresURL,
		"REDIS_TELEMETRY_STREAM=" + strings.Join(names, ","), "REDIS_CONSUMER_GROUP=" + g.Group,
		"RECOMPUTE_STREAM=" + g.recomputes(),
		fmt.Sprintf("SHARDS=%d", Shards),
		"DLQ_RETRY_DELAYS=10s", // all attempts are over before patience is
	}
	if len(names) == 1 {
		environ = append(environ, "REDIS_DLQ_STREAM="+g.deadLetters())
	}
	if g.Env != nil {
		environ = append(environ, g.Env.Environ()...)
	}
	return environ, nil
}

// Publishing is the variable with which instances publish changes of crossings.
func (g *Servers) Publishing() string { return "TIMING_STREAM=" + g.published() }

func (g *Servers) published() string { return g.Stream + ":crossings" }

// Reached returns how instances reach both servers, without proxies.
func (g *Servers) Reached() (redisURL, postgresURL string, err error) {
	if g.Env == nil {
		return g.RedisURL, g.PostgresURL, nil
	}
	postgresURL, err = g.Env.PostgresFor(g.PostgresURL)
	return g.Env.RedisFor(), postgresURL, err
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

// Clear removes everything of a run from named servers. The keys are those of
// the group, of its members, and its streams.
func (g *Servers) Clear(ctx context.Context, members []string, devices int) error {
	if !g.prepared {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, clearWithin)
	defer cancel()
	names := stream.Names{Stream: g.Stream, Group: g.Group}
	keys := append(names.All(), g.Stream, g.deadLetters(), g.recomputes(), g.published())
	for _, m := range members {
		keys = append(keys, names.Heartbeat(m))
	}
	var errs []error
	if err := g.unlink(ctx, keys); err != nil {
		errs = append(errs, fmt.Errorf("remove the keys of %s from Redis: %w", g.Stream, err))
	}
	if g.Dated {
		errs = append(errs, g.Observer.Remove(ctx))
	}
	// One more than there are: the hot device.
	errs = append(errs, g.Observer.Clear(ctx, g.found, func(yield func(string) bool) {
		for n := 0; n <= devices && yield(fleet.DeviceID(n)); n++ {
		}
	}))
	return errors.Join(errs...)
}

// Close closes the clients and stops the servers that were started for the run.
func (g *Servers) Close(ctx context.Context) error {
	var errs []error
	for _, other := range g.Others {
		for _, c := range other.closers {
			errs = append(errs, c())
		}
	}
	for _, c := range g.closers {
		errs = append(errs, c())
	}
	if g.Env != nil {
		errs = append(errs, g.Env.Close())
	}
	return errors.Join(errs...)
}

// CheckRedis returns what is wrong with the address of a Redis.
func CheckRedis(url string) error {
	if err := stream.CheckURL(url); err != nil {
		return fmt.Errorf("--redis-url: want redis://user:password@host:6379/0: %w", err)
	}
	return nil
}
