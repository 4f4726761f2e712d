package coordination

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

func TestShardsFollowJoinsAndLeaves(t *testing.T) {
	b := newBench(t)
	first, second := b.pair()
	before := b.list()
	third := b.start("third", "")
	b.await([]int{6, 5, 5}, first, second, third)
	moved := 0
	for i, s := range b.list() {
		if s.Owner != before[i].Owner {
			moved++
			require.Equal(t, third.name(), s.Owner, "shards move to the newcomer only")
		}
	}
	require.LessOrEqual(t, moved, 6)
	require.Equal(t, map[string]int{movedForJoin: 8 + moved}, b.moves(first, second, third), "half of all went to the second")

	// A leaving member hands over while it still works.
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, first.Leave(ctx))
	require.Zero(t, first.Owned())
	t.Logf("handed over in %v", time.Since(began))
	require.Less(t, time.Since(began), 3*time.Second)
	first.stop()
	b.await([]int{8, 8}, second, third)
	require.Equal(t, []string{movedForDeploy, movedForJoin}, slices.Sorted(maps.Keys(b.moves(first, second, third))))
	require.Zero(t, second.value("processor_coordination_shards_force_acquired_total")+third.value("processor_coordination_shards_force_acquired_total"),
		"everything was released")
	second.stop()
	b.await([]int{16}, third)
	third.stop()
	require.Equal(t, 0, b.count("select count(owner) from processor.shards"))
	require.Zero(t, b.count("select count(*) from processor.incidents"), "a release is no incident")
	members, err := ReadMembers(t.Context(), b.client, Keys{Prefix: b.group.Names().Members()})
	require.NoError(t, err)
	require.Empty(t, members)
	for _, key := range b.client.Keys(t.Context(), "*"+b.where.Stream+"*:members*").Val() {
		require.Positive(t, b.client.PTTL(t.Context(), key).Val(), "%s stays", key)
	}
}

// P8: an end of all members at once takes no longer than that of one.
func TestMembersThatLeaveTogetherWaitForNoSuccessor(t *testing.T) {
	b := newBench(t)
	first, second := b.pair()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var leaving sync.WaitGroup
	for _, m := range []*member{first, second} {
		leaving.Go(func() { _ = m.Leave(ctx) })
	}
	leaving.Wait()
	require.NoError(t, ctx.Err())
}

// P8: a join and a leave take one shard of sixteen out of service at a time, as each
// change of the assignments finds it.
func TestAPlanTakesFewShardsOutOfServiceAtOnce(t *testing.T) {
	b := newBench(t)
	first := b.start("first", "")
	b.await([]int{shards}, first)
	b.exec(`create table processor.waits (n int)`)
	b.exec(`create function processor.note_waits() returns trigger language plpgsql as $$
begin
  insert into processor.waits
  select count(*)
  from processor.shards s
  join processor.assignments a using (stream, group_name, shard)
  where s.owner <> a.member;
  return null;
end $$`)
	b.exec(`create trigger waits after insert or update on processor.assignments for each statement execute function processor.note_waits()`)

	second := b.start("second", "")
	b.await([]int{shards / 2, shards / 2}, first, second)
	require.NoError(t, first.Leave(t.Context()))
	first.stop()
	b.await([]int{shards}, second)
	require.Equal(t, protocol.HandOvers(shards), b.count("select max(n) from processor.waits"))
	require.GreaterOrEqual(t, b.count("select count(*) from processor.waits where n > 0"), shards, "each shard by itself")
	require.Zero(t, second.value("processor_coordination_shards_force_acquired_total"))
}

