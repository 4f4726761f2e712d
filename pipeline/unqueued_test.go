package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// dispatches is a Source that notes what is dispatched. New entries are read once it is open,
// so that all of a backlog is there, and none any more once it is dead.
type dispatches struct {
	pipeline.Source
	open, dead atomic.Bool
	reads      atomic.Int64  // of new entries
	gate       chan struct{} // nothing is dispatched while it is full

	mu       sync.Mutex
	unqueued map[telemetry.EntryID]struct{} // ever
	holding  int                            // after the last dispatch
	most     int                            // entries pending after a dispatch, at most
	claimed  int                            // entries put on queues when they were read
	again    int                            // later, since their work was given up
	orphans  []telemetry.EntryID            // these
	released int                            // later, while they were in flight
	gone     int                            // of those in flight: trimmed
	rewinds  int                            // dispatches of what another lease had read
	read     telemetry.EntryID              // the last entry dispatched
}

func (s *dispatches) ReadNew(ctx context.Context, after telemetry.EntryID, count int, block time.Duration) (protocol.NewEntries, error) {
	s.reads.Add(1)
	if s.open.Load() {
		return s.Source.ReadNew(ctx, after, count, block)
	}
	t := time.NewTimer(5 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return protocol.NewEntries{}, nil
}

var errDead = &protocol.Failure{Kind: protocol.Unavailable, Err: errors.New("this instance is dead")}

func (s *dispatches) AcquireDispatchLease(ctx context.Context, before, token string, ttl time.Duration) (protocol.DispatchLease, error) {
	if s.dead.Load() {
		return protocol.DispatchLease{}, errDead
	}
	return s.Source.AcquireDispatchLease(ctx, before, token, ttl)
}

func (s *dispatches) ReleaseDispatchLease(ctx context.Context, token string) error {
	if s.dead.Load() {
		return errDead
	}
	return s.Source.ReleaseDispatchLease(ctx, token)
}

func (s *dispatches) Dispatch(ctx context.Context, d protocol.DispatchRequest, a *protocol.NewEntries) (protocol.DispatchResult, error) {
	if s.dead.Load() {
		return protocol.DispatchResult{}, errDead
	}
	select {
	case s.gate <- struct{}{}:
	case <-ctx.Done():
		return protocol.DispatchResult{}, ctx.Err()
	}
	result, err := s.Source.Dispatch(ctx, d, a)
	<-s.gate
	if err != nil {
		return result, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holding, s.most = d.Ahead.UnqueuedCount, max(s.most, result.Pending)
	a.Each(func(shard int, entries []telemetry.Entry) {
		if !d.Ahead.Unqueued(shard) {
			s.claimed += len(entries)
			return
		}
		for i := range entries {
			s.unqueued[entries[i].ID] = struct{}{}
		}
	})
	for _, ids := range d.Ahead.Again {
		s.again += len(ids)
		s.orphans = append(s.orphans, ids...)
	}
	for _, ids := range d.Ahead.Enqueue {
		s.released += len(ids)
		for _, id := range ids {
			if _, gone := result.Gone[id]; gone {
				s.gone++
			}
		}
	}
	if d.Ahead.Rewind {
		s.rewinds++
	}
	if len(a.Entries) > 0 {
		s.read = a.Last
	}
	return result, nil
}

// seen calls f while nothing changes.
func (s *dispatches) seen(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *dispatches) lastRead() (last telemetry.EntryID) {
	s.seen(func() { last = s.read })
	return last
}

// awaitUnqueued waits until so many entries are unqueued.
func (s *dispatches) awaitUnqueued(tb testing.TB, n int) {
	tb.Helper()
	testenv.Wait(tb, 20*time.Second, func() (err error) {
		s.seen(func() {
			if s.holding < n {
				err = fmt.Errorf("%d are unqueued, want %d; %d were claimed", s.holding, n, s.claimed)
			}
		})
		return err
	})
}

func (s *dispatches) log(tb testing.TB) {
	tb.Helper()
	s.seen(func() {
		tb.Logf("%d unqueued, %d claimed, %d again, %d released, %d of them gone, %d rewinds, at most %d pending", len(s.unqueued), s.claimed, s.again, s.released, s.gone, s.rewinds, s.most)
	})
}

// readOf is how many entries a dispatcher reads at a time in these tests.
const readOf = 250

// startWatched starts an instance whose dispatches are noted. It reads no new entries before it is opened.
func (b *bench) startWatched(member string, opts ...option) (*instance, *dispatches) {
	s := &dispatches{gate: make(chan struct{}, 1), unqueued: make(map[telemetry.EntryID]struct{})}
	in := b.Start(member, append([]option{func(c *pipeline.Config, d *pipeline.Deps) {
		c.ReadBatchRecords, c.DispatchLeaseTTL = readOf, time.Second
		s.Source, d.Source = d.Source, s
	}}, opts...)...)
	return in, s
}

// acquire has an instance take some shards, and grants them.
func (b *bench) acquire(in *instance, some ...int) {
	b.TB.Helper()
	ctx := context.Background()
	for _, shard := range some {
		_, err := b.Pool.Exec(ctx, "update processor.assignments set member = $1 where stream = $2 and shard = $3", in.Member, b.Stream, shard)
		require.NoError(b.TB, err)
		taken, err := in.Shards.Acquire(ctx, shard, in.Member, "")
		require.NoError(b.TB, err)
		token := fmt.Sprint(in.Member, " ", taken.Epoch)
		entered, err := b.ours().RegisterOwner(ctx, token, []int{shard})
		require.NoError(b.TB, err)
		require.NoError(b.TB, in.Grant(protocol.ShardLease{Shard: shard, Epoch: taken.Epoch, Token: token, Dispatched: entered.Dispatched}))
	}
}

// rival is a record of the same device and time as at's. The first of the two counts.
func rival(device int, seconds int64) []string {
	m := fleet.Message{
		DeviceID: fleet.DeviceID(device), Codec: "8", Time: time.Unix(1_700_000_000+seconds, 0).UTC(),
		Latitude: 48.1, Longitude: 11.5, Altitude: 999, Angle: 90, Speed: 50, Satellites: 11,
	}
	return fleet.EntryFields(&m)
}

// backlog is a record of each device for each second, and after a while its rival.
func backlog(devices int, from, seconds int64) (entries [][]string) {
	const later = 3
	for s := from; s < from+seconds+later; s++ {
		for d := range devices {
			if s < from+seconds {
				entries = append(entries, at(d, s))
			}
			if s >= from+later {
				entries = append(entries, rival(d, s-later))
			}
		}
	}
	return entries
}

// requireInOrder requires that so many rows are stored, each of the first of its rivals.
func (b *bench) requireInOrder(rows int) {
	b.TB.Helper()
	require.NoError(b.TB, b.rows(rows))
	require.Zero(b.TB, b.Count("select count(*) from positions where altitude = 999"), "a later record was stored before an earlier one")
}

// requireNothingLost requires that nothing is noted as lost.
func (b *bench) requireNothingLost() {
	b.TB.Helper()
	_, err := b.ours().Snapshot(b.TB.Context(), nil)
	require.NoError(b.TB, err)
	losses, _, _, err := b.ours().Losses(b.TB.Context(), 100)
	require.NoError(b.TB, err)
	require.Empty(b.TB, losses)
}

func (b *bench) awaitSomeStored() {
	b.TB.Helper()
	testenv.Wait(b.TB, 20*time.Second, func() error {
		if b.Count("select count(*) from positions") == 0 {
			return errors.New("nothing is stored")
		}
		return nil
	})
}

func (b *bench) delivered() telemetry.EntryID {
	b.TB.Helper()
	info, err := b.ours().Info(b.TB.Context())
	require.NoError(b.TB, err)
	return info.Delivered
}

// firstBatches is a Sink that lets so many batches pass, and keeps others until it is opened.
type firstBatches struct {
	pipeline.Sink
	left atomic.Int64
	open chan struct{}
	once sync.Once
}

func (s *firstBatches) Write(ctx context.Context, b *protocol.Batch) (protocol.CommitResult, error) {
	if s.left.Add(-1) < 0 {
		select {
		case <-s.open:
		case <-ctx.Done():
			return protocol.CommitResult{}, ctx.Err()
		}
	}
	return s.Sink.Write(ctx, b)
}

func (s *firstBatches) release() { s.once.Do(func() { close(s.open) }) }

// passing returns an option by which only so many batches are committed until it is released.
func passing(n int64) (*firstBatches, option) {
	s := &firstBatches{open: make(chan struct{})}
	s.left.Store(n)
	return s, func(c *pipeline.Config, d *pipeline.Deps) {
		c.BatchMaxRecords = 500
		s.Sink, d.Sink = d.Sink, s
	}
}

// P1, P2.
func TestP1ABacklogIsHeldAndPutOnNoQueue(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const devices, seconds = 200, 40
	in, s := b.startWatched("one", func(c *pipeline.Config, _ *pipeline.Deps) { c.MaxInFlightRecords = 4096 })
	b.AcquireAll(in)
	var entries [][]string
	for i := range devices * seconds {
		entries = append(entries, at(i%devices, int64(i/devices)))
	}
	ids := b.Publish(entries...)
	s.open.Store(true)
	b.Settled(60*time.Second, 0)
	s.log(t)
	b.requireInOrder(devices * seconds)
	require.Equal(t, ids[len(ids)-1], b.delivered())
	s.seen(func() {
		require.Greater(t, len(s.unqueued), len(ids)*3/4)
		require.Less(t, s.most-s.released, len(ids)/4, "entries pending at once, but for those that took too long")
		require.Less(t, s.claimed, len(ids)/4)
	})
	b.requireNothingLost()
	testenv.Wait(t, 5*time.Second, func() error {
		if n := in.InFlight(); n > 0 {
			return fmt.Errorf("%d are in flight", n)
		}
		return nil
	})
	in.End()
	require.NoError(t, in.Err)
	require.Empty(t, in.Lost())
}

// P1, P2: what a dispatcher that dies holds, another one dispatches, and nobody waits for the rescan of
// queues.
func TestP2WhatADispatcherThatDiesHoldsIsFinishedByTheNext(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		next    string // the member that takes over
		settles bool   // it ends as it should, but for what is in flight
		other   bool   // half of the shards are another one's, which takes over
	}{
		{"another one", "two", false, false},
		{"the owner of other shards", "two", false, true},
		{"the same again", "one", false, false},
		{"the work is cut off", "two", true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.settles || tc.next == "one" {
				testenv.Slow(t)
			}
			t.Parallel()
			b := newBench(t)
			const devices, seconds = 100, 30
			first, some := passing(6)
			withPeer := func(c *pipeline.Config, d *pipeline.Deps) {
				c.QueueRescan = time.Hour
				if tc.other {
					d.Peers = func() int { return 1 }
				}
			}
			one, s := b.startWatched("one", some, withPeer)
			t.Cleanup(first.release) // before the drain waits for it
			b.AcquireAll(one)
			var two *instance
			if tc.other {
				testenv.Wait(t, 10*time.Second, func() error {
					if one.gauge(t, "processor_pipeline_dispatcher") != 1 {
						return errors.New("it does not dispatch")
					}
					return nil
				})
				two = b.Start("two", withPeer)
				for shard := 1; shard < shards; shard += 2 {
					one.Drop(shard)
					b.acquire(two, shard)
				}
			}
			b.Publish(backlog(devices, 0, seconds)...)
			s.open.Store(true)
			b.awaitSomeStored()
			s.awaitUnqueued(t, 2*readOf)
			s.dead.Store(!tc.settles)
			one.Cut()
			s.log(t)
			unqueued := b.delivered().Less(s.lastRead())
			began := time.Now()
			if two == nil {
				two = b.Start(tc.next, withPeer)
				b.AcquireAll(two)
			} else {
				for shard := 0; shard < shards; shard += 2 {
					b.acquire(two, shard)
				}
			}
			b.Settled(60*time.Second, 0)
			t.Logf("taken over within %v", time.Since(began))
			b.requireInOrder(devices * seconds)
			b.requireNothingLost()
			require.NotEqual(t, tc.settles, unqueued, "some was unqueued when it died")
		})
	}
}

