package coordination

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/testenv"
)

// ownRedis returns a private server that a test may fill or break.
func ownRedis(t *testing.T) *redis.Client {
	t.Helper()
	opts, err := devenv.RedisOptions("", testenv.OwnServers(t, devenv.Options{Redis: true}).Redis.URL())
	require.NoError(t, err)
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// lockServer is the server's side of the leader's lock; TestTheLockKeepsItsRules
// holds it and the real one to the same rules.
type lockServer struct {
	mu    sync.Mutex
	owner *fakeLease
	until time.Time
}

// fakeLease is one elector's connection to the server: delay slows it down, fail
// loses replies.
type fakeLease struct {
	server *lockServer
	ttl    time.Duration
	delay  func() time.Duration // each way
	fail   func() bool          // the reply is lost
}

func (l *fakeLease) call(ctx context.Context, f func(s *lockServer, mine, free bool) error) error {
	for _, step := range []func() error{
		func() error { return nil },
		func() error {
			l.server.mu.Lock()
			defer l.server.mu.Unlock()
			valid := time.Now().Before(l.server.until)
			return f(l.server, valid && l.server.owner == l, !valid)
		},
	} {
		if err := step(); err != nil {
			return err
		}
		if l.delay != nil {
			if err := pause(ctx, l.delay()); err != nil {
				return err // a request that arrives later is not simulated
			}
		}
	}
	if l.fail != nil && l.fail() {
		return errors.New("the reply was lost")
	}
	return nil
}

func (l *fakeLease) obtain(ctx context.Context) (left time.Duration, err error) {
	err = l.call(ctx, func(s *lockServer, _, free bool) error {
		if !free {
			left = time.Until(s.until)
			return errLockHeld
		}
		s.owner, s.until = l, time.Now().Add(l.ttl)
		return nil
	})
	return left, err
}

func (l *fakeLease) renew(ctx context.Context) error {
	return l.call(ctx, func(s *lockServer, mine, _ bool) error {
		if !mine {
			return errLockHeld
		}
		s.until = time.Now().Add(l.ttl)
		return nil
	})
}

func (l *fakeLease) release(ctx context.Context) error {
	return l.call(ctx, func(s *lockServer, mine, _ bool) error {
		if mine {
			s.until = time.Time{}
		}
		return nil
	})
}

// fakeTerms counts terms.
type fakeTerms struct {
	LeaderStore
	term     atomic.Int64
	resigned atomic.Int64
	err      func() error
	keep     func(term int64) error // fails a resignation
}

func (f *fakeTerms) BeginTerm(context.Context) (int64, error) {
	if f.err != nil {
		if err := f.err(); err != nil {
			return 0, err
		}
	}
	return f.term.Add(1), nil
}

func (f *fakeTerms) Resign(_ context.Context, term int64) error {
	if f.keep != nil {
		if err := f.keep(term); err != nil {
			return err
		}
	}
	f.resigned.Store(term)
	return nil
}

// leaderWork is the work of leaders in a test: one step, or more, and what runs beside them.
type leaderWork struct {
	do     func(ctx context.Context, term int64) error
	beside func(ctx context.Context, term int64)
	steps  int
	gave   atomic.Bool
}

func (d *leaderWork) Beside(ctx context.Context, term int64) {
	if d.beside != nil {
		d.beside(ctx, term)
	}
}

func (d *leaderWork) Steps(term int64, _ bool) []func(context.Context) error {
	return slices.Repeat([]func(context.Context) error{func(ctx context.Context) error { return d.do(ctx, term) }}, max(1, d.steps))
}

func (d *leaderWork) ReassignOwnShards(context.Context, int64) error {
	d.gave.Store(true)
	return nil
}

// notifier tells every elector that the leadership is free.
type notifier struct {
	Stream
	electors []*elector
}

func (c *notifier) NotifyLeadership(context.Context) error {
	for _, e := range c.electors {
		e.campaign()
	}
	return nil
}
func (*notifier) NotifyMembers(context.Context) error { return nil }

var timing = Config{
	Instance: "a", Version: "test", Shards: 8, MemberTTL: 5 * time.Second, LeaderTTL: 4 * time.Second,
	HandoffBudget: 5 * time.Second, DrainTimeout: 20 * time.Second, SinkGrace: 5 * time.Second,
	ClaimInterval: 2 * time.Second, ClaimThreshold: 30 * time.Second,
}

func yes() bool { return true }

// P4: a leader that was paused does not act on an expired lock.
func TestNoTwoElectorsTrustThemselvesAtTheSameTime(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			var rngMu sync.Mutex
			random := func(n time.Duration) time.Duration {
				rngMu.Lock()
				defer rngMu.Unlock()
				return time.Duration(rng.Int64N(int64(n)))
			}
			server, terms, call := &lockServer{}, &fakeTerms{}, &notifier{}
			var believing, most, passes atomic.Int32
			ctx, stop := context.WithCancel(t.Context())
			var running sync.WaitGroup
			for range 3 {
				lease := &fakeLease{
					server: server, ttl: timing.LeaderTTL,
					delay: func() time.Duration {
						if random(4) == 0 { // often longer than the margin, sometimes longer than a lease
							return random(5 * time.Second)
						}
						return random(200 * time.Millisecond)
					},
					fail: func() bool { return random(6) == 0 },
				}
				work := &leaderWork{do: func(ctx context.Context, _ int64) error {
					passes.Add(1)
					if n := believing.Add(1); n > most.Load() {
						most.Store(n)
					}
					defer believing.Add(-1)
					return pause(ctx, random(4*time.Second))
				}}
				e := newElector(timing, lease, terms, call, work, yes, someMetrics(), discard())
				call.electors = append(call.electors, e)
				running.Go(func() { _ = e.Run(ctx) })
			}
			_ = pause(ctx, time.Hour)
			stop()
			running.Wait()
			require.Equal(t, int32(1), most.Load(), "seed %d", seed)
			require.Greater(t, passes.Load(), int32(50), "seed %d: leaders make progress", seed)
			require.Greater(t, terms.term.Load(), int64(3), "seed %d: the leadership changes hands", seed)
		})
	}
}

