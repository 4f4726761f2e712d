// Package store is the Postgres adapter: the only place of the service that
// writes SQL. It commits batches under the check of epochs, keeps ownership, assignments and
// terms, answers what is stored, and migrates and verifies the schema.
//
// Promises kept here:
//
//   - P2: what may be stored already is inserted by a statement that leaves it
//     as it is and says what was new.
//   - P4: every transaction that writes for a shard ends with processor.fence.
//     The take-over of a shard waits for a commit under way and then sees it.
//   - P5: what a late record changes is derived again from the rows around it, in
//     the same transaction.
//   - P7: every error is sorted once (see errors.go), so that an outage is never
//     mistaken for the fault of a row, nor a row's fault for an outage.
//
// Everything has a time limit: connecting, a statement, a lock, a transaction.
//
// Refused: to write for a shard under an epoch that is not the newest, and to
// try a batch that failed again, which is for the caller to decide.
package store
