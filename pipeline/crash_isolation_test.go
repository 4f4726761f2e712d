package pipeline_test

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// P6: a crash is held against an entry only if nothing else was applied in the process, of
// any stream; and an attempt that waits keeps the others no longer than some seconds, and
// is not exclusive from then on.
func TestAnExclusiveAttemptProvesOnlyWhatNoOtherEntryDid(t *testing.T) {
	t.Parallel()
	one := deviceOfShard3()
	var others []int
	for d := 1; len(others) < 8; d++ {
		if telemetry.ShardOf(fleet.DeviceID(d), shards) != 3 {
			others = append(others, d)
		}
	}
	for _, tt := range []struct {
		name  string
		plant func(b *bench)
		// isExclusive is of one row, while the attempt has not ended.
		isExclusive string
	}{
		{
			"a probe of a quarantined shard",
			func(b *bench) { b.quarantine(1, b.Publish(at(one, 1))[0], "") },
			"select (detail->>'exclusive')::bool from processor.incidents where (detail->>'under_way')::bool",
		},
		{
			"an entry whose last attempt had no outcome",
			func(b *bench) { b.deferCrashed(one, 2) },
			"select attempts = 3 from processor.deferred where class = 'crash'",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			attempts := pipeline.NewAttempts()
			var waits atomic.Bool
			waits.Store(true)
			defer waits.Store(false)
			in := b.Start("one", func(c *pipeline.Config, d *pipeline.Deps) {
				c.Workers = shards // else shards of the same worker wait for its commit
				d.Attempts = attempts
				d.Sink = &sink{Sink: d.Sink, before: func(w *protocol.Batch) error {
					ofOne := func(r telemetry.Record) bool { return r.DeviceID == fleet.DeviceID(one) }
					if waits.Load() && (slices.ContainsFunc(w.Fresh, ofOne) || slices.ContainsFunc(w.Late, ofOne)) {
						return errNotNow
					}
					return nil
				}}
			})
			b2 := newBench(t)
			second := b2.Start("of another stream", func(_ *pipeline.Config, d *pipeline.Deps) { d.Attempts = attempts })
			b2.AcquireAll(second)
			tt.plant(b)
			b.AcquireAll(in)
			exclusive := func() (is, others bool) {
				require.NoError(t, b.Pool.QueryRow(t.Context(), "select coalesce(("+tt.isExclusive+"), false), exists (select from positions)").Scan(&is, &others))
				return is, others
			}
			testenv.Wait(t, 10*time.Second, func() error {
				if is, _ := exclusive(); !is {
					return errors.New("no exclusive attempt")
				}
				return nil
			})
			for _, d := range others {
				b.Publish(at(d, 1))
				b2.Publish(at(d, 1))
			}
			testenv.Wait(t, 20*time.Second, func() error {
				switch is, stored := exclusive(); {
				case is && stored:
					t.Fatal("another entry is stored during an exclusive attempt")
				case is:
					require.Zero(t, b2.Count("select count(*) from positions"), "of another stream")
					return errors.New("the attempt keeps others waiting")
				}
				return nil
			})
			for _, of := range []*bench{b, b2} {
				testenv.Wait(t, 10*time.Second, func() error { return of.rows(len(others)) })
			}
			waits.Store(false)
			b.Settled(10*time.Second, 0)
			testenv.Wait(t, 10*time.Second, func() error { return b.rows(len(others) + 1) })
			require.Empty(t, b.letters())
		})
	}
}

// deferCrashed has a deferred entry of a device of shard 3 whose last attempt had no outcome.
func (b *bench) deferCrashed(device, attempts int) {
	b.TB.Helper()
	entry := telemetry.Entry{ID: telemetry.EntryID{Ms: 7}, Fields: at(device, 1)}
	fields := make([][]byte, len(entry.Fields))
	for i, f := range entry.Fields {
		fields[i] = []byte(f)
	}
	_, err := b.Pool.Exec(b.TB.Context(), `
insert into processor.deferred (stream, group_name, entry_id, shard, device_id, fields, class, error, fingerprint,
  attempts, first_failed_at, last_failed_at, next_attempt_at, instance, version, digest)
values ($1, $2, $3, 3, $4, $5, 'crash', 'none', 'none', $7, now(), now(), now(), 'dead', 'dead', $6)`,
		b.Stream, b.Group, entry.ID.String(), fleet.DeviceID(device), fields, entry.Digest(), attempts)
	require.NoError(b.TB, err)
}

