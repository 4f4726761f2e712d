// Package pipeline takes records through one instance, from the stream to the
// acknowledgement:
//
//	dispatch / read → apply (decode, state) → batch → one transaction → ack
//
// The dispatcher puts new entries on the queues of their shards while this
// instance holds the dispatch lease. The reader reads the queues of the shards
// granted to this instance. Both deliver entries to workers, each of which runs
// several shards: it decodes entries, advances the state of devices and collects
// a batch. While one batch commits the worker fills the next one; while one is
// acknowledged the next one commits.
//
// Entries are decoded after dispatch, by the worker of their shard: the shard
// follows from the entry's own device_id, so decoding runs on all workers and
// keeps the order of a device.
//
// # States of an entry
//
//		            dispatch          deliver            commit            ack
//		in stream ──────────► queued ─────────► in flight ─────► committed ─────► acknowledged
//		    ▲                  ▲  ▲             │ │    ▲ │                             │
//		    │                  │  └── give up ──┘ │    │ └─ defer ──► deferred         │
//		    │                  │                  │    └──── due ──────────┘           │
//		    │                  └── redeliver ─────┼────────────────────────────────────┘
//		    └──────────── replay ── dead letter ◄─┘ reject
//
//	  - dispatch: dispatch.lua appends the entry to the pending list of its shard.
//	  - deliver: the owner's reader, or the dispatcher itself where protocol.Queue
//	    allows to bypass the queue. In a backlog the dispatcher leaves such entries
//	    unqueued: the group's last-delivered ID stays behind them until they are
//	    acknowledged, and who dispatches next begins there.
//	  - commit: one transaction writes the record and checks the epoch. A duplicate
//	    commits too; it changes nothing.
//	  - give up: the shard was lost, or the outcome of the commit is unknown. The
//	    entry stays on its queue, and the next grant of the shard reads it again.
//	    An unqueued entry is an orphan, which the next dispatch puts there.
//	  - defer: the entry cannot be decoded and has attempts left (a newer release may
//	    decode it). The batch writes it to Postgres and acknowledges it there and
//	    then; it is in flight again when it is due, and ends as committed, deferred
//	    or dead letter.
//	  - reject: the attempts are exhausted, Postgres rejects the row, or a process
//	    crashed while this entry alone was applied. deadletter.lua moves it to the dead letter
//	    stream and acknowledges it in one step.
//	  - redeliver: on a force-acquire, what was acknowledged beyond the applied ID
//	    is queued again, because Postgres may have lost it.
//	  - replay: an operator adds a dead letter to the stream again.
//
// # Promises kept here
//
//   - P1: committed before acknowledged; of what was trimmed there is nothing to commit. A
//     failed acknowledgement is retried until it succeeds or the instance ends. The last-delivered ID passes an unqueued
//     entry only after that.
//   - P2: a batch that did not commit as computed is recomputed on fresh state, by
//     a path on which rows that are stored already change nothing.
//   - P3: records of a device are applied and committed in the order of its queue:
//     one worker per shard, one commit in flight per worker.
//   - P4: every transaction carries the epochs under which its records were
//     applied. If the sink reports them void, the batch and everything computed on
//     top of it is dropped and no entry of those shards is acknowledged.
//   - P5: records newer than the watermark are appended and advance the state; all
//     others go through the tables, so the result does not depend on the order of
//     arrival.
//   - P7: while a server is unavailable the same batch waits; no entry is given up
//     and no attempt is counted.
//   - P9: memory <= MaxInFlightRecords, MaxInFlightBytes, plus one reply of the
//     server. Dispatch pauses while dispatched and unfinished >= DispatchAhead,
//     not counting stalled shards and foreign consumers.
//
// Coordination decides who owns a shard; it grants and withdraws shards. The
// package knows neither Redis nor Postgres, only Source, Acker, Sink and History.
//
// # Failed commits
//
// dispositionOf in errors.go is the only place that decides:
//
//	unavailable     not applied: retry the same batch in place
//	unknown         may be applied: give the shards up, reacquire and re-read them
//	fenced          drop the shards that another member owns; recompute the rest
//	conflict        a row exists already: recompute by the idempotent path
//	outdated        the fences changed: reload them and recompute
//	rejected        a row is invalid: bisect until it is alone, then dead-letter it
//	misconfigured   an operator must fix it: Run returns the error
//	of a row        unavailable or misconfigured by the words of the server, which one row
//	                may be the reason of: as rejected, and as its kind if all are refused
package pipeline
