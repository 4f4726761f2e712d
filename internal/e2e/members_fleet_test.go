package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// campaign is a fleet of processes under load, with Postgres as the witness of
// who committed what, and when.
type campaign struct {
	*servicetest.Deployment
	env      *devenv.Env
	pool     *pgxpool.Pool
	observer *observer.Observer
	shards   *store.Shards
	group    *stream.Group
	running  map[string]*servicetest.Process // by instance
	sender   *fleet.Sender
	file     string
	stop     context.CancelFunc
	sent     chan error
}

const fleetShards = 64

// newCampaign starts servers that keep the times of commits, and a load of
// about rate records a second that goes on until it is judged.
func newCampaign(t *testing.T, devices int, rate float64) *campaign {
	t.Helper()
	profile := fleet.Rally(20260301)
	profile.Devices, profile.Duration = devices, time.Hour
	return newCampaignOf(t, profile, rate)
}

func newCampaignOf(t *testing.T, profile fleet.Profile, rate float64) *campaign {
	t.Helper()
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true, Postgres: true, PostgresArgs: []string{"-c", "track_commit_timestamp=on"}})
	c := &campaign{
		env: env, Deployment: &servicetest.Deployment{T: t, RedisURL: env.Redis.URL(), PostgresURL: env.Postgres.URL(), Stream: "telemetry:teltonika", Group: "processor"},
		running: make(map[string]*servicetest.Process), file: filepath.Join(t.TempDir(), "sent"), sent: make(chan error, 1),
	}
	_, err := schema.Migrate(t.Context(), c.PostgresURL, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	background := context.WithoutCancel(t.Context())
	c.pool, err = store.Open(background, store.Config{
		URL: c.PostgresURL, Member: "judge", MaxConns: 3, ConnectTimeout: 10 * time.Second, StatementTimeout: time.Minute, LockTimeout: 10 * time.Second,
	})
	require.NoError(t, err)
	t.Cleanup(c.pool.Close)
	scope := store.Scope{Stream: c.Stream, Group: c.Group}
	c.observer, c.shards = observer.NewObserver(c.pool, scope), store.NewShards(c.pool, scope, 10*time.Second)
	require.NoError(t, c.observer.Install(t.Context()))

	where := stream.Config{URL: c.RedisURL, Stream: c.Stream, Group: c.Group, Shards: fleetShards, Timeout: 10 * time.Second, Name: "load"}
	client, err := stream.Connect(where)
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	c.group, err = stream.NewGroup(client, where)
	require.NoError(t, err)

	t.Logf("fleet seed %d", profile.Seed)
	source, err := profile.Source()
	require.NoError(t, err)
	file, err := os.Create(c.file)
	require.NoError(t, err)
	t.Cleanup(func() { _ = file.Close() })
	sendLog, err := fleet.NewLogWriter(file)
	require.NoError(t, err)
	c.sender, err = fleet.NewSender(fleet.DefaultSenderConfig(), source, fleet.AtSpeed(rate/float64(profile.Devices)),
		fleet.NewPublisher(client, c.Stream, 0), sendLog, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(background)
	c.stop = stop
	var once sync.Once
	go func() { c.sent <- c.sender.Run(ctx) }()
	t.Cleanup(func() { once.Do(stop) })
	return c
}

// start adds an instance and waits until it works.
func (c *campaign) start(name string, settings ...string) *servicetest.Process {
	c.T.Helper()
	p := c.Run(append([]string{"INSTANCE_ID=" + name}, settings...)...)
	p.AwaitReady()
	c.running[name] = p
	return p
}

// owned is how many shards each instance owns.
func (c *campaign) owned() map[string]int {
	list, err := c.shards.List(c.T.Context())
	require.NoError(c.T, err)
	n := make(map[string]int)
	for _, s := range list {
		name, _, _ := strings.Cut(s.Owner, ".")
		n[name]++
	}
	return n
}

// awaitShares waits until the instances own everything and each has a share: evenly, as
// far as their load is even.
func (c *campaign) awaitShares(names ...string) time.Duration {
	c.T.Helper()
	began := time.Now()
	testenv.Wait(c.T, time.Minute, func() error {
		owned := c.owned()
		total := 0
		for _, n := range names {
			total += owned[n]
			if share := float64(fleetShards) / float64(len(names)); float64(owned[n]) < share/2 || float64(owned[n]) > 2*share {
				return fmt.Errorf("want %v to share evenly, have %v", names, owned)
			}
		}
		if total != fleetShards {
			return fmt.Errorf("want all owned by %v, have %v", names, owned)
		}
		return nil
	})
	return time.Since(began)
}

// awaitWithout waits until an instance owns nothing and others own everything.
func (c *campaign) awaitWithout(name string) time.Duration {
	c.T.Helper()
	began := time.Now()
	testenv.Wait(c.T, time.Minute, func() error {
		if owned := c.owned(); owned[name]+owned[""] > 0 {
			return fmt.Errorf("want nothing owned by %s or nobody, have %v", name, owned)
		}
		return nil
	})
	return time.Since(began)
}

// memberOf is identity and incarnation of an instance that owns something.
func (c *campaign) memberOf(name string) string {
	c.T.Helper()
	list, err := c.shards.List(c.T.Context())
	require.NoError(c.T, err)
	for _, s := range list {
		if strings.HasPrefix(s.Owner, name+".") {
			return s.Owner
		}
	}
	require.Fail(c.T, "owns nothing", name)
	return ""
}

// which is the instance for which a gauge is 1.
func (c *campaign) which(gauge string) (name string) {
	c.T.Helper()
	testenv.Wait(c.T, 30*time.Second, func() error {
		for n, p := range c.running {
			if v, err := p.Metric(gauge); err == nil && v == 1 {
				name = n
				return nil
			}
		}
		return errors.New("nobody has " + gauge)
	})
	return name
}

// freeze stops a process, in the middle of a transaction if it can be caught there.
func (c *campaign) freeze(name string) (caught bool) {
	c.T.Helper()
	p, member := c.running[name], c.memberOf(name)
	for range 40 {
		p.Signal(syscall.SIGSTOP)
		n, err := c.observer.InTransaction(c.T.Context(), member)
		require.NoError(c.T, err)
		if n > 0 {
			return true
		}
		p.Signal(syscall.SIGCONT)
		testenv.Wait(c.T, 10*time.Second, func() error { // until it commits again
			n, err := c.observer.InTransaction(c.T.Context(), member)
			if err == nil && n == 0 {
				err = errors.New("no transaction")
			}
			return err
		})
	}
	p.Signal(syscall.SIGSTOP)
	return false
}

// settle ends the load and waits until all is done.
func (c *campaign) settle() {
	c.T.Helper()
	c.stop()
	require.NoError(c.T, <-c.sent)
	_, err := c.sender.Settle(c.T.Context(), c.group)
	require.NoError(c.T, err)
	testenv.Wait(c.T, time.Minute, func() error {
		b, err := c.group.Backlog(c.T.Context())
		if err == nil && (!b.LagKnown || b.Lag+b.Pending > 0) {
			err = fmt.Errorf("still to do: %+v", b)
		}
		return err
	})
}

// judge ends the load, waits until all is done, and has both judges look.
func (c *campaign) judge() (shares map[string]float64) {
	c.T.Helper()
	c.settle()
	_, shares = c.verdict(map[telemetry.EntryID]bool{})
	return shares
}

// judgeBut has both judges look, who excuse entries that are gone. Those without
// a row are counted as pending.
func (c *campaign) judgeBut(gone map[telemetry.EntryID]bool) oracle.Account {
	c.T.Helper()
	account, _ := c.verdict(gone)
	return account
}

func (c *campaign) verdict(gone map[telemetry.EntryID]bool) (oracle.Account, map[string]float64) {
	c.T.Helper()
	sent, err := fleet.OpenLog(c.file)
	require.NoError(c.T, err)
	defer sent.Close()
	o, err := oracle.New(sent)
	require.NoError(c.T, err)
	info, err := c.group.Info(c.T.Context())
	require.NoError(c.T, err)
	report, err := o.Judge(oracle.Observed{
		Positions: observer.Positions(c.T.Context(), c.pool), Pending: observer.Among(gone), Dispatched: (*oracle.ID)(&info.Delivered),
	})
	require.NoError(c.T, err)
	account := report.Account
	excused := account
	if len(gone) > 0 {
		excused.Entries, excused.Pending = account.Entries-account.Pending, 0
	}
	require.True(c.T, excused.Good(), "%+v\n%v", report.Account, report.Examples)

	ownershipSpans, err := c.observer.OwnershipSpans(c.T.Context())
	require.NoError(c.T, err)
	order, err := o.Order(c.observer.Commits(c.T.Context()), oracle.OrderRules{Spans: ownershipSpans, Shards: oracle.Always(fleetShards)})
	require.NoError(c.T, err)
	require.True(c.T, order.Good(), "%d out of order, %d by a stale owner\n%v", order.Reordered, order.Stale, order.Examples)
	shares := make(map[string]float64)
	total := 0.0
	for member, n := range order.Members {
		name, _, _ := strings.Cut(member, ".")
		shares[name] += float64(n)
		total += float64(n)
	}
	for name := range shares {
		shares[name] /= total
	}
	c.T.Logf("%d entries, %d stored, shares %v", account.Entries, account.Stored, shares)
	return account, shares
}

// end stops an instance in order.
func (c *campaign) end(name string) {
	c.T.Helper()
	require.Zero(c.T, c.running[name].Terminate())
	delete(c.running, name)
}

// Take-over bounds of P8 with slack for a busy machine, twice for the one that is a second.
const (
	slack       = 3
	killedBound = slack * (3*time.Second + 5*time.Second) // MEMBER_TTL is 3s here
	leftBound   = slack * slack * time.Second
)

func TestP3P4P8OrderThroughJoinsLeavesKillsAndFreezes(t *testing.T) {
	c := newCampaign(t, 200, 800)
	c.start("a")
	c.start("b")
	c.awaitShares("a", "b")
	before := c.owned()
	c.start("c")
	joined := c.awaitShares("a", "b", "c")
	after := c.owned()
	require.LessOrEqual(t, before["a"]-after["a"]+before["b"]-after["b"], (fleetShards+2)/3, "a join moves no more than its share")
	t.Logf("joined: balanced in %.2f s", joined.Seconds())

	const forced = "processor_coordination_shards_force_acquired_total"
	forcedBefore := c.total(forced)
	c.end("c")
	left := c.awaitWithout("c")
	t.Logf("SIGTERM: taken over %.2f s after the end", left.Seconds())
	require.Less(t, left, leftBound)
	require.LessOrEqual(t, c.total(forced), forcedBefore, "released, not missed")

	leader := c.which("processor_coordination_leader")
	c.running[leader].Signal(syscall.SIGKILL)
	killed := c.awaitWithout(leader)
	t.Logf("SIGKILL of the leader: taken over in %.2f s", killed.Seconds())
	require.Less(t, killed, killedBound)
	require.Equal(t, -1, c.running[leader].Exit(40*time.Second))
	delete(c.running, leader)

	c.start("d")
	var names []string
	for n := range c.running {
		names = append(names, n)
	}
	c.awaitShares(names...)
	dispatcher := c.which("processor_pipeline_dispatcher")
	member := c.memberOf(dispatcher)
	caught := c.freeze(dispatcher)
	frozen := c.awaitWithout(dispatcher)
	t.Logf("SIGSTOP of the dispatcher (in the middle of a transaction: %v): taken over in %.2f s", caught, frozen.Seconds())
	require.Less(t, frozen, killedBound)
	testenv.Wait(t, 10*time.Second, func() error { // nothing of it holds its successor up
		n, err := c.observer.InTransaction(t.Context(), member)
		if err == nil && n > 0 {
			err = fmt.Errorf("%d of its sessions are inside a transaction", n)
		}
		return err
	})
	c.running[dispatcher].Signal(syscall.SIGCONT)
	// Awake it notices that it was replaced, and has its share again.
	c.awaitShares(names...)
	slices.Sort(names)
	c.judge()
	for _, n := range names {
		c.end(n)
	}
}

// P3, P4, P8: whom the network cuts off changes nothing any more.
func TestACutNetworkMovesShardsAndNothingElse(t *testing.T) {
	testenv.Full(t)
	c := newCampaign(t, 200, 800)
	redisAddr, pgAddr := strings.TrimSuffix(strings.TrimPrefix(c.RedisURL, "redis://"), "/0"), ""
	if _, rest, ok := strings.Cut(c.PostgresURL, "@"); ok {
		pgAddr, _, _ = strings.Cut(rest, "/")
	}
	toRedis, toPostgres := testenv.Proxy(t, redisAddr), testenv.Proxy(t, pgAddr)
	redisURL, err := toRedis.URL(c.RedisURL)
	require.NoError(t, err)
	pgURL, err := toPostgres.URL(c.PostgresURL)
	require.NoError(t, err)
	c.start("near")
	// A black hole is noticed by its silence, before any statement times out.
	c.start("far", "REDIS_URL="+redisURL, "POSTGRES_URL="+pgURL, "POSTGRES_MIGRATE_URL="+c.PostgresURL, "STATEMENT_TIMEOUT=40s", "CLAIM_THRESHOLD_MS=50000")
	c.awaitShares("near", "far")

	require.NoError(t, toRedis.Stall())
	cut := c.awaitWithout("far")
	t.Logf("cut off from Redis: taken over in %.2f s", cut.Seconds())
	require.Less(t, cut, killedBound)
	require.NoError(t, toRedis.Resume())
	c.awaitShares("near", "far")

	for _, f := range []struct {
		how   string
		cut   func() error
		limit time.Duration
	}{
		{"refused", toPostgres.Refuse, 7 * time.Second}, // it has five seconds to find Postgres again
		{"silent", toPostgres.Stall, 10 * time.Second},  // and half as long to notice
	} {
		require.NoError(t, f.cut())
		cut = c.awaitWithout("far")
		t.Logf("cut off from Postgres, %s: taken over in %.2f s", f.how, cut.Seconds())
		require.Less(t, cut, slack*f.limit)
		require.NoError(t, toPostgres.Resume())
		c.awaitShares("near", "far")
	}
	c.judge()
	c.end("near")
	c.end("far")
}

func (c *campaign) stored() (n int) {
	c.T.Helper()
	require.NoError(c.T, c.pool.QueryRow(c.T.Context(), "select count(*) from positions").Scan(&n))
	return n
}

// P3: the judge compares the times of commits with the order of the stream.
func TestTwoInstancesShareRecordsEvenlyAndThreeToo(t *testing.T) {
	testenv.Slow(t)
	// A record a second from each device: a burst of a few would weigh more than
	// what the hash makes of 500 devices, which is 0.46 to 0.54 here. Who stores how
	// much is counted over a span of device time, so an instance that is behind does
	// not count for less.
	c := newCampaignOf(t, fleet.Steady(20260301, 500, 500, time.Hour), 800)
	c.start("a")
	c.start("b")
	c.awaitShares("a", "b")
	for name, s := range c.sharesOfNext(6*time.Second, 500) {
		require.InDelta(t, 0.5, s, 0.09, name)
	}
	members := []string{"a", "b"}
	if testenv.IsFull() {
		c.start("c")
		c.awaitShares("a", "b", "c")
		shares := c.sharesOfNext(6*time.Second, 500)
		require.Len(t, shares, 3)
		for name, s := range shares {
			require.Greater(t, s, 0.25, name)
			require.Less(t, s, 0.42, name)
		}
		members = append(members, "c")
	}
	c.judge()
	for _, n := range members {
		c.end(n)
	}
}

// sharesOfNext waits until all devices are past the next span of device time, and
// returns who committed which part of its rows.
func (c *campaign) sharesOfNext(span time.Duration, devices int) map[string]float64 {
	c.T.Helper()
	var from time.Time
	require.NoError(c.T, c.pool.QueryRow(c.T.Context(), "select max(ts) from positions").Scan(&from))
	to := from.Add(span)
	testenv.Wait(c.T, time.Minute, func() error {
		var past int
		err := c.pool.QueryRow(c.T.Context(), "select count(distinct device_id) from positions where ts > $1", to).Scan(&past)
		if err == nil && past < devices {
			err = fmt.Errorf("%d of %d devices are past %s", past, devices, to)
		}
		return err
	})
	shares, total := make(map[string]float64), 0.0
	for x, err := range c.observer.Commits(c.T.Context()) {
		require.NoError(c.T, err)
		if x.TimeUS > from.UnixMicro() && x.TimeUS <= to.UnixMicro() {
			name, _, _ := strings.Cut(x.Member, ".")
			shares[name]++
			total++
		}
	}
	for name := range shares {
		shares[name] /= total
	}
	c.T.Logf("shares of %.0f records: %v", total, shares)
	return shares
}
