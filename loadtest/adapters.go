package loadtest

import (
	"context"
	"iter"

	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// letters yields every dead letter.
func (g *testbed) letters(ctx context.Context) iter.Seq2[oracle.DeadLetter, error] {
	return observer.Letters(g.dlqReader.All(ctx))
}
