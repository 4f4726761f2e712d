// Package operator does what operators do with a fleet: look at its lag, members
// and shards, trace an entry, examine dead letters and replay them, ask the owner
// of a device for something, move shards, find out what is wrong. Commands and
// the web console call the same functions; what they return is data with stable
// JSON names, and how it is shown is the caller's.
//
// A Fleet connects lazily, and to each server on its own: what one of them knows
// is told while the other is away, and what is unknown is nil, never 0. Errors
// are readable by people and carry the exit code of a command (package fault).
// Every change is recorded in processor.audit with the name of the operator.
package operator