// P3: a shard's entries are unqueued, its work is given up in all ways there are, and more of the same devices
// arrives.
func TestP3WhatWasHeldIsNotOvertakenWhenItsWorkIsGivenUp(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			if seed > 0 {
				testenv.Slow(t)
			}
			t.Parallel()
			b := newBench(t)
			b.Square()
			r := rand.New(rand.NewPCG(seed, 27))
			const devices, rounds, seconds = 60, 6, 8
			alone := seed%2 == 0
			peers := func(_ *pipeline.Config, d *pipeline.Deps) {
				if !alone {
					d.Peers = func() int { return 1 }
				}
			}
			one, s := b.startWatched("one", peers)
			s.open.Store(true)
			b.AcquireAll(one)
			two := one
			if !alone {
				two = b.Start("two", peers)
			}
			owner := slices.Repeat([]*instance{one}, shards)
			retake := func() {
				for shard, in := range owner {
					if _, _, owned := in.Owned(shard); !owned {
						b.acquire(in, shard)
					}
				}
			}
			settle := func() { // what was lost meanwhile is taken again, as coordination does
				t.Helper()
				testenv.Wait(t, 60*time.Second, func() error {
					retake()
					info, err := b.ours().Info(t.Context())
					if err != nil {
						return err
					}
					if info.Pending > 0 || !info.Lag.Known || info.Lag.N > 0 {
						return fmt.Errorf("%+v", info)
					}
					return nil
				})
			}
			sent := 0
			for round := range rounds {
				quiet := alone && round%2 == 0 // else from the middle of the last one
				if quiet && round > 0 {
					settle()
				}
				resume := b.holdCommits()
				b.Publish(backlog(devices, int64(round*seconds), seconds)...)
				sent += devices * seconds
				if quiet {
					s.awaitUnqueued(t, 2*readOf)
				}
				shard := r.IntN(shards)
				ways := []string{"locked", "killed", "stopped", "dropped", "moved"}
				way := ways[(round+int(seed))%len(ways)]
				t.Logf("round %d: shard %d is %s", round, shard, way)
				in := owner[shard]
				switch way {
				case "locked":
					unlock := b.hold(fmt.Sprintf("shard = %d", shard))
					resume()
					testenv.Wait(t, 20*time.Second, func() error {
						if locked := in.Locked(); !slices.Contains(locked, shard) {
							return fmt.Errorf("locked are %v", locked)
						}
						return nil
					})
					b.Publish(backlog(devices, int64(1000+round*seconds), seconds)...)
					sent += devices * seconds
					unlock()
				case "killed":
					testenv.Wait(t, 20*time.Second, func() error {
						if b.Count("select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and application_name = $1 and wait_event_type = 'Lock'",
							store.ApplicationName(in.Member)) == 0 {
							return errors.New("no session of it waits")
						}
						return nil
					})
				case "stopped":
					drained := in.Stop(shard)
					resume()
					select {
					case <-drained:
					case <-time.After(20 * time.Second):
						require.Fail(t, "not drained")
					}
					in.Drop(shard)
				case "moved":
					if in == one {
						owner[shard] = two
					} else {
						owner[shard] = one
					}
					in.Drop(shard)
				default:
					in.Drop(shard)
				}
				retake()
				resume()
			}
			settle()
			s.log(t)
			b.requireInOrder(sent)
			require.Equal(t, devices, b.Count("select count(*) from processor.timing_records"), "each entered once")
			b.requireNothingLost()
			s.seen(func() {
				require.NotZero(t, s.again, "the test tests something")
			})
		})
	}
}

