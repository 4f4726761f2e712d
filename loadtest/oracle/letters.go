package oracle

import (
	"iter"

	"github.com/trmtracking/processor/internal/telemetry"
)

// Letters is dead letters as the judge needs them.
func Letters(all iter.Seq2[telemetry.DeadLetter, error]) iter.Seq2[DeadLetter, error] {
	return func(yield func(DeadLetter, error) bool) {
		for l, err := range all {
			if !yield(DeadLetter{Source: l.Entry.ID, Class: l.Class}, err) {
				return
			}
		}
	}
}
