package stream_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
)

// ahead is a dispatcher that reads ahead of the last-delivered ID, as in a backlog.
type ahead struct {
	*bench
	token    string
	pages    protocol.Pages
	unqueued []telemetry.EntryID // and not finished

	meanwhile func() // called once between the next read and its dispatch
}

// readAhead acquires the dispatch lease for one.
func (b *bench) readAhead(token string) *ahead {
	b.t.Helper()
	d := &ahead{bench: b, token: token}
	d.pages.Begin(b.turn(token).After)
	return d
}

// next reads at most count entries and dispatches them, none with 0; those of some shards are unqueued.
func (d *ahead) next(count int, shards ...int) protocol.DispatchResult {
	d.t.Helper()
	return d.nextWith(count, protocol.Ahead{}, shards...)
}

// nextWith does the same, and puts entries of earlier reads on their queues.
func (d *ahead) nextWith(count int, a protocol.Ahead, shards ...int) protocol.DispatchResult {
	d.t.Helper()
	var read protocol.NewEntries
	if count > 0 {
		read = d.readUpTo(d.pages.End(), count)
	}
	if d.meanwhile != nil {
		d.meanwhile()
		d.meanwhile = nil
	}
	for _, lists := range []map[int][]telemetry.EntryID{a.Again, a.Enqueue} {
		for _, ids := range lists {
			defer d.finish(ids...) // only then may the last-delivered ID pass them
		}
	}
	first := telemetry.EntryID{}
	if len(d.unqueued) > 0 {
		first = slices.MinFunc(d.unqueued, telemetry.EntryID.Compare)
	}
	a.From, a.Settled, a.Number = d.pages.End(), d.pages.Settles(first, len(d.unqueued) > 0), d.pages.Dispatches()
	a.Unqueued = func(shard int) bool { return slices.Contains(shards, shard) }
	settles := len(d.unqueued) == 0
	var unqueued []telemetry.EntryID
	read.Each(func(shard int, entries []telemetry.Entry) {
		for i := range entries {
			if a.Unqueued(shard) {
				unqueued = append(unqueued, entries[i].ID)
			}
		}
	})
	a.UnqueuedCount = len(d.unqueued) + len(unqueued)
	for _, lists := range []map[int][]telemetry.EntryID{a.Again, a.Enqueue} {
		for _, ids := range lists {
			a.UnqueuedCount -= len(ids)
		}
	}
	end := a.From
	if len(read.Entries) > 0 {
		end = read.Last
		if settles && len(unqueued) == 0 {
			a.Settled = protocol.Position{ID: end, Read: -1}
		}
	}
	result, err := d.Dispatch(d.t.Context(), protocol.DispatchRequest{Token: d.token, TTL: time.Minute, After: d.pages.Settled(), Notify: true, Ahead: &a}, &read)
	require.NoError(d.t, err)
	d.pages.Dispatched(a.Settled.ID, protocol.Position{ID: end, Read: result.Read}, time.Now())
	d.unqueued = append(d.unqueued, unqueued...)
	return result
}

// finish notes that entries are not unqueued any more.
func (d *ahead) finish(ids ...telemetry.EntryID) {
	d.unqueued = slices.DeleteFunc(d.unqueued, func(id telemetry.EntryID) bool { return slices.Contains(ids, id) })
}

// entriesRead is what the server counts.
func (b *bench) entriesRead() int64 {
	b.t.Helper()
	groups, err := b.client.XInfoGroups(b.t.Context(), b.cfg.Stream).Result()
	require.NoError(b.t, err)
	require.Len(b.t, groups, 1)
	return groups[0].EntriesRead
}

func (b *bench) oldest() telemetry.EntryID {
	b.t.Helper()
	backlog, err := b.Backlog(b.t.Context())
	require.NoError(b.t, err)
	require.True(b.t, backlog.OldestKnown, "%+v", backlog)
	return backlog.Oldest
}

// look takes a snapshot, which notes what it shows to be lost.
func (b *bench) look() {
	b.t.Helper()
	for range 2 { // how often makes no difference
		_, err := b.Snapshot(b.t.Context(), nil)
		require.NoError(b.t, err)
	}
}

func (b *bench) trimTo(id telemetry.EntryID) {
	b.t.Helper()
	require.NoError(b.t, b.client.XTrimMinID(b.t.Context(), b.cfg.Stream, id.String()).Err())
}