// publishWithJunk publishes entries, and in the third read of them one that becomes a dead letter at once.
func (b *bench) publishWithJunk(entries [][]string) (ids []telemetry.EntryID, bad telemetry.EntryID) {
	b.TB.Helper()
	const at = 2*readOf + 7
	ids = b.Publish(slices.Insert(entries, at, junk(b.TB, "nul", 1, 500).Fields)...)
	return ids, ids[at]
}

// P1, P6: an entry that was unqueued is not passed by as long as it is neither dead-lettered nor on its queue.
func TestP6AnUnqueuedDeadLetterThatRedisRefusesIsNotPassed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const devices, seconds = 100, 20
	dlq := b.Stream + ":dlq"
	require.NoError(t, b.Client.Set(t.Context(), dlq, "of another program", 0).Err())
	in, s := b.startWatched("one")
	b.AcquireAll(in)
	ids, bad := b.publishWithJunk(backlog(devices, 0, seconds))
	s.open.Store(true)
	notPassed := func() {
		t.Helper()
		pending, err := b.ours().Pending(t.Context(), 10_000)
		require.NoError(t, err)
		if last := b.delivered(); bad.Compare(last) <= 0 { // in this order: it is put on its queue before
			again, err := b.ours().Pending(t.Context(), 10_000)
			require.NoError(t, err)
			require.True(t, slices.Contains(pending, bad) || slices.Contains(again, bad), "the last-delivered ID is %s, and %s is not pending", last, bad)
		}
	}
	testenv.Wait(t, time.Minute, func() error {
		notPassed()
		return b.rows(devices * seconds)
	})
	s.seen(func() { require.Contains(t, s.unqueued, bad, "the test tests something") })
	b.awaitWait(in, protocol.WaitDLQRefused, telemetry.ShardOf(fleet.DeviceID(1), shards))
	b.Settled(time.Minute, 1) // every two seconds some of what follows it on the queue
	notPassed()
	require.NoError(t, b.Client.Del(t.Context(), dlq).Err())
	require.Contains(t, b.awaitDeadLetters(20*time.Second, 1), bad)
	b.Settled(20*time.Second, 0)
	require.Equal(t, ids[len(ids)-1], b.delivered())
	b.requireInOrder(devices * seconds)
	b.requireNothingLost()
	s.log(t)
}

