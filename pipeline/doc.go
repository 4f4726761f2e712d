// Package pipeline is the way of a record inside one instance:
//
//	dispatch / read → apply (decode, state) → batch → one transaction → ack
//
// A dispatcher puts new entries on the queues of their shards while this instance
// holds the dispatch lease. A reader reads the queues of the shards granted to it. Both
// hand entries to the workers, each of which runs several shards: it decodes,
// moves the state of devices, collects a batch, commits it while the next one
// fills, and acknowledges it while the next one commits.
//
// Entries are decoded by the worker of their shard, after dispatch: the shard
// follows from the entry's own device_id, and so decoding runs on all workers
// and keeps the order by itself.
//
// Promises kept here:
//
//   - P1: an entry is acknowledged only after the commit of its effect. A failed
//     acknowledgement is repeated until it succeeds or the instance ends.
//   - P2: a batch that did not commit exactly as computed is computed again on
//     fresh state, by a path on which what is stored already changes nothing.
//   - P3: records of a device are applied and committed in the order of its
//     queue: one worker a shard, one commit in flight a worker.
//   - P4: every transaction carries the epochs under which its records were
//     applied. When the sink says that they are void, the batch and everything
//     computed on top of it is dropped and nothing of those shards acknowledged.
//   - P5: records newer than the watermark are appended and move the state, all
//     others go through the tables, so that the order of arrival leaves no trace.
//   - P7: while a server does not answer, the same batch waits; nothing is given
//     up and no attempt is counted.
//   - P9: what is in memory is bounded by MaxInFlightRecords and
//     MaxInFlightBytes plus one reply of the server.
//     Dispatching pauses while DispatchAhead dispatched entries are unfinished, but not for the
//     sake of shards that stand while others advance.
//
// It does not decide who owns a shard: coordination grants shards and takes
// them away. And it does not know Redis or Postgres: Source, Acker, Sink and
// History are what it needs of them.
//
// How a failed commit is settled (judge in errors.go is the only place that
// sorts them):
//
//	unavailable   nothing happened: the same batch again, in place
//	unknown       it may have happened: shards given up, taken again, read again
//	fenced        shards named are another member's: dropped; the others redone
//	conflict      something was stored already: redone by the idempotent path
//	refused       a row is at fault: divided until it is alone
//	misused       a person must fix it: Run returns the error
package pipeline
