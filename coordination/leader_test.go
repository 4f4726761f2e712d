package coordination

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// taken makes n new entries pending for a foreign consumer.
func (b *bench) taken(consumer string, n int) {
	b.t.Helper()
	for range n {
		require.NoError(b.t, b.client.XAdd(b.t.Context(), xadd(b.where.Stream, "device-1")).Err())
	}
	require.NoError(b.t, b.client.XReadGroup(b.t.Context(), &redis.XReadGroupArgs{
		Group: b.where.Group, Consumer: consumer, Streams: []string{b.where.Stream, ">"}, Count: int64(n), Block: -1,
	}).Err())
}

func (b *bench) awaitCount(want int, sql string, args ...any) {
	b.t.Helper()
	testenv.Wait(b.t, 15*time.Second, func() error {
		if have := b.count(sql, args...); have != want {
			return fmt.Errorf("want %d, have %d: %s", want, have, sql)
		}
		return nil
	})
}

func (b *bench) foreigners() (held int64, names []string) {
	b.t.Helper()
	list, err := b.group.Consumers(b.t.Context())
	require.NoError(b.t, err)
	for _, c := range list {
		if c.Shard < 0 {
			held += c.Pending
			names = append(names, c.Name)
		}
	}
	return held, names
}

func TestASilentForeignConsumersEntriesAreClaimedAndItIsRemoved(t *testing.T) {
	b := newBench(t)
	m := b.start("first", "")
	b.await([]int{16}, m)
	b.taken("earlier", 450) // more than two pages
	testenv.Wait(t, 15*time.Second, func() error {
		if held, names := b.foreigners(); held > 0 || len(names) > 0 {
			return fmt.Errorf("%v hold %d", names, held)
		}
		return nil
	})
	queues, err := b.group.Queues(t.Context())
	require.NoError(t, err)
	require.Equal(t, int64(450), queues[telemetry.ShardOf("device-1", shards)].Pending)
	require.InDelta(t, 450, m.value("processor_coordination_claimed_entries_total"), 0)
	require.Zero(t, b.count("select count(*) from processor.incidents where kind = 'foreign_consumer'"))
}

func TestAForeignConsumerThatReadsIsAnIncidentUntilItIsGone(t *testing.T) {
	b := newBench(t)
	m := b.start("first", "")
	b.await([]int{16}, m)
	testenv.Wait(t, 15*time.Second, func() error {
		b.taken("alive", 1)
		if b.count("select count(*) from processor.incidents where kind = 'foreign_consumer' and subject = 'alive' and closed_at is null") == 0 {
			return fmt.Errorf("no incident yet")
		}
		return nil
	})
	// It keeps fresh entries, and loses those it has held too long.
	b.awaitCount(0, "select count(*) from processor.incidents where closed_at is null")
	held, names := b.foreigners()
	require.Zero(t, held)
	require.Empty(t, names)
}

// P1: a copy that was joined while the original was away is seen once both answer.
func TestP1MembersOnACopyOfTheDatabaseAreAnIncidentUntilTheyAgree(t *testing.T) {
	b := newBench(t)
	original, replica := "7001/5", "7002/5"
	m, n := b.start("first", ""), b.start("second", "")
	b.await([]int{8, 8}, m, n)
	m.server.Store(&original)
	n.server.Store(&replica)
	const open = "select count(*) from processor.incidents where kind = 'database_copy' and subject = '7001/5 and 7002/5' and closed_at is null"
	b.awaitCount(1, open)
	n.server.Store(&original)
	b.awaitCount(0, open)
	require.Equal(t, 1, b.count("select count(*) from processor.incidents where kind = 'database_copy'"))
}