// P2: a dead letter that is on no queue is put there first. If its dispatcher died before the last-delivered ID
// has passed it, its next owner would find it, and might store what is a dead letter.
func TestP2AnUnqueuedDeadLetterIsMovedFromItsQueue(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const devices, seconds = 100, 20
	in, s := b.startWatched("one")
	b.AcquireAll(in)
	_, bad := b.publishWithJunk(backlog(devices, 0, seconds))
	s.open.Store(true)
	require.Contains(t, b.awaitDeadLetters(20*time.Second, 1), bad)
	s.seen(func() {
		require.Contains(t, s.unqueued, bad, "the test tests something")
		require.Contains(t, s.orphans, bad)
	})
	b.Settled(20*time.Second, 0)
	b.requireInOrder(devices * seconds)
	b.requireNothingLost()
	s.log(t)
}

// P6, P7: Postgres does not answer for longer than entries are unqueued, and the stream is trimmed
// meanwhile. They are in memory, and stored afterwards.
func TestP6WhatIsHeldAndTrimmedWhilePostgresDoesNotAnswerIsStored(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const devices, seconds, kept = 100, 20, 150
	in, s := b.startWatched("one")
	b.AcquireAll(in)
	answer := b.lock("lock table public.positions in access exclusive mode")
	ids := b.Publish(backlog(devices, 0, seconds)...)
	s.open.Store(true)
	s.awaitUnqueued(t, len(ids)*3/4)
	testenv.Wait(t, 10*time.Second, func() error {
		if last := s.lastRead(); last != ids[len(ids)-1] {
			return fmt.Errorf("read until %s of %s", last, ids[len(ids)-1])
		}
		return nil
	})
	before := b.delivered()
	require.NoError(t, b.Client.XTrimMinID(t.Context(), b.Stream, ids[len(ids)-kept].String()).Err())
	testenv.Wait(t, 10*time.Second, func() (err error) {
		b.requireNothingLost()
		s.seen(func() {
			if s.gone == 0 {
				err = errors.New("they are not unqueued for long enough to be put on their queues")
			}
		})
		return err
	})
	after := s.reads.Load()
	testenv.Wait(t, 10*time.Second, func() error { // nor by what follows
		b.requireNothingLost()
		if n := s.reads.Load() - after; n < 10 {
			return fmt.Errorf("the dispatcher has gone on %d times", n)
		}
		return nil
	})
	require.Equal(t, before, b.delivered(), "it stays behind what only this instance has")
	answer()
	b.Settled(20*time.Second, 0)
	b.requireInOrder(devices * seconds)
	b.requireNothingLost()
	require.Equal(t, ids[len(ids)-1], b.delivered())
	s.log(t)
}

