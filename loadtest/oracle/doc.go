// Package oracle is the judge: from the send log of a run and nothing else it
// computes the rows that must exist, compares them with the rows that do, and
// says what became of every entry.
//
// It is what P5 is judged by. What it promises:
//
//  1. It owes nothing to what it judges: it imports what was sent and internal/recheck,
//     which imports nothing of this module. It knows what was sent, orders it by device, device
//     time and stream order and walks over it once. Areas and gates are computed in
//     rational numbers without rounding, circles from chords on the sphere, the
//     shard of a device by the specification of xxHash.
//  2. Of two records with the same device and time the first eligible one in
//     stream order counts, else the first. ingested_at is the stream time of that entry, or of the entry it
//     is a replay of. Entries that are no valid record make no row, nor do those that
//     the database refuses until they are given up. One that was deferred is a record
//     once it is stored: an entry of its device and time that was not may precede it.
//  3. Crossings are what the eligible records of a device say in the order of
//     device time: with a place other than (0, 0) and enough satellites, not faulty, not
//     further ahead of their stream time, nor behind it, than is allowed.
//  4. Every field is compared: numbers exactly after rounding to the column's
//     type, attributes by their JSON value with exact numbers. Interpolated
//     crossings may differ by a microsecond and a billionth of a degree.
//  5. Every change of a crossing is accounted for: its revision counts them, each
//     changes something, and there are no more of them than records came late. Dead
//     letters hold the entry byte for byte, its shard, the field at fault and as many
//     attempts as it had. The ledger of losses covers what is gone and nothing else,
//     and no request is left over.
//  6. Each entry is counted once: stored, duplicate, dead-lettered, pending or
//     lost. Whatever differs is a finding; no finding, nothing pending and
//     nothing lost is the only verdict that passes.
//
// It holds about 40 bytes an entry in memory, and each device's name once; the
// contents stay in the log.
//
// Load tests, the demo and tests of the service use it.
package oracle
