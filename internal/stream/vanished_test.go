package stream_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// requireCovered requires that each ID lies within one of the losses noted, and
// that these are as many entries.
func (b *bench) requireCovered(ids []telemetry.EntryID) {
	b.t.Helper()
	losses, _, _, err := b.Losses(b.t.Context(), 10_000)
	require.NoError(b.t, err)
	var n int64
	for _, l := range losses {
		n += l.Entries
	}
	require.EqualValues(b.t, len(ids), n, "%+v", losses)
	for _, id := range ids {
		covered := false
		for _, l := range losses {
			covered = covered || l.First.Compare(id) <= 0 && id.Compare(l.Last) <= 0
		}
		require.True(b.t, covered, "%s is in none of %+v", id, losses)
	}
}

// P6: the append-only file, rewritten without a preamble, does not keep pending
// entries that were trimmed: no owner will ever be told that they are gone.
func TestP6PendingEntriesThatARewriteDropsAreNotedAsLost(t *testing.T) {
	t.Parallel()
	env := testenv.OwnServers(t, redisOnly("--aof-use-rdb-preamble", "no", "--appendonly", "yes"))
	b := &bench{t: t, cfg: stream.Config{URL: env.Redis.URL(), Stream: "s", Group: "g", Shards: shards, Timeout: waitFor}}
	connect := func() {
		client, err := stream.Connect(b.cfg)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, client.Close()) })
		b.client = client
		b.Group, err = stream.NewGroup(client, b.cfg)
		require.NoError(t, err)
	}
	connect()
	ids := b.addTo(1, 400)
	b.ready()
	require.NoError(t, b.client.XTrimMinID(t.Context(), b.cfg.Stream, ids[300].String()).Err())
	require.NoError(t, b.client.BgRewriteAOF(t.Context()).Err())
	testenv.Wait(t, waitFor, func() error {
		info, err := b.client.Info(t.Context(), "persistence").Result()
		if err == nil && (strings.Contains(info, "aof_rewrite_in_progress:1") || strings.Contains(info, "aof_rewrite_scheduled:1")) {
			err = errors.New("the rewrite goes on")
		}
		return err
	})
	require.NoError(t, env.Redis.Kill())
	require.NoError(t, env.Redis.Start(t.Context()))
	connect()
	require.Len(t, b.queue(1), 100, "what this is about")
	for range 2 {
		_, err := b.RegisterOwner(t.Context(), "owner", []int{1})
		require.NoError(t, err)
		_, err = b.Snapshot(t.Context(), nil)
		require.NoError(t, err)
	}
	b.requireCovered(ids[:300])
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, Token: "owner", IDs: ids[300:]}}))
	_, err := b.Snapshot(t.Context(), nil)
	require.NoError(t, err)
	b.requireCovered(ids[:300])
}

// P6: what was not read when it was trimmed is lost at that moment, not when the
// next entry happens to come.
func TestP6EntriesTrimmedUnreadAreNotedWithoutWaitingForTheNext(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	look := func() {
		for range 2 {
			_, err := b.Snapshot(t.Context(), nil)
			require.NoError(t, err)
		}
	}
	ids := b.addTo(3, 100)
	turn := b.turn("t")
	after, _ := b.dispatch(t, turn.After, 40)
	var a protocol.Ack
	a.Shard, a.IDs = 3, ids[:40]
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{a}))
	look()
	require.Empty(t, b.lost(t))
	require.NoError(t, b.client.XTrimMinID(t.Context(), b.cfg.Stream, ids[70].String()).Err())
	look()
	b.requireCovered(ids[40:70])
	b.del(ids[80])
	require.NoError(t, b.client.XTrimMaxLen(t.Context(), b.cfg.Stream, 0).Err())
	look()
	b.requireCovered(ids[40:])
	require.Equal(t, stream.Count{N: 0, Known: true}, b.info().Lag)

	more := b.addTo(3, 5)
	after, n := b.dispatch(t, after, 1000)
	require.Equal(t, 5, n)
	require.Equal(t, more[4], after)
	look()
	b.requireCovered(ids[40:])
}