// heldUnqueued keeps acknowledgements of unqueued entries back.
type heldUnqueued struct{ heldAcks }

func (h *heldUnqueued) Ack(ctx context.Context, acks []protocol.Ack) error {
	if slices.ContainsFunc(acks, func(a protocol.Ack) bool { return len(a.Unqueued) > 0 }) {
		return h.heldAcks.Ack(ctx, acks)
	}
	return h.Acker.Ack(ctx, acks)
}

// P6: entries that are put on their queue as they are acknowledged are found there once more,
// and are not lost when they have been trimmed meanwhile.
func TestP6WhatIsQueuedAsItIsAcknowledgedAndThenTrimmedIsStored(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const devices, seconds = 100, 20
	held := &heldUnqueued{heldAcks{first: make(chan struct{}), release: make(chan struct{})}}
	in, s := b.startWatched("one", func(_ *pipeline.Config, d *pipeline.Deps) {
		held.Acker, d.Acker = d.Acker, held
	})
	b.AcquireAll(in)
	ids := b.Publish(backlog(devices, 0, seconds)...)
	s.open.Store(true)
	<-held.first
	released := func() error {
		n := 0
		s.seen(func() { n = s.released })
		if last := s.lastRead(); n == 0 || last != ids[len(ids)-1] {
			return fmt.Errorf("%d were put on their queues; read until %s of %s", n, last, ids[len(ids)-1])
		}
		return nil
	}
	testenv.Wait(t, 20*time.Second, released)
	require.NoError(t, b.Client.XTrimMinID(t.Context(), b.Stream, ids[len(ids)-1].String()).Err())
	close(held.release)
	b.Settled(30*time.Second, 0)
	b.requireInOrder(devices * seconds)
	b.requireNothingLost()
	s.log(t)
}

// inFlight notes which entries are being committed or acknowledged, and by which batch.
type inFlight struct {
	pipeline.Sink
	pipeline.Acker
	mu    sync.Mutex
	by    map[telemetry.EntryID]*protocol.Batch
	twice map[telemetry.EntryID]int
}

func (f *inFlight) records(b *protocol.Batch, each func(id telemetry.EntryID)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, list := range [][]telemetry.Record{b.Fresh, b.Late, b.Rivals} {
		for i := range list {
			each(list[i].ID)
		}
	}
}

