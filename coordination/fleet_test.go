package coordination

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
)

const shards = 16

// engine is a pipeline that does no work: it records what it is granted.
type engine struct {
	mu      sync.Mutex
	epochs  map[int]int64
	tokens  map[int]string
	busy    bool                 // a stopped shard never drains
	state   []byte               // that it leaves of each shard
	givesUp func(shard int) bool // right after it was granted
	leave   func()               // before a shard is dropped
	drops   int
	rewinds int
}

func (e *engine) Grant(h protocol.ShardLease) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.epochs[h.Shard] = h.Epoch
	if e.tokens == nil {
		e.tokens = make(map[int]string)
	}
	e.tokens[h.Shard] = h.Token
	if e.givesUp != nil && e.givesUp(h.Shard) {
		delete(e.epochs, h.Shard)
	}
	return nil
}

func (*engine) Locked() []int { return nil }

// token returns the owner token of a shard.
func (e *engine) token(shard int) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.tokens[shard]
}

func (e *engine) Stop(int) <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	done := make(chan struct{})
	if !e.busy {
		close(done)
	}
	return done
}

func (e *engine) Leave(int) []byte {
	e.mu.Lock()
	leave, state := e.leave, e.state
	e.mu.Unlock()
	if leave != nil {
		leave()
	}
	return state
}

func (e *engine) Drop(shard int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.epochs, shard)
	e.drops++
}

func (e *engine) Owned(shard int) (int64, telemetry.EntryID, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	epoch, ok := e.epochs[shard]
	return epoch, telemetry.EntryID{}, ok
}

func (e *engine) Abandon() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rewinds++
}

func (e *engine) holds() map[int]int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	held := make(map[int]int64, len(e.epochs))
	for s, epoch := range e.epochs {
		held[s] = epoch
	}
	return held
}

// bench is a stream and a database with the members that share them.
type bench struct {
	t      *testing.T
	client *redis.Client
	pool   *pgxpool.Pool
	where  stream.Config
	pgURL  string
	shards *store.Shards
	group  *stream.Group
	tasks  []Task // of the members that are started, besides the one that counts
}

func newBench(t *testing.T) *bench {
	t.Helper()
	t.Parallel()
	corner := realRedis(t)
	return newBenchOn(t, corner.Client(), stream.Config{
		URL: corner.URL, Stream: corner.Stream, Group: corner.Group, Shards: shards, Timeout: 5 * time.Second,
	})
}

func newBenchOn(t *testing.T, client *redis.Client, where stream.Config) *bench {
	t.Helper()
	b := &bench{t: t, client: client, where: where}
	b.pgURL = testenv.Postgres(t, testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, discard())
		return err
	}))
	b.pool = b.open("looking")
	b.shards = store.NewShards(b.pool, b.scope(), 10*time.Second)
	var err error
	b.group, err = stream.NewGroup(client, where)
	require.NoError(t, err)
	_, err = b.group.AcquireDispatchLease(t.Context(), "", "bench", time.Millisecond) // creates the group
	require.NoError(t, err)
	return b
}

// dispatched adds an entry of each device, in this order, dispatches them, and
// returns their IDs. No member may hold the dispatch lease.
func (b *bench) dispatched(devices ...string) (ids []telemetry.EntryID) {
	b.t.Helper()
	for _, d := range devices {
		text, err := b.client.XAdd(b.t.Context(), xadd(b.where.Stream, d)).Result()
		require.NoError(b.t, err)
		id, err := telemetry.ParseEntryID(text)
		require.NoError(b.t, err)
		ids = append(ids, id)
	}
	const token = "dispatched"
	require.NoError(b.t, b.group.ForceAcquireDispatchLease(b.t.Context(), token, time.Minute))
	require.NoError(b.t, b.dispatch(token, token, len(devices)))
	return ids
}

// dispatch dispatches at most count new entries under a token; before is the
// current token of the dispatch lease.
func (b *bench) dispatch(before, token string, count int) error {
	lease, err := b.group.AcquireDispatchLease(b.t.Context(), before, token, time.Minute)
	if err != nil {
		return err
	}
	if !lease.Acquired {
		return errors.New("another member dispatches")
	}
	a, err := b.group.ReadNew(b.t.Context(), lease.After, count, time.Millisecond)
	if err != nil || len(a.Entries) == 0 {
		return err
	}
	_, err = b.group.Dispatch(b.t.Context(), protocol.DispatchRequest{Token: token, TTL: time.Minute, After: lease.After}, &a)
	return err
}

