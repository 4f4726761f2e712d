package pipelinetest

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/pipeline"
)

// Shards is the number of shards of a Bench.
const Shards = 16

// Bench is one stream, one database and the means to run instances on them.
type Bench struct {
	TB          testing.TB
	RedisURL    string
	PostgresURL string
	Stream      string
	Group       string
	Client      redis.UniversalClient
	Pool        *pgxpool.Pool
}

// New returns a bench on servers of the test, with all migrations applied.
func New(tb testing.TB, opts ...testenv.PostgresOption) *Bench {
	tb.Helper()
	r := testenv.Redis(tb)
	b := &Bench{
		TB: tb, RedisURL: r.URL, Stream: r.Stream, Group: r.Group, Client: r.Client(),
		PostgresURL: testenv.Postgres(tb, append(opts, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
			_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
			return err
		}))...),
	}
	b.Pool = b.Open("bench")
	return b
}

// Open opens a pool of sessions with the database, under the name of a member.
func (b *Bench) Open(member string) *pgxpool.Pool {
	pool, err := store.Open(context.Background(), store.Config{
		URL: b.PostgresURL, Member: member, MaxConns: 12,
		ConnectTimeout: 5 * time.Second, StatementTimeout: 10 * time.Second, LockTimeout: 5 * time.Second,
	})
	require.NoError(b.TB, err)
	b.TB.Cleanup(pool.Close)
	return pool
}

// Scope is what the rows of the bench are found by.
func (b *Bench) Scope() store.Scope { return store.Scope{Stream: b.Stream, Group: b.Group} }

// Instance is a pipeline that holds every shard.
type Instance struct {
	*pipeline.Pipeline
	Member   string
	Shards   *store.Shards
	Group    *stream.Group
	Registry *prometheus.Registry
	Drain    func()        // intake ends, what is in flight goes on
	Cut      func()        // the work ends in the middle, as when a drain takes too long
	End      func()        // the same as Drain, then it is waited for
	Ended    chan struct{} // closed when it has
	Err      error
	mu       sync.Mutex
	lost     []pipeline.ShardLost
}

// Option changes what an instance starts with.
type Option func(*pipeline.Config, *pipeline.Deps)

// Start starts an instance that holds no shard yet.
func (b *Bench) Start(member string, opts ...Option) *Instance {
	client, err := stream.Connect(stream.Config{URL: b.RedisURL, Timeout: 5 * time.Second})
	require.NoError(b.TB, err)
	group, err := stream.NewGroup(client, stream.Config{Stream: b.Stream, Group: b.Group, Shards: Shards})
	require.NoError(b.TB, err)
	pool := b.Open(member)
	in := &Instance{Member: member, Registry: prometheus.NewRegistry(), Group: group, Shards: store.NewShards(pool, b.Scope(), 10*time.Second)}
	cfg := pipeline.Config{
		Shards: Shards, Workers: max(2, 2*runtime.GOMAXPROCS(0)), MaxInFlightRecords: 32768, MaxInFlightBytes: 64 << 20,
		ReadBatchRecords: 4000, BatchMaxRecords: 4000, BatchMaxAge: 20 * time.Millisecond,
		StateMaxDevices: 200_000, Eligibility: telemetry.Eligibility{MaxFutureSkew: 5 * time.Minute, MinSatellites: 1},
		MaxCrossingGap: 10 * time.Minute, FenceRefresh: 30 * time.Second,
		DispatchAhead: 200_000, StallAfter: 30 * time.Second, DispatchBlock: 200 * time.Millisecond, DispatchLeaseTTL: 2 * time.Second, QueueRescan: 30 * time.Second,
		Limits: telemetry.DefaultLimits(),
		DeadLetters: pipeline.DeadLetterConfig{
			Instance: member, Version: "test", MaxAttempts: 3,
			RetryDelays: []time.Duration{50 * time.Millisecond, 100 * time.Millisecond}, PollEvery: 50 * time.Millisecond,
		},
	}
	dead, err := stream.NewDeadLetters(client, stream.Config{Stream: b.Stream, Group: b.Group}, b.Stream+":dlq")
	require.NoError(b.TB, err)
	writer := store.NewWriter(pool, b.Scope(), member, 15*time.Second)
	deps := pipeline.Deps{
		Source: group, Acker: group,
		Sink: writer, Requests: store.NewRequests(writer),
		History:        store.NewReader(pool, 10*time.Second),
		Fences:         store.NewFences(pool, 10*time.Second),
		DeadLetterSink: dead, Deferrals: store.NewDeferred(pool, b.Scope(), member, 10*time.Second),
		ProbeLog: store.NewProbeLog(in.Shards, member),
		Lost: func(l pipeline.ShardLost) {
			in.mu.Lock()
			defer in.mu.Unlock()
			in.lost = append(in.lost, l)
		},
		Peers: func() int { return 0 },
	}
	for _, o := range opts {
		o(&cfg, &deps)
	}
	in.Pipeline, err = pipeline.New(cfg, deps, slog.New(slog.NewTextHandler(testWriter{b.TB}, nil)), in.Registry)
	require.NoError(b.TB, err)
	ctx := context.Background()
	require.NoError(b.TB, in.Shards.Ensure(ctx, Shards))
	intake, cancelIntake := context.WithCancel(ctx)
	work, cancelWork := context.WithCancel(ctx)
	var done sync.WaitGroup
	in.Ended = make(chan struct{})
	done.Go(func() {
		defer close(in.Ended)
		in.Err = in.Run(intake, work)
	})
	var once sync.Once
	in.Drain = cancelIntake
	in.Cut = func() {
		cancelIntake()
		cancelWork()
		in.End()
	}
	in.End = func() {
		once.Do(func() {
			cancelIntake()
			done.Wait()
			cancelWork()
			_ = client.Close()
		})
	}
	b.TB.Cleanup(in.End)
	return in
}

