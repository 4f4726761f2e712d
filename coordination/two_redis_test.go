package coordination

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
)

// P4: an instance with the fleet's database and another Redis takes nothing from the fleet.
func TestAnInstanceOnAnotherRedisIsRefusedWhileTheFleetLives(t *testing.T) {
	b := newBench(t)
	fleet := b.start("fleet", "")
	b.await([]int{shards}, fleet)
	before := b.list()
	other := testenv.OwnServers(t, devenv.Options{Redis: true}).Redis.URL()
	astray := b.start("astray", other, func(c *Config) { c.MemberTTL, c.LeaderTTL = 400*time.Millisecond, 300*time.Millisecond })
	err := astray.ended()
	var refused *redisError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, 3, refused.ExitCode())
	require.ErrorContains(t, err, fleet.name())
	require.ErrorContains(t, err, "REDIS_URL")
	astray.forgive()
	after := b.list()
	for i := range before {
		require.Equal(t, before[i].Owner, after[i].Owner)
		require.Equal(t, before[i].Epoch, after[i].Epoch)
	}
	require.Zero(t, b.count("select count(*) from processor.leader where member like 'astray%'"))
	require.Zero(t, b.count("select count(*) from processor.losses"))
	require.Zero(t, b.count("select count(*) from processor.incidents where kind like 'redis_%'"))

	// Redis is moved on purpose: every instance is stopped first.
	fleet.stop()
	b.await([]int{shards}, b.start("moved", other))
}

// After a flush an instance that starts waits for those that live, however late they beat, and
// for no leader that crashed.
func TestAfterAFlushNoInstanceIsRefused(t *testing.T) {
	b := newBench(t)
	names := b.group.Names()
	keys := Keys{Prefix: names.Members(), Lock: names.Lock(), Database: names.Database()}
	var leader atomic.Pointer[string]
	var asked atomic.Int32
	member := func(instance string) *Membership {
		cfg := b.quick(instance)
		cfg.MemberTTL = 600 * time.Millisecond
		m, err := NewMembership(cfg, b.client, keys, func() WorkStatus { return WorkStatus{} }, discard())
		require.NoError(t, err)
		m.Belong(Database{ID: "ID"})
		m.liveLeader = func(context.Context, time.Duration, time.Duration) (string, error) {
			asked.Add(1)
			return *leader.Load(), nil
		}
		return m
	}
	flush := func() {
		require.NoError(t, b.client.Del(t.Context(), keys.Database, keys.Prefix, names.Heartbeat("first"), names.Heartbeat("second")).Err())
	}
	join := func(m *Membership) <-chan error {
		joined := make(chan error, 1)
		go func() { joined <- m.join(t.Context()) }()
		return joined
	}
	first := member("first")
	none, alive := "", first.Name()
	leader.Store(&none)
	require.NoError(t, first.join(t.Context()))

	flush()
	leader.Store(&alive)
	asked.Store(0)
	joined := join(member("second"))
	testenv.Wait(t, 5*time.Second, func() error {
		if asked.Load() < 7 { // longer than it takes to enter a database that no member knows
			return errors.New("it has not waited yet")
		}
		return nil
	})
	require.Zero(t, b.client.Exists(t.Context(), keys.Database).Val(), "it is left to a member that lives")
	_, err := first.beat(t.Context(), false)
	require.NoError(t, err)
	require.NoError(t, <-joined)

	flush()
	joined = join(member("third"))
	leader.Store(&none) // its last query was a moment ago
	require.NoError(t, <-joined)
}

// A fleet that lives has no live leader for moments: after a resignation, or while Postgres restarts.
func TestALeaderThatIsGoneForAMomentAdmitsNoInstanceOfAnotherRedis(t *testing.T) {
	b := newBench(t)
	names := b.group.Names()
	require.NoError(t, b.client.Set(t.Context(), names.Database(), "ID", 0).Err()) // as in a copy of the fleet's Redis
	// A look that is late by less changes nothing.
	const ttl = 1500 * time.Millisecond
	var restart atomic.Int64
	join := func(instance string, alive func(look int32) bool) (looks *atomic.Int32, joined <-chan error) {
		cfg := b.quick(instance)
		cfg.MemberTTL = ttl
		keys := Keys{Prefix: names.Heartbeat(instance), Database: names.Database()} // each finds none but itself
		m, err := NewMembership(cfg, b.client, keys, func() WorkStatus { return WorkStatus{} }, discard())
		require.NoError(t, err)
		m.Belong(Database{ID: "ID"})
		looks = new(atomic.Int32)
		m.liveLeader = func(_ context.Context, _, started time.Duration) (string, error) {
			restart.Store(int64(started))
			if alive(looks.Add(1)) {
				return "leader.1", nil
			}
			return "", nil
		}
		end := make(chan error, 1)
		go func() { end <- m.join(t.Context()) }()
		return looks, end
	}
	_, refused := join("refused", func(look int32) bool { return look%2 == 1 })
	var ended atomic.Bool
	looks, joined := join("admitted", func(look int32) bool { return look != 3 && !ended.Load() })
	testenv.Wait(t, 10*time.Second, func() error {
		if looks.Load() < 5 {
			return errors.New("it has not looked again")
		}
		return nil
	})
	require.Empty(t, joined)
	ended.Store(true)
	began := time.Now()
	require.NoError(t, <-joined)
	require.Greater(t, time.Since(began), ttl/2)
	var other *redisError
	require.ErrorAs(t, <-refused, &other, "the moments do not begin the wait anew")
	require.Equal(t, "leader.1", other.Leader)
	require.Equal(t, 2*ttl, time.Duration(restart.Load()), "after a power cut the leader is waited for")

	require.NoError(t, b.client.Set(t.Context(), names.Heartbeat("admitted")+":admitted", `{"instance": "admitted", "incarnation": "killed"}`, ttl).Err())
	_, joined = join("admitted", func(int32) bool { return false })
	require.NoError(t, <-joined)
	require.Zero(t, restart.Load(), "it was on this Redis, and has ended")
}