// deviceOfShard3 is the first device of shard 3.
func deviceOfShard3() int {
	d := 1
	for telemetry.ShardOf(fleet.DeviceID(d), shards) != 3 {
		d++
	}
	return d
}

// quarantine has a shard 3 whose owner ended, with a limit, until an entry. Of a culprit the
// owner had nothing else in flight.
func (b *bench) quarantine(limit int, until telemetry.EntryID, culprit string) {
	b.TB.Helper()
	_, err := b.Pool.Exec(b.TB.Context(), `
with ended as (
  update processor.shards set max_in_flight = $1, crash_count = 3, epoch = 7, owner = 'dead', owner_since = now() where stream = $2 and shard = 3
)
insert into processor.incidents (stream, group_name, kind, subject, detail)
values ($2, $3, $4, '3', jsonb_build_object('until', $5::text, 'first', $6::text, 'last', $6::text, 'entries', 1, 'epoch', 7,
  'under_way', $6 <> '', 'exclusive', $6 <> ''))`, limit, b.Stream, b.Group, protocol.QuarantinedShard, until.String(), culprit)
	require.NoError(b.TB, err)
}

// quarantined reports whether Postgres knows of the quarantine.
func (b *bench) quarantined() bool {
	return b.Count("select count(*) from processor.shards join processor.incidents on subject = shard::text where max_in_flight = 1 and closed_at is null") == 1
}

// P6: as long as the dead letter of an entry that ends processes waits, the next owner has
// to know of it.
func TestAQuarantineOutlastsADeadLetterThatRedisRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	one := deviceOfShard3()
	require.NoError(t, b.Client.Set(t.Context(), b.Stream+":dlq", "of another type", 0).Err())
	in := b.Start("one")
	ids := b.Publish(at(one, 1), at(one, 2))
	b.quarantine(1, ids[0], ids[0].String())
	b.AcquireAll(in)
	testenv.Wait(t, 20*time.Second, func() error {
		if !b.quarantined() {
			t.Fatal("the quarantine is over, with the culprit on its queue")
		}
		if !slices.ContainsFunc(in.WorkStatus().Waits, func(w protocol.Wait) bool { return w.Shard == 3 }) {
			return errors.New("no dead letter is refused")
		}
		return nil
	})
	require.True(t, b.quarantined())
	require.NoError(t, b.Client.Del(t.Context(), b.Stream+":dlq").Err())
	b.Settled(20*time.Second, 0)
	require.Equal(t, telemetry.ClassCrash, b.awaitDeadLetters(10*time.Second, 1)[ids[0]].Class)
	require.False(t, b.quarantined())
	require.Equal(t, 1, b.Count("select count(*) from positions"))
}

// P6: of an entry that ends processes and was trimmed there is nothing to keep: it is lost, which is counted.
func TestACulpritThatWasTrimmedIsNoDeadLetter(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in := b.Start("one")
	ids := b.Publish(at(deviceOfShard3(), 1), at(deviceOfShard3(), 2))
	testenv.Wait(t, 10*time.Second, func() error {
		if n := b.pending(); n != 2 {
			return fmt.Errorf("%d are on queues", n)
		}
		return nil
	})
	require.NoError(t, b.Client.XDel(t.Context(), b.Stream, ids[0].String()).Err())
	b.quarantine(1, ids[0], ids[0].String())
	b.AcquireAll(in)
	b.Settled(20*time.Second, 0)
	testenv.Wait(t, 10*time.Second, func() error { return b.rows(1) })
	require.False(t, b.quarantined())
	require.Empty(t, b.letters())
	require.Zero(t, b.Count("select count(*) from processor.unconfirmed_letters"))
	losses, _, _, err := b.ours().Losses(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, losses, 1)
	require.Equal(t, []any{protocol.LossTrimmedPending, ids[0]}, []any{losses[0].Cause, losses[0].First})
}

