package coordination

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/testenv"
)

// lockRow locks the row of a shard as a person in psql might, until the function
// returned is called.
func (b *bench) lockRow(shard int) (unlock func()) { return b.lockIn("shards", shard) }

func (b *bench) lockIn(table string, shard int) (unlock func()) {
	b.t.Helper()
	return b.lockBy("select from processor."+table+" where shard = $1 for update", shard)
}

func (b *bench) lockTable(table, mode string) (unlock func()) {
	b.t.Helper()
	return b.lockBy("lock table processor." + table + " in " + mode + " mode")
}

func (b *bench) lockBy(sql string, args ...any) (unlock func()) {
	b.t.Helper()
	pool := b.open("locker")
	tx, err := pool.BeginTx(b.t.Context(), pgx.TxOptions{})
	require.NoError(b.t, err)
	_, err = tx.Exec(b.t.Context(), "set local idle_in_transaction_session_timeout = 0")
	require.NoError(b.t, err)
	_, err = tx.Exec(b.t.Context(), sql, args...)
	require.NoError(b.t, err)
	unlock = sync.OnceFunc(func() { _ = tx.Rollback(context.WithoutCancel(b.t.Context())) })
	b.t.Cleanup(unlock)
	return unlock
}

// ownedBut returns an error until the members own all shards but one.
func (b *bench) ownedBut(locked int, members ...*member) error {
	for _, s := range b.list() {
		held := false
		for _, m := range members {
			epoch, ok := m.engine.holds()[s.Shard]
			held = held || ok && epoch == s.Epoch && s.Owner == m.name() && s.Assigned == s.Owner
		}
		if !held && s.Shard != locked {
			return fmt.Errorf("shard %d is assigned to %q, its owner is %q", s.Shard, s.Assigned, s.Owner)
		}
	}
	return nil
}

func TestALockedRowHoldsUpItsShardOnly(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.shards.Ensure(t.Context(), shards))
	unlock := b.lockRow(5)
	began := time.Now()
	first := b.start("first", "")
	testenv.Wait(t, 10*time.Second, func() error { return b.ownedBut(5, first) })
	t.Logf("%d of %d shards acquired after %v", first.Owned(), shards, time.Since(began))
	require.Equal(t, shards-1, first.Owned())
	testenv.Wait(t, 5*time.Second, func() error {
		first.reconciler.mu.Lock()
		defer first.reconciler.mu.Unlock()
		by := first.reconciler.blocked[5].By
		if len(by) != 1 || by[0].Application != "processor/locker" || by[0].Query == "" || by[0].Age <= 0 {
			return fmt.Errorf("blocked by %+v", by)
		}
		return nil
	})
	require.NoError(t, first.Ready(), "a lock is no outage")
	told := func(want int) {
		testenv.Wait(t, 10*time.Second, func() error {
			members := first.membership.Members()
			if len(members) != 1 {
				return fmt.Errorf("want one member, have %+v", members)
			}
			for _, m := range members {
				if len(m.RowLocks) != want || want > 0 && (m.RowLocks[0].Shard != 5 || len(m.RowLocks[0].By) != 1 || m.RowLocks[0].Since.IsZero()) {
					return fmt.Errorf("the heartbeat tells of %+v", m.RowLocks)
				}
			}
			return nil
		})
	}
	told(1)
	unlock()
	b.await([]int{shards}, first)
	told(0)
}

// The leader assigns the others, and stays.
func TestALockedAssignmentHoldsUpItsShardOnly(t *testing.T) {
	b := newBench(t)
	first, second := b.pair()
	locked := slices.IndexFunc(b.list(), func(s protocol.Shard) bool { return s.Owner == second.name() })
	term := b.count("select term from processor.leader")
	unlock := b.lockIn("assignments", locked)
	second.stop()
	testenv.Wait(t, first.membership.cfg.MemberTTL+5*time.Second, func() error { return b.ownedBut(locked, first) })
	require.Equal(t, term, b.count("select term from processor.leader"), "the leader stepped down")
	require.Equal(t, second.name(), b.list()[locked].Assigned)
	unlock()
	b.await([]int{shards}, first)
}