// AcquireAll assigns every shard to the instance, acquires them and then grants them all.
func (b *Bench) AcquireAll(in *Instance) {
	ctx := context.Background()
	_, err := b.Pool.Exec(ctx, "update processor.assignments set member = $1 where stream = $2", in.Member, b.Stream)
	require.NoError(b.TB, err)
	var leases []protocol.ShardLease
	for s := range Shards {
		taken, err := in.Shards.Acquire(ctx, s, in.Member, "")
		require.NoError(b.TB, err)
		token := fmt.Sprint(in.Member, " ", taken.Epoch)
		_, err = in.Group.RegisterOwner(ctx, token, []int{s})
		require.NoError(b.TB, err)
		leases = append(leases, protocol.ShardLease{Shard: s, Epoch: taken.Epoch, Token: token, Quarantine: taken.Quarantine})
	}
	for _, lease := range leases {
		require.NoError(b.TB, in.Grant(lease))
	}
}

// Publish appends messages and returns their IDs.
// Publish adds entries, up to 1,000 of them at once: a reader that waits does not get the
// first alone.
func (b *Bench) Publish(entries ...[]string) (ids []telemetry.EntryID) {
	ctx := context.Background()
	for lot := range slices.Chunk(entries, 1000) {
		added, err := b.Client.TxPipelined(ctx, func(p redis.Pipeliner) error {
			for _, e := range lot {
				p.XAdd(ctx, &redis.XAddArgs{Stream: b.Stream, Values: e})
			}
			return nil
		})
		require.NoError(b.TB, err)
		for _, a := range added {
			id, err := telemetry.ParseEntryID(a.(*redis.StringCmd).Val())
			require.NoError(b.TB, err)
			ids = append(ids, id)
		}
	}
	return ids
}

// Count returns the number that a query selects.
func (b *Bench) Count(sql string, args ...any) int {
	var n int
	require.NoError(b.TB, b.Pool.QueryRow(context.Background(), sql, args...).Scan(&n))
	return n
}

// Exec carries out a statement.
func (b *Bench) Exec(sql string) {
	b.TB.Helper()
	_, err := b.Pool.Exec(b.TB.Context(), sql)
	require.NoError(b.TB, err)
}

// Square adds a fence around what lies at 48 to 49 degrees north and 11 to 12 east.
func (b *Bench) Square() {
	b.TB.Helper()
	b.Exec(`
insert into processor.geofences (id, version, name, kind, geometry)
values ('square', 1, 'square', 'area', '{"type":"Polygon","coordinates":[[[11,48],[12,48],[12,49],[11,49],[11,48]]]}')`)
}

// Ask makes a request for a device of the bench, and returns its ID.
func (b *Bench) Ask(kind, device string) (id int) {
	return b.Count(`
insert into processor.requests (stream, group_name, kind, shard, device_id, requested_by)
values ($1, $2, $3, $4, $5, 'test')
returning id`, b.Stream, b.Group, kind, telemetry.ShardOf(device, Shards), device)
}

// Settled waits until nothing is pending and nothing is left to dispatch.
func (b *Bench) Settled(within time.Duration, left int64) {
	group, err := stream.NewGroup(b.Client, stream.Config{Stream: b.Stream, Group: b.Group, Shards: Shards})
	require.NoError(b.TB, err)
	testenv.Wait(b.TB, within, func() error {
		info, err := group.Info(context.Background())
		if err != nil {
			return err
		}
		// The last-delivered ID follows what is finished with the next dispatch.
		if !info.GroupExists || info.Lag.N != 0 || !info.Lag.Known || info.Pending != left || info.Delivered != info.ReadUntil() {
			return fmt.Errorf("want nothing left but %d, have %+v", left, info)
		}
		return nil
	})
}

// Lost returns the shards that the instance lost since it was asked last.
func (in *Instance) Lost() []pipeline.ShardLost {
	in.mu.Lock()
	defer in.mu.Unlock()
	lost := in.lost
	in.lost = nil
	return lost
}

// Counter returns the counter that has the value as one of its labels.
func (in *Instance) Counter(tb testing.TB, name, value string) (sum float64) {
	tb.Helper()
	families, err := in.Registry.Gather()
	require.NoError(tb, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == name && l.GetValue() == value {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

// LoadedAhead waits until so many devices were loaded ahead.
func (in *Instance) LoadedAhead(tb testing.TB, devices float64) {
	tb.Helper()
	testenv.Wait(tb, 20*time.Second, func() error {
		if n := in.Counter(tb, "processor_device_state_loads_total", "ahead"); n != devices {
			return fmt.Errorf("%.0f devices are loaded ahead, want %.0f", n, devices)
		}
		return nil
	})
}

type testWriter struct{ tb testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.tb.Log(string(p))
	return len(p), nil
}
