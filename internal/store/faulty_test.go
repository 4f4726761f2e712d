package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv"
)

// An owner that writes late records of the device may want the rows in another order; the
// mark that a deadlock undoes is made again.
func TestAMarkThatADeadlockUndoesIsMadeAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	list := records("d", 0, 10)
	_, err := store.NewWriter(b.pool, scope, "one", 10*time.Second).Write(ctx, b.batch(b.take("one", 3), list))
	require.NoError(t, err)
	first, last := list[0].Time(), list[9].Time()
	update := "update public.positions set speed = speed where device_id = 'd' and ts = $1"

	// The owner waits longer before it looks for a deadlock, so that it is the mark's.
	owner, err := b.pool.Begin(ctx)
	require.NoError(t, err)
	defer func() { _ = owner.Rollback(ctx) }()
	for _, sql := range []string{"set local deadlock_timeout = '1min'", "set local application_name = 'owner'"} {
		_, err = owner.Exec(ctx, sql)
		require.NoError(t, err)
	}
	_, err = owner.Exec(ctx, update, last)
	require.NoError(t, err)
	type result struct {
		out store.Marked
		err error
	}
	marked := make(chan result, 1)
	go func() {
		ask := store.NewDevices(b.pool, scope, store.FleetSettings{Shards: 4}, "test")
		out, _, err := ask.Mark(ctx, store.Mark{Device: "d", From: first, To: last, Reason: "jammed"})
		marked <- result{out, err}
	}()
	testenv.Wait(t, 20*time.Second, func() error {
		if b.count("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%set faulty%'") != 1 {
			return fmt.Errorf("the mark does not wait for the owner yet")
		}
		return nil
	})
	_, err = owner.Exec(ctx, update, first) // the mark has it
	require.NoError(t, err)
	require.NoError(t, owner.Commit(ctx))
	m := <-marked
	require.NoError(t, m.err)
	require.EqualValues(t, 10, m.out.Positions)
	require.Equal(t, 10, b.count("select count(*) from public.positions where faulty"))
	require.Equal(t, 1, b.count("select count(*) from processor.requests where kind = $1", protocol.RequestRecompute))
}
