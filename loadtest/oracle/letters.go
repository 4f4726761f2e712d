package oracle

import (
	"iter"
	"strings"

	"github.com/trmtracking/processor/internal/telemetry"
)

// DeadLetters returns dead letters as the judge needs them.
func DeadLetters(all iter.Seq2[telemetry.DeadLetter, error]) iter.Seq2[DeadLetter, error] {
	return func(yield func(DeadLetter, error) bool) {
		for l, err := range all {
			// The class is kept, the page that it was read with must not be.
			class := telemetry.Class(strings.Clone(string(l.Class)))
			if !yield(DeadLetter{Source: l.Entry.ID, Class: class}, err) {
				return
			}
		}
	}
}