func (b *bench) allLosses() []protocol.Loss {
	b.t.Helper()
	losses, _, _, err := b.Losses(b.t.Context(), 1000)
	require.NoError(b.t, err)
	return losses
}

func known(n int64) stream.Count { return stream.Count{N: n, Known: true} }

// twoShards adds entries of shards 1 and 2 in turn.
func (b *bench) twoShards(n int) (ids []telemetry.EntryID) {
	var devices []string
	for i := range n {
		devices = append(devices, deviceOf(1+i%2, 0))
	}
	return b.add(devices...)
}

func ofShard(ids []telemetry.EntryID, shard int) (own []telemetry.EntryID) {
	for i := shard - 1; i < len(ids); i += 2 {
		own = append(own, ids[i])
	}
	return own
}

// P1, P10: what is unqueued is neither taken for done nor forgotten.
func TestP1WhatIsHeldIsOnNoQueueAndCountsAsLag(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.twoShards(100)
	d := b.readAhead("t")
	result := d.next(40, 1)
	require.Equal(t, protocol.DispatchResult{Pending: 20, Read: 40}, result)
	require.Empty(t, b.queue(1), "unqueued")
	require.Equal(t, ofShard(ids[:40], 2), b.queue(2))
	info := b.info()
	require.True(t, info.Delivered.IsZero(), "the last-delivered ID stays behind what is unqueued")
	require.Equal(t, ids[39], info.ReadUntil())
	require.Equal(t, known(60+20), info.Lag)
	require.Equal(t, ids[0], b.oldest(), "the oldest that is unqueued, not the oldest pending")

	d.next(30, 1, 2)
	require.Empty(t, b.queue(1))
	require.Len(t, b.queue(2), 20, "those before stay")
	require.Equal(t, known(30+20+30), b.info().Lag)
	require.True(t, b.info().Delivered.IsZero())

	// The first read is finished: the last-delivered ID moves to its end without another one.
	d.finish(ofShard(ids[:40], 1)...)
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, Unqueued: ofShard(ids[:40], 1)}, {Shard: 2, IDs: ofShard(ids[:40], 2)}}))
	require.Positive(t, b.info().Lag.N, "30 are unqueued, whatever is known of the others")
	d.next(0)
	info = b.info()
	require.Equal(t, ids[39], info.Delivered)
	require.Equal(t, ids[69], info.ReadUntil())
	require.EqualValues(t, 40, b.entriesRead())
	require.Equal(t, known(30+30), info.Lag)
	require.Equal(t, ids[40], b.oldest())

	// To the end of the stream, where nothing is new and 30 are unqueued.
	d.next(1000)
	require.Equal(t, known(30), b.info().Lag, "not 0 while any is unqueued")
	require.Equal(t, ids[39], b.info().Delivered)
	require.Equal(t, ids[40], b.oldest())
	require.Equal(t, ofShard(ids[70:], 1), b.queue(1))

	d.finish(ids[40:70]...)
	require.Equal(t, known(30), b.info().Lag, "what is finished counts until the last-delivered ID moves")
	d.next(0)
	info = b.info()
	require.Equal(t, ids[99], info.Delivered)
	require.Equal(t, known(0), info.Lag)
	require.EqualValues(t, 100, b.entriesRead())
	require.Equal(t, ids[70], b.oldest())
	require.Zero(t, b.client.HExists(t.Context(), b.Names().Pending(), "ahead").Val(), "nothing is read ahead any more")
	require.Empty(t, b.allLosses())

	b.twoShards(4)
	require.Equal(t, known(4), b.info().Lag)
	d.next(1000)
	require.Equal(t, known(0), b.info().Lag)
	require.EqualValues(t, 104, b.entriesRead())
}