func TestADeployThatAnnouncesItselfMovesEachShardOnce(t *testing.T) {
	b := newBench(t)
	start := func(name, deploy string) *member {
		return b.start(name, "", func(c *Config) { c.Deploy = deploy })
	}
	old := []*member{start("a-1", "v1"), start("b-1", "v1")}
	b.await([]int{8, 8}, old...)
	before := b.count("select sum(epoch) from processor.shards")
	var next []*member
	for i, m := range old {
		next = append(next, start(string("ab"[i])+"-2", "v2"))
		testenv.Wait(t, 10*time.Second, func() error {
			if n := len(m.membership.Members()); n != 3 {
				return fmt.Errorf("%d members", n)
			}
			return nil
		})
		require.NoError(t, m.Leave(t.Context()))
		m.stop()
		// A leader that came in the middle leaves the shares as it finds them.
		left := append(slices.Clone(old[i+1:]), next...)
		testenv.Wait(t, 15*time.Second, func() error {
			owned, err := b.share(left...)
			if err == nil && (len(owned) != 2 || min(owned[left[0].name()], owned[left[1].name()]) < 6) {
				err = fmt.Errorf("shares: %v", owned)
			}
			return err
		})
	}
	// Each once, and what is left uneven by a change of leaders is evened out at the end: 16 more
	// moves without an announcement.
	require.InDelta(t, 18, b.count("select sum(epoch) from processor.shards")-before, 2)
	require.Zero(t, next[0].value("processor_coordination_shards_force_acquired_total"))
}

// A member whose shards are hotter than those of the others gives some up, and a leader
// that comes later leaves that as it is.
func TestTheBusiestMemberIsRelieved(t *testing.T) {
	testenv.Slow(t)
	b := newBench(t)
	first, second := b.pair()
	before := b.count("select min(epoch) from processor.shards")
	began, hot := time.Now(), first.engine.holds()
	finished := func(shard int) uint64 {
		rate := 10.0
		if _, ok := hot[shard]; ok {
			rate = 100
		}
		return uint64(rate * time.Since(began).Seconds())
	}
	first.finish(finished)
	second.finish(finished)
	var hotOnes int
	even := func() error {
		hotOnes = 0
		for shard := range first.engine.holds() {
			if _, ok := hot[shard]; ok {
				hotOnes++
			}
		}
		if hotOnes < 4 || hotOnes > 5 {
			return fmt.Errorf("of 8 hot shards the first member has %d", hotOnes)
		}
		return nil
	}
	testenv.Wait(t, 30*time.Second, even)
	t.Logf("after %v the first member has %d of 8 hot shards", time.Since(began), hotOnes)
	require.Equal(t, 8, b.moves(first, second)[movedForJoin], "when the second came")
	require.GreaterOrEqual(t, b.moves(first, second)[movedForLoad], 3)
	first.stop()
	b.await([]int{16}, second)
	// Epochs begin at a transaction ID where the row is made anew.
	require.LessOrEqual(t, b.count("select max(epoch) from processor.shards")-before, 4, "no shard goes to and fro")
}

func TestAShardThatNobodyHadMovesForTheStart(t *testing.T) {
	b := newBench(t)
	first := b.start("first", "")
	b.await([]int{16}, first)
	first.stop()
	second := b.start("second", "")
	b.await([]int{16}, second)
	require.Equal(t, map[string]int{movedAtStart: 16}, b.moves(second))
}

func TestAMoveSaysWhy(t *testing.T) {
	t.Parallel()
	m, err := NewMembership(timing, nil, Keys{}, nil, discard())
	require.NoError(t, err)
	m.polled = true
	m.watch.Observe(time.Now(), []protocol.Beat{{Member: "here.1"}, {Member: "stuck.1"}})
	m.lastHeartbeats["leaving.1"] = lastHeartbeat{Member: Member{Leaving: true}}
	l := &Leader{membership: m}
	able := []string{"here.1"}
	drained := protocol.Holds{{Kind: protocol.HoldMember, Subject: "here"}}
	for _, tt := range []struct {
		from, owner string
		held        protocol.Holds
		want        string
	}{
		{"leaving.1", "leaving.1", nil, movedForDeploy},
		{"leaving.1", "", nil, movedForDeploy},
		{"gone.1", "gone.1", nil, movedForKill},
		{"gone.1", "", nil, movedAtStart},
		{"stuck.1", "stuck.1", nil, movedByForce},
		{"here.1", "here.1", drained, movedForDrain},
		{"here.1", "", drained, movedForDrain},
		{"here.1", "here.1", nil, movedForJoin},
	} {
		require.Equal(t, tt.want, l.why(tt.from, tt.owner, able, tt.held), "%v", tt)
	}
}

