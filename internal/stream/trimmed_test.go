package stream_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
)

// lost sums up what is noted as lost, by cause.
func (b *bench) lost(t *testing.T) map[string]int64 {
	t.Helper()
	losses, receipt, _, err := b.Losses(t.Context(), 10_000)
	require.NoError(t, err)
	require.Len(t, receipt, len(losses))
	sum := map[string]int64{}
	for _, l := range losses {
		require.False(t, l.Last.Less(l.First), "%+v", l)
		sum[l.Cause] += l.Entries
	}
	return sum
}

// P6, P10.
func TestEntriesTrimmedBeforeTheyWereReadAreCountedExactlyAndTheLagStaysRight(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(3, 100)
	turn := b.turn("t")
	dispatched, _ := b.dispatch(t, turn.After, 40)
	require.Equal(t, stream.Count{N: 60, Known: true}, b.info().Lag)
	// 25 of those dispatched and 15 of those not yet read go.
	require.NoError(t, b.client.XTrimMinID(t.Context(), b.cfg.Stream, ids[55].String()).Err())
	require.Equal(t, stream.Count{N: 45, Known: true}, b.info().Lag, "what is left to read, not what the server says")
	after, n := b.dispatch(t, dispatched, 1000)
	require.Equal(t, 45, n)
	require.Equal(t, ids[99], after)
	require.Equal(t, map[string]int64{"trimmed_unread": 15}, b.lost(t))
	require.Equal(t, stream.Count{N: 0, Known: true}, b.info().Lag)
	b.addTo(3, 7)
	require.Equal(t, stream.Count{N: 7, Known: true}, b.info().Lag, "the books are right again")
}

// P6: Redis forgets how many entries were read when another client moves the last-delivered ID.
func TestEntriesTrimmedUnreadAreCountedAlthoughAnotherClientRead(t *testing.T) {
	t.Parallel()
	for name, look := range map[string]bool{"dispatched next": false, "looked at before": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			ids := b.addTo(3, 100)
			after, _ := b.dispatch(t, b.turn("t").After, 40)
			for range 2 { // how often makes no difference
				b.foreign("other", 1)
				turn, err := b.AcquireDispatchLease(t.Context(), "t", "t", time.Minute)
				require.NoError(t, err)
				require.True(t, turn.Moved)
				require.NoError(t, b.client.XTrimMinID(t.Context(), b.cfg.Stream, ids[70].String()).Err())
				if look {
					_, err = b.Snapshot(t.Context(), nil)
					require.NoError(t, err)
				}
			}
			_, n := b.dispatch(t, after, 1000)
			require.Equal(t, 30, n)
			b.requireCovered(ids[40:70])
		})
	}
}

// P6: where it is not known how many entries were read, what may have been trimmed unread
// is noted, once, and the number is known from then on.
func TestALossOfUnknownSizeIsNotedOnce(t *testing.T) {
	t.Parallel()
	for name, look := range map[string]bool{"dispatched next": false, "looked at before": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			ids := b.addTo(3, 100)
			b.ready()
			set := func(id string) telemetry.EntryID {
				require.NoError(t, b.client.XGroupSetID(t.Context(), b.cfg.Stream, b.cfg.Group, id).Err())
				turn, err := b.AcquireDispatchLease(t.Context(), "t", "t", time.Minute)
				require.NoError(t, err)
				return turn.After
			}
			after, _ := b.dispatch(t, set(ids[39].String()), 10)
			_, err := b.Snapshot(t.Context(), nil)
			require.NoError(t, err)
			require.Empty(t, b.lost(t), "nothing was trimmed")
			require.NoError(t, b.client.XTrimMinID(t.Context(), b.cfg.Stream, ids[70].String()).Err())
			for range 2 {
				if look {
					_, err = b.Snapshot(t.Context(), nil)
					require.NoError(t, err)
				}
			}
			after, _ = b.dispatch(t, after, 10)
			require.Equal(t, stream.Count{N: 20, Known: true}, b.info().Lag)
			b.dispatch(t, after, 1000)
			losses, _, _, err := b.Losses(t.Context(), 100)
			require.NoError(t, err)
			require.Equal(t, []protocol.Loss{{Cause: "trimmed_unread", First: ids[49], Last: ids[70], Entries: -1, Shard: -1}}, losses)

			b.dispatch(t, set("0"), 1000)
			_, err = b.Snapshot(t.Context(), nil)
			require.NoError(t, err)
			losses, _, _, err = b.Losses(t.Context(), 100)
			require.NoError(t, err)
			require.Len(t, losses, 1, "what was removed before a group began at 0 was never to be read")
		})
	}
}

// P6.
func TestEntriesTrimmedWhilePendingAreCountedOnceHoweverOftenTheyAreAcknowledged(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(3, 100)
	turn := b.turn("t")
	b.dispatch(t, turn.After, 1000)
	require.NoError(t, b.client.XTrimMaxLen(t.Context(), b.cfg.Stream, 30).Err())
	var a protocol.Ack
	a.Shard = 3
	for _, e := range b.entries(3) {
		if e.Fields == nil {
			a.Gone = append(a.Gone, e.ID)
		} else {
			a.IDs = append(a.IDs, e.ID)
		}
	}
	require.Equal(t, ids[:70], a.Gone)
	require.Equal(t, ids[70:], a.IDs)
	for range 3 {
		require.NoError(t, b.Ack(t.Context(), []protocol.Ack{a}))
	}
	require.Equal(t, map[string]int64{"trimmed_pending": 70}, b.lost(t))
	require.Zero(t, b.info().Pending)
}

