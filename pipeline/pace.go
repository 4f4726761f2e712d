package pipeline

import (
	"errors"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
)

// pace is how many entries a worker puts into one batch. What was too much for
// the server is half as large the next time, so that nothing is tried unchanged
// for ever; batches grow again once they take a quarter of the time.
type pace struct {
	most   int
	limit  int           // of entries, from 1 to most
	failed time.Duration // what the attempt took that was too much
}

func newPace(most int) pace { return pace{most: most, limit: most} }

// tooMuch notes that a batch was.
func (p *pace) tooMuch(entries int, took time.Duration) {
	rare.Reached(rare.Halved)
	p.limit, p.failed = max(1, min(p.limit, entries/2)), took
}

// passed notes that a batch was committed.
func (p *pace) passed(entries int, took time.Duration) {
	if entries >= p.limit && 4*took < p.failed {
		p.limit = min(2*p.limit, p.most)
	}
}

// isTooMuch reports whether a smaller batch might be committed.
func isTooMuch(err error) bool {
	f, ok := errors.AsType[*protocol.Failure](err)
	return ok && f.TooMuch
}
