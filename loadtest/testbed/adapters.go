package testbed

import (
	"context"
	"iter"

	"github.com/trmtracking/processor/loadtest/observer"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// Letters yields every dead letter.
func (g *Servers) Letters(ctx context.Context) iter.Seq2[oracle.DeadLetter, error] {
	return observer.Letters(g.DLQReader.All(ctx))
}
