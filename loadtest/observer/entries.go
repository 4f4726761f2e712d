package observer

import (
	"iter"
	"strings"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// Among reports which entries are in a set.
func Among(set map[telemetry.EntryID]bool) func(oracle.ID) bool {
	return func(id oracle.ID) bool { return set[telemetry.EntryID(id)] }
}

// Letters returns dead letters as the oracle knows them.
func Letters(all iter.Seq2[telemetry.DeadLetter, error]) iter.Seq2[oracle.DeadLetter, error] {
	return func(yield func(oracle.DeadLetter, error) bool) {
		for l, err := range all {
			// The texts are kept, the page that they were read with must not be.
			d := oracle.DeadLetter{Source: oracle.ID(l.Entry.ID), Class: strings.Clone(string(l.Class)), Fields: &oracle.LetterFields{
				Sum: fleet.SumOf(l.Entry.Fields), Shard: l.Shard, Attempts: l.Attempts, Error: strings.Clone(l.Error), Field: strings.Clone(l.Field),
				Fingerprint: strings.Clone(l.Fingerprint), Instance: strings.Clone(l.Instance),
				FirstUS: l.FirstFailed.UnixMicro(), LastUS: l.LastFailed.UnixMicro(),
			}}
			if !yield(d, err) {
				return
			}
		}
	}
}

// WithArchived adds the dead letters that were archived and are not among those that
// are left.
func WithArchived(left iter.Seq2[oracle.DeadLetter, error], archived map[oracle.ID]oracle.DeadLetter) iter.Seq2[oracle.DeadLetter, error] {
	return func(yield func(oracle.DeadLetter, error) bool) {
		seen := make(map[oracle.ID]bool)
		for l, err := range left {
			if _, both := archived[l.Source]; both {
				seen[l.Source] = true
			}
			if !yield(l, err) {
				return
			}
		}
		for id, l := range archived {
			if !seen[id] && !yield(l, nil) {
				return
			}
		}
	}
}
