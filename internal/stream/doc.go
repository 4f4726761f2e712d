// Package stream is the Redis Stream adapter: the only place that issues stream
// commands. It knows the names of keys and fields, dispatches new entries to
// the queues of their shards, reads those queues, acknowledges, claims from
// foreign consumers, and stores dead letters. It keeps no protocol state; its
// callers decide who may do what, and its scripts check it.
//
// A shard's queue is the pending list of a consumer of the group. This service
// never reads the group with ">", so only dispatches decide what is on a queue,
// and in which order. In a backlog the dispatcher leaves entries of its own shards
// unqueued; the group's last-delivered ID stays behind them until they are finished.
//
// XACK is issued in ack.lua (finished entries), deadletter.lua and
// deadletter_restore.lua (dead letters), claim.lua (foreign entries whose
// content is gone), and recompute.go (in the group of the stream of recompute
// requests).
//
// Promises kept here:
//
//   - P1: an entry leaves a queue only by Ack or as a dead letter.
//   - P3: a dispatch happens completely or not at all, under the token of the dispatch
//     lease and only from the last-delivered ID that its read started after. So each
//     queue is in stream order by construction.
//   - P6: entries that turn out to be trimmed are added to a list that is drained into
//     the ledger, in the same step that acknowledges them.
//
// Scripts that store no entries run with allow-oom: a full server can still be
// drained.
//
// Not promised: whether a command took effect when its connection broke. Such
// errors are of kind Unknown, and every call may be repeated.
package stream
