// Package protocol holds the decisions by which instances share a stream, as
// pure code without clocks, goroutines or drivers: when a queue may be passed
// by, who should own which shard, who counts as gone. The service and the
// simulation that hunts for faulty interleavings call the same functions, so
// that what is checked is what runs.
package protocol