// P6, P10: a stream whose newest entries were deleted before they were read is done once the loss is in
// the ledger, and then its group can be removed.
func TestP6AStreamIsDoneThoughItsNewestEntriesWereDeletedUnread(t *testing.T) {
	t.Parallel()
	for name, remove := range map[string]func(b *bench, ids []telemetry.EntryID) (err error){
		"deleted": func(b *bench, ids []telemetry.EntryID) error { b.del(ids...); return nil },
		"trimmed": func(b *bench, _ []telemetry.EntryID) error {
			return b.client.XTrimMaxLen(t.Context(), b.cfg.Stream, 0).Err()
		},
		"deleted, of an unknown number read": func(b *bench, ids []telemetry.EntryID) error {
			b.del(ids...)
			return b.client.XGroupSetID(t.Context(), b.cfg.Stream, b.cfg.Group, b.info().Delivered.String()).Err()
		},
		"none": func(b *bench, ids []telemetry.EntryID) error {
			return b.client.Do(t.Context(), "xsetid", b.cfg.Stream, ids[1].Next().String()).Err()
		},
	} {
		for _, led := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, with a leader %v", name, led), func(t *testing.T) {
				t.Parallel()
				b := newBench(t)
				ids := b.addTo(1, 3)
				b.ready()
				require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ids}}))
				var lost []telemetry.EntryID
				unread := ids[1:]
				if name != "none" {
					lost = b.addTo(1, 2)
					require.ErrorContains(t, b.RemoveGroup(t.Context(), true), "entries came meanwhile")
					unread = lost
				}
				require.NoError(t, remove(b, unread))
				require.Equal(t, stream.Count{N: 0, Known: true}, b.info().Lag)
				for range 2 {
					if led {
						_, err := b.Snapshot(t.Context(), nil)
						require.NoError(t, err)
					}
					if len(lost) > 0 {
						require.ErrorContains(t, b.RemoveGroup(t.Context(), true), "losses are not in the ledger yet")
					}
				}
				losses, receipt, _, err := b.Losses(t.Context(), 10)
				require.NoError(t, err)
				if len(lost) > 0 {
					require.Len(t, losses, 1)
					require.Equal(t, lost[1], losses[0].Last)
					require.Equal(t, name == "deleted, of an unknown number read", losses[0].Entries == -1)
					require.Contains(t, []int64{2, -1}, losses[0].Entries)
				}
				require.NoError(t, b.Recorded(t.Context(), receipt))
				require.NoError(t, b.RemoveGroup(t.Context(), true))
				require.False(t, b.info().GroupExists)
			})
		}
	}
}

// P6: what vanished from queues is in the ledger before the group is removed: it is not seen afterwards.
func TestP6AStreamIsNotDoneWhileWhatVanishedFromItsQueuesIsNotInTheLedger(t *testing.T) {
	t.Parallel()
	for name, vanish := range map[string]func(b *bench) error{
		"a queue was removed": func(b *bench) error {
			return b.client.XGroupDelConsumer(t.Context(), b.cfg.Stream, b.cfg.Group, "shard-01").Err()
		},
		"the stream was trimmed and the group made again": func(b *bench) error {
			_, err := b.client.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
				tx.XTrimMaxLen(t.Context(), b.cfg.Stream, 0)
				tx.XGroupDestroy(t.Context(), b.cfg.Stream, b.cfg.Group)
				tx.XGroupCreate(t.Context(), b.cfg.Stream, b.cfg.Group, "0")
				return nil
			})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.addTo(1, 3)
			b.ready()
			require.ErrorContains(t, b.RemoveGroup(t.Context(), true), "entries came meanwhile: 3 are pending")
			require.NoError(t, vanish(b))
			for range 2 {
				require.ErrorContains(t, b.RemoveGroup(t.Context(), true), "losses are not in the ledger yet")
				require.Equal(t, map[string]int64{"trimmed_pending": 3}, b.lost(t))
			}
			_, receipt, _, err := b.Losses(t.Context(), 10)
			require.NoError(t, err)
			require.NoError(t, b.Recorded(t.Context(), receipt))
			require.NoError(t, b.RemoveGroup(t.Context(), true))
			require.False(t, b.info().GroupExists)
		})
	}
}