// P1, P10: whatever is unqueued, finished or put on a queue, in whatever order.
func TestTheAccountBalancesWhateverIsUnqueued(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			r := rand.New(rand.NewPCG(seed, 27))
			d := b.readAhead("t")
			of := make(map[telemetry.EntryID]int)
			added, acked := int64(0), int64(0)
			for round := range 60 {
				var devices []string
				for range r.IntN(40) {
					devices = append(devices, deviceOf(r.IntN(shards), 0))
				}
				if len(devices) > 0 {
					for i, id := range b.add(devices...) {
						of[id] = telemetry.ShardOf(devices[i], shards)
						added++
					}
				}
				// Some of what is unqueued is finished, and some put on its queue.
				a := protocol.Ahead{Again: map[int][]telemetry.EntryID{}, Enqueue: map[int][]telemetry.EntryID{}}
				var done []telemetry.EntryID
				moved := false
				for _, id := range d.unqueued {
					switch r.IntN(6) {
					case 0, 1:
						done = append(done, id)
					case 2:
						a.Again[of[id]] = append(a.Again[of[id]], id)
						moved = true
					case 3:
						a.Enqueue[of[id]] = append(a.Enqueue[of[id]], id)
						moved = true
					}
				}
				d.finish(done...)
				acked += int64(len(done))
				for shard := range shards {
					if queue := b.queue(shard); len(queue) > 0 && r.IntN(2) == 0 {
						n := 1 + r.IntN(len(queue))
						require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: shard, IDs: queue[:n]}}))
						acked += int64(n)
					}
				}
				var unqueued []int
				for shard := range shards {
					if r.IntN(2) == 0 {
						unqueued = append(unqueued, shard)
					}
				}
				count := r.IntN(3) * 20
				if count == 0 && !moved && d.pages.Open() == 0 {
					continue // nothing to dispatch
				}
				d.nextWith(count, a, unqueued...)
				info := b.info()
				account := fmt.Sprintf("round %d: added %d, acknowledged %d, pending %d, lag %+v, unqueued %d", round, added, acked, info.Pending, info.Lag, len(d.unqueued))
				require.True(t, info.Lag.Known, account)
				require.Equal(t, added, acked+info.Pending+info.Lag.N, account)
				require.GreaterOrEqual(t, info.Lag.N, int64(len(d.unqueued)), account)
				for _, id := range d.unqueued {
					require.True(t, info.Delivered.Less(id), "%s is unqueued; %s", id, account)
					require.LessOrEqual(t, b.oldest().Compare(id), 0, account)
				}
			}
			d.finish(slices.Clone(d.unqueued)...)
			for range 2 {
				d.next(10_000)
			}
			info := b.info()
			require.Equal(t, known(0), info.Lag)
			require.Equal(t, info.Last, info.Delivered)
			require.Equal(t, added, b.entriesRead())
			require.Empty(t, b.allLosses())
			require.Greater(t, acked, added/4, "the test tests something")
		})
	}
}

// P2: who dispatches next is told how far another has read, and so which entries may be finished.
func TestP2ANewLeaseIsToldHowFarAnotherHasRead(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.twoShards(50)
	d := b.readAhead("first")
	d.next(20) // nothing is unqueued
	d.next(20, 1)
	acquire := func(before, token string) protocol.DispatchLease {
		t.Helper()
		lease, err := b.AcquireDispatchLease(t.Context(), before, token, time.Minute)
		require.NoError(t, err)
		return lease
	}
	refused := acquire("", "other")
	require.False(t, refused.Acquired)
	require.Equal(t, ids[19], refused.After)
	require.Equal(t, ids[39], refused.Beyond, "one that is refused looks for what was dispatched until there")
	renewed := acquire("first", "first")
	require.True(t, renewed.Acquired)
	require.Equal(t, ids[19], renewed.After)
	require.True(t, renewed.Beyond.IsZero(), "what it has read itself")
	require.Equal(t, ids[19], acquire("", "other").After)

	// Its reply is lost, and it takes another token. It has dispatched nothing when the next one takes over,
	// nor has that when a third one does.
	for i, token := range []string{"second", "third", "fourth"} {
		lease := acquire([]string{"first", "second", "third"}[i], token)
		require.True(t, lease.Acquired)
		require.Equal(t, ids[19], lease.After, token)
		require.Equal(t, ids[39], lease.Beyond, token)
		require.Equal(t, ids[39], acquire("", "other").Beyond, "while %s holds it", token)
	}
	require.NoError(t, b.ReleaseDispatchLease(t.Context(), "fourth"))
	next := b.readAhead("fifth")
	next.next(10) // not as far as the first one
	require.Equal(t, ids[29], b.info().Delivered)
	lease := acquire("fifth", "sixth")
	require.Equal(t, ids[29], lease.After)
	require.Equal(t, ids[39], lease.Beyond, "the rest may be finished, too")
	require.NoError(t, b.ReleaseDispatchLease(t.Context(), "sixth"))
	last := b.readAhead("seventh")
	last.next(15)
	require.True(t, acquire("seventh", "eighth").Beyond.IsZero(), "passed")
	require.True(t, acquire("", "other").Beyond.IsZero())
	require.Equal(t, known(5), b.info().Lag)
	require.Equal(t, ofShard(ids[:45], 1), b.queue(1), "all of it")
	require.Empty(t, b.allLosses())
}