func (f *inFlight) Write(ctx context.Context, b *protocol.Batch) (protocol.CommitResult, error) {
	f.records(b, func(id telemetry.EntryID) {
		if other, ok := f.by[id]; ok && other != b {
			f.twice[id]++
		}
		f.by[id] = b
	})
	written, err := f.Sink.Write(ctx, b)
	if err != nil {
		f.records(b, func(id telemetry.EntryID) { delete(f.by, id) })
	}
	return written, err
}

func (f *inFlight) Ack(ctx context.Context, acks []protocol.Ack) error {
	err := f.Acker.Ack(ctx, acks)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range acks {
		for _, id := range slices.Concat(a.IDs, a.Unqueued) {
			delete(f.by, id)
		}
	}
	return err
}

// P1, P2, P4: what was unqueued when the dispatch lease was lost is dispatched again, and
// in flight once.
func TestP2TheDispatchLeaseIsLostForAMomentWhileEntriesAreHeld(t *testing.T) {
	t.Parallel()
	for name, token := range map[string]string{"it is gone": "", "another one has it": "other"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			const devices, seconds, rounds = 100, 20, 3
			flight := &inFlight{by: make(map[telemetry.EntryID]*protocol.Batch), twice: make(map[telemetry.EntryID]int)}
			in, s := b.startWatched("one", func(c *pipeline.Config, d *pipeline.Deps) {
				flight.Sink, flight.Acker, d.Sink, d.Acker = d.Sink, d.Acker, flight, flight
				c.BatchMaxRecords = 500
			})
			b.AcquireAll(in)
			key := b.ours().Names().DispatchLease()
			for round := range rounds {
				s.open.Store(false)
				b.Publish(backlog(devices, int64(round*seconds), seconds)...)
				resume := b.holdCommits()
				s.open.Store(true)
				s.awaitUnqueued(t, 2*readOf) // and more is being read
				var before int
				s.seen(func() { before = s.rewinds })
				if token == "" {
					require.NoError(t, b.Client.Del(t.Context(), key).Err())
				} else {
					require.NoError(t, b.Client.Set(t.Context(), key, token, 200*time.Millisecond).Err())
					testenv.Wait(t, 10*time.Second, func() (err error) {
						s.seen(func() {
							if s.rewinds == before {
								err = errors.New("nothing is dispatched again")
							}
						})
						return err
					})
				}
				resume()
			}
			b.Settled(20*time.Second, 0)
			s.log(t)
			flight.mu.Lock()
			defer flight.mu.Unlock()
			require.Empty(t, flight.twice, "in flight twice")
			b.requireInOrder(devices * seconds * rounds)
			b.requireNothingLost()
			require.Empty(t, in.Lost())
		})
	}
}

// P2, P3: the next dispatcher has entries in flight that the one before put on its queues, beyond the
// last-delivered ID. It dispatches them again, and has them in flight once.
func TestP3TheNextDispatcherHasWhatIsDispatchedAgainInFlightOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const devices, seconds = 100, 10
	peer := func(c *pipeline.Config, d *pipeline.Deps) {
		d.Peers = func() int { return 1 }
		c.QueueRescan = time.Hour
	}
	one, first := b.startWatched("one", peer)
	b.AcquireAll(one)
	testenv.Wait(t, 10*time.Second, func() error {
		if one.gauge(t, "processor_pipeline_dispatcher") != 1 {
			return errors.New("it does not dispatch")
		}
		return nil
	})
	two, second := b.startWatched("two", peer)
	for shard := 1; shard < shards; shard += 2 {
		one.Drop(shard)
		b.acquire(two, shard)
	}
	resume := b.holdCommits()
	entries := backlog(devices, 0, seconds)
	ids, own := b.Publish(entries...), 0 // of the second one
	for i := range entries {
		e := telemetry.Entry{Fields: entries[i]}
		own += telemetry.ShardOf(e.DeviceID(), shards) % 2
	}
	first.open.Store(true)
	first.awaitUnqueued(t, len(ids)/4)
	testenv.Wait(t, 10*time.Second, func() error {
		if n, last := two.InFlight(), first.lastRead(); n < own || last != ids[len(ids)-1] {
			return fmt.Errorf("%d are in flight, %s is read", n, last)
		}
		return nil
	})
	first.dead.Store(true)
	one.Cut()
	second.open.Store(true)
	testenv.Wait(t, 10*time.Second, func() error {
		if last := second.lastRead(); last != ids[len(ids)-1] {
			return fmt.Errorf("%s is read again", last)
		}
		return nil
	})
	after := second.reads.Load()
	testenv.Wait(t, 10*time.Second, func() error { // whatever it would read back of it
		if n := second.reads.Load() - after; n < 3 {
			return fmt.Errorf("it has gone on %d times", n)
		}
		return nil
	})
	require.Equal(t, own, two.InFlight(), "each once")
	resume()
	for shard := 0; shard < shards; shard += 2 {
		b.acquire(two, shard)
	}
	b.Settled(60*time.Second, 0)
	first.log(t)
	second.log(t)
	b.requireInOrder(devices * seconds)
	b.requireNothingLost()
}