func TestP6LossesMoveToTheLedgerOnce(t *testing.T) {
	b := newBench(t)
	b.taken("earlier", 3)
	list, err := b.client.XRange(t.Context(), b.where.Stream, "-", "+").Result()
	require.NoError(t, err)
	require.NoError(t, b.client.XDel(t.Context(), b.where.Stream, list[1].ID).Err())
	require.NoError(t, b.client.LPush(t.Context(), b.group.Names().Losses(), "x\x00", `{"cause": "none"}`).Err(), "which holds up nothing behind it")
	newer := slices.Repeat([]any{`{"cause": "invented_later", "first": "1-0", "last": "2-0", "entries": 1, "shard": 3}`}, 600) // more than a page
	require.NoError(t, b.client.LPush(t.Context(), b.group.Names().Losses(), newer...).Err())
	m := b.start("first", "")
	b.await([]int{16}, m)
	b.awaitCount(1, "select count(*) from processor.losses where cause = 'trimmed_pending' and first_id = $1", list[1].ID)
	b.awaitCount(2, "select count(*) from processor.incidents where kind = $1 and closed_at is not null", protocol.UnreadableRecord)
	testenv.Wait(t, 5*time.Second, func() error {
		left, _, _, err := b.group.Losses(t.Context(), 10)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%d are still on the list", len(left))
		}
		return err
	})
	require.Equal(t, 1.0, m.value("processor_coordination_lost_entries_total"))
	require.Equal(t, 1.0, labelled(t, m.reg, "processor_coordination_losses_total", "trimmed_pending"))
	require.Equal(t, int64(len(newer)), b.client.LLen(t.Context(), b.group.Names().Losses()).Val(), "those of a newer version are left to it")
	require.Equal(t, 2, b.count("select count(*) from processor.incidents where kind = $1", protocol.UnreadableRecord))
}

// counted is a task that counts its passes.
type counted struct{ passes atomic.Int64 }

func (c *counted) Do(context.Context, int64) error {
	c.passes.Add(1)
	return nil
}

// What is exported of the whole group is a task's, so only one member exports it.
func TestTheLeaderAloneRunsTheTasks(t *testing.T) {
	b := newBench(t)
	first, second := b.pair()
	before := first.task.passes.Load()
	testenv.Wait(t, 5*time.Second, func() error {
		if n := first.task.passes.Load(); n < before+3 {
			return fmt.Errorf("%d passes", n)
		}
		return nil
	})
	require.Zero(t, second.task.passes.Load())
}

// hanging is a task that does not end by itself.
type hanging struct{}

func (*hanging) Do(ctx context.Context, _ int64) error {
	<-ctx.Done()
	return fmt.Errorf("hang: %w", ctx.Err())
}

// A pass takes several times as long as the leader's lock lasts.
func TestTasksThatTakeTooLongHoldUpNeitherTheOthersNorAPlan(t *testing.T) {
	b := newBench(t)
	for range 12 {
		b.tasks = append(b.tasks, &hanging{})
	}
	first := b.start("first", "")
	b.await([]int{shards}, first)
	testenv.Wait(t, 30*time.Second, func() error {
		if first.task.passes.Load() < 1 {
			return fmt.Errorf("the task behind the others has not run")
		}
		return nil
	})
	passes := first.task.passes.Load()
	second := b.start("second", "")
	b.await([]int{shards / 2, shards / 2}, first, second)
	require.Equal(t, passes, first.task.passes.Load(), "the plan waited for no pass")
	require.Equal(t, 1, b.count("select term from processor.leader where member = $1", first.name()))
}

func TestALeaderOverTheGroupOfAClusterUsesOneSlot(t *testing.T) {
	names := stream.Names{Stream: "telemetry:teltonika", Group: "g"}
	for _, key := range []string{names.Lock(), names.Members(), names.Heartbeat("instance-1")} {
		require.Contains(t, key, "{telemetry:teltonika}")
	}
}

// A member may be told to stop between its election and its first pass.
func TestALeaderThatNeverWorkedResigns(t *testing.T) {
	b := newBench(t)
	first := b.start("first", "")
	b.await([]int{16}, first)
	second := b.start("second", "")
	b.await([]int{8, 8}, first, second)
	term, err := store.NewLeader(b.pool, b.scope(), second.name(), time.Minute).BeginTerm(t.Context())
	require.NoError(t, err)
	require.NoError(t, second.elector.work.ReassignOwnShards(t.Context(), term))
	require.Equal(t, 16, b.count("select count(*) from processor.assignments where member = $1", first.name()))
}

func TestAProcessThatIsStartedAgainMakesItsDeployNoNewer(t *testing.T) {
	t.Parallel()
	member := func(name, deploy string, started int64) Member {
		return Member{Instance: name, Incarnation: "1", Deploy: deploy, Started: time.Unix(started, 0)}
	}
	fleet := []Member{member("a", "blue", 1), member("b", "blue", 2), member("c", "green", 10)}
	require.Equal(t, []string{"a.1", "b.1"}, outdated(fleet))
	fleet[1].Started = time.Unix(20, 0) // it crashed
	require.Equal(t, []string{"a.1", "b.1"}, outdated(fleet))
	require.Nil(t, outdated(nil))
	require.Nil(t, outdated([]Member{member("a", "", 1), member("b", "", 2)}))
}
