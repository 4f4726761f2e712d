package pipeline_test

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

const shards = 16

// bench is one stream, one database and the means to run instances on them.
type bench struct {
	tb       testing.TB
	redisURL string
	pgURL    string
	stream   string
	group    string
	client   redis.UniversalClient
	pool     *pgxpool.Pool
}

func newBench(tb testing.TB, opts ...testenv.PostgresOption) *bench {
	tb.Helper()
	r := testenv.Redis(tb)
	b := &bench{
		tb: tb, redisURL: r.URL, stream: r.Stream, group: r.Group, client: r.Client(),
		pgURL: testenv.Postgres(tb, append(opts, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
			_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
			return err
		}))...),
	}
	b.pool = b.open("bench")
	return b
}

func (b *bench) open(member string) *pgxpool.Pool {
	pool, err := store.Open(context.Background(), store.Config{
		URL: b.pgURL, Member: member, MaxConns: 12,
		ConnectTimeout: 5 * time.Second, StatementTimeout: 10 * time.Second, LockTimeout: 5 * time.Second,
	})
	require.NoError(b.tb, err)
	b.tb.Cleanup(pool.Close)
	return pool
}

func (b *bench) scope() store.Scope { return store.Scope{Stream: b.stream, Group: b.group} }

// instance is a pipeline that holds every shard.
type instance struct {
	*pipeline.Pipeline
	member string
	shards *store.Shards
	group  *stream.Group
	reg    *prometheus.Registry
	drain  func() // intake ends, what is in flight goes on
	cut    func() // the work ends in the middle, as when a drain takes too long
	stop   func()
	ended  chan struct{} // closed when it has
	err    error
	mu     sync.Mutex
	lost   []pipeline.ShardLost
}

type option func(*pipeline.Config, *pipeline.Deps)

func (b *bench) start(member string, opts ...option) *instance {
	client, err := stream.Connect(stream.Config{URL: b.redisURL, Timeout: 5 * time.Second})
	require.NoError(b.tb, err)
	group, err := stream.NewGroup(client, stream.Config{Stream: b.stream, Group: b.group, Shards: shards})
	require.NoError(b.tb, err)
	pool := b.open(member)
	in := &instance{member: member, reg: prometheus.NewRegistry(), group: group, shards: store.NewShards(pool, b.scope(), 10*time.Second)}
	cfg := pipeline.Config{
		Shards: shards, Workers: max(2, 2*runtime.GOMAXPROCS(0)), MaxInFlightRecords: 32768, MaxInFlightBytes: 64 << 20,
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
	dead, err := stream.NewDeadLetters(client, stream.Config{Stream: b.stream, Group: b.group}, b.stream+":dlq")
	require.NoError(b.tb, err)
	writer := store.NewWriter(pool, b.scope(), member, 15*time.Second)
	deps := pipeline.Deps{
		Source: group, Acker: group,
		Sink: writer, Requests: store.NewRequests(writer),
		History:        store.NewReader(pool, 10*time.Second),
		Fences:         store.NewFences(pool, 10*time.Second),
		DeadLetterSink: dead, Deferrals: store.NewDeferred(pool, b.scope(), member, 10*time.Second),
		ProbeLog: store.NewProbeLog(in.shards, member),
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
	in.Pipeline, err = pipeline.New(cfg, deps, slog.New(slog.NewTextHandler(testWriter{b.tb}, nil)), in.reg)
	require.NoError(b.tb, err)
	ctx := context.Background()
	require.NoError(b.tb, in.shards.Ensure(ctx, shards))
	intake, cancelIntake := context.WithCancel(ctx)
	work, cancelWork := context.WithCancel(ctx)
	var done sync.WaitGroup
	in.ended = make(chan struct{})
	done.Go(func() {
		defer close(in.ended)
		in.err = in.Run(intake, work)
	})
	var once sync.Once
	in.drain = cancelIntake
	in.cut = func() {
		cancelIntake()
		cancelWork()
		in.stop()
	}
	in.stop = func() {
		once.Do(func() {
			cancelIntake()
			done.Wait()
			cancelWork()
			_ = client.Close()
		})
	}
	b.tb.Cleanup(in.stop)
	return in
}

// acquireAll assigns every shard to the instance, acquires them and then grants them all.
func (b *bench) acquireAll(in *instance) {
	ctx := context.Background()
	_, err := b.pool.Exec(ctx, "update processor.assignments set member = $1 where stream = $2", in.member, b.stream)
	require.NoError(b.tb, err)
	var leases []protocol.ShardLease
	for s := range shards {
		taken, err := in.shards.Acquire(ctx, s, in.member, "")
		require.NoError(b.tb, err)
		token := fmt.Sprint(in.member, " ", taken.Epoch)
		_, err = in.group.RegisterOwner(ctx, token, []int{s})
		require.NoError(b.tb, err)
		leases = append(leases, protocol.ShardLease{Shard: s, Epoch: taken.Epoch, Token: token, Quarantine: taken.Quarantine})
	}
	for _, lease := range leases {
		require.NoError(b.tb, in.Grant(lease))
	}
}

// publish appends messages and returns their IDs.
// publish adds entries, up to 1,000 of them at once: a reader that waits does not get the
// first alone.
func (b *bench) publish(entries ...[]string) (ids []telemetry.EntryID) {
	ctx := context.Background()
	for lot := range slices.Chunk(entries, 1000) {
		added, err := b.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
			for _, e := range lot {
				p.XAdd(ctx, &redis.XAddArgs{Stream: b.stream, Values: e})
			}
			return nil
		})
		require.NoError(b.tb, err)
		for _, a := range added {
			id, err := telemetry.ParseEntryID(a.(*redis.StringCmd).Val())
			require.NoError(b.tb, err)
			ids = append(ids, id)
		}
	}
	return ids
}

func (b *bench) count(sql string, args ...any) int {
	var n int
	require.NoError(b.tb, b.pool.QueryRow(context.Background(), sql, args...).Scan(&n))
	return n
}

// settled waits until nothing is pending and nothing is left to dispatch.
func (b *bench) settled(within time.Duration, left int64) {
	group, err := stream.NewGroup(b.client, stream.Config{Stream: b.stream, Group: b.group, Shards: shards})
	require.NoError(b.tb, err)
	testenv.Wait(b.tb, within, func() error {
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

type testWriter struct{ tb testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.tb.Log(string(p))
	return len(p), nil
}