// No other leader would fare better.
func TestALockOfAllAssignmentsEndsNoTerm(t *testing.T) {
	b := newBench(t)
	first := b.start("first", "", func(c *Config) { c.LeaderTTL = 4 * time.Second })
	b.await([]int{shards}, first)
	term := b.count("select term from processor.leader")
	unlock := b.lockTable("assignments", "share")
	second, begin := b.start("second", ""), first.task.passes.Load()
	testenv.Wait(t, 15*time.Second, func() error {
		if n := first.task.passes.Load(); n < begin+3 {
			return fmt.Errorf("%d passes after %d", n, begin)
		}
		return nil
	})
	require.Zero(t, second.Owned())
	unlock()
	b.await([]int{shards / 2, shards / 2}, first, second)
	require.Equal(t, term, b.count("select term from processor.leader"), "the leader stepped down")
}

// Of those that wait for their owner's release, a few at a time, it takes no place.
func TestALockedAssignmentHoldsUpNoHandOver(t *testing.T) {
	b := newBench(t)
	first := b.start("first", "")
	b.await([]int{shards}, first)
	unlocks := []func(){b.lockIn("assignments", 14), b.lockIn("assignments", 15), b.lockIn("assignments", 8)}
	second := b.start("second", "")
	testenv.Wait(t, 10*time.Second, func() error {
		if n := second.Owned(); n < shards/2-len(unlocks) {
			return fmt.Errorf("the second owns %d", n)
		}
		if !first.leader.rests() {
			return errors.New("the leader still waits for the lock")
		}
		return nil
	})
	for _, unlock := range unlocks {
		unlock()
	}
	b.await([]int{shards / 2, shards / 2}, first, second)
}

// A lock is nothing that another member could cure: nobody's sessions end, and
// the shards that the lock does not concern move once.
func TestALockedRowSetsNoMemberAgainstAnother(t *testing.T) {
	testenv.Slow(t)
	b := newBench(t)
	patient := func(c *Config) { c.HandoffBudget = time.Second }
	first := b.start("first", "", patient)
	b.await([]int{shards}, first)
	unlock := b.lockRow(15) // the last ones move to a newcomer
	second, third := b.start("second", "", patient), b.start("third", "", patient)
	testenv.Wait(t, 10*time.Second, func() error {
		if second.Owned() < 4 || third.Owned() < 4 {
			return fmt.Errorf("the newcomers own %d and %d", second.Owned(), third.Owned())
		}
		return b.ownedBut(15, first, second, third)
	})
	term := b.count("select term from processor.leader")
	epochs := b.list()
	rest := time.NewTimer(8 * time.Second) // what must not happen, in several times every budget
	<-rest.C
	for i, s := range b.list() {
		require.Equal(t, epochs[i], s, "shard %d moved because of a lock", s.Shard)
	}
	require.Equal(t, term, b.count("select term from processor.leader"), "the leader stepped down")
	for _, m := range []*member{first, second, third} {
		require.Zero(t, m.value("processor_coordination_shards_lost_total"), m.name())
		require.NoError(t, m.Ready())
	}
	unlock()
	b.await([]int{6, 5, 5}, first, second, third)
	for _, m := range []*member{first, second, third} {
		require.Zero(t, m.value("processor_coordination_shards_lost_total"), m.name())
		require.Zero(t, m.value("processor_coordination_shards_force_acquired_total"), "%s took by force what a healthy owner released", m.name())
	}
	require.Equal(t, term, b.count("select term from processor.leader"), "the leader stepped down when the lock ended")
}

