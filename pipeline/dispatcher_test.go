package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/pipeline"
)

// hold keeps the rows of shards locked, so that no transaction of theirs
// commits, until the returned function is called. Their work is set aside meanwhile.
func (b *bench) hold(where string) (release func()) {
	b.TB.Helper()
	return b.lock("select * from processor.shards where stream = @stream and " + where + " for update")
}

// holdCommits lets no transaction write positions until the returned function is
// called. Work stays in flight meanwhile.
func (b *bench) holdCommits() (release func()) {
	b.TB.Helper()
	return b.lock("lock table public.positions in share mode")
}

func (b *bench) lock(statement string) (release func()) {
	b.TB.Helper()
	ctx := context.Background()
	tx, err := b.Pool.Begin(ctx)
	require.NoError(b.TB, err)
	_, err = tx.Exec(ctx, statement, pgx.NamedArgs{"stream": b.Stream})
	require.NoError(b.TB, err)
	release = func() { _ = tx.Rollback(ctx) }
	b.TB.Cleanup(release)
	return release
}

func (b *bench) pending() int64 {
	b.TB.Helper()
	info, err := b.ours().Info(context.Background())
	require.NoError(b.TB, err)
	return info.Pending
}

const dispatchAhead = 1000

func pausing(cfg *pipeline.Config, _ *pipeline.Deps) {
	cfg.DispatchAhead, cfg.ReadBatchRecords, cfg.StallAfter, cfg.Workers = dispatchAhead, 100, 400*time.Millisecond, 4
}

// P9: dispatch pauses by the number of unfinished entries, and continues for other
// shards while one is stalled.
func TestP9AStalledShardDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in := b.Start("one", pausing)
	b.AcquireAll(in)
	const stuck = 5
	release := b.hold(fmt.Sprintf("shard = %d", stuck))
	var entries [][]string
	standing, others := 0, 0
	for device := 0; standing < 4*dispatchAhead; device++ {
		switch shard := telemetry.ShardOf(fleet.DeviceID(device), shards); {
		case shard == stuck:
			for s := range int64(100) {
				entries = append(entries, at(device, s))
				standing++
			}
		default: // with the same worker, too
			entries = append(entries, at(device, 1))
			others++
		}
	}
	require.Greater(t, others, 20)
	// Entries of other shards lie between and behind those of the stalled one.
	b.Publish(entries...)
	testenv.Wait(t, 30*time.Second, func() error {
		if n := b.Count("select count(*) from positions"); n != others {
			return fmt.Errorf("%d of %d are stored, %d pending", n, others, b.pending())
		}
		return nil
	})
	require.Greater(t, b.pending(), int64(2*dispatchAhead))
	release()
	b.Settled(20*time.Second, 0)
	require.Equal(t, standing+others, b.Count("select count(*) from positions"))
}

// P7, P9: if no shard advances, dispatch pauses at 2*DispatchAhead at the latest.
func TestP9DispatchingPausesWhileNothingAdvances(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in := b.Start("one", pausing)
	b.AcquireAll(in)
	release := b.hold("true")
	var entries [][]string
	for i := range 4 * dispatchAhead {
		entries = append(entries, at(i%200, int64(i/200)))
	}
	b.Publish(entries...)
	var since time.Time
	last := int64(-1)
	testenv.Wait(t, 30*time.Second, func() error {
		if n := b.pending(); n != last {
			last, since = n, time.Now()
		}
		if paused := time.Since(since); last < dispatchAhead || paused < 1200*time.Millisecond {
			return fmt.Errorf("%d are pending since %v", last, paused)
		}
		return nil
	})
	t.Logf("%d of %d entries are dispatched", last, len(entries))
	require.LessOrEqual(t, last, int64(2*dispatchAhead+100))
	require.Zero(t, b.Count("select count(*) from positions"))
	release()
	b.Settled(20*time.Second, 0)
	require.Equal(t, len(entries), b.Count("select count(*) from positions"))
}

// slowSource takes its time over new entries, as over a slow link.
type slowSource struct {
	pipeline.Source
	read time.Duration
}

func (s slowSource) ReadNew(ctx context.Context, after telemetry.EntryID, count int, block time.Duration) (protocol.NewEntries, error) {
	a, err := s.Source.ReadNew(ctx, after, count, block)
	if len(a.Entries) > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(s.read):
		}
	}
	return a, err
}

// P7: what takes longer than the dispatch lease is dispatched nevertheless, by one
// member or by several that compete.
func TestP7DispatchingGoesOnWhereItTakesLongerThanItsLease(t *testing.T) {
	t.Parallel()
	for _, members := range []int{1, 3} {
		t.Run(fmt.Sprint(members), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			var owner *instance
			for i := range members {
				owner = b.Start(fmt.Sprint("m", i), func(c *pipeline.Config, d *pipeline.Deps) {
					c.DispatchLeaseTTL, c.DispatchBlock = 100*time.Millisecond, 20*time.Millisecond
					d.Source, d.Peers = slowSource{d.Source, 250 * time.Millisecond}, func() int { return members - 1 }
				})
			}
			b.AcquireAll(owner)
			var entries [][]string
			for i := range 50 { // several reads: they begin small
				entries = append(entries, at(i, 1))
			}
			b.Publish(entries...)
			b.Settled(30*time.Second, 0)
			require.Equal(t, len(entries), b.Count("select count(*) from positions"))
		})
	}
}