// pair starts two members that share the shards.
func (b *bench) pair() (first, second *member) {
	b.t.Helper()
	first = b.start("first", "")
	b.await([]int{shards}, first)
	second = b.start("second", "")
	b.await([]int{shards / 2, shards / 2}, first, second)
	return first, second
}

// awaitOpen waits until want incidents of a subject are open.
func (b *bench) awaitOpen(want int, kind, subject string) {
	b.t.Helper()
	b.awaitCount(want, "select count(*) from processor.incidents where closed_at is null and kind = $1 and subject = $2", kind, subject)
}

func (b *bench) scope() store.Scope { return store.Scope{Stream: b.where.Stream, Group: b.where.Group} }

func (b *bench) open(member string) *pgxpool.Pool {
	b.t.Helper()
	pool, err := store.Open(context.WithoutCancel(b.t.Context()), store.Config{
		URL: b.pgURL, Member: member, MaxConns: 8,
		ConnectTimeout: 5 * time.Second, StatementTimeout: 10 * time.Second, LockTimeout: 5 * time.Second,
	})
	require.NoError(b.t, err)
	b.t.Cleanup(pool.Close)
	return pool
}

func (b *bench) exec(sql string, args ...any) {
	b.t.Helper()
	_, err := b.pool.Exec(b.t.Context(), sql, args...)
	require.NoError(b.t, err)
}

func (b *bench) count(sql string, args ...any) (n int) {
	b.t.Helper()
	require.NoError(b.t, b.pool.QueryRow(b.t.Context(), sql, args...).Scan(&n))
	return n
}

// quick returns settings under which everything happens within a second.
func (b *bench) quick(name string) Config {
	return Config{
		Instance: name, Version: "test", Shards: shards, MemberTTL: time.Second, LeaderTTL: time.Second,
		HandoffBudget: 2 * time.Second, DrainTimeout: 2 * time.Second, SinkGrace: time.Second,
		ClaimInterval: 100 * time.Millisecond, ClaimThreshold: 500 * time.Millisecond,
	}
}

// member is one member of the fleet, with an engine that does no work.
type member struct {
	*Fleet
	b          *bench
	engine     *engine
	reg        *prometheus.Registry
	task       counted
	workStatus WorkStatus
	finished   func(shard int) uint64
	server     atomic.Pointer[string] // of Postgres, as its heartbeat tells
	mu         sync.Mutex

	joined chan error // of RunMembership
	stop   func()
	once   sync.Once
}

// start runs a member as modules does. A redisURL other than "" replaces its Redis.
func (b *bench) start(name, redisURL string, opts ...func(*Config)) *member {
	b.t.Helper()
	cfg := b.quick(name)
	for _, o := range opts {
		o(&cfg)
	}
	where := b.where
	where.Timeout = time.Second
	if redisURL != "" {
		where.URL = redisURL
	}
	client, err := stream.Connect(where)
	require.NoError(b.t, err)
	group, err := stream.NewGroup(client, where)
	require.NoError(b.t, err)
	m := &member{b: b, engine: &engine{epochs: map[int]int64{}}, reg: prometheus.NewRegistry(), joined: make(chan error, 1)}
	log := slog.New(slog.NewTextHandler(lines{b.t}, nil)).With("me", name)
	keys := Keys{Prefix: group.Names().Members(), Lock: group.Names().Lock()}
	membership, err := NewMembership(cfg, client, keys, func() WorkStatus {
		m.mu.Lock()
		defer m.mu.Unlock()
		v := m.workStatus
		if m.finished != nil {
			for shard := range m.engine.holds() {
				v.Shards, v.ShardFinished = append(v.Shards, shard), append(v.ShardFinished, m.finished(shard))
			}
		}
		return v
	}, log)
	require.NoError(b.t, err)
	membership.Belong(Database{Server: func() string {
		if s := m.server.Load(); s != nil {
			return *s
		}
		return ""
	}})
	pool := b.open(membership.Name())
	ledger := store.NewLedger(pool, b.scope(), membership.Name(), 5*time.Second)
	m.Fleet, err = NewFleet(cfg, membership, m.engine, Deps{
		Client: client, Keys: keys, Stream: group, Tasks: append(slices.Clone(b.tasks), &m.task),
		Shards:   store.NewShards(pool, b.scope(), 5*time.Second),
		Sessions: store.NewSessions(pool, 5*time.Second),
		Terms:    store.NewLeader(pool, b.scope(), membership.Name(), 5*time.Second),
		Ledger:   ledger,
		Losses:   NewLosses(ledger, m.reg),
		Holds:    store.NewHolds(pool, b.scope(), 5*time.Second),
	}, log, m.reg)
	require.NoError(b.t, err)

	background := context.WithoutCancel(b.t.Context())
	hearing, stopHearing := context.WithCancel(background)
	membershipCtx, stopMembership := context.WithCancel(background)
	election, stopElection := context.WithCancel(background)
	var electing, listening sync.WaitGroup
	listening.Go(func() {
		group.Notifications(hearing, func(n stream.Notification) {
			switch {
			case n.Leader:
				m.LeaderResigned()
			case n.Members:
				m.MembershipChanged()
			}
		})
	})
	listening.Go(func() {
		store.Listen(hearing, pool, "processor_shards", func(string) { m.Assigned() }, func(error) {})
	})
	go func() { m.joined <- m.RunMembership(membershipCtx) }()
	electing.Go(func() { _ = m.RunElection(election) })
	m.stop = func() {
		m.once.Do(func() {
			stopElection()
			electing.Wait()
			stopMembership()
			require.NoError(b.t, m.ended())
			stopHearing()
			listening.Wait()
			_ = client.Close()
		})
	}
	b.t.Cleanup(m.stop)
	return m
}