// Every entry added is acknowledged, pending, still to be dispatched or noted as
// lost, wherever the trim strikes.
func TestTheAccountBalancesWhereverTheTrimStrikes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	turn := b.turn("t")
	after := turn.After
	added, acked := 0, 0
	for round := range 30 {
		added += len(b.addTo(round%shards, 20+round))
		var n int
		if round%3 != 2 {
			after, n = b.dispatch(t, after, 15+round%7*10)
			require.NotZero(t, n)
		}
		require.NoError(t, b.client.XTrimMaxLen(t.Context(), b.cfg.Stream, int64(40+round%5*15)).Err())
		for shard := range shards {
			a := protocol.Ack{Shard: shard}
			for i, e := range b.entries(shard) {
				switch {
				case e.Fields == nil:
					a.Gone = append(a.Gone, e.ID)
				case i%2 == 0:
					a.IDs = append(a.IDs, e.ID)
				}
			}
			acked += len(a.IDs)
			require.NoError(t, b.Ack(t.Context(), []protocol.Ack{a}))
		}
	}
	for n := 1; n > 0; {
		after, n = b.dispatch(t, after, 1000)
	}
	var lost int64
	for _, n := range b.lost(t) {
		lost += n
	}
	require.Positive(t, lost)
	info := b.info()
	require.Equal(t, stream.Count{N: 0, Known: true}, info.Lag)
	require.EqualValues(t, added, int64(acked)+info.Pending+lost, "acked %d, pending %d, lost %d", acked, info.Pending, lost)
	t.Logf("added %d: acknowledged %d, pending %d, lost %d", added, acked, info.Pending, lost)
}

func TestTheTrimPointIsWhatTrimmingLeft(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ids := b.addTo(3, 10)
	h, err := b.TrimPoint(t.Context())
	require.NoError(t, err)
	require.Equal(t, protocol.TrimPoint{First: ids[0], Last: ids[9], Length: 10}, h)
	_, known := h.Margin(ids[5])
	require.False(t, known, "nothing was ever trimmed")
	require.NoError(t, b.client.XTrimMaxLen(t.Context(), b.cfg.Stream, 4).Err())
	h, err = b.TrimPoint(t.Context())
	require.NoError(t, err)
	require.Equal(t, protocol.TrimPoint{First: ids[6], Last: ids[9], Length: 4, Removed: 6}, h)
	margin, known := h.Margin(telemetry.EntryID{Ms: ids[6].Ms + 5000})
	require.True(t, known)
	require.Equal(t, 5*time.Second, margin)
	margin, known = h.Margin(ids[0])
	require.True(t, known)
	require.Zero(t, margin, "it is gone already")
}

// dispatch reads at most count new entries and dispatches them; it returns the last.
func (b *bench) dispatch(t *testing.T, after telemetry.EntryID, count int) (telemetry.EntryID, int) {
	t.Helper()
	a := b.readUpTo(after, count)
	if len(a.Entries) == 0 {
		return after, 0
	}
	_, err := b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "t", TTL: time.Minute, After: after}, &a)
	require.NoError(t, err)
	return a.Last, len(a.Entries)
}

// P6: retention runs beside the reader. What goes between a read and its dispatch is counted once, whether
// a snapshot is taken before the read, after it, or not at all.
func TestP6EntriesTrimmedAroundAReadAreCountedOnce(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano()) % 1_000_000
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 6))
	b := newBench(t)
	b.turn("t")
	after, removed, stored := telemetry.EntryID{}, 0, 0
	var left []telemetry.EntryID
	trim := func() {
		n := r.IntN(4)
		if n >= len(left) || n == 0 {
			return
		}
		left = left[n:]
		require.NoError(t, b.client.XTrimMinID(t.Context(), b.cfg.Stream, left[0].String()).Err())
	}
	look := func() {
		if r.IntN(2) == 0 {
			_, err := b.Snapshot(t.Context(), nil)
			require.NoError(t, err)
		}
	}
	sent := 0
	for range 60 {
		added := b.addTo(3, 4+r.IntN(6))
		sent += len(added)
		left = append(left, added...)
		trim()
		look()
		trim()
		a := b.readUpTo(after, 1+r.IntN(12))
		for range r.IntN(3) {
			trim()
			look()
		}
		trim()
		d, err := b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "t", TTL: time.Minute, After: after}, &a)
		require.NoError(t, err)
		stored += len(a.Entries) - len(d.Gone)
		after = a.Last
		for len(left) > 0 && left[0].Compare(after) <= 0 {
			left = left[1:]
		}
	}
	removed = sent - stored - len(left)
	a := b.readUpTo(after, 1000)
	_, err := b.Dispatch(t.Context(), protocol.DispatchRequest{Token: "t", TTL: time.Minute, After: after}, &a)
	require.NoError(t, err)
	require.Equal(t, map[string]int64{"trimmed_unread": int64(removed)}, b.lost(t))
	require.Equal(t, stream.Count{N: 0, Known: true}, b.info().Lag)
}