// P6: the progress mark follows IDs that go back, in Postgres and Redis alike. If only one of them did, the
// next owner would note a loss of what Postgres never had.
func TestTheProgressMarkOfAProbeIsNotTakenForALoss(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in := b.Start("one")
	last := b.Publish(at(deviceOfShard3(), 1))[0]
	later := telemetry.EntryID{Ms: 1 << 50}
	b.Exec("insert into processor.progress (stream, group_name, shard, applied_id) values ('" + b.Stream + "', '" + b.Group + "', 3, '" + later.String() + "')")
	names := stream.Names{Stream: b.Stream, Group: b.Group}
	require.NoError(t, b.Client.HSet(t.Context(), names.Applied(), 3, later.String()).Err())
	b.quarantine(1, last, "")
	b.AcquireAll(in)
	b.Settled(20*time.Second, 0)
	testenv.Wait(t, 10*time.Second, func() error {
		if b.quarantined() {
			return errors.New("the quarantine is not over")
		}
		if known := b.Client.HGet(t.Context(), names.Applied(), "3").Val(); known != last.String() {
			return fmt.Errorf("Redis knows of %s, want %s", known, last)
		}
		return nil
	})
	require.Equal(t, 1, b.Count("select count(*) from processor.progress where shard = 3 and applied_id = $1", last.String()))
	b.Publish(at(deviceOfShard3()+1, 1))
	b.Settled(20*time.Second, 0)
	require.NoError(t, b.Client.XTrimMaxLen(t.Context(), b.Stream, 0).Err())
	known, err := b.ours().RegisterOwner(t.Context(), "next", []int{3})
	require.NoError(t, err)
	require.True(t, last.Less(known.Trimmed))
	require.Nil(t, known.Restored(protocol.Range{Shard: 3, From: last, To: later}))
}

// P7: who locks the row of a quarantined shard keeps it from working, and no other.
func TestALockedQuarantinedShardHoldsNoOther(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	b := newBench(t)
	in := b.Start("one", oneWorker)
	b.Exec("update processor.shards set updated_at = now()") // or the lock is taken of none
	b.quarantine(1, telemetry.EntryID{Ms: 1 << 60}, "")
	b.AcquireAll(in)
	release := b.hold("shard = 3")
	var entries [][]string
	for d := range 40 {
		entries = append(entries, at(d, 1))
	}
	ids := b.Publish(entries...)
	of3 := 0
	for d := range ids {
		if telemetry.ShardOf(fleet.DeviceID(d), shards) == 3 {
			of3++
		}
	}
	require.Positive(t, of3)
	testenv.Wait(t, 20*time.Second, func() error { return b.rows(len(ids) - of3) })
	release()
	testenv.Wait(t, 20*time.Second, func() error { return b.rows(len(ids)) })
	b.Settled(10*time.Second, 0)
	require.Empty(t, b.letters())
}

// P7: while the row of its shard is locked, an entry that is tried alone keeps the others waiting
// only now and then.
func TestALockedShardIsNotTriedExclusivelyAllTheTime(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	claims := make(chan time.Time, 100)
	in := b.Start("one", func(_ *pipeline.Config, d *pipeline.Deps) {
		d.Deferrals = &deferrals{Deferrals: d.Deferrals, claimed: func() { claims <- time.Now() }}
	})
	b.AcquireAll(in)
	release := b.hold("shard = 3")
	b.deferCrashed(deviceOfShard3(), 2)
	first := <-claims
	require.Greater(t, (<-claims).Sub(first), 2*time.Second)
	release()
	testenv.Wait(t, 20*time.Second, func() error { return b.rows(1) })
	require.Empty(t, b.letters())
}