// P6: what was read and is not settled is in the dispatcher's hands; only what lies beyond was never read.
func TestP6ASnapshotNotesWhatWasTrimmedBeyondWhatWasReadAndNothingBefore(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.twoShards(100)
	d := b.readAhead("t")
	d.next(60, 1, 2)
	b.look()
	require.Empty(t, b.allLosses(), "nothing was trimmed")
	b.trimTo(ids[50])
	b.look()
	require.Empty(t, b.allLosses(), "the dispatcher has it")
	require.Equal(t, known(40+60), b.info().Lag)
	b.trimTo(ids[80])
	b.look()
	lost := []protocol.Loss{{Cause: "trimmed_unread", First: ids[59], Last: ids[80], Entries: 20, Shard: -1}}
	require.Equal(t, lost, b.allLosses())
	require.Equal(t, known(20+60), b.info().Lag)

	// All that was read is stored. What is left is dispatched.
	d.finish(ids[:60]...)
	d.next(10, 1)
	require.Equal(t, known(10+5), b.info().Lag)
	d.next(1000)
	d.finish(slices.Clone(d.unqueued)...)
	d.next(0)
	b.look()
	require.Equal(t, lost, b.allLosses(), "once")
	require.Equal(t, known(0), b.info().Lag)
	require.Equal(t, ids[99], b.info().Delivered)
	require.EqualValues(t, 100, b.entriesRead())
}

// P6: what a dispatcher had read that is gone may be stored or not. What nobody had read is lost.
func TestP6TheNextDispatcherNotesWhatWasTrimmedOfWhatAnotherHadRead(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		settled int  // entries until the last-delivered ID
		trim    int  // entries trimmed
		look    bool // a snapshot was taken under the first lease
		unknown bool
		exact   int64
		whole   bool // all of the stream is gone
	}{
		"nothing":                              {settled: 10, trim: 10},
		"what was settled":                     {settled: 20, trim: 15},
		"some of what was read":                {settled: 10, trim: 30, unknown: true},
		"some of it, from the start":           {trim: 30, unknown: true},
		"just all of it":                       {settled: 10, trim: 60, unknown: true},
		"more than that":                       {settled: 10, trim: 80, unknown: true, exact: 20},
		"more than that, which was looked for": {settled: 10, trim: 80, look: true, unknown: true, exact: 20},
		"everything":                           {settled: 10, trim: 100, unknown: true, exact: 40, whole: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			ids := b.twoShards(100)
			d := b.readAhead("first")
			if tc.settled > 0 {
				d.next(tc.settled)
			}
			d.next(60-tc.settled, 1, 2)
			require.NoError(t, b.client.XTrimMaxLen(t.Context(), b.cfg.Stream, int64(100-tc.trim)).Err())
			if tc.look {
				b.look()
			}
			require.NoError(t, b.ReleaseDispatchLease(t.Context(), "first"))
			if !tc.look {
				b.look()
				require.Empty(t, b.allLosses(), "it is left to the next dispatcher")
			}
			for _, token := range []string{"second", "third"} { // once
				b.readAhead(token)
				require.NoError(t, b.ReleaseDispatchLease(t.Context(), token))
				b.look()
			}
			next := b.readAhead("fourth")
			last := ids[99] // of what is gone, or the first that is left
			if !tc.whole {
				last = ids[tc.trim]
			}
			after := telemetry.EntryID{}
			if tc.settled > 0 {
				after = ids[tc.settled-1]
			}
			var want []protocol.Loss
			if tc.look {
				want = append(want, protocol.Loss{Cause: "trimmed_unread", First: ids[59], Last: last, Entries: tc.exact, Shard: -1})
			}
			if tc.unknown {
				until := last
				if ids[59].Less(until) {
					until = ids[59]
				}
				want = append(want, protocol.Loss{Cause: "trimmed_unread", First: after, Last: until, Entries: -1, Shard: -1})
			}
			if !tc.look && tc.exact > 0 {
				want = append(want, protocol.Loss{Cause: "trimmed_unread", First: ids[59], Last: last, Entries: tc.exact, Shard: -1})
			}
			require.Equal(t, want, b.allLosses())
			require.Equal(t, known(int64(100-max(tc.trim, tc.settled))), b.info().Lag)
			for range 3 {
				next.next(25)
			}
			next.next(1000)
			b.look()
			require.Equal(t, want, b.allLosses(), "nothing more when the rest is dispatched")
			require.Equal(t, known(0), b.info().Lag)
			if !tc.whole {
				require.EqualValues(t, 100, b.entriesRead())
			}
		})
	}
}

