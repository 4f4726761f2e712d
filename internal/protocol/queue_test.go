package protocol_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

func ids(seqs ...uint64) []telemetry.EntryID {
	out := make([]telemetry.EntryID, len(seqs))
	for i, s := range seqs {
		out[i] = telemetry.EntryID{Ms: 1, Seq: s}
	}
	return out
}

func end(q *protocol.Queue, t protocol.ReadSnapshot, full bool, leaseNumber uint64, found ...uint64) (taken []uint64) {
	list := ids(found...)
	q.EndRead(t, list, full, leaseNumber, func(i int) { taken = append(taken, list[i].Seq) })
	return taken
}

// P3: entries of a shard are delivered in queue order.
func TestQueueDeliversInOrderAndOnlyOnce(t *testing.T) {
	var q protocol.Queue
	require.Equal(t, []uint64{1, 2, 3}, end(&q, q.BeginRead(1), true, 1, 1, 2, 3))
	require.Equal(t, []uint64{4}, end(&q, q.BeginRead(1), false, 1, 4))
	q.Done(2)
	q.Reset()
	require.Equal(t, []uint64{5}, end(&q, q.BeginRead(1), false, 1, 3, 4, 5), "3 and 4 are in flight")
	require.Equal(t, 3, q.InFlight())
}

func TestQueueSkipsWhatFinishesWhileTheReplyIsUnderWay(t *testing.T) {
	var q protocol.Queue
	end(&q, q.BeginRead(1), false, 1, 1, 2)
	q.Reset()
	readSnapshot := q.BeginRead(1)
	q.Done(2)
	require.Empty(t, end(&q, readSnapshot, false, 1, 1, 2))
}

func TestQueueDropsAReplyThatAResetOvertook(t *testing.T) {
	var q protocol.Queue
	readSnapshot := q.BeginRead(1)
	q.Discard()
	require.False(t, q.EndRead(readSnapshot, ids(1), false, 1, func(int) { t.Fatal("delivered") }))
	require.Equal(t, []uint64{1}, end(&q, q.BeginRead(1), false, 1, 1))
}

// P3: bypassing overtakes nothing that lies on the queue.
func TestQueueIsBypassedOnlyWhileKnownEmpty(t *testing.T) {
	var q protocol.Queue
	require.False(t, q.CanBypass(1), "nothing is known of a new queue")
	end(&q, q.BeginRead(1), false, 1, 1)
	require.False(t, q.CanBypass(1), "a read that found something says nothing about what follows")
	end(&q, q.BeginRead(1), false, 1)
	require.True(t, q.CanBypass(1))
	require.False(t, q.CanBypass(2), "another dispatch lease")
	require.False(t, q.CanBypass(0), "no dispatch lease")

	q.Bypassed(ids(2)...)
	require.True(t, q.CanBypass(1), "what was fed leaves it empty")
	q.Dispatched()
	require.False(t, q.CanBypass(1))

	readSnapshot := q.BeginRead(1)
	q.Dispatched()
	end(&q, readSnapshot, false, 1)
	require.False(t, q.CanBypass(1), "something was dispatched after the read was sent")

	end(&q, q.BeginRead(1), false, 2)
	require.False(t, q.CanBypass(2), "the read was sent before the dispatch lease was acquired")
	end(&q, q.BeginRead(2), false, 2)
	require.True(t, q.CanBypass(2))
	q.Reset()
	require.False(t, q.CanBypass(2))
}
