// Package sim runs the protocol of the fleet as a model, through thousands of
// random interleavings of faults, and checks the promises after every step.
//
// What decides is the production code itself: protocol.Queue, Next, Assign,
// Watch and RangeToRedeliver. What is modelled is what they stand on: members as state
// machines, Redis as far as its scripts see it, Postgres as far as the fence,
// the taking of shards and the tables see it. Sending a request, its taking
// effect and the arrival of its reply are separate events on one virtual clock,
// so that a member can die, freeze, or miss the reply at each of them, and a
// command can take effect long after its sender gave it up.
//
// Checked, by judge.go:
//
//   - P1: an entry leaves the books only when its effect has been committed or
//     its loss is noted. At the end every entry is committed or accounted for.
//   - P2: the rows are a function of the entries: of two with the same device and
//     time the first in the stream counts, and every row leads to the
//     row that precedes it in device time.
//   - P3: only the owner of a device's shard commits for it, and the first
//     commits of a device's entries follow the stream. Excepted are
//     entries that a foreign consumer had taken and the sweep put back: when
//     they are found, later ones may be committed already.
//   - P4: whoever has been replaced commits nothing, changes no queue, assigns
//     nothing and takes nothing; and it holds nobody up: once faults have
//     stopped, all work is finished in bounded time.
//
// What the model found to be needed, and therefore does:
//
//   - A request that was decided on what one run of a server said has no effect
//     on another run. A member that meets another run of Redis or of Postgres
//     takes all its shards again before anything else, which fences what
//     is under way and drops what is in flight.
//   - Whoever takes a shard enters a token for its grant into Redis, in the same step
//     that reads the acked mark. An acknowledgement carries the token. Otherwise
//     a late one, of a commit that Postgres has lost since, removes an entry
//     after the marks were compared.
//   - A queue may be fed only if it was known to be empty before the dispatch was
//     sent. Otherwise a read that falls between the dispatch and its reply, and finds
//     the empty queue of a group that somebody has just recreated, lets what was
//     dispatched pass what is lost until it is redelivered.
//   - Where dispatching left the last-delivered ID is noted at each acquisition of
//     the dispatch lease, not only by dispatches. Otherwise a move by hand is not noticed
//     that follows another one, or a group made by hand.
//
// IDs of the stream are a plain counter, so that after a failover to an older
// state every lost ID is soon used again. That is harsher than any clock.
//
// Not modelled: decoding and dead letters, memory bounds, the count by which
// entries trimmed before they were dispatched are detected (the model takes them
// for accounted), and clocks that run at different speeds.
//
// A known limit is built in as an exception: RangeToRedeliver does not find an entry whose commit
// Postgres lost, if it lies behind the progress mark that Postgres went back to. Only
// an entry put back by the sweep, or under an ID used again, can lie there. Nor can
// anything tell that the last-delivered ID was moved forward by hand when the
// note of where it was is flushed before the next renewal of the dispatch lease.
//
// Each rule of the protocol can be switched off (Mutant). A test demands that
// every such fault is caught.
package sim