func TestP8ASilentMemberIsReplacedAndItsFrozenSessionsEnd(t *testing.T) {
	b := newBench(t)
	opts, err := devenv.RedisOptions("", b.where.URL)
	require.NoError(t, err)
	proxy := testenv.Proxy(t, opts.Addr)
	url, err := proxy.URL(b.where.URL)
	require.NoError(t, err)
	silent := b.start("silent", url)
	b.await([]int{16}, silent)
	other := b.start("other", "")
	b.await([]int{8, 8}, silent, other)

	// A client frozen inside a transaction holds the locks its successor needs.
	frozen, err := b.open(silent.name()).Acquire(t.Context())
	require.NoError(t, err)
	defer frozen.Release()
	_, err = frozen.Exec(t.Context(), "begin; set local idle_in_transaction_session_timeout = 0; select * from processor.shards for share")
	require.NoError(t, err)

	require.NoError(t, proxy.Stall())
	began := time.Now()
	testenv.Wait(t, 15*time.Second, func() error {
		owned, err := b.share(other)
		if err == nil && owned[other.name()] != shards {
			err = fmt.Errorf("have %v", owned)
		}
		return err
	})
	t.Logf("acquired in %v with a time to live of 1s", time.Since(began))
	require.Less(t, time.Since(began), 6*time.Second)
	require.Error(t, frozen.Conn().Ping(t.Context()), "its session was ended")
	require.Positive(t, other.value("processor_coordination_shards_force_acquired_total"))
	require.Zero(t, b.count("select count(*) from processor.shards where crash_count > 0 or max_in_flight is not null"), "its process did not end")
	require.Equal(t, 8, b.moves(other)[movedForKill])
	b.awaitOpen(1, protocol.SilentMember, silent.name())
	require.Equal(t, 1, b.count(`
select count(*) from processor.incidents
where detail ->> 'pid' = $1 and detail ->> 'host' <> '' and jsonb_array_length(detail -> 'shards') = 8
  and (detail ->> 'since')::timestamptz > now() - interval '20s'`, fmt.Sprint(os.Getpid())))

	// It gives up the lost shards, and gets its share again once it is back.
	testenv.Wait(t, 5*time.Second, func() error {
		if n := len(silent.engine.holds()); n > 0 {
			return fmt.Errorf("it still holds %d", n)
		}
		return nil
	})
	require.NoError(t, proxy.Resume())
	b.await([]int{8, 8}, silent, other)
	require.Positive(t, silent.engine.rewinds+1)
	b.awaitOpen(0, protocol.SilentMember, silent.name())
}

// P8: while MEMBER_TTL is changed, instance by instance, members with the shorter one judge by it.
func TestMembersOfDifferentTTLsKeepTheirShards(t *testing.T) {
	b := newBench(t)
	short := b.start("short", "", func(c *Config) { c.MemberTTL, c.LeaderTTL = 4*time.Second, 2*time.Second })
	long := b.start("long", "", func(c *Config) { c.MemberTTL, c.LeaderTTL = time.Minute, 30*time.Second })
	b.await([]int{8, 8}, short, long)
	epochs := b.list()
	rest := time.NewTimer(7 * time.Second) // what must not happen, in more than the shorter TTL
	<-rest.C
	require.Equal(t, epochs, b.list(), "shards moved, and nobody was gone")
}