// P1, P4.
func TestP4AnAckOfUnqueuedEntriesMovesTheAckedMarkAndNeedsNoPendingEntry(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.twoShards(20)
	one, two := ofShard(ids, 1), ofShard(ids, 2)
	d := b.readAhead("t")
	_, err := b.RegisterOwner(t.Context(), "before", []int{1, 2})
	require.NoError(t, err)
	d.next(10)
	d.next(10, 1)
	marks := func() map[int]telemetry.EntryID {
		acked, _, err := b.Marks(t.Context())
		require.NoError(t, err)
		for shard, id := range acked {
			if id.IsZero() {
				delete(acked, shard)
			}
		}
		return acked
	}
	// Some of shard 1 are on its queue, and what follows is unqueued. They were committed together.
	ack := protocol.Ack{Shard: 1, Token: "before", IDs: one[:5], Unqueued: one[5:7], Applied: one[6]}
	for range 2 { // it may be repeated
		require.NoError(t, b.Ack(t.Context(), []protocol.Ack{ack}))
		require.Equal(t, map[int]telemetry.EntryID{1: one[6]}, marks())
		require.Empty(t, b.queue(1))
		require.EqualValues(t, 10, b.info().Pending, "those of shard 2")
	}
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, Token: "before", Unqueued: one[5:6]}}))
	require.Equal(t, one[6], marks()[1], "forward only")
	entered, err := b.RegisterOwner(t.Context(), "now", []int{1})
	require.NoError(t, err)
	require.Equal(t, one[6], entered.Acked[1])
	require.Equal(t, one[6], entered.Applied[1])

	err = b.Ack(t.Context(), []protocol.Ack{{Shard: 1, Token: "before", Unqueued: one[7:], Applied: one[9]}, {Shard: 2, Token: "before", IDs: two[:1]}})
	k, code := kind(t, err)
	require.Equal(t, protocol.Lost, k)
	require.Equal(t, "token", code)
	var f *protocol.Failure
	require.ErrorAs(t, err, &f)
	require.Equal(t, []int{1}, f.Shards)
	require.Equal(t, map[int]telemetry.EntryID{1: one[6], 2: two[0]}, marks(), "not by one who has lost the shard")
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, Token: "now", Unqueued: one[7:]}}))
	require.Equal(t, one[9], marks()[1])
	b.look()
	require.Empty(t, b.allLosses(), "no queue lacks anything")
}

