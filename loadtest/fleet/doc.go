// Package fleet is the load: a deterministic simulated fleet or recorded
// tracks, the pacer that decides when each entry is due, the sender that
// publishes, and the send log that remembers what was sent.
//
// What it promises:
//
//  1. A source is a function of its profile: the same [Profile], seed
//     included, yields the same items in the same order. (Between processor
//     architectures the last digit of a coordinate may differ.)
//  2. A source streams. A simulated device costs eight bytes, whatever the
//     length of the run, so that a million devices fit next to the system
//     under test. Recorded tracks are held in memory, about 160 bytes a fix.
//  3. The load is open-loop. What is due follows from the elapsed time alone,
//     so that a slow system never slows the load; the sender says how far it
//     is behind.
//  4. Every entry that reached the stream is in the send log with its ID, also
//     when the connection broke in the middle. Entries whose outcome is unknown
//     are sent again, as a tracker does, and [Sender.Settle] finds out from the
//     stream which of them had arrived after all.
//
// What it does not promise: that the entries are pleasant. Records come late,
// newest first, twice, with unset clocks, without a fix and, if the profile
// says so, not as records at all (see [JunkKinds]).
//
// The demo, the load test and the tests of other packages use it; the oracle
// (loadtest/oracle) judges the tables from the send log.
package fleet