// P4, P8: an owner that does not release blocks its successor for the budget only.
func TestAnOwnerThatDoesNotReleaseHasItsBudgetAndNoMore(t *testing.T) {
	b := newBench(t)
	slow := b.start("slow", "")
	b.await([]int{16}, slow)
	slow.engine.mu.Lock()
	slow.engine.busy = true
	slow.engine.mu.Unlock()
	began := time.Now()
	second := b.start("second", "")
	testenv.Wait(t, 15*time.Second, func() error {
		owned, err := b.share(second)
		if err == nil && owned[second.name()] != 8 {
			err = fmt.Errorf("have %v", owned)
		}
		return err
	})
	require.Greater(t, time.Since(began), 2*time.Second, "it had its budget")
	require.Less(t, time.Since(began), 6*time.Second)
	require.InDelta(t, 8, second.value("processor_coordination_shards_force_acquired_total"), 0)
	b.await([]int{8, 8}, slow, second)
	require.InDelta(t, 8, slow.value("processor_coordination_shards_lost_total"), 0)
}

func TestAMemberWithoutPostgresLosesItsShardsToOneThatHasIt(t *testing.T) {
	b := newBench(t)
	cut := b.start("cut", "")
	b.await([]int{16}, cut)
	other := b.start("other", "")
	b.await([]int{8, 8}, cut, other)
	// As if its Postgres did not answer: the reconciler's own finding is overruled.
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				cut.membership.mu.Lock()
				if cut.membership.sinkDown.IsZero() {
					cut.membership.sinkDown = time.Now().Add(-time.Minute)
				}
				cut.membership.mu.Unlock()
			}
		}
	}()
	testenv.Wait(t, 15*time.Second, func() error {
		list, err := b.shards.List(t.Context())
		for _, s := range list {
			if s.Assigned != other.name() {
				return fmt.Errorf("shard %d is assigned to %s", s.Shard, s.Assigned)
			}
		}
		return err
	})
	close(stop)
	<-done
	b.await([]int{8, 8}, cut, other)
}

func TestAMemberThatDoesNotAdvanceLosesItsShardsAndIsAnIncident(t *testing.T) {
	b := newBench(t)
	stuck, other := b.pair()
	set := func(v WorkStatus) {
		stuck.mu.Lock()
		defer stuck.mu.Unlock()
		stuck.workStatus = v
	}
	set(WorkStatus{InFlight: 7, Progress: 3})
	b.await([]int{16, 0}, other, stuck)
	require.Equal(t, 8, b.moves(stuck, other)[movedByForce])
	b.awaitOpen(1, protocol.StalledMember, stuck.name())
	// Without shards it has no work, but it is still stuck.
	set(WorkStatus{Progress: 3})
	held := time.NewTimer(3 * b.quick("").ClaimThreshold)
	<-held.C
	require.Zero(t, stuck.Owned())
	b.awaitOpen(1, protocol.StalledMember, stuck.name())
	set(WorkStatus{Progress: 3, CallsReturned: 1})
	b.await([]int{8, 8}, stuck, other)
	b.awaitOpen(0, protocol.StalledMember, stuck.name())
}

func TestASinkThatRefusesRowsIsAnIncidentWhileAMemberPauses(t *testing.T) {
	b := newBench(t)
	paused := b.start("one", "")
	set := func(r *protocol.Refusal) {
		paused.mu.Lock()
		defer paused.mu.Unlock()
		paused.workStatus.Refusal = r
	}
	b.await([]int{shards}, paused)
	set(&protocol.Refusal{Reason: "23502/tenant", Error: "null value", Remedy: "give it a default"})
	b.awaitOpen(1, protocol.SinkRefuses, "23502/tenant")
	require.ErrorContains(t, paused.Ready(), "give it a default")
	set(nil)
	b.awaitOpen(0, protocol.SinkRefuses, "23502/tenant")
	require.NoError(t, paused.Ready())
}

