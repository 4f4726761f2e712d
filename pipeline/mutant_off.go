//go:build !mutant

package pipeline

import "context"

// The points at which a mutant of the service (build tag mutant) goes wrong on
// purpose, so that the load test can be shown to notice. Here they do nothing.

// mutantDrops tells whether a record is to be forgotten.
func mutantDrops() bool { return false }

// mutantAcks acknowledges a batch that is not committed yet.
func (w *worker) mutantAcks(context.Context, *batch) {}
