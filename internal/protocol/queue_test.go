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

// leave delivers entries that are put on no queue.
func leave(q *protocol.Queue, seqs ...uint64) { q.LeaveUnqueued(ids(seqs...)...) }

// acknowledge returns which of n entries, the first of which is given, are unqueued.
func acknowledge(q *protocol.Queue, first uint64, n int) (unqueued []int) {
	q.Acknowledge(ids(first)[0], n, func(i int) { unqueued = append(unqueued, i) })
	return unqueued
}

func TestTheFirstUnqueuedEntryIsTheOldestThatIsNotDone(t *testing.T) {
	var q protocol.Queue
	q.Bypassed(ids(1)...)
	_, found := q.FirstUnqueued()
	require.False(t, found, "1 is on the queue")
	leave(&q, 2, 3)
	first, found := q.FirstUnqueued()
	require.True(t, found)
	require.Equal(t, ids(2)[0], first)
	require.Equal(t, 2, q.Unqueued())
	q.Done(2)
	first, _ = q.FirstUnqueued()
	require.Equal(t, ids(3)[0], first)
	q.Done(1)
	_, found = q.FirstUnqueued()
	require.False(t, found)
	require.Zero(t, q.Unqueued())
}

func TestOnlyEntriesOnAQueueAreAcknowledgedByTheirIDs(t *testing.T) {
	var q protocol.Queue
	q.Bypassed(ids(1)...)
	leave(&q, 2, 3, 4)
	require.Equal(t, []int{1}, acknowledge(&q, 1, 2), "1 is on the queue, 2 is unqueued")
	require.Equal(t, []int{0, 1}, acknowledge(&q, 3, 2))
	require.Empty(t, acknowledge(&q, 9, 1), "unknown")
	first, _ := q.FirstUnqueued()
	require.Equal(t, ids(2)[0], first, "acknowledging is not finished")
	require.Equal(t, []int{0, 1}, acknowledge(&q, 3, 2), "tried again")
}

// P3: entries whose work is given up come to the queue before anything that follows them.
func TestUnqueuedEntriesOfWorkThatIsGivenUpAreOrphans(t *testing.T) {
	var q protocol.Queue
	q.Bypassed(ids(1)...)
	leave(&q, 2, 3, 4)
	q.Done(2)
	acknowledge(&q, 3, 1)
	require.Equal(t, ids(3), q.UnqueuedOf(1), "3, whose acknowledgement was refused")
	require.Equal(t, ids(3, 4), q.Discard())
	require.Zero(t, q.Unqueued())
	require.Empty(t, q.Discard())
}

// Entries put on the queue as they were acknowledged are found there when they are done; a
// read before passes them by.
func TestAQueueIsLookedThroughWhenWhatWasReleasedIsDone(t *testing.T) {
	var q protocol.Queue
	end(&q, q.BeginRead(1), false, 1)
	leave(&q, 1, 2)
	acknowledge(&q, 1, 1)
	require.True(t, q.CanBypass(1))
	require.Equal(t, ids(1, 2), q.Enqueue())
	require.Empty(t, q.Enqueue())
	require.False(t, q.CanBypass(1))
	_, found := q.FirstUnqueued()
	require.False(t, found)
	require.Empty(t, acknowledge(&q, 2, 1), "it is on the queue by now")
	require.Empty(t, end(&q, q.BeginRead(1), false, 1), "both lie behind the cursor")
	require.True(t, q.CanBypass(1))
	leave(&q, 3)
	require.False(t, q.Done(1))
	require.False(t, q.Looks())
	require.True(t, q.Done(1), "all that was in flight then is done")
	require.True(t, q.Looks())
	look := q.BeginRead(1)
	require.True(t, look.Looked())
	require.Zero(t, look.From)
	require.Equal(t, []uint64{1}, end(&q, look, true, 1, 1), "it was acknowledged before it was put there")
	require.True(t, q.Looks(), "there may be more")
	look = q.BeginRead(1)
	require.Equal(t, ids(1)[0], look.From)
	require.Equal(t, []uint64{2}, end(&q, look, true, 1, 2, 4), "4 is left to a read from the cursor on")
	require.False(t, q.Looks())
	require.True(t, q.CanBypass(1), "nothing lies beyond the cursor")
	require.Equal(t, 3, q.InFlight())
	require.True(t, q.Finished(ids(1)[0]), "it is delivered again")
	require.True(t, q.Finished(ids(2)[0]))
	require.False(t, q.Finished(ids(3)[0]), "it was not put on the queue")
	require.False(t, q.Done(3), "once")
	q.LookAgain()
	require.Empty(t, end(&q, q.BeginRead(1), false, 1))
	require.False(t, q.Finished(ids(1)[0]), "forgotten when they were looked for")
	leave(&q, 5)
	require.Equal(t, ids(5), q.Enqueue())
	q.Discard()
	require.False(t, q.Finished(ids(5)[0]), "its work was abandoned")
}