// lapsed lets the dispatch lease end once before it is renewed, and another dispatcher have it meanwhile.
type lapsed struct {
	pipeline.Source
	armed     atomic.Bool
	meanwhile func(ctx context.Context)
}

func (l *lapsed) AcquireDispatchLease(ctx context.Context, before, token string, ttl time.Duration) (protocol.DispatchLease, error) {
	if before == token && l.armed.CompareAndSwap(true, false) {
		l.meanwhile(ctx)
	}
	return l.Source.AcquireDispatchLease(ctx, before, token, ttl)
}

// P3, P4: a lease that had ended is renewed under its old token. What another dispatcher put on queues meanwhile,
// beyond the last-delivered ID, is not taken for what is on none.
func TestP4ALeaseRenewedAfterItsEndKnowsWhatAnotherDispatcherDid(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const devices, seconds = 100, 10
	l, did := &lapsed{}, make(chan error, 1)
	one, s := b.startWatched("one", func(c *pipeline.Config, d *pipeline.Deps) {
		c.QueueRescan = time.Hour
		d.Peers = func() int { return 1 }
		l.Source, d.Source = d.Source, l
	})
	b.AcquireAll(one)
	s.open.Store(true)
	b.Publish(at(0, 0))
	b.Settled(20*time.Second, 0) // before anything is delivered nothing is unqueued
	s.open.Store(false)
	ids := b.Publish(backlog(devices, 1, seconds)...)
	l.meanwhile = func(ctx context.Context) {
		did <- func() error {
			other := b.ours()
			if err := b.Client.Del(ctx, other.Names().DispatchLease()).Err(); err != nil {
				return err
			}
			lease, err := other.AcquireDispatchLease(ctx, "", "other", time.Minute)
			if err != nil {
				return err
			}
			read, err := other.ReadNew(ctx, lease.After, len(ids), time.Second)
			if err != nil {
				return err
			}
			held := func(shard int) bool { return shard == 0 }
			if _, err := other.Dispatch(ctx, protocol.DispatchRequest{
				Token: "other", TTL: time.Minute, After: lease.After,
				Ahead: &protocol.Ahead{From: lease.After, Settled: protocol.Position{ID: lease.After, Read: -1}, Unqueued: held, UnqueuedCount: 1},
			}, &read); err != nil {
				return err
			}
			return other.ReleaseDispatchLease(ctx, "other")
		}()
	}
	l.armed.Store(true)
	select {
	case err := <-did:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		require.FailNow(t, "the lease was not renewed")
	}
	s.open.Store(true)
	b.Settled(20*time.Second, 0)
	s.log(t)
	b.requireInOrder(devices*seconds + 1)
	b.requireNothingLost()
}

// P2: at the end of a term all that is unqueued is put on its queue, and the last-delivered ID is at the end of what
// was read: nothing else is dispatched again.
func TestP2TheEndOfATermLeavesNothingHeld(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		pass    int64 // batches committed before the end
		release bool  // what is in flight is finished
	}{
		{"everything drains", 0, true},
		{"some is finished, the rest drains", 6, true},
		{"the drain is cut off", 6, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.pass == 6 && tc.release {
				testenv.Slow(t)
			}
			t.Parallel()
			b := newBench(t)
			const devices, seconds = 100, 30
			first, some := passing(tc.pass)
			one, s := b.startWatched("one", some)
			t.Cleanup(first.release) // before the drain waits for it
			b.AcquireAll(one)
			b.Publish(backlog(devices, 0, seconds)...)
			s.open.Store(true)
			if tc.pass > 0 {
				b.awaitSomeStored()
			}
			s.awaitUnqueued(t, 2*readOf)
			one.Drain()
			testenv.Wait(t, 10*time.Second, func() (err error) {
				last := b.delivered()
				s.seen(func() {
					if last != s.read || s.holding > 0 {
						err = fmt.Errorf("the last-delivered ID is %s, %s was read, %d are unqueued", last, s.read, s.holding)
					}
				})
				return err
			})
			if tc.release {
				first.release()
				one.End()
				require.NoError(t, one.Err)
			} else {
				one.Cut()
			}
			s.log(t)
			require.Equal(t, s.lastRead(), b.delivered())
			pending := b.pending()
			finished := int(one.Counter(t, "processor_pipeline_records_total", "stored") + one.Counter(t, "processor_pipeline_records_total", "conflict") + one.Counter(t, "processor_pipeline_records_total", "duplicate"))
			switch {
			case !tc.release:
				require.NotZero(t, pending)
			case tc.pass == 0: // else some were being acknowledged as they were put on their queues
				require.Zero(t, pending, "what is put on its queue is taken off it when it is finished")
			}
			t.Logf("%d are finished, %d pending", finished, pending)

			two := b.Start("two")
			b.AcquireAll(two)
			b.Settled(30*time.Second, 0)
			b.requireInOrder(devices * seconds)
			b.requireNothingLost()
			again := finished + int(two.Counter(t, "processor_pipeline_records_total", "stored")+two.Counter(t, "processor_pipeline_records_total", "conflict")+two.Counter(t, "processor_pipeline_records_total", "duplicate")) - len(backlog(devices, 0, seconds))
			require.LessOrEqual(t, int64(again), pending, "no more than was pending is processed twice")
			require.GreaterOrEqual(t, again, 0)
		})
	}
}

