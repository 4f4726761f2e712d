//go:build !mutant

package pipeline

import (
	"context"

	"github.com/trmtracking/processor/internal/protocol"
)

// The points at which a mutant of the service (build tag mutant) fails on
// purpose, so that the load test can be shown to notice. Here they do nothing.

// mutantDrops reports whether to drop a record.
func mutantDrops() bool { return false }

// ackEarlyIfMutant acknowledges a batch that is not committed yet.
func (w *worker) ackEarlyIfMutant(context.Context, *batch) {}

// mutantWrites writes a batch, delayed where a test asks for that.
func (w *worker) mutantWrites(ctx context.Context, b *protocol.Batch) (protocol.CommitResult, error) {
	return w.sink.Write(ctx, b)
}