func TestAnElectorThatStopsReassignsResignsAndNotifies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, terms, call := &lockServer{}, &fakeTerms{}, &notifier{}
		leads := make(chan string, 100)
		var stops []context.CancelFunc
		var all []*leaderWork
		var running sync.WaitGroup
		for _, name := range []string{"first", "second"} {
			work := &leaderWork{do: func(context.Context, int64) error { leads <- name; return nil }}
			e := newElector(timing, &fakeLease{server: server, ttl: timing.LeaderTTL}, terms, call, work, yes, someMetrics(), discard())
			call.electors = append(call.electors, e)
			ctx, stop := context.WithCancel(t.Context())
			running.Go(func() { _ = e.Run(ctx) })
			stops, all = append(stops, stop), append(all, work)
			synctest.Wait()
		}
		require.Equal(t, "first", <-leads)
		began := time.Now()
		stops[0]()
		for name := range leads {
			if name == "second" {
				break
			}
		}
		require.Less(t, time.Since(began), 50*time.Millisecond, "immediately, not when the lock expires")
		require.True(t, all[0].gave.Load())
		require.Equal(t, int64(1), terms.resigned.Load())
		stops[1]()
		running.Wait()
	})
}

// A leader that leads more streams than its share gives one up, and to another member, once its
// successor can go on without what it planned.
func TestALeaderGivesUpWhatIsBeyondItsShareWhenItRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, terms, call := &lockServer{}, &fakeTerms{}, &notifier{}
		leads := make(chan string, 1000)
		var rests atomic.Bool
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for _, name := range []string{"first", "second"} {
			spread := protocol.NewSpread(2)
			if name == "first" {
				spread.Lease().Hold(true) // that of the other stream
			}
			work := &leaderWork{do: func(context.Context, int64) error { leads <- name; return nil }}
			e := newElector(timing, &fakeLease{server: server, ttl: timing.LeaderTTL}, terms, call, work, yes, someMetrics(), discard())
			e.spread, e.peers, e.rests = spread.Lease(), func() int { return 1 }, rests.Load
			call.electors = append(call.electors, e)
			running.Go(func() { _ = e.Run(ctx) })
			if name == "first" {
				require.Equal(t, "first", <-leads)
			}
		}
		_ = pause(ctx, 10*time.Second)
		require.Equal(t, int64(1), terms.term.Load(), "shards are still to be moved")
		for len(leads) > 0 {
			require.Equal(t, "first", <-leads)
		}
		rests.Store(true)
		began := time.Now()
		for name := range leads {
			if name == "second" {
				break
			}
		}
		require.LessOrEqual(t, time.Since(began), 2*timing.renewEvery())
		_ = pause(ctx, 10*time.Minute)
		require.Equal(t, int64(2), terms.term.Load(), "each has its share")
		stop()
		running.Wait()
	})
}

func TestHangingWorkLosesTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, terms, call := &lockServer{}, &fakeTerms{}, &notifier{}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		hang := make(chan struct{})
		stuck := newElector(timing, &fakeLease{server: server, ttl: timing.LeaderTTL}, terms, call,
			&leaderWork{do: func(context.Context, int64) error { <-hang; return nil }}, yes, someMetrics(), discard())
		running.Go(func() { _ = stuck.Run(ctx) })
		synctest.Wait()
		began := time.Now()
		led := make(chan struct{})
		var once sync.Once
		next := newElector(timing, &fakeLease{server: server, ttl: timing.LeaderTTL}, terms, call,
			&leaderWork{do: func(context.Context, int64) error { once.Do(func() { close(led) }); return nil }}, yes, someMetrics(), discard())
		running.Go(func() { _ = next.Run(ctx) })
		<-led
		require.LessOrEqual(t, time.Since(began), timing.LeaderTTL+timing.renewEvery())
		close(hang)
		stop()
		running.Wait()
	})
}

// A candidate that looked just before the lock expired would otherwise look again a
// quarter of a lease later.
func TestTheLockOfADeadLeaderIsTakenWhenItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &lockServer{}
		ctx, stop := context.WithCancel(t.Context())
		dead := &fakeLease{server: server, ttl: timing.LeaderTTL}
		_, err := dead.obtain(ctx)
		require.NoError(t, err)
		began := time.Now()
		require.NoError(t, pause(ctx, 100*time.Millisecond))
		led := make(chan time.Duration, 1)
		e := newElector(timing, &fakeLease{server: server, ttl: timing.LeaderTTL}, &fakeTerms{}, &notifier{},
			&leaderWork{do: func(context.Context, int64) error {
				select {
				case led <- time.Since(began):
				default:
				}
				return nil
			}}, yes, someMetrics(), discard())
		var running sync.WaitGroup
		running.Go(func() { _ = e.Run(ctx) })
		took := <-led
		require.GreaterOrEqual(t, took, timing.LeaderTTL)
		require.Less(t, took, timing.LeaderTTL+10*time.Millisecond)
		stop()
		running.Wait()
	})
}

func TestAPassLongerThanTheLeaseEndsInOneTermWhileItAdvances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		terms := &fakeTerms{}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var seen []int64
		work := &leaderWork{steps: 12, do: func(ctx context.Context, term int64) error {
			if seen = append(seen, term); len(seen) == 24 {
				stop()
			}
			return pause(ctx, timing.LeaderTTL/3)
		}}
		e := newElector(timing, &fakeLease{server: &lockServer{}, ttl: timing.LeaderTTL}, terms, &notifier{}, work, yes, someMetrics(), discard())
		require.NoError(t, e.Run(ctx))
		require.Equal(t, slices.Repeat([]int64{1}, 24), seen)
	})
}

// The next leader would do the same step no faster.
func TestAStepThatTakesTooLongIsCutOffAndTheLeaderStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		terms := &fakeTerms{}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var lines bytes.Buffer
		leader := &Leader{log: slog.New(slog.NewTextHandler(&lines, nil))}
		var longest time.Duration
		slow, passes := 0, 0
		work := &leaderWork{steps: 2}
		work.do = func(ctx context.Context, term int64) error {
			if passes++; passes%2 == 0 {
				return nil // the other tasks go on
			}
			return leader.try(ctx, "slow", func(ctx context.Context) error {
				began := time.Now()
				<-ctx.Done()
				longest = max(longest, time.Since(began))
				if slow++; slow == 20 {
					stop()
				}
				return fmt.Errorf("sweep the floor: %w", ctx.Err())
			})
		}
		e := newElector(timing, &fakeLease{server: &lockServer{}, ttl: timing.LeaderTTL}, terms, &notifier{}, work, yes, someMetrics(), discard())
		require.NoError(t, e.Run(ctx))
		require.Equal(t, int64(1), terms.term.Load())
		require.Equal(t, 39, passes)
		require.Less(t, longest, timing.LeaderTTL-e.margin())
		require.Contains(t, lines.String(), "sweep the floor: context deadline exceeded")
		require.Contains(t, lines.String(), `level=WARN msg="leader task failed, will retry" what=slow err="cut off, `)
	})
}

