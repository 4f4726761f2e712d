package store_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

// IDs go backwards after a failover: a mark that only rose would hide from the
// next owner what is to be redelivered.
func TestTheProgressMarkFollowsIDsThatGoBack(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("one", 3)
	w := store.NewWriter(b.pool, scope, "one", 10*time.Second)
	mark := func(ms uint64) {
		batch := b.batch(held, nil)
		batch.Applied = []protocol.Applied{{Shard: 3, ID: telemetry.EntryID{Ms: ms}}}
		_, err := w.Write(t.Context(), batch)
		require.NoError(t, err)
	}
	applied := func() telemetry.EntryID {
		list, err := b.shards.List(t.Context())
		require.NoError(t, err)
		return list[3].Applied
	}
	mark(900)
	mark(100)
	require.Equal(t, telemetry.EntryID{Ms: 100}, applied())
	require.NoError(t, b.shards.Release(t.Context(), held[0], "one", telemetry.EntryID{Ms: 7}))
	require.Equal(t, telemetry.EntryID{Ms: 7}, applied())
	held = b.take("one", 3)
	require.NoError(t, b.shards.Release(t.Context(), held[0], "one", telemetry.EntryID{}))
	require.Equal(t, telemetry.EntryID{Ms: 7}, applied(), "an owner that applied nothing says nothing")
}

// What was computed on one life of the server may rest on commits that the next
// one does not have.
func TestABatchOfAnotherServerGenerationIsNotWritten(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("one", 3)
	w := store.NewWriter(b.pool, scope, "one", 10*time.Second)
	w.Guard(store.NewServerGeneration())
	batch := b.batch(held, records("d", 0, 1))
	batch.ServerGeneration = w.Generation() + 1
	_, err := w.Write(t.Context(), batch)
	var f *protocol.Failure
	require.ErrorAs(t, err, &f)
	require.Equal(t, protocol.Unavailable, f.Kind, "an outage, which uses no attempt")
	require.Zero(t, b.count("select count(*) from positions"))
	batch.ServerGeneration = w.Generation()
	_, err = w.Write(t.Context(), batch)
	require.NoError(t, err)
}

func deferredEntry(ms uint64, shard int) protocol.Deferred {
	at := time.Date(2026, 8, 1, 10, 0, 0, 0, time.UTC)
	return protocol.Deferred{
		DeadLetter: telemetry.DeadLetter{
			Entry: telemetry.Entry{ID: telemetry.EntryID{Ms: ms}, Fields: []string{"payload", "?"}}, Shard: shard, Class: telemetry.ClassDecode,
			Error: "decode: payload", Fingerprint: "decode/payload", Attempts: 1, FirstFailed: at, LastFailed: at, Instance: "one", Version: "v1",
		},
		NextAttempt: at,
	}
}

// Two calls at the same time, or one that comes back while the attempt runs,
// must not attempt an entry twice.
func TestAClaimedDeferredEntryIsLeased(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("one", 3)
	batch := b.batch(held, nil)
	batch.Deferred = []protocol.Deferred{deferredEntry(1, 3)}
	_, err := store.NewWriter(b.pool, scope, "one", 10*time.Second).Write(t.Context(), batch)
	require.NoError(t, err)
	d := store.NewDeferred(b.pool, scope, "one", 10*time.Second)
	first, _, err := d.Claim(t.Context(), held, time.Hour, 10, 1<<20)
	require.NoError(t, err)
	require.Len(t, first, 1)
	second, _, err := d.Claim(t.Context(), held, time.Hour, 10, 1<<20)
	require.NoError(t, err)
	require.Empty(t, second)
	require.Equal(t, 1, b.count("select count(*) from processor.deferred where next_attempt_at > now() + interval '59 minutes'"))

	// What was not attempted after all is due at once, with the attempts it had.
	require.NoError(t, d.Return(t.Context(), first))
	again, _, err := d.Claim(t.Context(), held, time.Hour, 10, 1<<20)
	require.NoError(t, err)
	require.Len(t, again, 1)
	require.Equal(t, first[0].Attempts, again[0].Attempts)
}