// P6: the recorded lengths of queues follow whatever changes them, so that no
// loss is noted where there is none.
func TestP6QueuesThatLoseNothingAreNotNotedWhateverChangesThem(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	look := func() {
		t.Helper()
		_, err := b.Snapshot(t.Context(), nil)
		require.NoError(t, err)
		require.Empty(t, b.lost(t))
	}
	ids := b.addTo(1, 20)
	b.ready()
	look()
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ids[:5]}, {Shard: 1, IDs: ids[:5]}}))
	look()
	_, err := b.Redeliver(t.Context(), []protocol.Range{{Shard: 1, To: ids[9]}})
	require.NoError(t, err)
	look()
	// The last-delivered ID is set back by hand, and the same is redelivered.
	require.NoError(t, b.client.XGroupSetID(t.Context(), b.cfg.Stream, b.cfg.Group, ids[3].String()).Err())
	require.NoError(t, b.client.Del(t.Context(), b.Names().DispatchLease()).Err())
	b.dispatchAgainFrom(t)
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ids}}))
	look()
	require.NoError(t, b.client.XGroupDestroy(t.Context(), b.cfg.Stream, b.cfg.Group).Err())
	require.NoError(t, b.client.Del(t.Context(), b.Names().DispatchLease()).Err())
	b.dispatchAgainFrom(t)
	look()
	require.Len(t, b.queue(1), 20)

	b.addTo(1, 6)
	b.foreign("earlier", 6)
	look()
	require.NoError(t, b.client.Del(t.Context(), b.Names().Dispatched()).Err()) // nothing is left to the dispatcher
	b.sweep("earlier", 0, 100)
	look()
	// Removing a queue by hand loses what lies on it.
	require.NoError(t, b.client.XGroupDelConsumer(t.Context(), b.cfg.Stream, b.cfg.Group, "shard-01").Err())
	_, err = b.Snapshot(t.Context(), nil)
	require.NoError(t, err)
	require.EqualValues(t, 26, b.lost(t)["trimmed_pending"])
}

// P6: what was on the queues of a group that another client made again at 0 is dispatched again, and
// not lost; what goes before and after that is.
func TestP6EntriesOfAGroupMadeAgainAreNotNotedAsLost(t *testing.T) {
	t.Parallel()
	for name, look := range map[string]func(b *bench) error{
		"seen by the leader": func(b *bench) error { _, err := b.Snapshot(t.Context(), nil); return err },
		"seen by an owner":   func(b *bench) error { _, err := b.RegisterOwner(t.Context(), "", []int{0, 1, 2, 3}); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			var ids []telemetry.EntryID
			for shard := range shards {
				ids = append(ids, b.addTo(shard, 4)...)
			}
			b.ready()
			lost := func(want int64) {
				t.Helper()
				for range 2 {
					require.NoError(t, look(b))
				}
				_, err := b.Snapshot(t.Context(), nil)
				require.NoError(t, err)
				require.Equal(t, want, b.lost(t)["trimmed_pending"])
			}
			lost(0)
			require.NoError(t, b.client.XGroupDelConsumer(t.Context(), b.cfg.Stream, b.cfg.Group, "shard-03").Err())
			lost(4)
			require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 0, IDs: ids[:4]}}))

			_, err := b.client.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
				tx.XGroupDestroy(t.Context(), b.cfg.Stream, b.cfg.Group)
				tx.XGroupCreate(t.Context(), b.cfg.Stream, b.cfg.Group, "0")
				return nil
			})
			require.NoError(t, err)
			lost(4)
			require.NoError(t, b.client.Del(t.Context(), b.Names().DispatchLease()).Err())
			turn, err := b.AcquireDispatchLease(t.Context(), "", "t", time.Minute)
			require.NoError(t, err)
			require.False(t, turn.GroupCreated)
			lost(4)
			b.dispatch(t, turn.After, 1000)
			require.Len(t, b.queue(3), 4)
			lost(4)
			require.NoError(t, b.client.XGroupDelConsumer(t.Context(), b.cfg.Stream, b.cfg.Group, "shard-03").Err())
			lost(8)
		})
	}
}