// P4: what runs beside the steps is trusted no longer than they are.
func TestP4WhatRunsBesideTheStepsEndsBeforeTheLockCanBeAnothers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, terms := &lockServer{}, &fakeTerms{}
		ctx, stop := context.WithCancel(t.Context())
		var away atomic.Bool
		lease := &fakeLease{server: server, ttl: timing.LeaderTTL}
		lease.delay = func() time.Duration {
			if away.Load() {
				return time.Hour
			}
			return 0
		}
		ended := make(chan time.Time, 10)
		began := time.Now()
		work := &leaderWork{do: func(context.Context, int64) error { return nil }, beside: func(ctx context.Context, _ int64) {
			<-ctx.Done()
			ended <- time.Now()
		}}
		e := newElector(timing, lease, terms, &notifier{}, work, yes, someMetrics(), discard())
		var running sync.WaitGroup
		running.Go(func() { _ = e.Run(ctx) })
		_ = pause(ctx, time.Minute)
		require.Empty(t, ended, "it lasts as long as the lock is renewed")
		away.Store(true)
		at := <-ended
		require.Greater(t, at.Sub(began), time.Minute)
		server.mu.Lock()
		require.True(t, at.Before(server.until), "at %v, the lock expires %v later", at.Sub(began), server.until.Sub(at))
		server.mu.Unlock()
		stop()
		running.Wait()
	})
}

func TestALostTermEndsTheLeadershipAndAnotherBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		terms := &fakeTerms{}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var seen []int64
		work := &leaderWork{do: func(_ context.Context, term int64) error {
			seen = append(seen, term)
			switch len(seen) {
			case 1:
				return errors.New("another member leads")
			case 2:
				stop()
			}
			return nil
		}}
		e := newElector(timing, &fakeLease{server: &lockServer{}, ttl: timing.LeaderTTL}, terms, &notifier{}, work, yes, someMetrics(), discard())
		require.NoError(t, e.Run(ctx))
		require.Equal(t, []int64{1, 2}, seen)
	})
}

// After a flush of Redis too: Postgres would name a leader that leads no more, and perhaps no other comes.
func TestALeaderThatLostItsLockEndsItsTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, terms := &lockServer{}, &fakeTerms{}
		ctx, stop := context.WithCancel(t.Context())
		work := &leaderWork{do: func(_ context.Context, term int64) error {
			if term == 2 {
				require.Equal(t, int64(1), terms.resigned.Load())
				stop()
				return nil
			}
			server.mu.Lock()
			defer server.mu.Unlock()
			server.until = time.Time{}
			return nil
		}}
		e := newElector(timing, &fakeLease{server: server, ttl: timing.LeaderTTL}, terms, &notifier{}, work, yes, someMetrics(), discard())
		require.NoError(t, e.Run(ctx))
	})
}

// Postgres would name a leader that lives and leads no more, perhaps for as long as it lives.
func TestATermThatCouldNotBeEndedIsEndedLater(t *testing.T) {
	for _, begun := range []bool{true, false} {
		t.Run(fmt.Sprintf("begun=%v", begun), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				var tried []int64
				terms := &fakeTerms{}
				terms.keep = func(term int64) error {
					if tried = append(tried, term); len(tried) < 3 {
						return errors.New("Postgres is away")
					}
					return nil
				}
				server := &lockServer{}
				other := &fakeLease{server: server, ttl: time.Hour}
				lease := &fakeLease{server: server, ttl: timing.LeaderTTL}
				lose := func() {
					server.mu.Lock()
					defer server.mu.Unlock()
					server.owner, server.until = other, time.Now().Add(time.Hour) // it leads on the fleet's Redis
				}
				work := &leaderWork{do: func(context.Context, int64) error { lose(); return nil }}
				if !begun {
					terms.err = func() error { lose(); return errors.New("the reply was lost") }
				}
				e := newElector(timing, lease, terms, &notifier{}, work, yes, someMetrics(), discard())
				var running sync.WaitGroup
				running.Go(func() { _ = e.Run(ctx) })
				_ = pause(ctx, time.Minute)
				stop()
				running.Wait()
				require.Equal(t, slices.Repeat([]int64{terms.term.Load()}, 3), tried, "until it has succeeded")
			})
		})
	}
}

