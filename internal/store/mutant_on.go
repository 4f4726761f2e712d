//go:build mutant

package store

import (
	"os"
	"slices"

	"github.com/trmtracking/processor/internal/protocol"
)

// mutantUnfenced omits the epoch check if MUTANT is unfenced.
func mutantUnfenced() bool { return os.Getenv("MUTANT") == "unfenced" }

// mutantCrossings stores a crossing twice if MUTANT is double_crossing.
func mutantCrossings(list []protocol.Crossing) []protocol.Crossing {
	if os.Getenv("MUTANT") != "double_crossing" || len(list) == 0 {
		return list
	}
	again := list[0]
	again.Ordinal++
	return append(slices.Clone(list), again)
}