// An entry that is delivered again while it is deferred keeps its attempts.
func TestDeferringAgainKeepsTheAttempts(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("one", 3)
	w := store.NewWriter(b.pool, scope, "one", 10*time.Second)
	put := func(d protocol.Deferred) {
		batch := b.batch(held, nil)
		batch.Deferred = []protocol.Deferred{d}
		_, err := w.Write(t.Context(), batch)
		require.NoError(t, err)
	}
	d := deferredEntry(1, 3)
	put(d)
	second := d
	second.Attempts = 2
	put(second)
	put(d)
	require.Equal(t, 2, b.count("select attempts from processor.deferred"))
}

// One that is kept, with one attempt for ever, is no crash after an attempt that was decided.
func TestAnEntryThatIsKeptIsNoCrash(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("one", 3)
	w := store.NewWriter(b.pool, scope, "one", 10*time.Second)
	later := store.NewDeferred(b.pool, scope, "one", 10*time.Second)
	kept := deferredEntry(1, 3)
	for range 4 {
		batch := b.batch(held, nil)
		batch.Deferred = []protocol.Deferred{kept}
		_, err := w.Write(t.Context(), batch)
		require.NoError(t, err)
		rows, _, err := later.Claim(t.Context(), held, time.Hour, 10, 1<<20)
		require.NoError(t, err)
		require.Len(t, rows, 1)
		require.Equal(t, telemetry.ClassDecode, rows[0].Class)
		require.Equal(t, 2, rows[0].Attempts)
		_, err = later.Begin(t.Context(), rows)
		require.NoError(t, err)
		kept.Again = true
	}
}

// Only what is due is claimed, and of the shards given only.
func TestWhatIsNotDueIsNotClaimed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("one", 3, 4)
	batch := b.batch(held, nil)
	later := deferredEntry(2, 3)
	later.NextAttempt = time.Now().Add(time.Hour)
	batch.Deferred = []protocol.Deferred{deferredEntry(1, 3), later, deferredEntry(3, 4)}
	_, err := store.NewWriter(b.pool, scope, "one", 10*time.Second).Write(t.Context(), batch)
	require.NoError(t, err)
	list, _, err := store.NewDeferred(b.pool, scope, "one", 10*time.Second).Claim(t.Context(), held[:1], time.Hour, 10, 1<<20)
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, uint64(1), list[0].Entry.ID.Ms)
}

// P9: deferred entries are not counted in flight, so a claim of them is bounded in bytes, too.
func TestP9AClaimOfDeferredEntriesIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("one", 3)
	const size, limit = 256 << 10, 2 << 20
	batch := b.batch(held, nil)
	for n := range uint64(41) {
		d := deferredEntry(n+1, 3)
		d.Entry.Fields = []string{"payload", strings.Repeat("0", size)} // which compress well
		batch.Deferred = append(batch.Deferred, d)
	}
	batch.Deferred[40].NextAttempt = batch.Deferred[0].NextAttempt.Add(-time.Hour)
	batch.Deferred[40].Entry.Fields[1] = strings.Repeat("0", limit)
	batch.Deferred[0].Entry.Fields = nil
	_, err := store.NewWriter(b.pool, scope, "one", 10*time.Second).Write(t.Context(), batch)
	require.NoError(t, err)
	later := store.NewDeferred(b.pool, scope, "one", 10*time.Second)
	var claims []int
	seen := make(map[telemetry.EntryID]bool)
	for more := true; more; {
		var list []protocol.Deferred
		list, more, err = later.Claim(t.Context(), held, time.Hour, 500, limit)
		require.NoError(t, err)
		claims = append(claims, len(list))
		bytes := 0
		for i := range list {
			bytes += list[i].Entry.Size()
			seen[list[i].Entry.ID] = true
		}
		require.True(t, bytes <= limit || len(list) == 1, "%d entries of %d bytes", len(list), bytes)
	}
	require.Equal(t, []int{1, 8, 7, 7, 7, 7, 4}, claims, "the one that is larger and due first, then as many as there is room for")
	require.Len(t, seen, 41)
}