func TestALookDoesNotAnswerForOneThatBecameDueMeanwhile(t *testing.T) {
	var q protocol.Queue
	q.LookAgain()
	look := q.BeginRead(1)
	q.LookAgain() // what it is for was put on the queue after the read
	require.Empty(t, end(&q, look, false, 1))
	require.True(t, q.Looks())
	require.Empty(t, end(&q, q.BeginRead(1), false, 1))
	require.False(t, q.Looks())
}

func TestALookIsNotPutOffByTheNext(t *testing.T) {
	var q protocol.Queue
	leave(&q, 1, 2)
	q.LookAgain()
	leave(&q, 3)
	q.LookAgain()
	require.False(t, q.Done(1))
	require.True(t, q.Done(1), "1 and 2 are done")
	end(&q, q.BeginRead(1), false, 1)
	require.False(t, q.Looks())
	require.True(t, q.Done(1), "3 is")
	require.True(t, q.Looks())
}

func TestAQueueWithNothingInFlightIsLookedThroughAtOnce(t *testing.T) {
	var q protocol.Queue
	q.LookAgain()
	require.True(t, q.Looks())
	require.Empty(t, end(&q, q.BeginRead(1), false, 1))
	require.False(t, q.Looks())
	q.Recheck()
	require.True(t, q.Looks())
	q.Reset()
	require.False(t, q.Looks(), "all of it is read anyway")
}

func TestAnEntryThatVanishedIsUnqueuedUntilItIsDone(t *testing.T) {
	var q protocol.Queue
	leave(&q, 1, 2)
	q.Enqueue()
	require.True(t, q.Vanish(ids(1)[0]))
	require.False(t, q.Vanish(ids(9)[0]))
	first, found := q.FirstUnqueued()
	require.True(t, found)
	require.Equal(t, ids(1)[0], first)
	require.Empty(t, q.Enqueue(), "it cannot be put on any queue")
	require.Equal(t, []int{0}, acknowledge(&q, 1, 1))
	q.Done(1)
	require.Zero(t, q.Unqueued())
}

// The member that has the lease next dispatches what was unqueued: it is on its queue then.
func TestWithoutTheLeaseNothingIsUnqueued(t *testing.T) {
	var q protocol.Queue
	leave(&q, 1, 2, 3)
	acknowledge(&q, 1, 1)
	q.Enqueue()
	q.Vanish(ids(2)[0])
	leave(&q, 4)
	q.Forget()
	require.Zero(t, q.Unqueued())
	require.Equal(t, 4, q.InFlight())
	require.Empty(t, q.Discard())
}

func TestALongRunLeavesUnqueuedAndFinishesInAnyOrderOfSteps(t *testing.T) {
	var q protocol.Queue
	next, done := uint64(1), uint64(1)
	for range 5000 {
		leave(&q, next, next+1)
		q.Bypassed(ids(next + 2)...)
		next += 3
		if next-done > 40 {
			require.Equal(t, []int{0, 1}, acknowledge(&q, done, 3))
			q.Done(3)
			done += 3
		}
		first, found := q.FirstUnqueued()
		require.True(t, found)
		require.Equal(t, ids(done)[0], first)
		require.Equal(t, int(next-done), q.InFlight())
		require.Equal(t, 2*int(next-done)/3, q.Unqueued())
	}
}