func TestNothingMovesWhileNoMemberAdvances(t *testing.T) {
	b := newBench(t)
	patient := func(c *Config) { c.ClaimThreshold = 1500 * time.Millisecond } // heartbeats are late on a busy machine
	first := b.start("first", "", patient)
	b.await([]int{shards}, first)
	second := b.start("second", "", patient)
	b.await([]int{shards / 2, shards / 2}, first, second)
	before := b.list()
	// As under a table lock: calls return, and nothing is committed.
	ctx, cancel := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	calls.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for callsReturned := uint64(1); ctx.Err() == nil; callsReturned++ {
			for _, m := range []*member{first, second} {
				m.mu.Lock()
				m.workStatus = WorkStatus{InFlight: 7, Progress: 3, CallsReturned: callsReturned}
				m.mu.Unlock()
			}
			<-tick.C
		}
	})
	defer calls.Wait()
	defer cancel()
	b.awaitOpen(1, protocol.StalledMember, first.name())
	b.awaitOpen(1, protocol.StalledMember, second.name())
	for i, s := range b.list() {
		require.Equal(t, before[i].Epoch, s.Epoch)
		require.Equal(t, before[i].Assigned, s.Assigned)
	}
}

func TestAShardThatDoesNotAdvanceThoughOthersDoIsAnIncident(t *testing.T) {
	b := newBench(t)
	first, second := b.pair()
	const device, elsewhere = "device-1", "device-2"
	stuck, busy := telemetry.ShardOf(device, shards), telemetry.ShardOf(elsewhere, shards)
	require.NotEqual(t, stuck, busy)
	ack := func(shard int, id telemetry.EntryID) {
		t.Helper()
		token := first.engine.token(shard)
		if _, held := first.engine.holds()[shard]; !held {
			token = second.engine.token(shard)
		}
		require.NoError(t, b.group.Ack(t.Context(), []protocol.Ack{{Shard: shard, Token: token, IDs: []telemetry.EntryID{id}}}))
	}
	waits := b.dispatched(device)[0]
	subject := strconv.Itoa(stuck)
	testenv.Wait(t, 15*time.Second, func() error {
		ack(busy, b.dispatched(elsewhere)[0])
		if b.count("select count(*) from processor.incidents where kind = $1 and subject = $2", protocol.StalledShard, subject) == 0 {
			return errors.New("no incident yet")
		}
		return nil
	})
	require.Equal(t, 1, b.count("select count(*) from processor.incidents where detail ->> 'oldest' = $1", waits.String()))
	// The next leader closes it once the shard advances.
	leaves, stays := first, second
	if second.value("processor_coordination_leader") == 1 {
		leaves, stays = second, first
	}
	leaves.stop()
	b.await([]int{shards}, stays)
	testenv.Wait(t, 15*time.Second, func() error {
		if stays.value("processor_coordination_leader") != 1 {
			return errors.New("no leader")
		}
		return nil
	})
	ack(busy, b.dispatched(elsewhere)[0])
	b.awaitOpen(1, protocol.StalledShard, subject)
	ack(stuck, waits)
	b.awaitOpen(0, protocol.StalledShard, subject)
}

func TestFlushedCoordinationKeysMoveNothing(t *testing.T) {
	b := newBench(t)
	b.pair()
	before := b.list()
	term := b.count("select term from processor.leader")
	names := b.group.Names()
	keys := []string{names.DispatchLease(), names.Lock(), names.Members(), names.Dispatched(), names.Acked()}
	for _, m := range []string{"first", "second"} {
		keys = append(keys, names.Heartbeat(m))
	}
	require.NoError(t, b.client.Del(t.Context(), keys...).Err())
	testenv.Wait(t, 5*time.Second, func() error {
		if b.count("select term from processor.leader") == term {
			return errors.New("no leader was elected")
		}
		return nil
	})
	testenv.Wait(t, 5*time.Second, func() error {
		members, err := ReadMembers(t.Context(), b.client, Keys{Prefix: names.Members()})
		if err == nil && len(members) != 2 {
			err = fmt.Errorf("%d members are back", len(members))
		}
		return err
	})
	for i, s := range b.list() {
		require.Equal(t, before[i].Owner, s.Owner)
		require.Equal(t, before[i].Epoch, s.Epoch)
	}
}