// The rules of eligibility are there twice, in Go and in SQL: both decide alike, on
// every border too.
func TestTheRulesAreTheSameInGoAndInSQL(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("one", 3)
	for n, rules := range []telemetry.Eligibility{
		{MaxFutureSkew: time.Minute},
		{MaxFutureSkew: time.Minute, MinSatellites: 1},
		{MaxFutureSkew: time.Hour, MinSatellites: 5},
		{MaxFutureSkew: time.Minute, MinSatellites: 1, MaxPast: time.Hour},
	} {
		device := fmt.Sprint("d", n)
		list := records(device, 0, 300)
		want := make(map[telemetry.Exclusion]int)
		newest := int64(0)
		for i := range list {
			r := &list[i]
			r.StreamUS = r.TimeUS - rules.MaxFutureSkew.Microseconds() - int64(i%3-1) - int64(i%5)
			if rules.MaxPast > 0 && i%2 == 0 {
				r.StreamUS = r.TimeUS + rules.MaxPast.Microseconds() + int64(i%3-1)
			}
			r.Satellites = int16(i % 8)
			if i%7 == 0 {
				r.Latitude, r.Longitude = 0, float64(i%2)
			}
			x := rules.Of(r)
			if want[x]++; x == telemetry.Eligible {
				newest = max(newest, r.TimeUS)
			}
		}
		require.Equal(t, rules.MaxPast > 0, want[telemetry.Ancient] > 0)
		require.Positive(t, min(want[telemetry.Future], want[telemetry.NoFix], want[telemetry.Eligible]))
		_, err := store.NewWriter(b.pool, scope, "one", 10*time.Second).Write(t.Context(), b.batch(held, list))
		require.NoError(t, err)
		from := list[0].Time()
		points, _, err := store.NewLists(b.pool, scope, 10*time.Second).Track(t.Context(), device, from, from.Add(24*time.Hour), 1000, rules)
		require.NoError(t, err)
		require.Len(t, points, len(list))
		for i := range points {
			require.Equal(t, rules.Of(&list[i]), points[i].Excluded, "%+v", list[i])
		}
		require.NoError(t, store.NewReader(b.pool, 10*time.Second).LastFixes(t.Context(), []string{device}, rules, func(_ int, last geofence.Fix) {
			require.Equal(t, newest, last.TimeUS)
		}))
	}
}

// A row that takes no part gives way to a record that does, and is kept as a
// conflict; a flagged one stays, since the flag is its own.
func TestAFlaggedRowKeepsItsTime(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.take("one", 3)
	w := store.NewWriter(b.pool, scope, "one", 10*time.Second)
	late := func(satellites, speed int) protocol.CommitResult {
		list := records("d", 0, 2)
		for i := range list {
			list[i].ID = telemetry.EntryID{Ms: uint64(1000 + speed), Seq: uint64(i)}
			list[i].Satellites, list[i].Speed = int16(satellites), float32(speed)
		}
		batch := b.batch(held, nil)
		batch.Late, batch.Rules.Eligibility.MinSatellites = list, 1
		out, err := w.Write(t.Context(), batch)
		require.NoError(t, err)
		return out
	}
	first := records("d", 0, 1)[0].Time()
	require.Equal(t, []bool{true, true}, late(0, 1).Stored)
	_, err := b.pool.Exec(t.Context(), "update public.positions set faulty = true where ts = $1", first)
	require.NoError(t, err)
	require.Equal(t, protocol.CommitResult{Stored: []bool{false, true}, Conflicts: 1, NewConflicts: 2}, late(9, 2))
	require.Equal(t, protocol.CommitResult{Stored: []bool{false, false}, Conflicts: 1}, late(9, 2), "delivered again")
	require.Equal(t, protocol.CommitResult{Stored: []bool{false, false}, Conflicts: 1}, late(0, 1), "the one that gave way, too")
	require.Equal(t, 1, b.count("select count(*) from public.positions where speed = 1 and faulty and ts = $1", first))
	require.Equal(t, 1, b.count("select count(*) from public.positions where speed = 2 and not faulty"))
	require.Equal(t, 2, b.count("select count(*) from processor.conflicts where entry_id is not null and differs = '{satellites,speed}'"))
}

