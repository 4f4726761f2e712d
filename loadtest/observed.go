package loadtest

import (
	"context"
	"iter"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// lettersPage is how many dead letters are read at once.
const lettersPage = 1000

// letters yields every dead letter.
func (g *ground) letters(ctx context.Context) iter.Seq2[oracle.DeadLetter, error] {
	return func(yield func(oracle.DeadLetter, error) bool) {
		for after := (telemetry.EntryID{}); ; {
			page, err := g.parked.List(ctx, after, lettersPage)
			if err != nil {
				yield(oracle.DeadLetter{}, err)
				return
			}
			for i := range page {
				l := &page[i]
				if !yield(oracle.DeadLetter{Source: l.Entry.ID, Class: l.Class}, l.Err) {
					return
				}
				after = l.ID
			}
			if len(page) < lettersPage {
				return
			}
		}
	}
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