func TestManuallyDamagedRowsAreRepaired(t *testing.T) {
	testenv.Slow(t)
	b := newBench(t)
	first, second := b.pair()
	for name, sql := range map[string]string{
		"owner that is no member":    "update processor.shards set owner = 'ghost.1' where shard in (0, 15)",
		"epoch raised":               "update processor.shards set epoch = epoch + 1 where shard in (0, 15)",
		"not assigned":               "update processor.assignments set member = null where shard in (0, 15)",
		"assigned to no member":      "update processor.assignments set member = 'ghost.1' where shard in (0, 15)",
		"assignment missing":         "delete from processor.assignments where shard in (0, 15)",
		"row missing":                "delete from processor.shards where shard in (0, 15)",
		"rows missing altogether":    "delete from processor.shards",
		"mark that cannot be read":   "insert into processor.progress (stream, group_name, shard, applied_id) select stream, group_name, shard, 'junk' from processor.shards",
		"term raised elsewhere":      "update processor.leader set term = term + 1, member = 'ghost.1'",
		"row of the term missing":    "delete from processor.leader",
		"a shard beyond the number":  "insert into processor.shards (stream, group_name, shard, owner) select stream, group_name, 99, 'ghost.1' from processor.shards limit 1",
		"everything released anyhow": "update processor.shards set owner = null",
	} {
		highest := b.count("select max(epoch) from processor.shards")
		b.exec(sql)
		b.awaitNamed(name, []int{8, 8}, first, second)
		require.GreaterOrEqual(t, b.count("select max(epoch) from processor.shards"), highest, "%s: epochs never go back", name)
	}
	third := b.start("third", "") // the leader still leads, or another does
	b.await([]int{6, 5, 5}, first, second, third)
}

// P1, P3: before the queue is read, so that no later entry overtakes.
func TestWhatPostgresMayHaveLostIsRedeliveredBeforeAShardIsGranted(t *testing.T) {
	b := newBench(t)
	shard := telemetry.ShardOf("device-1", shards)
	ids := b.dispatched(slices.Repeat([]string{"device-1"}, 10)...)
	require.NoError(t, b.group.Ack(t.Context(), []protocol.Ack{{Shard: shard, IDs: ids[:8]}}))
	require.NoError(t, b.shards.Ensure(t.Context(), shards))
	// Postgres has the first three: later commits are lost.
	b.exec("insert into processor.progress (stream, group_name, shard, applied_id) values ($1, $2, $3, $4)", b.where.Stream, b.where.Group, shard, ids[2].String())
	m := b.start("first", "")
	b.await([]int{16}, m)
	replies, err := b.group.ReadQueues(t.Context(), []protocol.QueueRead{{Shard: shard, Count: 100}})
	require.NoError(t, err)
	var have []telemetry.EntryID
	for _, e := range replies[0].Entries {
		have = append(have, e.ID)
	}
	require.Equal(t, ids[3:], have)
	require.InDelta(t, 5, m.value("processor_coordination_redelivered_entries_total"), 0)
}

// P4: a leader that was replaced assigns nothing.
func TestATermIsRefusedOnceAnotherHasBegun(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.shards.Ensure(t.Context(), shards))
	old, next := store.NewLeader(b.pool, b.scope(), "old.1", time.Second), store.NewLeader(b.pool, b.scope(), "next.1", time.Second)
	term, err := old.BeginTerm(t.Context())
	require.NoError(t, err)
	written, err := old.Assign(t.Context(), term, []int{1}, []string{"old.1"})
	require.NoError(t, err)
	require.Equal(t, []int{1}, written)
	_, err = next.BeginTerm(t.Context())
	require.NoError(t, err)
	_, err = old.Assign(t.Context(), term, []int{2}, []string{"old.1"})
	require.Error(t, err)
	_, err = old.Assign(t.Context(), term+1, []int{2}, []string{"old.1"})
	require.Error(t, err, "the number alone does not make a leader")
	require.Equal(t, 1, b.count("select count(*) from processor.assignments where member = 'old.1'"))
}

