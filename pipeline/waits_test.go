package pipeline_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// awaitWait waits until an instance tells of a state, with since when.
func (b *bench) awaitWait(in *instance, state string, shard int) {
	b.TB.Helper()
	began := time.Now().Add(-time.Minute)
	testenv.Wait(b.TB, 20*time.Second, func() error {
		waits := in.WorkStatus().Waits
		for _, w := range waits {
			if w.State == state && w.Shard == shard && w.Since.After(began) {
				return nil
			}
		}
		return fmt.Errorf("want %s of shard %d, have %+v", state, shard, waits)
	})
}

func (b *bench) nothingWaits(in *instance) {
	b.TB.Helper()
	testenv.Wait(b.TB, 20*time.Second, func() error {
		if waits := in.WorkStatus().Waits; len(waits) > 0 {
			return fmt.Errorf("waits: %+v", waits)
		}
		return nil
	})
}

func TestWhatWaitsForPostgresIsNamed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Exec(raising)
	in := b.Start("one", func(c *pipeline.Config, _ *pipeline.Deps) { c.DispatchAhead = 100 })
	b.AcquireAll(in)
	var entries [][]string
	for s := range int64(200) {
		entries = append(entries, at(1, s))
	}
	b.Publish(entries...)
	shard := telemetry.ShardOf(fleet.DeviceID(1), shards)
	b.awaitWait(in, protocol.WaitRefused, shard)
	b.awaitWait(in, protocol.WaitDispatchAhead, -1)
	b.Exec("delete from down")
	b.Settled(20*time.Second, 0)
	b.nothingWaits(in)
}

func TestAShardThatDrainsIsNamed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in := b.Start("one")
	b.AcquireAll(in)
	tx, err := b.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }() // or the pool would wait for it
	_, err = tx.Exec(t.Context(), "lock table positions in access exclusive mode")
	require.NoError(t, err)
	b.Publish(at(1, 1))
	testenv.Wait(t, 10*time.Second, func() error {
		if in.WorkStatus().InFlight == 0 {
			return fmt.Errorf("nothing is in flight")
		}
		return nil
	})
	shard := telemetry.ShardOf(fleet.DeviceID(1), shards)
	drained := in.Stop(shard)
	b.awaitWait(in, protocol.WaitDraining, shard)
	require.NoError(t, tx.Rollback(t.Context()))
	<-drained
	b.nothingWaits(in)
}

func TestADispatcherThatIsHeldOrHasNoRoomIsNamed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in := b.Start("one", oneWorker, func(c *pipeline.Config, _ *pipeline.Deps) { c.MaxInFlightRecords, c.ReadBatchRecords = 64, 32 })
	b.AcquireAll(in)
	require.NoError(t, in.Group.SetPaused(t.Context(), true))
	b.awaitWait(in, protocol.WaitDispatchHeld, -1)
	require.NoError(t, in.Group.SetPaused(t.Context(), false))
	b.nothingWaits(in)

	tx, err := b.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(t.Context(), "lock table positions in access exclusive mode")
	require.NoError(t, err)
	var entries [][]string
	for s := range int64(10) {
		for d := range 50 {
			entries = append(entries, at(d, s))
		}
	}
	b.Publish(entries...)
	b.awaitWait(in, protocol.WaitDispatchFull, -1)
	require.NoError(t, tx.Rollback(t.Context()))
	b.Settled(20*time.Second, 0)
	b.nothingWaits(in)
}

func TestDeferredEntriesThatAreKeptAreNamed(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	b := newBench(t)
	b.Exec("alter table positions add constraint no_seven check (attributes->>'239' is distinct from '7')")
	in := b.Start("one")
	b.AcquireAll(in)
	var entries [][]string
	for s := range int64(15) {
		for d := range 50 {
			if d%5 == 4 {
				entries = append(entries, seven(d, s))
			} else {
				entries = append(entries, at(d, s))
			}
		}
	}
	b.Publish(entries...)
	b.awaitWait(in, protocol.WaitKept, -1)
	b.Exec("alter table positions drop constraint no_seven")
	b.nothingDeferred(20 * time.Second)
	b.nothingWaits(in)
}