// P3: a shard with entries that are unqueued is handed over with nothing under way.
func TestP3AShardWithUnqueuedEntriesDrains(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const devices, seconds = 100, 20
	in, s := b.startWatched("one")
	b.AcquireAll(in)
	resume := b.holdCommits()
	entries := backlog(devices, 0, seconds)
	b.Publish(entries...)
	s.open.Store(true)
	s.awaitUnqueued(t, len(entries)*3/4)
	shard := telemetry.ShardOf(fleet.DeviceID(1), shards)
	drained := in.Stop(shard)
	select {
	case <-drained:
		require.Fail(t, "handed over with work under way")
	default:
	}
	// What follows is for the next owner.
	follows := b.Publish(backlog(devices, seconds, seconds)...)
	resume()
	select {
	case <-drained:
	case <-time.After(20 * time.Second):
		require.Fail(t, "not handed over")
	}
	testenv.Wait(t, 20*time.Second, func() error { // the other shards go on
		info, err := b.ours().Info(t.Context())
		if err != nil {
			return err
		}
		consumers, err := b.ours().Consumers(t.Context())
		if err != nil {
			return err
		}
		for _, c := range consumers {
			if c.Shard != shard && c.Pending > 0 {
				return fmt.Errorf("%+v", c)
			}
		}
		if in.InFlight() > 0 || info.Delivered != follows[len(follows)-1] {
			return fmt.Errorf("%d are in flight, %+v", in.InFlight(), info)
		}
		return nil
	})
	require.NotZero(t, b.pending(), "what follows waits on its queue")
	in.Drop(shard)
	b.acquire(in, shard)
	b.Settled(20*time.Second, 0)
	b.requireInOrder(devices * 2 * seconds)
	b.requireNothingLost()
	s.log(t)
}

// P3: once intake of a shard ends, what follows goes to its queue, and before it what is unqueued. So an owner that
// does not wait for the drain finds them in order, however late this instance dispatches next.
func TestP3WhatIsUnqueuedOfAStoppedShardIsOnItsQueueBeforeWhatFollows(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const devices, seconds = 100, 10
	in, s := b.startWatched("one")
	b.AcquireAll(in)
	resume := b.holdCommits()
	entries := backlog(devices, 0, seconds)
	first := b.Publish(entries[:len(entries)/2]...) // before most of the rivals
	s.open.Store(true)
	s.awaitUnqueued(t, len(first)*3/4)
	shard := telemetry.ShardOf(fleet.DeviceID(1), shards)
	in.Stop(shard)
	follows := b.Publish(entries[len(entries)/2:]...)
	testenv.Wait(t, 10*time.Second, func() error {
		if last := s.lastRead(); last != follows[len(follows)-1] {
			return fmt.Errorf("%s of %s is read", last, follows[len(follows)-1])
		}
		return nil
	})
	s.gate <- struct{}{}
	in.Drop(shard)
	next := b.Start("next", func(_ *pipeline.Config, d *pipeline.Deps) { d.Peers = func() int { return 1 } })
	b.acquire(next, shard)
	resume()
	own := 0
	for d := range devices {
		if telemetry.ShardOf(fleet.DeviceID(d), shards) == shard {
			own++
		}
	}
	testenv.Wait(t, 20*time.Second, func() error {
		if n := next.Counter(t, "processor_pipeline_records_total", "stored"); n < float64(own*seconds/2) {
			return fmt.Errorf("the next owner has stored %.0f", n)
		}
		return nil
	})
	<-s.gate
	b.Settled(20*time.Second, 0)
	s.log(t)
	b.requireInOrder(devices * seconds)
	b.requireNothingLost()
}
