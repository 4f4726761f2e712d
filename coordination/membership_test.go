package coordination

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
)

func xadd(name, device string) *redis.XAddArgs {
	return &redis.XAddArgs{Stream: name, Values: []any{"device_id", device}}
}

func TestAnIdentityWhoseHolderIsAliveIsRefusedWithCode6(t *testing.T) {
	b := newBench(t)
	first := b.start("same", "")
	b.await([]int{16}, first)
	second := b.start("same", "")
	err := second.ended()
	var refused *identityError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, 6, refused.ExitCode())
	require.Equal(t, first.name(), refused.Holder.Name())
	require.ErrorContains(t, err, "give each instance its own INSTANCE_ID")
	second.forgive()
	b.await([]int{16}, first)
}

func TestAnIdentityWhoseHolderIsSilentIsWaitedFor(t *testing.T) {
	b := newBench(t)
	text, err := json.Marshal(Member{Instance: "same", Incarnation: "old", Number: 7})
	require.NoError(t, err)
	names := b.group.Names()
	require.NoError(t, b.client.Set(t.Context(), names.Heartbeat("same"), text, time.Second).Err())
	require.NoError(t, b.client.SAdd(t.Context(), names.Members(), "same").Err())
	began := time.Now()
	m := b.start("same", "")
	b.await([]int{16}, m)
	require.Greater(t, time.Since(began), 900*time.Millisecond)
	require.NotContains(t, m.name(), "old")
}

// P8: when the server's clock steps back, a dead member's heartbeat expires later.
func TestAnIdentityIsFreeWithinATTLWhenTheClockStepsBack(t *testing.T) {
	b := newBench(t)
	text, err := json.Marshal(Member{Instance: "same", Incarnation: "old", Number: 7})
	require.NoError(t, err)
	names := b.group.Names()
	require.NoError(t, b.client.Set(t.Context(), names.Heartbeat("same"), text, 15*time.Minute).Err())
	require.NoError(t, b.client.SAdd(t.Context(), names.Members(), "same").Err())
	b.await([]int{16}, b.start("same", ""))
}

func TestAnIdentityTakenOverEndsTheMembership(t *testing.T) {
	b := newBench(t)
	m := b.start("same", "")
	b.await([]int{16}, m)
	text, err := json.Marshal(Member{Instance: "same", Incarnation: "new", Number: 7})
	require.NoError(t, err)
	key := b.group.Names().Heartbeat("same")
	require.NoError(t, b.client.Set(t.Context(), key, text, time.Hour).Err())
	var refused *identityError
	require.ErrorAs(t, m.ended(), &refused)
	m.forgive()
	kept, err := b.client.Get(t.Context(), key).Result()
	require.NoError(t, err)
	require.Equal(t, string(text), kept, "what it leaves is not the other's heartbeat")
}

func TestHeartbeatsContinueInAFullRedis(t *testing.T) {
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true})
	opts, err := devenv.RedisOptions("", env.Redis.URL())
	require.NoError(t, err)
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	b := newBenchOn(t, client, stream.Config{URL: env.Redis.URL(), Stream: "s", Group: "g", Shards: shards, Timeout: 5 * time.Second})
	first, second := b.pair()
	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())
	require.ErrorContains(t, client.Set(t.Context(), "any", "x", 0).Err(), "OOM")
	beatOf := func() uint64 {
		for _, m := range first.membership.Members() {
			if m.Name() == second.name() {
				return m.Number
			}
		}
		return 0
	}
	before := b.list()
	term := b.count("select term from processor.leader")
	_, err = store.NewHolds(b.pool, b.scope(), time.Second).Set(t.Context(), protocol.Hold{Kind: protocol.HoldFleet, Reason: "test", By: "test"})
	require.NoError(t, err)
	seen := beatOf()
	testenv.Wait(t, 10*time.Second, func() error { // three times the time to live
		if n := beatOf(); n < seen+15 {
			return fmt.Errorf("beat %d after %d", n, seen)
		}
		return nil
	})
	for i, s := range b.list() {
		require.Equal(t, before[i].Owner, s.Owner, "no member is declared gone")
	}
	require.Equal(t, int64(1), client.Exists(t.Context(), b.group.Names().Paused()).Val(), "dispatching can be paused")
	require.Equal(t, term, b.count("select term from processor.leader"), "the leader stepped down")
	// Shards can still be handed over.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, second.Leave(ctx))
	second.stop()
	b.await([]int{16}, first)
}

