// Package stream is the Redis Stream adapter: the only place that speaks
// stream commands. It knows the names of keys and fields, dispatches new entries to
// the queues of their shards, reads those queues, acknowledges, claims what
// foreign consumers hold, and parks dead letters. It keeps no state of the
// protocol; who may do what is decided by its callers and checked by its
// scripts.
//
// A shard's queue is the pending list of a consumer of the group. Nothing of
// ours ever reads the group with ">", so that what is on a queue, and in which
// order, is decided by dispatches alone.
//
// Promises kept here:
//
//   - P1: an entry leaves a queue only by Ack or as a dead letter.
//   - P3: a dispatch happens whole or not at all, under the token of the dispatch lease and
//     only from the last-delivered ID that its read started after. So each queue
//     is in stream order by construction.
//   - P6: entries that turn out to be trimmed are noted in a list that is
//     drained into the ledger, in the same step that takes them off the books.
//
// Scripts run with allow-oom where they do not store entries: a full server
// can still be drained.
//
// What this package refuses to promise: that a command happened when its
// connection broke. Such errors are of the kind Unknown, and every call may be
// repeated.
package stream