func TestAnElectorWithoutPostgresDoesNotCampaign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &lockServer{}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		var canLead atomic.Bool
		var passes atomic.Int32
		e := newElector(timing, &fakeLease{server: server, ttl: timing.LeaderTTL}, &fakeTerms{}, &notifier{},
			&leaderWork{do: func(context.Context, int64) error { passes.Add(1); return nil }}, canLead.Load, someMetrics(), discard())
		running.Go(func() { _ = e.Run(ctx) })
		require.NoError(t, pause(ctx, time.Minute))
		require.Zero(t, passes.Load())
		require.Nil(t, server.owner)
		canLead.Store(true)
		require.NoError(t, pause(ctx, 2*time.Second))
		require.NotZero(t, passes.Load())
		stop()
		running.Wait()
	})
}

// lockRules are the properties of a lock that the elector relies on.
func lockRules(t *testing.T, a, b lease, expire func()) {
	t.Helper()
	ctx := t.Context()
	obtained := func(l lease) {
		_, err := l.obtain(ctx)
		require.NoError(t, err)
	}
	held := func(l lease) {
		left, err := l.obtain(ctx)
		require.ErrorIs(t, err, errLockHeld)
		require.Greater(t, left, 59*time.Minute, "it says for how long")
		require.LessOrEqual(t, left, time.Hour)
	}
	obtained(a)
	held(b)
	require.NoError(t, a.renew(ctx))
	require.NoError(t, a.release(ctx))
	obtained(b)
	held(a)
	expire()
	require.ErrorIs(t, b.renew(ctx), errLockHeld, "an expired lock is not renewed")
	obtained(a)
	require.NoError(t, b.release(ctx), "nothing to release")
	require.NoError(t, a.renew(ctx), "and nothing of another's was released")
}

func TestTheLockKeepsItsRules(t *testing.T) {
	t.Run("double", func(t *testing.T) {
		s := &lockServer{}
		lockRules(t, &fakeLease{server: s, ttl: time.Hour}, &fakeLease{server: s, ttl: time.Hour}, func() { s.until = time.Time{} })
	})
	t.Run("real", func(t *testing.T) {
		corner := realRedis(t)
		key := corner.Key("lock")
		lockRules(t, newLock(corner.Client(), key, time.Hour), newLock(corner.Client(), key, time.Hour),
			func() { require.NoError(t, corner.Client().Del(t.Context(), key).Err()) })
	})
	t.Run("full", func(t *testing.T) {
		client := ownRedis(t)
		require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())
		require.ErrorContains(t, client.Set(t.Context(), "any", "x", 0).Err(), "OOM")
		lockRules(t, newLock(client, "lock", time.Hour), newLock(client, "lock", time.Hour),
			func() { require.NoError(t, client.Del(t.Context(), "lock").Err()) })
	})
}

// P8: when a server's clock steps back by 15 minutes, keys expire that much later.
func TestTheLockOfADeadLeaderIsFreeWithinItsLeaseWhenTheClockStepsBack(t *testing.T) {
	t.Parallel()
	corner := realRedis(t)
	key, ttl := corner.Key("lock"), 300*time.Millisecond
	dead, next := newLock(corner.Client(), key, ttl), newLock(corner.Client(), key, ttl)
	_, err := dead.obtain(t.Context())
	require.NoError(t, err)
	require.NoError(t, corner.Client().PExpire(t.Context(), key, 15*time.Minute).Err())
	left, err := next.obtain(t.Context())
	require.ErrorIs(t, err, errLockHeld)
	require.LessOrEqual(t, left, ttl)
	testenv.Wait(t, 5*time.Second, func() error {
		_, err := next.obtain(t.Context())
		return err
	})
}

func TestConfigNamesEveryProblem(t *testing.T) {
	err := Config{MemberTTL: time.Second}.check()
	for _, want := range []string{"identity", "shards", "LeaderTTL", "HandoffBudget", "DrainTimeout", "SinkGrace", "ClaimInterval", "ClaimThreshold"} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, fmt.Sprint(err), "MemberTTL")
	require.NoError(t, timing.check())
}