// What makes the engine give a shard up each time, such as a server that ends the
// session of each commit, must not raise its epoch hundreds of times a second.
func TestAShardGivenUpAgainAndAgainIsReacquiredAfterPauses(t *testing.T) {
	b := newBench(t)
	m := b.start("first", "")
	b.await([]int{shards}, m)
	epoch := func() int { return b.count("select epoch::integer from processor.shards where shard = 3") }
	before := epoch()
	m.engine.mu.Lock()
	m.engine.givesUp = func(shard int) bool {
		if shard == 3 {
			m.Assigned()
		}
		return shard == 3
	}
	m.engine.mu.Unlock()
	m.engine.Drop(3)
	m.Assigned()
	testenv.Wait(t, 20*time.Second, func() error {
		if n := m.value("processor_coordination_acquisitions_delayed_total"); n < 3 {
			return fmt.Errorf("delayed %v times, acquired %d times", n, epoch()-before)
		}
		return nil
	})
	t.Logf("acquired %d times", epoch()-before)
	require.Less(t, epoch()-before, 15)
}

// A hand-over gives up what it finds, which is not what was assigned back meanwhile.
func TestAHandOverThatComesLateDropsNoLaterGrant(t *testing.T) {
	b := newBench(t)
	m := b.start("first", "")
	b.await([]int{shards}, m)
	leaving, leave := make(chan struct{}), make(chan struct{})
	begin := sync.OnceFunc(func() { close(leaving) })
	m.engine.mu.Lock()
	m.engine.leave = func() {
		begin()
		<-leave
	}
	m.engine.mu.Unlock()
	epoch := b.list()[3].Epoch
	testenv.Wait(t, 10*time.Second, func() error {
		select {
		case <-leaving:
			return nil
		default: // or the leader was faster, and assigned it back
			b.exec("update processor.assignments set member = 'ghost.1' where shard = 3")
			m.Assigned()
			return errors.New("it is not handed over yet")
		}
	})
	passes := m.task.passes.Load()
	testenv.Wait(t, 10*time.Second, func() error {
		if s := b.list()[3]; s.Assigned != m.name() {
			passes = m.task.passes.Load()
			return fmt.Errorf("assigned to %s", s.Assigned)
		}
		if n := m.task.passes.Load(); n < passes+4 {
			return fmt.Errorf("%d passes after %d", n, passes)
		}
		return nil
	})
	close(leave)
	testenv.Wait(t, 10*time.Second, func() error { // what it had looks like its share until it is dropped
		if b.list()[3].Epoch == epoch {
			return errors.New("it has not been acquired again")
		}
		return nil
	})
	b.await([]int{shards}, m)
	require.Equal(t, epoch+1, b.list()[3].Epoch, "it was acquired once")
}

// The leader neither undoes a claim nor fills up the member that has lost its shards, and
// nor does one that is elected meanwhile.
func TestWhatIsClaimedStaysWhereItIs(t *testing.T) {
	b := newBench(t)
	first, second := b.pair()
	var chosen []protocol.Shard
	for _, s := range b.list() {
		if s.Owner == second.name() {
			chosen = append(chosen, s)
		}
	}
	require.NoError(t, b.shards.Move(t.Context(), chosen, slices.Repeat([]string{first.name()}, len(chosen)), "test", "member second"))
	stays := func() {
		t.Helper()
		passes := func() int64 { return first.task.passes.Load() + second.task.passes.Load() }
		begin := passes()
		testenv.Wait(t, 15*time.Second, func() error {
			require.Zero(t, b.count("select count(*) from processor.assignments where member = $1", second.name()))
			if n := passes() - begin; n < 8 {
				return fmt.Errorf("%d passes", n)
			}
			return nil
		})
	}
	stays()
	term := b.count("select term from processor.leader")
	require.NoError(t, b.client.Del(t.Context(), b.group.Names().Lock()).Err())
	testenv.Wait(t, 15*time.Second, func() error {
		if b.count("select term from processor.leader") == term {
			return fmt.Errorf("the term has not ended")
		}
		return nil
	})
	stays()
	b.await([]int{shards, 0}, first, second)
	second.stop() // members change
	third := b.start("third", "")
	b.await([]int{shards / 2, shards / 2}, first, third)
}