// A shard that cannot be acquired, for a trigger or a damaged row, is no outage of its member:
// the others are acquired, and none of them moves by force.
func TestAShardThatCannotBeAcquiredHoldsUpNoOther(t *testing.T) {
	b := newBench(t)
	b.exec(`create function processor.fail() returns trigger language plpgsql as $$ begin raise exception 'planted'; end $$`)
	b.exec(`create trigger planted before update of epoch on processor.shards for each row when (new.shard = 5) execute function processor.fail()`)
	first := b.start("first", "")
	testenv.Wait(t, 10*time.Second, func() error { return b.ownedBut(5, first) })
	testenv.Wait(t, 5*time.Second, first.Ready)
	second := b.start("second", "")
	passes := func() int64 { return first.task.passes.Load() + second.task.passes.Load() }
	var seen int64
	testenv.Wait(t, 15*time.Second, func() error {
		if n := second.Owned(); n < shards/2-1 {
			return fmt.Errorf("the second owns %d", n)
		}
		if seen == 0 {
			seen = passes()
		}
		if n := passes(); n < seen+12 { // more than SinkGrace, after which members are cut off
			return fmt.Errorf("%d passes of the leader after %d", n, seen)
		}
		return b.ownedBut(5, first, second)
	})
	for _, m := range []*member{first, second} {
		testenv.Wait(t, 5*time.Second, m.Ready) // Redis may be slow for a moment
		require.Zero(t, m.value("processor_coordination_shards_force_acquired_total"), m.name())
		require.Zero(t, m.value("processor_coordination_shards_lost_total"), m.name())
	}
}

// P8: the release at the end has one budget for all shards: those whose rows are locked are
// taken by force.
func TestTheReleaseAtTheEndEndsInTime(t *testing.T) {
	b := newBench(t)
	m := b.start("first", "", func(c *Config) { c.HandoffBudget = 5 * time.Second })
	b.await([]int{shards}, m)
	unlock := b.lockTable("shards", "exclusive")
	m.stop() // which fails if the membership does not end within half of what an attempt for each shard takes
	unlock()
}

// Tables that ownership does not rest on may be locked, as by an index that is built or a table
// that is rewritten, while members join, leave and die: every shard is owned, no owner is
// suspected, and no term ends for it.
func TestP8ALockOfTablesThatAreNotNeededMovesNoShardByForce(t *testing.T) {
	needed := []string{
		"leader", "shards", "assignments", // the authority itself
		"progress", // without which nothing can be committed
		"settings", // what no instance starts without
	}
	for _, tt := range []struct {
		name, mode string
		locked     func(table string) bool
		last       []int // shards of the second and of the third, who joins while all is locked
	}{
		{"holds", "access exclusive", func(table string) bool { return table == "holds" }, []int{shards, 0}}, // it may be held back
		{"all others", "access exclusive", func(table string) bool { return table != "holds" && !slices.Contains(needed, table) }, []int{shards / 2, shards / 2}},
		{"written progress", "share", func(table string) bool { return table == "progress" }, []int{shards / 2, shards / 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			rows, err := b.pool.Query(t.Context(), "select tablename from pg_tables where schemaname = 'processor' order by 1")
			require.NoError(t, err)
			tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
			require.NoError(t, err)
			tables = slices.DeleteFunc(tables, func(table string) bool { return !tt.locked(table) })
			require.NotEmpty(t, tables)
			start := func(name string) *member {
				m := b.start(name, "")
				m.engine.mu.Lock()
				defer m.engine.mu.Unlock()
				m.engine.state = []byte("state")
				return m
			}
			first := start("first")
			b.await([]int{shards}, first)
			unlock := b.lockTable(strings.Join(tables, ", processor."), tt.mode)
			second := start("second")
			b.await([]int{shards / 2, shards / 2}, first, second)
			term := b.count("select term from processor.leader")
			first.stop() // the leader
			third := start("third")
			b.await(tt.last, second, third)
			require.Equal(t, term+1, b.count("select term from processor.leader"), "one member led after the other")
			unlock()
			b.await([]int{shards / 2, shards / 2}, second, third)
			for _, m := range []*member{first, second, third} {
				require.Zero(t, m.value("processor_coordination_shards_force_acquired_total"), m.name())
				require.Zero(t, m.value("processor_coordination_shards_lost_total"), m.name())
			}
		})
	}
}
