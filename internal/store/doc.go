// Package store is the Postgres adapter: the only place of the service that
// writes SQL. It commits batches under the epoch check, keeps ownership,
// assignments and terms, reads what is stored, and migrates and verifies the
// schema.
//
// Promises kept here:
//
//   - P2: rows that may be stored already are inserted by a statement that leaves
//     existing ones unchanged and returns what was new.
//   - P4: every transaction that writes for a shard ends with processor.fence. Acquiring
//     a shard waits for a commit in progress and then sees it.
//   - P5: crossings that a late record affects are recomputed from the rows around it, in
//     the same transaction.
//   - P7: every error is classified once (see errors.go), so that an outage is never
//     mistaken for the fault of a row, nor a row's fault for an outage.
//
// Everything has a time limit: connecting, a statement, a lock, a transaction.
//
// It does not write for a shard under an outdated epoch, and does not retry a
// failed batch, which is the caller's decision.
package store
