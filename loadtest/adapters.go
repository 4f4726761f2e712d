package loadtest

import (
	"context"
	"iter"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// letters yields every dead letter.
func (g *testbed) letters(ctx context.Context) iter.Seq2[oracle.DeadLetter, error] {
	return oracle.DeadLetters(g.dlqReader.All(ctx))
}

func crossingsOf(rows iter.Seq2[protocol.Crossing, error]) iter.Seq2[oracle.Crossing, error] {
	return func(yield func(oracle.Crossing, error) bool) {
		for c, err := range rows {
			if !yield(oracle.Crossing{Device: c.DeviceID, Crossing: c.Crossing}, err) {
				return
			}
		}
	}
}
