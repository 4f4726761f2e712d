//go:build !mutant

package store

import "github.com/trmtracking/processor/internal/protocol"

// The points at which a mutant of the service (build tag mutant) goes wrong on
// purpose, so that the load test can be shown to notice. Here they do nothing.

// mutantUnfenced reports whether a transaction commits without the check of epochs.
func mutantUnfenced() bool { return false }

// mutantCrossings is what is stored instead of crossings.
func mutantCrossings(list []protocol.Crossing) []protocol.Crossing { return list }