// P2, P6: a dead letter of what is unqueued waits for its queue, unless it was trimmed; of anything else it is refused.
func TestP2ADeadLetterIsMovedFromItsQueueOrWhereItsEntryIsTrimmed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.twoShards(20)
	dead, err := stream.NewDeadLetters(b.client, b.cfg, b.cfg.Stream+":dlq")
	require.NoError(t, err)
	stored := func() (ids []telemetry.EntryID) {
		page, err := dead.List(t.Context(), telemetry.EntryID{}, 100)
		require.NoError(t, err)
		for i := range page {
			ids = append(ids, page[i].Entry.ID)
		}
		return ids
	}
	letter := func(i int, unqueued bool) []telemetry.DeadLetter {
		l := deadLetter(telemetry.Entry{ID: ids[i], Fields: []string{"device_id", deviceOf(1, 0)}})
		l.Shard, l.Unqueued = 1, unqueued
		return []telemetry.DeadLetter{l}
	}
	refused := func(letters []telemetry.DeadLetter) {
		t.Helper()
		k, code := kind(t, dead.DeadLetter(t.Context(), letters, nil))
		require.Equal(t, protocol.Lost, k)
		require.Equal(t, "absent", code)
	}
	d := b.readAhead("t")
	d.next(6)
	d.next(10, 1)
	require.NoError(t, b.Ack(t.Context(), []protocol.Ack{{Shard: 1, IDs: []telemetry.EntryID{ids[0]}}}))
	refused(letter(0, true))  // acknowledged, and settled
	refused(letter(6, false)) // not said to be unqueued
	require.Empty(t, stored())

	pending := b.info().Pending
	k, code := kind(t, dead.DeadLetter(t.Context(), letter(6, true), nil))
	require.Equal(t, protocol.Lost, k)
	require.Equal(t, protocol.Unqueued, code, "the next dispatcher would find it, and its owner might store it")
	refused(slices.Concat(letter(6, true), letter(0, true)))
	require.Empty(t, stored())
	d.nextWith(0, protocol.Ahead{Enqueue: map[int][]telemetry.EntryID{1: {ids[6]}}})
	for range 2 { // the reply to the first is lost
		require.NoError(t, dead.DeadLetter(t.Context(), letter(6, true), nil))
	}
	require.NoError(t, dead.DeadLetter(t.Context(), letter(2, true), nil), "what was put on its queue meanwhile is taken off it")
	require.Equal(t, []telemetry.EntryID{ids[6], ids[2]}, stored())
	require.Equal(t, pending-1, b.info().Pending)

	// Its shard is not what the entry is pending for.
	elsewhere := deadLetter(telemetry.Entry{ID: ids[7], Fields: []string{"device_id", deviceOf(2, 0)}})
	elsewhere.Shard = 1
	for _, elsewhere.Unqueued = range []bool{false, true} {
		refused([]telemetry.DeadLetter{elsewhere})
	}
	require.Len(t, stored(), 2)
	require.Contains(t, b.queue(2), ids[7])
	b.look()
	require.Empty(t, b.allLosses())

	b.trimTo(ids[9])
	require.NoError(t, dead.DeadLetter(t.Context(), letter(8, true), nil), "nobody finds it any more")
	require.Equal(t, []telemetry.EntryID{ids[6], ids[2], ids[8]}, stored())
}

// P6: an entry in flight may be stored though it is trimmed. One that nobody has is lost.
func TestP6AnEntryThatWasTrimmedIsLostIfItIsNotInFlight(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.twoShards(20)
	one, two := ofShard(ids, 1), ofShard(ids, 2)
	d := b.readAhead("t")
	d.next(20, 1, 2)
	b.trimTo(ids[10])
	result := d.nextWith(0, protocol.Ahead{Enqueue: map[int][]telemetry.EntryID{1: one}})
	require.Equal(t, 5, result.Pending)
	require.Len(t, result.Gone, 5)
	for _, id := range one[:5] {
		require.Contains(t, result.Gone, id, "it is told")
	}
	require.Equal(t, one[5:], b.queue(1))
	require.Empty(t, b.allLosses(), "and not noted: it is in flight")
	require.True(t, b.info().Delivered.IsZero(), "what is not on a queue keeps the last-delivered ID back")

	result = d.nextWith(0, protocol.Ahead{Again: map[int][]telemetry.EntryID{2: two}})
	require.Equal(t, 10, result.Pending)
	require.Len(t, result.Gone, 5)
	require.Equal(t, two[5:], b.queue(2))
	require.Equal(t, map[string]int64{"trimmed_unread": 5}, b.losses())
	b.requireCovered(two[:5])
	d.finish(ids...)
	d.next(0)
	b.look()
	require.Equal(t, map[string]int64{"trimmed_unread": 5}, b.losses(), "once")
	require.Equal(t, known(0), b.info().Lag)
	require.EqualValues(t, 20, b.entriesRead())
}

// P3: redelivering until the last-delivered ID alone would let what follows overtake what was unqueued.
func TestP3AnAcquiredShardIsRedeliveredUpToWhereTheDispatcherHasRead(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.twoShards(40)
	d := b.readAhead("t")
	d.next(10)
	for i, want := range []telemetry.EntryID{ids[9], ids[29], ids[39]} {
		if i > 0 {
			d.next(10*(3-i), 1, 2) // or what is pending would tell
		}
		entered, err := b.RegisterOwner(t.Context(), fmt.Sprint("owner ", i), []int{1})
		require.NoError(t, err)
		require.Equal(t, want, entered.Dispatched)
	}
	require.NoError(t, b.ReleaseDispatchLease(t.Context(), "t"))
	entered, err := b.RegisterOwner(t.Context(), "owner", []int{1})
	require.NoError(t, err)
	require.Equal(t, ids[39], entered.Dispatched, "as long as nobody has dispatched it again")
}