// finish has the member report how many entries of its shards it has finished.
func (m *member) finish(finished func(shard int) uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.finished = finished
}

// ended waits until the membership ends.
func (m *member) ended() error {
	m.b.t.Helper()
	select {
	case err := <-m.joined:
		m.joined <- err
		return err
	case <-time.After(10 * time.Second):
		return fmt.Errorf("the membership of %s does not end", m.name())
	}
}

// forgive accepts an error as the expected end of the membership.
func (m *member) forgive() {
	require.Error(m.b.t, <-m.joined)
	m.joined <- nil
}

func (m *member) name() string { return m.membership.Name() }

// moves returns how many shards the members assigned to others, as leaders, by reason.
func (b *bench) moves(members ...*member) map[string]int {
	moves := make(map[string]int)
	for _, m := range members {
		families, err := m.reg.Gather()
		require.NoError(b.t, err)
		for _, f := range families {
			for _, x := range f.GetMetric() {
				if n := int(x.GetCounter().GetValue()); n > 0 && f.GetName() == "processor_coordination_shards_moved_total" {
					moves[x.GetLabel()[0].GetValue()] += n
				}
			}
		}
	}
	return moves
}

// value returns the value of a metric.
func (m *member) value(name string) float64 {
	m.b.t.Helper()
	families, err := m.reg.Gather()
	require.NoError(m.b.t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return -1
}

// share returns the number of shards each member owns, in table and engine alike.
func (b *bench) share(members ...*member) (map[string]int, error) {
	list, err := b.shards.List(b.t.Context())
	if err != nil {
		return nil, err
	}
	owned := make(map[string]int)
	for _, s := range list {
		owned[s.Owner]++
		for _, m := range members {
			if epoch, held := m.engine.holds()[s.Shard]; held != (m.name() == s.Owner) || held && epoch != s.Epoch {
				return owned, fmt.Errorf("shard %d is held %v by %s under %d, owned by %s under %d", s.Shard, held, m.name(), epoch, s.Owner, s.Epoch)
			}
		}
	}
	return owned, nil
}

// await waits until the members own the wanted numbers of shards, and no other member owns any.
func (b *bench) await(want []int, members ...*member) {
	b.t.Helper()
	b.awaitNamed("", want, members...)
}

func (b *bench) awaitNamed(after string, want []int, members ...*member) {
	b.t.Helper()
	testenv.Wait(b.t, 15*time.Second, func() error {
		owned, err := b.share(members...)
		var have []int
		for _, m := range members {
			have = append(have, owned[m.name()])
		}
		slices.SortFunc(have, func(a, b int) int { return b - a })
		if err == nil && !slices.Equal(have, want) {
			err = fmt.Errorf("%s: want %v, have %v of %v", after, want, have, owned)
		}
		return err
	})
}

func (b *bench) list() []protocol.Shard {
	b.t.Helper()
	list, err := b.shards.List(b.t.Context())
	require.NoError(b.t, err)
	return list
}

type lines struct{ t *testing.T }

func (l lines) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}