// P10: a member that could not be polled while Redis was unavailable is unknown, not gone.
func TestNoMemberIsDeclaredDeadWhileRedisIsUnavailable(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true})
	opts, err := devenv.RedisOptions("", env.Redis.URL())
	require.NoError(t, err)
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	b := newBenchOn(t, client, stream.Config{URL: env.Redis.URL(), Stream: "s", Group: "g", Shards: shards, Timeout: time.Second})
	first, _ := b.pair()
	before := b.list()
	require.NoError(t, env.Redis.Pause())
	stalled := time.NewTimer(3 * time.Second)
	<-stalled.C
	require.NoError(t, env.Redis.Resume())
	stalled.Reset(2 * time.Second)
	<-stalled.C
	for i, s := range b.list() {
		require.Equal(t, before[i].Owner, s.Owner)
		require.Equal(t, before[i].Epoch, s.Epoch)
	}
	require.NoError(t, env.Redis.Restart(t.Context()))
	testenv.Wait(t, 5*time.Second, func() error {
		first.engine.mu.Lock()
		defer first.engine.mu.Unlock()
		if first.engine.rewinds == 0 {
			return fmt.Errorf("the change of servers went unnoticed")
		}
		return nil
	})
}

// warnings counts lines of a log.
type warnings struct{ atomic.Int32 }

func (w *warnings) Write(p []byte) (int, error) {
	w.Add(1)
	return len(p), nil
}

// P10: who joins once Redis is back has not seen the others, who may not have beaten yet.
func TestNoMemberIsDeclaredDeadByOneThatJoinsRightAfterAnOutage(t *testing.T) {
	b := newBench(t)
	proxy := testenv.Proxy(t, b.client.Options().Addr)
	where := b.where
	var err error
	where.URL, err = proxy.URL(where.URL)
	require.NoError(t, err)
	where.Timeout = 100 * time.Millisecond
	client, err := stream.Connect(where)
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	var warned warnings
	cfg := b.quick("new")
	cfg.MemberTTL = 5 * time.Second
	m, err := NewMembership(cfg, client, Keys{Prefix: b.group.Names().Members()}, func() WorkStatus { return WorkStatus{} },
		slog.New(slog.NewTextHandler(&warned, &slog.HandlerOptions{Level: slog.LevelWarn})))
	require.NoError(t, err)
	require.NoError(t, proxy.Stall())
	joined := make(chan error, 1)
	go func() { joined <- m.join(t.Context()) }()
	testenv.Wait(t, 10*time.Second, func() error {
		if warned.Load() == 0 {
			return errors.New("the first attempt has not failed yet")
		}
		return nil
	})
	require.NoError(t, proxy.Resume())
	require.NoError(t, <-joined)
	require.NoError(t, m.heartbeatRound(t.Context()))
	require.False(t, m.owner("another.1", 0).Gone)
	require.True(t, m.owner("new.1", 0).Gone, "its identity was taken by this one")
	testenv.Wait(t, cfg.MemberTTL+10*time.Second, func() error {
		if !m.owner("another.1", 0).Gone {
			return errors.New("it is not gone yet")
		}
		return nil
	})
}

// A member is gone when its time is over, and that may fall between two looks.
func TestTheEndOfASilentMemberIsToldWheneverItFalls(t *testing.T) {
	b := newBench(t)
	keys := Keys{Prefix: b.group.Names().Members()}
	join := func(name string) *Membership {
		m, err := NewMembership(b.quick(name), b.client, keys, func() WorkStatus { return WorkStatus{} }, discard())
		require.NoError(t, err)
		require.NoError(t, m.join(t.Context()))
		return m
	}
	dead, m := join("dead"), join("alive")
	var told atomic.Int32
	m.onChange(func() { told.Add(1) })
	require.NoError(t, m.heartbeatRound(t.Context()))
	require.Equal(t, int32(1), told.Load())
	require.Equal(t, 1, m.Peers())
	awaitSilent := func(of time.Duration) {
		began := time.Now()
		testenv.Wait(t, 10*time.Second, func() error {
			if _, silent := m.silent(dead.Name()); !silent && time.Since(began) < of {
				return errors.New("it is not gone yet")
			}
			return nil
		})
	}
	awaitSilent(m.cfg.MemberTTL / 2)
	require.NoError(t, m.heartbeatRound(t.Context())) // so that it is not gone itself, too
	awaitSilent(10 * time.Second)
	require.NoError(t, m.heartbeatRound(t.Context()))
	require.Equal(t, int32(2), told.Load())
	require.Equal(t, []string{m.Name()}, m.eligible())
}

// Nobody has to look at the moment of the last heartbeat to know how old it is.
func TestTheAgeOfAHeartbeatIsKnown(t *testing.T) {
	b := newBench(t)
	names := b.group.Names()
	text, err := json.Marshal(Member{Instance: "old", Incarnation: "a", Number: 7})
	require.NoError(t, err)
	require.NoError(t, b.client.Set(t.Context(), names.Heartbeat("old"), text, time.Hour-time.Minute).Err())
	require.NoError(t, b.client.SAdd(t.Context(), names.Members(), "old").Err())
	members, _, _, err := readMembers(t.Context(), b.client, Keys{Prefix: names.Members()}, time.Hour)
	require.NoError(t, err)
	require.Len(t, members, 1)
	require.GreaterOrEqual(t, members[0].beat().Age, time.Minute)
	require.Less(t, members[0].beat().Age, 2*time.Minute)
}