// P4: a replica that is promoted while the fleet stays where it was has copies of its heartbeats.
func TestP4AnInstanceOnACopyOfTheFleetsRedisIsRefusedWhileTheFleetLives(t *testing.T) {
	t.Parallel()
	own := func(args ...string) (string, *redis.Client) {
		server := testenv.OwnServers(t, devenv.Options{Redis: true, RedisArgs: args}).Redis
		opts, err := devenv.RedisOptions("", server.URL())
		require.NoError(t, err)
		client := redis.NewClient(opts)
		t.Cleanup(func() { _ = client.Close() })
		return server.URL(), client
	}
	url, client := own("--repl-diskless-sync-delay", "0")
	other, replica := own()
	b := newBenchOn(t, client, stream.Config{URL: url, Stream: "s", Group: "g", Shards: shards, Timeout: 5 * time.Second})
	long := func(c *Config) { c.MemberTTL = 10 * time.Second } // the copies outlive the test
	fleet := b.start("fleet", "", long)
	b.await([]int{shards}, fleet)
	joined := b.start("joined", "", long)
	b.await([]int{shards / 2, shards / 2}, fleet, joined)
	before := b.list()
	host, port, err := net.SplitHostPort(client.Options().Addr)
	require.NoError(t, err)
	require.NoError(t, replica.Do(t.Context(), "replicaof", host, port).Err())
	testenv.Wait(t, 10*time.Second, func() error {
		if n := replica.Exists(t.Context(), b.group.Names().Heartbeat("fleet"), b.group.Names().Heartbeat("joined")).Val(); n < 2 {
			return fmt.Errorf("%d heartbeats are copied", n)
		}
		return nil
	})
	require.NoError(t, replica.Do(t.Context(), "replicaof", "no", "one").Err())
	astray := b.start("astray", other, func(c *Config) { c.MemberTTL, c.LeaderTTL = 400*time.Millisecond, 300*time.Millisecond })
	var refused *redisError
	require.ErrorAs(t, astray.ended(), &refused)
	astray.forgive()
	after := b.list()
	for i := range before {
		require.Equal(t, before[i].Owner, after[i].Owner)
		require.Equal(t, before[i].Epoch, after[i].Epoch)
	}
}

// One joins at once where a heartbeat was written on its Redis, and asks for no leader. So it does where
// the server does not tell which it is, or the heartbeat, of an earlier version, does not.
func TestAnInstanceJoinsAtOnceWhereAMemberIs(t *testing.T) {
	b := newBench(t)
	names := b.group.Names()
	heartbeat := func(identity string) string {
		text, err := b.client.Get(t.Context(), names.Heartbeat(identity)).Result()
		require.NoError(t, err)
		return text
	}
	first := b.joined("first")
	require.Contains(t, heartbeat("first"), `"redis":"`)
	join := func(instance string) {
		t.Helper()
		m, err := NewMembership(b.quick(instance), b.client, first.keys, func() WorkStatus { return WorkStatus{} }, discard())
		require.NoError(t, err)
		m.liveLeader = func(context.Context, time.Duration, time.Duration) (string, error) {
			return "", errors.New("it was asked for a leader")
		}
		var led observation
		holder, err := m.enter(t.Context(), &led)
		require.NoError(t, err)
		require.Nil(t, holder)
		require.NoError(t, m.leave(t.Context()))
	}
	join("second")
	earlier := strings.Replace(heartbeat("first"), `"redis":`, `"unknown":`, 1)
	require.NoError(t, b.client.Set(t.Context(), names.Heartbeat("first"), earlier, time.Minute).Err())
	join("third")
}

// Looks that failed say nothing of a leader: it may not have asked again since.
func TestALeaderThatCouldNotBeLookedForIsNotForgotten(t *testing.T) {
	b := newBench(t)
	names := b.group.Names()
	require.NoError(t, b.client.Set(t.Context(), names.Database(), "ID", 0).Err())
	const ttl = 1500 * time.Millisecond // looks each 300 ms
	away := errors.New("Postgres is away")
	for name, look := range map[string]func(look int32) (string, error){
		"seen before": func(look int32) (string, error) {
			switch {
			case look > 3 && look <= 10:
				return "", away
			case look == 11:
				return "", nil
			}
			return "leader.1", nil
		},
		"not seen before": func(look int32) (string, error) {
			switch look {
			case 1:
				return "", away
			case 2:
				return "", nil
			}
			return "leader.1", nil
		},
		"none": func(look int32) (string, error) {
			if look == 1 {
				return "", away
			}
			return "", nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := b.quick("astray")
			cfg.MemberTTL = ttl
			keys := Keys{Prefix: names.Heartbeat(strings.ReplaceAll(name, " ", "-")), Database: names.Database()} // each finds none but itself
			m, err := NewMembership(cfg, b.client, keys, func() WorkStatus { return WorkStatus{} }, discard())
			require.NoError(t, err)
			m.Belong(Database{ID: "ID"})
			var looks atomic.Int32
			m.liveLeader = func(context.Context, time.Duration, time.Duration) (string, error) { return look(looks.Add(1)) }
			err = m.join(t.Context())
			if name == "none" {
				require.NoError(t, err)
				require.GreaterOrEqual(t, looks.Load(), int32(3), "it looked again for a MEMBER_TTL")
				return
			}
			var refused *redisError
			require.ErrorAs(t, err, &refused)
			require.Equal(t, "leader.1", refused.Leader)
		})
	}
}
