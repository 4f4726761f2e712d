package pipeline

import (
	"context"

	"github.com/trmtracking/processor/internal/rare"
)

// ackLoop acknowledges committed batches in order and retries until it
// succeeds: a skipped ack would leave its entries pending for ever.
func (w *worker) ackLoop(ctx context.Context) error {
	defer endWithPanic(w.panicked)
	for b := range w.ackQueue {
		if err := w.ack(ctx, b); err != nil {
			return err
		}
		w.ackDone <- b
	}
	return nil
}

func (w *worker) ack(ctx context.Context, b *batch) error {
	acks := b.acks(w.table.acknowledge(b.parts), w.table.wasFinished)
	err := retry(ctx, w.log, "ack", w.metrics.ackErrors, func(err error) bool { return !lostState(err) }, func() error {
		err := w.acker.Ack(ctx, acks)
		w.callsReturned.Add(1)
		if err == nil {
			w.metrics.acked(acks)
		}
		return err
	})
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// The next owner compares queue and tables; so must we.
		rare.Reached(rare.AckRefused)
		w.log.Warn("acknowledgement failed; reacquiring shards", "err", err)
		b.stale = lostShards(err, b)
	}
	if !b.givesUp() {
		return nil
	}
	return w.moveToDLQ(ctx, b)
}