// P6: an entry may have been among others when the process ended. With one attempt, too, it is tried alone
// before it is held to be the reason.
func TestWithOneAttemptAnEntryIsTriedAloneBeforeACrashIsHeldAgainstIt(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in := b.Start("one", func(c *pipeline.Config, _ *pipeline.Deps) { c.DeadLetters.MaxAttempts = 1 })
	b.AcquireAll(in)
	b.deferCrashed(deviceOfShard3(), 1)
	testenv.Wait(t, 10*time.Second, func() error {
		if n := b.Count("select count(*) from processor.deferred"); n > 0 {
			return errors.New("it is not decided")
		}
		return nil
	})
	require.Empty(t, b.letters())
	require.NoError(t, b.rows(1))
}

// P6: where DLQ_MAX_ATTEMPTS was lowered, attempts that an entry had among others leave one that it has alone.
func TestAttemptsBeyondTheMaximumLeaveOneThatIsMadeAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var waits atomic.Bool
	waits.Store(true)
	defer waits.Store(false)
	in := b.Start("one", func(_ *pipeline.Config, d *pipeline.Deps) {
		d.Sink = &sink{Sink: d.Sink, before: func(w *protocol.Batch) error {
			if waits.Load() && len(w.Late) > 0 {
				return errNotNow
			}
			return nil
		}}
	})
	b.deferCrashed(deviceOfShard3(), 7)
	b.Exec("update processor.deferred set class = 'sink'")
	b.AcquireAll(in)
	testenv.Wait(t, 10*time.Second, func() error {
		if n := b.Count("select count(*) from processor.deferred where class = 'crash'"); n == 0 {
			return errors.New("no attempt has begun")
		}
		return nil
	})
	require.Equal(t, 2, b.Count("select attempts from processor.deferred"), "the third is made alone after a crash")
	waits.Store(false)
	testenv.Wait(t, 10*time.Second, func() error { return b.rows(1) })
}

// P6: whether a refused row is given up depends on others that wait, none of which is looked at during an
// exclusive attempt: a later one decides.
func TestARowThatIsRefusedWhileItIsTriedAloneIsDecidedLater(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var claims atomic.Int64
	in := b.Start("one", func(_ *pipeline.Config, d *pipeline.Deps) {
		d.Deferrals = &deferrals{Deferrals: d.Deferrals, claimed: func() { claims.Add(1) }}
	})
	one := deviceOfShard3()
	b.refuse(one)
	b.AcquireAll(in)
	b.Publish(at(one+1, 1), at(one+2, 1))
	testenv.Wait(t, 10*time.Second, func() error { return b.rows(2) })
	b.deferCrashed(one, 2)
	for _, letter := range b.awaitDeadLetters(10*time.Second, 1) {
		require.Equal(t, telemetry.ClassSink, letter.Class)
		require.Equal(t, 3, letter.Attempts)
	}
	require.EqualValues(t, 2, claims.Load())
}

// P6: the same holds with one attempt, for an entry that is still on its queue.
func TestWithOneAttemptARowThatIsRefusedInAProbeIsDecidedLater(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in := b.Start("one", func(c *pipeline.Config, _ *pipeline.Deps) { c.DeadLetters.MaxAttempts = 1 })
	one := deviceOfShard3()
	b.refuse(one)
	ids := b.Publish(at(one+1, 1), at(one+2, 1), at(one, 1))
	b.quarantine(1, ids[2], "")
	b.AcquireAll(in)
	letter := b.awaitDeadLetters(10*time.Second, 1)[ids[2]]
	require.Equal(t, telemetry.ClassSink, letter.Class)
	require.Equal(t, 2, letter.Attempts)
}

// refuse has a trigger refuse the rows of a device.
func (b *bench) refuse(device int) {
	b.Exec(`
create function refuse() returns trigger language plpgsql as $$ begin raise exception 'refused' using errcode = 'P0001'; end $$;
create trigger refuse before insert on positions for each row when (new.device_id = '` + fleet.DeviceID(device) + `') execute function refuse()`)
}