// P6: what was trimmed, on a queue or unread, does not come again with a group that is made again, by a client or the dispatcher. On which
// queue the trimmed ones were is not known any more, nor how many were finished.
func TestP6WhatWasTrimmedBeforeTheGroupWasMadeAgainIsNotedAsLost(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]func(b *bench) error{
		"by a client": func(b *bench) error {
			_, err := b.client.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
				tx.XGroupDestroy(t.Context(), b.cfg.Stream, b.cfg.Group)
				tx.XGroupCreate(t.Context(), b.cfg.Stream, b.cfg.Group, "0")
				return nil
			})
			return err
		},
		"by the dispatcher": func(b *bench) error {
			return b.client.XGroupDestroy(t.Context(), b.cfg.Stream, b.cfg.Group).Err()
		},
	} {
		for _, trimmed := range []int{0, 4, 6, 10} {
			t.Run(fmt.Sprintf("%s, %d trimmed", name, trimmed), func(t *testing.T) {
				t.Parallel()
				b := newBench(t)
				done := b.addTo(0, 4)
				pending := b.addTo(1, 4)
				b.ready()
				require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 0, IDs: done}, {Shard: 1, IDs: pending[:1]}}))
				ids := slices.Concat(done, pending, b.addTo(2, 4))
				require.NoError(t, b.client.XTrimMinID(t.Context(), b.cfg.Stream, ids[trimmed].String()).Err())
				require.NoError(t, again(b))
				require.NoError(t, b.client.Del(t.Context(), b.Names().DispatchLease()).Err())
				before, _, err := b.GroupRecreations(t.Context())
				require.NoError(t, err)
				turn, err := b.AcquireDispatchLease(t.Context(), "", "t", time.Minute)
				require.NoError(t, err)
				require.Zero(t, turn.After)
				for range 2 {
					_, err := b.AcquireDispatchLease(t.Context(), "t", "t", time.Minute)
					require.NoError(t, err)
					_, err = b.Snapshot(t.Context(), nil)
					require.NoError(t, err)
				}
				recreations, _, err := b.GroupRecreations(t.Context())
				require.NoError(t, err)
				require.Len(t, recreations, len(before)+1)
				last := recreations[len(before)]
				require.Equal(t, pending[3], last.Dispatched, "from which the leader tells what was trimmed unread")
				require.Equal(t, ids[trimmed], last.First)
				require.EqualValues(t, trimmed, last.Removed)
				require.EqualValues(t, 12-trimmed, last.Entries)
				require.Equal(t, stream.Count{N: int64(12 - trimmed), Known: true}, b.info().Lag)
				losses, _, _, err := b.Losses(t.Context(), 10)
				require.NoError(t, err)
				if trimmed <= 4 {
					require.Empty(t, losses, "what is pending follows an entry that is there")
				} else {
					require.Equal(t, []protocol.Loss{{Cause: "trimmed_pending", First: pending[0], Last: ids[trimmed], Entries: -1, Shard: -1}}, losses)
				}
				_, n := b.dispatch(t, turn.After, 1000)
				require.Equal(t, 12-trimmed, n)
			})
		}
	}
}

// P6: nor does what was unqueued.
func TestP6UnqueuedEntriesTrimmedBeforeTheGroupWasMadeAgainAreNotedAsLost(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(1, 6)
	d := b.readAhead("former")
	d.next(2)
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: ids[:2]}}))
	d.next(4, 1)
	require.Equal(t, ids[1], b.info().Delivered, "what this is about")
	require.NoError(t, b.client.XTrimMinID(t.Context(), b.cfg.Stream, ids[4].String()).Err())
	require.NoError(t, b.client.XGroupDestroy(t.Context(), b.cfg.Stream, b.cfg.Group).Err())
	require.NoError(t, b.client.Del(t.Context(), b.Names().DispatchLease()).Err())
	b.dispatchAgainFrom(t)
	_, err := b.Snapshot(t.Context(), nil)
	require.NoError(t, err)
	losses, _, _, err := b.Losses(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, []protocol.Loss{{Cause: "trimmed_pending", First: ids[1], Last: ids[4], Entries: -1, Shard: -1}}, losses)
	require.Equal(t, ids[4:], b.queue(1))
}

// dispatchAgainFrom acquires the dispatch lease and dispatches all there is.
func (b *bench) dispatchAgainFrom(t *testing.T) {
	t.Helper()
	turn, err := b.AcquireDispatchLease(t.Context(), "", "again", time.Minute)
	require.NoError(t, err)
	a := b.read(turn.After)
	_, err = b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "again", TTL: time.Minute, After: turn.After}, &a)
	require.NoError(t, err)
}
