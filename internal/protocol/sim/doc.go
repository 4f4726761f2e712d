// Package sim runs the protocol of the fleet as a model, through thousands of
// random interleavings of faults, and checks the promises after every step.
//
// The decisions are production code: protocol.Queue, Next, Assign,
// FailureDetector and RangeToRedeliver. The rest is modelled: members as state
// machines, Redis as far as its scripts see it, Postgres as far as the fence,
// the acquisition of shards and the tables see it. Sending a request, its
// effect and the arrival of its reply are separate events on one virtual clock,
// so that a member can die, freeze, or miss the reply at each of them, and a
// command can take effect long after its sender gave up on it.
//
// Checked, by invariants.go:
//
//   - P1: an entry is acknowledged only when its effect is committed or its loss is
//     recorded. At the end every entry is committed or accounted for.
//   - P2: the rows are a function of the entries: of two with the same device and
//     time the first in the stream counts, and every row refers to the row that
//     precedes it in device time. An entry that was recorded as lost and came back
//     with an older state of Redis is a late one.
//   - P3: only the owner of a device's shard commits for it, and the first commits of
//     a device's entries follow the stream. Excepted are entries that a foreign
//     consumer held and the sweep put back: when they are found, later ones may be
//     committed already.
//   - P4: a member that was replaced commits nothing, changes no queue, assigns nothing
//     and acquires nothing; and it blocks no other: once faults have stopped, all
//     work is finished in bounded time, and nothing waits on a queue, finished or not,
//     until the rescan.
//
// In a backlog what the dispatcher delivers itself is unqueued: it is on no queue until it is finished, or
// its work is given up. So P1 is also checked wherever the last-delivered ID moves: it
// passes no entry that is neither on a queue nor finished and acknowledged.
//
// What the model showed to be necessary:
//
//   - A request that was decided on what one generation of a server said has no effect
//     on another. A member that meets another generation of Redis or Postgres acquires
//     all its shards again before anything else, which fences what is in progress and
//     drops what is in flight.
//   - Acquiring a shard registers an owner token in Redis, in the same step that reads
//     the acked mark, and an acknowledgement carries the token. Otherwise a late
//     acknowledgement, of a commit that Postgres has lost since, removes an entry
//     after the marks were compared.
//   - A queue may be bypassed only if it was known to be empty before the dispatch was
//     sent. Otherwise a read between the dispatch and its reply, which finds the empty
//     queue of a group that was just recreated, lets dispatched entries overtake lost
//     ones until these are redelivered.
//   - The last-delivered ID that dispatching left is recorded at each acquisition of
//     the dispatch lease, not only by dispatches. Otherwise a manual move that follows
//     another one, or a group created by hand, goes unnoticed.
//   - The sweep leaves entries beyond the last dispatched one to the dispatcher, which
//     comes to them again. Otherwise the owner's cursor has passed them when those
//     before them are dispatched, and the order is lost.
//   - The state that an owner leaves at a release counts for the next epoch only, and
//     before the release nothing of the shard may be in flight.
//   - Work of a shard whose row is locked does not stay in flight: other shards of the
//     worker would wait with it, and a release.
//   - After a dispatch whose outcome is unknown nothing is settled at the end of a term: what it was to
//     put on queues counts as being there, and the last-delivered ID would pass it.
//   - Nothing is unqueued before anything is settled. Otherwise a group that a client removes and creates
//     at 0 is taken for the same, and the last-delivered ID passes what was on its queues.
//   - What was dispatched is not fed if a read has delivered it since: the cursor was reset
//     during the dispatch, and the queue is known to be empty again.
//
// Stream IDs are a plain counter, so that after a failover to an older state
// every lost ID is soon used again. That is harsher than any clock.
//
// Not modelled: decoding and dead letters, memory bounds, the count by which
// entries trimmed before dispatch are detected (the model counts them as
// accounted for), and clocks that run at different speeds; changes of the number of
// shards, and devices that move between streams (loadtest run chaos has the former).
// Servers are up, slow, down or cut off: a Redis that is full and still takes reads and
// PEXPIRE, a replica, and a Postgres that reads and refuses writes, in which leases live on
// while dispatches, acknowledgements and acquisitions fail, are in internal/e2e
// (outage_test.go) and loadtest run outage.
//
// Known limits, excepted from the checks: what is dispatched again without notice waits for
// the rescan where it is finished, behind the cursor of its owner. That is after the group
// was lost, or the last-delivered ID moved by hand; after a flush of the record of how far
// the dispatcher had read ahead; where a redelivery was held up, or reached beyond what is
// dispatched; and in a member that missed the notification. And RangeToRedeliver does not find an
// entry whose commit Postgres lost if it lies below the applied ID that
// Postgres went back to; only an entry put back by the sweep, or one under a
// reused ID, can lie there. And a manual move of the last-delivered ID forward
// is undetectable when the record of its place is flushed before the next
// renewal of the dispatch lease.
//
// Each rule of the protocol can be switched off (Mutant). A test demands that
// every such fault is caught.
package sim