// P6: what is missing from a queue lies between what Postgres has and what was dispatched, beyond the
// last-delivered ID, too.
func TestP6WhatIsMissingFromAQueueIsNotedAsLostWithARangeThatCoversIt(t *testing.T) {
	t.Parallel()
	for name, look := range map[string]func(b *bench){
		"a snapshot": func(b *bench) { b.look() },
		"a new owner": func(b *bench) {
			_, err := b.RegisterOwner(b.t.Context(), "next", []int{1, 2})
			require.NoError(b.t, err)
		},
	} {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", applied ", applied), func(t *testing.T) {
				t.Parallel()
				b := newBench(t)
				ids := b.twoShards(40)
				two := ofShard(ids, 2)
				d := b.readAhead("t")
				d.next(10)
				d.next(20, 1)
				ack := protocol.Ack{Shard: 2, IDs: two[:7]} // ids[13] is beyond the last-delivered ID
				if applied {
					ack.Applied = two[6]
				}
				require.NoError(t, b.Ack(t.Context(), []protocol.Ack{ack}))
				require.Equal(t, ids[9], b.info().Delivered)
				require.NoError(t, b.client.XGroupDelConsumer(t.Context(), b.cfg.Stream, b.cfg.Group, stream.Consumer(2)).Err())
				look(b)
				for _, l := range b.allLosses() {
					require.False(t, l.Last.Less(l.First), "%+v", l)
					require.Equal(t, 2, l.Shard)
				}
				require.Equal(t, map[string]int64{"trimmed_pending": 8}, b.losses())
				b.requireCovered(two[7:15])
			})
		}
	}
}

// A member that is told to read a queue from its start reads all that is in flight again. Told of every
// shard that a dispatch concerns, members read each entry three times while shards were handed over.
func TestOnlyQueuesWithEarlierEntriesAreReadFromTheStart(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.twoShards(4)
	d := b.readAhead("a")
	heard, stop := b.listen()
	defer stop()

	d.next(2, 1, 2)
	again := map[int][]telemetry.EntryID{1: {d.unqueued[0]}}
	d.nextWith(1, protocol.Ahead{Again: again}, 1) // one of shard 1, unqueued
	require.Equal(t, stream.Notification{Again: []int{1}}, <-heard)
	d.nextWith(1, protocol.Ahead{Enqueue: map[int][]telemetry.EntryID{1: {d.unqueued[1]}}}, 1)
	require.Equal(t, stream.Notification{Shards: []int{2}, Again: []int{1}}, <-heard)
}

// P1: a server that lost a dispatch that read nothing, and only put orphans on their queue, has the
// last-delivered ID and the end of what was read where they were. The next dispatch would move the first
// to the second, past entries that are on no queue.
func TestP1ADispatchThatMovesNothingIsMissedByTheNextWhereTheServerLostIt(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.twoShards(4)
	d := b.readAhead("a")
	d.next(4, 1, 2)
	saved := b.save()
	d.nextWith(0, protocol.Ahead{Again: map[int][]telemetry.EntryID{1: ofShard(ids, 1), 2: ofShard(ids, 2)}})
	require.Len(t, b.queue(1), 2)
	saved()
	require.Empty(t, b.queue(1))

	a := protocol.Ahead{From: d.pages.End(), Settled: d.pages.Settles(telemetry.EntryID{}, false), Number: d.pages.Dispatches()}
	require.Equal(t, ids[3], a.Settled.ID)
	_, err := b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "a", TTL: time.Minute, After: d.pages.Settled(), Ahead: &a}, &protocol.NewEntries{})
	f, ok := errors.AsType[*protocol.Failure](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, protocol.Lost, f.Kind)
	require.True(t, b.info().Delivered.IsZero(), "the next dispatcher finds them")
}