// What an owner leaves at its release goes to one acquisition, and only soon after.
func TestWhatIsLeftIsForTheNextAcquisition(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	left := []byte("state")
	release := func(member string, epoch int64) {
		held := protocol.ShardLease{Shard: 3, Epoch: epoch, Left: left}
		require.NoError(t, b.shards.Release(t.Context(), held, member, telemetry.EntryID{}))
	}
	acquire := func(member string) protocol.Shard {
		b.exec("update processor.assignments set member = $1 where shard = 3", member)
		taken, err := b.shards.Acquire(t.Context(), 3, member, "")
		require.NoError(t, err)
		return taken
	}
	first := acquire("one")
	require.Nil(t, first.Left)
	require.False(t, first.Released, "nobody had it before")
	release("one", first.Epoch-1)
	release("two", first.Epoch)
	require.Zero(t, b.count("select count(*) from processor.shard_states"), "it was not theirs to leave")
	release("one", first.Epoch)
	second := acquire("two")
	require.Equal(t, left, second.Left)
	require.True(t, second.Released)
	require.Zero(t, b.count("select count(*) from processor.shard_states"))
	third := acquire("one")
	require.Nil(t, third.Left, "without a release")
	require.False(t, third.Released)

	release("one", second.Epoch+1)
	b.exec("update processor.shard_states set left_at = now() - interval '31 seconds'")
	b.exec("update processor.shards set updated_at = (select left_at from processor.shard_states)")
	late := acquire("two")
	require.Nil(t, late.Left, "the tables may have been changed since")
	require.False(t, late.Released)

	require.NoError(t, b.shards.Move(t.Context(), []protocol.Shard{{Shard: 3, Owner: "two"}}, []string{"one"}, "test", "test"))
	moved := acquire("one")
	require.False(t, moved.Released, "an operator took it, and nobody left anything")
	release("one", moved.Epoch)
	b.pin(shards)
	require.NoError(t, b.resize(2*shards, nil))
	require.False(t, acquire("two").Released, "its devices are others since the resize")
}

// A lock of the tables of what releases leave costs that only, and a state that an
// acquisition could not take is nobody's later.
func TestALockedTableOfStatesDelaysNoShard(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	assign := func(member string) { b.exec("update processor.assignments set member = $1 where shard = 3", member) }
	acquire := func(member string) protocol.Shard {
		taken, err := b.shards.Acquire(t.Context(), 3, member, "")
		require.NoError(t, err)
		return taken
	}
	release := func(member string, epoch int64, left []byte) {
		held := protocol.ShardLease{Shard: 3, Epoch: epoch, Left: left}
		require.NoError(t, b.shards.Release(t.Context(), held, member, telemetry.EntryID{Ms: uint64(epoch)}))
	}
	lock := func() (unlock func()) {
		tx, err := b.pool.Begin(t.Context())
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), "lock table processor.shard_states, processor.progress in share mode")
		require.NoError(t, err)
		unlock = sync.OnceFunc(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
		t.Cleanup(unlock)
		return unlock
	}
	assign("one")
	first := acquire("one")
	release("one", first.Epoch, []byte("first"))
	unlock := lock()
	assign("two")
	second := acquire("two")
	require.True(t, second.Released)
	require.Nil(t, second.Left)
	release("two", second.Epoch, []byte("second"))
	unlock()
	require.Equal(t, 1, b.count("select count(*) from processor.shard_states where state = 'first'"), "the lock was held all along")
	third := acquire("two")
	require.Equal(t, second.Epoch+1, third.Epoch, "the second was released")
	require.Equal(t, telemetry.EntryID{Ms: uint64(first.Epoch)}, third.Applied, "its progress was not written")
	require.True(t, third.Released)
	require.Nil(t, third.Left, "it is of the release before the last")
	release("two", third.Epoch, []byte("third"))
	require.Equal(t, []byte("third"), acquire("two").Left)
}
