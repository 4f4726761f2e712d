//go:build !mutant

package store

import "github.com/trmtracking/processor/internal/protocol"

// Points at which a mutant of the service (build tag mutant) misbehaves on
// purpose, to show that the load test notices. Here they do nothing.

// mutantUnfenced reports whether a transaction commits without the epoch check.
func mutantUnfenced() bool { return false }

// mutantCrossings returns what is stored instead of crossings.
func mutantCrossings(list []protocol.Crossing) []protocol.Crossing { return list }