// A pause takes effect while entries come all the time, each dispatch of which
// renews the lease.
func TestAPauseTakesEffectUnderASteadyLoad(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.AcquireAll(b.Start("one", func(c *pipeline.Config, _ *pipeline.Deps) { c.DispatchLeaseTTL = time.Second }))
	b.Publish(at(0, 0))
	b.Settled(30*time.Second, 0)
	group := b.ours()
	require.NoError(t, group.SetPaused(t.Context(), true))
	sent := 0
	testenv.Wait(t, 30*time.Second, func() error {
		sent++
		b.Publish(at(sent%50, int64(sent)))
		info, err := group.Info(t.Context())
		if err != nil || info.Lag.N < 100 {
			return errors.Join(fmt.Errorf("of %d entries %d are not dispatched", sent, info.Lag.N), err)
		}
		return nil
	})
	t.Logf("%d entries came until 100 were kept back", sent)
	require.NoError(t, group.SetPaused(t.Context(), false))
	b.Settled(30*time.Second, 0)
	require.Equal(t, sent+1, b.Count("select count(*) from positions"))
}

// countingSource counts reads of new entries, those that have begun and those that found some.
type countingSource struct {
	pipeline.Source
	begun, found *atomic.Int64
}

func (s countingSource) ReadNew(ctx context.Context, after telemetry.EntryID, count int, block time.Duration) (protocol.NewEntries, error) {
	s.begun.Add(1)
	a, err := s.Source.ReadNew(ctx, after, count, block)
	if len(a.Entries) > 0 {
		s.found.Add(1)
	}
	return a, err
}

// Entries that come within BatchMaxAge after a dispatch are dispatched together; a lone one
// is committed as soon as it comes.
func TestEntriesGatherAfterADispatchAndALoneOneDoesNotWait(t *testing.T) {
	t.Parallel()
	const gather, others = 3 * time.Second, 20
	b := newBench(t)
	var begun, found atomic.Int64
	b.AcquireAll(b.Start("one", func(c *pipeline.Config, d *pipeline.Deps) {
		c.BatchMaxAge, c.DispatchBlock, c.DispatchLeaseTTL = gather, gather, 10*gather
		d.Source = countingSource{d.Source, &begun, &found}
	}))
	b.Publish(at(0, 0))
	b.Settled(30*time.Second, 0)
	for i := range others {
		b.Publish(at(i, 1))
	}
	b.Settled(30*time.Second, 0)
	require.LessOrEqual(t, found.Load(), int64(3), "reads for %d entries that came one by one", 1+others)

	last := begun.Load()
	testenv.Wait(t, 30*time.Second, func() error {
		if begun.Load() == last {
			return errors.New("nothing is read yet")
		}
		return nil
	})
	b.Publish(at(0, 2))
	sent := time.Now()
	b.Settled(30*time.Second, 0)
	require.Less(t, time.Since(sent), gather, "a lone entry")
	require.Equal(t, 2+others, b.Count("select count(*) from positions"))
}

// P7: what another client read in the group beyond what is dispatched lies on no queue: the dispatcher comes to
// it again, however much it is.
func TestP7WhatAForeignConsumerReadDoesNotHoldUpDispatching(t *testing.T) {
	t.Parallel()
	const foreign = 3 * dispatchAhead
	b := newBench(t)
	in := b.Start("one", pausing)
	b.AcquireAll(in)
	b.Publish(at(0, 0))
	b.Settled(20*time.Second, 0)
	in.End()
	var entries [][]string
	for i := range foreign {
		entries = append(entries, at(i%200, int64(1+i/200)))
	}
	b.Publish(entries...)
	require.NoError(t, b.Client.XReadGroup(t.Context(), &redis.XReadGroupArgs{
		Group: b.Group, Consumer: "old-service", Streams: []string{b.Stream, ">"}, Count: foreign,
	}).Err())
	b.AcquireAll(b.Start("two", pausing))
	b.Settled(20*time.Second, 0)
	require.Equal(t, 1+foreign, b.Count("select count(*) from positions"))
}

// unavailable is a sink that this instance alone cannot reach.
type unavailable struct{ pipeline.Sink }

func (unavailable) Write(context.Context, *protocol.Batch) (protocol.CommitResult, error) {
	return protocol.CommitResult{}, &protocol.Failure{Kind: protocol.Unavailable, Err: errors.New("cut off")}
}

// P7: a dispatcher that is full dispatches for others in reads of a useful size.
func TestP7AFullDispatcherThatIsCutOffFromPostgresDispatchesForTheOthers(t *testing.T) {
	t.Parallel()
	const read, entries = 400, 10_000
	b := newBench(t)
	var begun, found atomic.Int64
	cutOff := b.Start("cut-off", func(c *pipeline.Config, d *pipeline.Deps) {
		c.Workers, c.MaxInFlightRecords, c.ReadBatchRecords = 2, read, read
		d.Source, d.Sink, d.Peers = countingSource{d.Source, &begun, &found}, unavailable{d.Sink}, func() int { return 1 }
	})
	t.Cleanup(cutOff.Cut) // its commits never end
	b.AcquireAll(cutOff)
	testenv.Wait(t, 10*time.Second, func() error { // it holds the dispatch lease, and is to keep it
		if begun.Load() == 0 {
			return errors.New("nothing is read yet")
		}
		return nil
	})
	b.AcquireAll(b.Start("other", func(c *pipeline.Config, _ *pipeline.Deps) {
		c.QueueRescan = time.Second // no notification tells it of entries before its cursors
	}))
	var list [][]string
	for i := range entries {
		list = append(list, at(i%200, int64(i/200)))
	}
	b.Publish(list...)
	testenv.Wait(t, 30*time.Second, func() error {
		if n := b.Count("select count(*) from positions"); n != entries {
			return fmt.Errorf("%d of %d are stored after %d reads", n, entries, found.Load())
		}
		return nil
	})
	t.Logf("%d reads of %d entries", found.Load(), entries)
	require.Less(t, found.Load(), int64(10*entries/read))
}
