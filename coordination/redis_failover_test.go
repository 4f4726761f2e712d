package coordination

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// P6: the loss of a stream's newest entries is in the ledger once; without a loss
// the ledger is empty.
func TestAnOlderStateOfTheStreamIsALossOfUnknownSize(t *testing.T) {
	b := newBench(t)
	ctx, key := t.Context(), b.where.Stream
	lead := func() (look func(), reg *prometheus.Registry) {
		term, err := store.NewLeader(b.pool, b.scope(), "watch", time.Minute).BeginTerm(ctx)
		require.NoError(t, err)
		reg = prometheus.NewRegistry()
		ledger := store.NewLedger(b.pool, b.scope(), "watch", time.Minute)
		w := NewDataLossDetector(b.group, ledger, NewLosses(ledger, reg), discard(), reg)
		return func() {
			for range 2 {
				w.polled = time.Time{}
				require.NoError(t, w.Do(ctx, term))
			}
		}, reg
	}
	addAs := func(as string) telemetry.EntryID {
		a := xadd(key, "a")
		a.ID = as
		text, err := b.client.XAdd(ctx, a).Result()
		require.NoError(t, err)
		id, err := telemetry.ParseEntryID(text)
		require.NoError(t, err)
		return id
	}
	add := func() telemetry.EntryID { return addAs("*") }
	state := func() string { return b.client.Dump(ctx, key).Val() }
	// In the millisecond of the last entry the older state would use its ID again.
	resume := func(state string) {
		began := b.client.Time(ctx).Val()
		require.NoError(t, b.client.RestoreReplace(ctx, key, 0, state).Err())
		testenv.Wait(t, time.Second, func() error {
			if now := b.client.Time(ctx).Val(); now.Sub(began) < 2*time.Millisecond {
				return fmt.Errorf("the server's clock is at %v, want 2 ms after %v", now, began)
			}
			return nil
		})
	}
	mark := func(id telemetry.EntryID, ago string) {
		b.exec(`insert into processor.progress (stream, group_name, shard, applied_id, updated_at) values ($1, $2, 0, $3, now() - $4::interval)
			on conflict (stream, group_name, shard) do update set applied_id = excluded.applied_id, updated_at = excluded.updated_at`,
			key, b.where.Group, id.String(), ago)
	}
	losses := func(cause string) int {
		return b.count("select count(*) from processor.losses where entries is null and cause = $1", cause)
	}
	look, reg := lead()
	look()

	kept := b.dispatched("a", "b", "c")
	look()
	older := state()
	lost := b.dispatched("d", "e")
	look()
	// The leader has not observed these; the member that dispatched them has.
	lost = append(lost, add(), add())
	resume(state()) // a restart without a loss
	require.Zero(t, losses("failover"))

	resume(older)
	first := add()
	look()
	next, _ := lead()
	next()
	require.Equal(t, 1, losses("failover"))
	b.requireLost(lost...)
	b.requireKept(kept[2], first)
	require.Equal(t, 1, b.count("select count(*) from processor.incidents where kind = 'redis_failover' and closed_at is not null"))
	require.Equal(t, 1.0, labelled(t, reg, "processor_coordination_data_loss_events_total", "redis_failover"))
	require.Equal(t, 1.0, labelled(t, reg, "processor_coordination_losses_total", "failover"), "though nobody can tell how many entries")

	// Only a shard's applied ID reaches the lost range; the leader had not polled.
	before := add()
	next()
	older = state()
	done := add()
	mark(done, "0")
	resume(older)
	add()
	next()
	require.Equal(t, 2, losses("failover"))
	b.requireLost(done)
	b.requireKept(before)

	// Only a member that dispatches knew of it, and wrote it down when it noticed.
	before = add()
	next()
	older = state()
	done = add()
	ledger := store.NewLedger(b.pool, b.scope(), "watch", time.Minute)
	resume(older)
	for _, id := range []telemetry.EntryID{done, before} { // an older one changes nothing
		require.NoError(t, ledger.RaiseHighWatermark(ctx, id))
	}
	next()
	require.Equal(t, 3, losses("failover"))
	b.requireLost(done)
	b.requireKept(before, add())

	// Trimmed and deleted entries are detected elsewhere.
	last := add()
	mark(last, "0")
	next()
	require.NoError(t, b.client.XDel(ctx, key, last.String()).Err())
	next()
	require.NoError(t, b.client.XTrimMinID(ctx, key, add().String()).Err())
	next()
	require.NoError(t, b.client.XTrimMaxLen(ctx, key, 0).Err())
	next()
	require.Equal(t, 3, losses("failover"))

	// Without a group, its recreation already shows the loss.
	older = state()
	done = add()
	next()
	mark(done, "1 hour")
	resume(older)
	require.NoError(t, b.client.Del(ctx, b.group.Names().All()...).Err())
	require.NoError(t, b.client.XGroupDestroy(ctx, key, b.where.Group).Err())
	next()
	_, err := b.group.AcquireDispatchLease(ctx, "", "again", time.Minute)
	require.NoError(t, err)
	next()
	require.Equal(t, 1, losses("flush"))
	require.Equal(t, 3, losses("failover"))

	// All keys are deleted, in several steps, the record of the recreation included.
	add()
	next()
	require.NoError(t, b.client.Del(ctx, key).Err())
	require.NoError(t, b.client.Del(ctx, b.group.Names().DispatchLease()).Err())
	_, err = b.group.AcquireDispatchLease(ctx, "", "once more", time.Minute)
	require.NoError(t, err)
	require.NoError(t, b.client.Del(ctx, b.group.Names().All()...).Err())
	add()
	next()
	require.Equal(t, 2, losses("flush"))
	require.Equal(t, 3, losses("failover"))
	require.Equal(t, 2, b.count("select count(*) from processor.incidents where kind = 'redis_lost' and closed_at is not null"))

	// An ID far ahead of the clock, which goes with a repair of the stream, hides no later loss.
	_, err = b.group.AcquireDispatchLease(ctx, "", "ahead", time.Minute)
	require.NoError(t, err)
	add()
	next()
	older = state()
	mark(addAs("9999999999999-1"), "0") // of a shard that is idle from now on
	next()
	resume(older)
	next()
	require.Equal(t, 4, losses("failover"))
	before = add()
	next()
	older = state()
	done = add()
	next()
	require.Equal(t, 4, losses("failover"))
	resume(older)
	next()
	next()
	require.Equal(t, 5, losses("failover"))
	b.requireLost(done)
	require.Equal(t, 1, b.count("select count(*) from processor.losses where cause = 'failover' and first_id = $1", before.Next().String()))
}

// inLedger reports whether an entry lies within a loss of the ledger.
func (b *bench) inLedger(id telemetry.EntryID) bool {
	b.t.Helper()
	rows, err := b.pool.Query(b.t.Context(), "select coalesce(first_id, '0-0'), coalesce(last_id, '0-0') from processor.losses")
	require.NoError(b.t, err)
	var first, last string
	found := false
	_, err = pgx.ForEachRow(rows, []any{&first, &last}, func() error {
		from, err := telemetry.ParseEntryID(first)
		if err != nil {
			return err
		}
		to, err := telemetry.ParseEntryID(last)
		found = found || from.Compare(id) <= 0 && id.Compare(to) <= 0
		return err
	})
	require.NoError(b.t, err)
	return found
}

func (b *bench) requireLost(ids ...telemetry.EntryID) {
	b.t.Helper()
	for _, id := range ids {
		require.True(b.t, b.inLedger(id), "%s is lost and in no range of the ledger", id)
	}
}

func (b *bench) requireKept(ids ...telemetry.EntryID) {
	b.t.Helper()
	for _, id := range ids {
		require.False(b.t, b.inLedger(id), "%s is there and in a range of the ledger", id)
	}
}