// P8: a member may announce that it leaves and end before another one looks.
func TestAMemberThatLeftBetweenTwoLooksIsGoneAtOnce(t *testing.T) {
	b := newBench(t)
	watcher, other := b.joined("watcher"), b.joined("other")
	require.NoError(t, watcher.heartbeatRound(t.Context()))
	require.Len(t, watcher.eligible(), 2)
	require.NoError(t, other.announce(t.Context()))
	require.NoError(t, other.leave(t.Context()))
	require.NoError(t, watcher.heartbeatRound(t.Context()))
	require.Equal(t, []string{watcher.Name()}, watcher.eligible())
	require.True(t, watcher.owner(other.Name(), 0).Gone)
	require.Zero(t, watcher.Peers())
	require.Len(t, watcher.Members(), 1)
	members, err := ReadMembers(t.Context(), b.client, watcher.keys)
	require.NoError(t, err)
	require.Len(t, members, 1)

	late, err := b.client.Get(t.Context(), other.key()).Result()
	require.NoError(t, err)
	_, err = other.beat(t.Context(), false)
	require.NoError(t, err)
	require.Equal(t, late, b.client.Get(t.Context(), other.key()).Val(), "a beat that comes late changes nothing")

	next := b.joined("other") // its identity is free
	require.NoError(t, watcher.heartbeatRound(t.Context()))
	require.ElementsMatch(t, []string{watcher.Name(), next.Name()}, watcher.eligible())
	require.NoError(t, other.leave(t.Context()))
	require.NoError(t, watcher.heartbeatRound(t.Context()))
	require.Len(t, watcher.eligible(), 2, "who has the identity now has not left")
}

func TestAHeartbeatThatCannotBeReadHidesNoMember(t *testing.T) {
	b := newBench(t)
	names := b.group.Names()
	first := b.start("first", "")
	b.await([]int{shards}, first)
	silent := b.joined("silent")
	testenv.Wait(t, 5*time.Second, func() error {
		if first.membership.Peers() != 1 {
			return errors.New("it has not seen the other")
		}
		return nil
	})
	foreign := map[string]string{"text": "nonsense", "list": "[1]", "number": "7", "third": "x", "empty": "{}", "fields": `{"database": {}, "server": [], "incarnation": 5}`}
	for identity, text := range foreign {
		require.NoError(t, b.client.Set(t.Context(), names.Heartbeat(identity), text, 0).Err())
		require.NoError(t, b.client.SAdd(t.Context(), names.Members(), identity).Err())
	}
	require.NoError(t, b.client.HSet(t.Context(), names.Heartbeat("hash"), "a", "b").Err())
	require.NoError(t, b.client.SAdd(t.Context(), names.Members(), "hash").Err())
	testenv.Wait(t, first.membership.cfg.MemberTTL+5*time.Second, func() error {
		if _, gone := first.membership.silent(silent.Name()); !gone {
			return errors.New("the silent member is not gone")
		}
		return b.ownedBut(-1, first)
	})

	keys := Keys{Prefix: names.Members(), Database: names.Database()}
	for _, identity := range []string{"third", "hash"} { // the one looks at all heartbeats, and each at its own
		m, err := NewMembership(b.quick(identity), b.client, keys, func() WorkStatus { return WorkStatus{} }, discard())
		require.NoError(t, err)
		m.Belong(Database{ID: "ID", Created: true, Server: func() string { return "7001/5" }})
		joining, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		require.NoError(t, m.join(joining))
		require.NoError(t, b.client.Set(t.Context(), m.key(), "x", 0).Err())
		require.NoError(t, m.leave(t.Context()))
	}
	// Who must not overlook a member does not go on without.
	_, err := ReadMembers(t.Context(), b.client, keys)
	require.ErrorContains(t, err, "is no heartbeat")
}

func TestReadingMembersWritesNothing(t *testing.T) {
	b := newBench(t)
	names := b.group.Names()
	require.NoError(t, b.client.SAdd(t.Context(), names.Members(), "silent").Err())
	members, err := ReadMembers(t.Context(), b.client, Keys{Prefix: names.Members()})
	require.NoError(t, err)
	require.Empty(t, members)
	require.Equal(t, []string{"silent"}, b.client.SMembers(t.Context(), names.Members()).Val())

	m := b.start("alive", "")
	b.await([]int{16}, m)
	testenv.Wait(t, 5*time.Second, func() error {
		if ids := b.client.SMembers(t.Context(), names.Members()).Val(); len(ids) != 1 {
			return fmt.Errorf("%q are on the list", ids)
		}
		return nil
	})
}

// P4: one that waits for a leader on its Redis is a member of nothing when it is stopped.
func TestP4AnInstanceThatNeverJoinedLeavesNothing(t *testing.T) {
	b := newBench(t)
	_, err := store.NewLeader(b.open("elsewhere.1"), b.scope(), "elsewhere.1", 5*time.Second).BeginTerm(t.Context())
	require.NoError(t, err)
	m := b.start("astray", "")
	require.NoError(t, m.Leave(t.Context()))
	require.Zero(t, b.client.Exists(t.Context(), b.group.Names().Heartbeat("astray")).Val())
}