// save keeps what the server has of the stream, and returns what brings it back.
func (b *bench) save() (restore func()) {
	b.t.Helper()
	ctx, keys := b.t.Context(), []string{b.cfg.Stream, b.Names().Pending(), b.Names().Dispatched()}
	dumps := make([]string, len(keys))
	for i, key := range keys {
		dump, err := b.client.Dump(ctx, key).Result()
		require.NoError(b.t, err)
		dumps[i] = dump
	}
	return func() {
		for i, key := range keys {
			require.NoError(b.t, b.client.RestoreReplace(ctx, key, 0, dumps[i]).Err())
		}
	}
}

// P6: what another dispatcher had read may be stored, also where it is trimmed only while the next one
// comes to it. What lies beyond was never read.
func TestP6WhatIsTrimmedAsItIsDispatchedAgainMayBeStored(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		read  int   // entries that the next dispatcher has read and not dispatched
		trim  int   // entries trimmed
		exact int64 // of these never read
		gone  int64 // of these read by the next dispatcher only
		early int   // entries trimmed before the next dispatcher has the lease
		twice int   // entries trimmed before it dispatches something
	}{
		"before the next read":                  {trim: 30},
		"some of what was read again":           {read: 40, trim: 30},
		"all of what was read again":            {read: 20, trim: 30},
		"just until there":                      {read: 20, trim: 60},
		"more than that":                        {trim: 80, exact: 20},
		"more than that, and than is read":      {read: 70, trim: 80, exact: 10, gone: 10},
		"more than that, of what is read again": {read: 90, trim: 80, gone: 20},
		"more than that, in two steps":          {early: 70, read: 90, trim: 80, exact: 10, gone: 10},
		"more than that, with nothing to read":  {trim: 80, exact: 20, twice: 70},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			ids := b.twoShards(100)
			d := b.readAhead("first")
			d.next(10)
			d.next(50, 1, 2)
			require.NoError(t, b.ReleaseDispatchLease(t.Context(), "first"))
			trimmed := func(n int) {
				require.NoError(t, b.client.XTrimMaxLen(t.Context(), b.cfg.Stream, int64(100-n)).Err())
			}
			trimmed(tc.early)
			next := b.readAhead("second")
			trim := func() {
				trimmed(tc.trim)
				b.look()
				if tc.early == 0 {
					require.Empty(t, b.allLosses(), "it is left to the dispatcher")
				}
			}
			switch {
			case tc.twice > 0:
				trimmed(tc.twice)
				next.nextWith(0, protocol.Ahead{Rewind: true})
				trimmed(tc.trim)
				next.next(1000)
			case tc.early > 0:
				next.meanwhile = trim
				next.next(tc.read - tc.early)
			case tc.read > 0:
				next.meanwhile = trim
				next.next(tc.read - 10)
			default:
				trim()
				next.next(20)
			}
			next.next(1000)
			next.next(0)
			b.look()

			var exact, gone, unknown int64
			for _, l := range b.allLosses() {
				switch {
				case l.Entries < 0:
					unknown++
					require.Equal(t, ids[9], l.First)
					require.LessOrEqual(t, l.Last.Compare(ids[59]), 0, "%+v", l)
				case l.First == l.Last:
					gone += l.Entries
					require.Positive(t, l.First.Compare(ids[59]), "%+v", l)
				default:
					exact += l.Entries
					require.GreaterOrEqual(t, l.First.Compare(ids[59]), 0, "%+v", l)
				}
			}
			require.Equal(t, []int64{tc.exact, tc.gone}, []int64{exact, gone}, "%+v", b.allLosses())
			require.Positive(t, unknown)
			require.Equal(t, known(0), b.info().Lag)
			require.EqualValues(t, 100, b.entriesRead())
		})
	}
}

// P6: what was trimmed between two reads was never read. How much of what lies before them was finished is
// not known to the next dispatcher, and what was not trimmed beyond them has no number.
func TestP6AGapBetweenTwoReadsIsNotedOnceByTheNextDispatcher(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.twoShards(100)
	d := b.readAhead("first")
	d.next(10, 1, 2)
	b.trimTo(ids[60])
	d.next(10, 1, 2)
	require.NoError(t, b.ReleaseDispatchLease(t.Context(), "first"))
	next := b.readAhead("second")
	next.next(1000)
	next.next(0)
	b.look()
	require.Equal(t, []protocol.Loss{{Cause: "trimmed_unread", Last: ids[60], Entries: -1, Shard: -1}}, b.allLosses())
	require.EqualValues(t, 100, b.entriesRead())
}
