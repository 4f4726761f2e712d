package coordination

import (
	"context"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
)

// pollInterval is how often the stream is checked.
const pollInterval = time.Second

// detectFailover reports that Redis lost its tail, by a failover to a replica
// that lagged or by a restored copy: an ID that Postgres has recorded (the
// high-water mark, or a shard's applied ID) is neither in the stream, nor below
// its first ID, nor deleted. Entries added after it may be lost too, count
// unknown, except for what Postgres has stored.
func (w *DataLossDetector) detectFailover(ctx context.Context, term int64) error {
	if time.Since(w.polled) < pollInterval {
		return nil
	}
	seen, err := w.ledger.HighWatermark(ctx)
	if err != nil {
		return err
	}
	snapshot, err := w.stream.Snapshot(ctx, seen.Known())
	if err != nil || !snapshot.Exists {
		return err // without a group its recreation will show the loss
	}
	gone := snapshot.LostInFailover(seen.Gone)
	if len(gone) == 0 {
		if seen.Newest.Less(snapshot.Newest) {
			err = w.ledger.Observe(ctx, term, snapshot.Newest, seen.Gone)
		}
		if err == nil {
			w.polled = time.Now()
		}
		return err
	}
	recreations, _, err := w.stream.GroupRecreations(ctx)
	if err != nil || slices.ContainsFunc(recreations, func(m protocol.GroupRecreation) bool { return w.noted[m.Receipt] == "" }) {
		return err // the group was created in between
	}
	before, err := w.stream.Before(ctx, gone[0])
	if err != nil {
		return err
	}
	// Entries that followed what is known to be gone went with it.
	follows, err := w.stream.After(ctx, gone[len(gone)-1])
	if err != nil {
		return err
	}
	kind, loss := protocol.RedisFailedOver, protocol.Loss{Cause: protocol.LossFailover, Last: protocol.Until(follows, snapshot.Now), Entries: -1, Shard: -1}
	if loss.Last.Less(gone[len(gone)-1]) {
		loss.Last = gone[len(gone)-1] // the clock stepped back
	}
	if before.IsZero() {
		kind, loss.Cause = protocol.RedisLost, protocol.LossFlush // and the record of the group's recreation was flushed with it
	} else {
		loss.First = before.Next()
	}
	if !seen.Flushed {
		if err := w.recordFailover(ctx, kind, loss); err != nil {
			return err
		}
	}
	if loss.Last.Less(seen.Gone) {
		loss.Last = seen.Gone // the applied IDs of idle shards may still lie up to there
	}
	return w.ledger.Observe(ctx, term, snapshot.Newest, loss.Last)
}

// recordFailover records the loss of entries. It is idempotent.
func (w *DataLossDetector) recordFailover(ctx context.Context, kind string, loss protocol.Loss) error {
	if err := w.losses.Record(ctx, []protocol.Loss{loss}); err != nil {
		return err
	}
	subject := loss.Last.String()
	if err := w.ledger.Open(ctx, kind, subject, map[string]any{
		"first": loss.First.String(), "last": loss.Last.String(),
	}); err != nil {
		return err
	}
	if err := w.ledger.Close(ctx, kind, subject); err != nil {
		return err
	}
	rare.Reached(rare.RedisFailedOver)
	w.lost.WithLabelValues(kind).Inc()
	w.log.Error("Redis failed over to an older state; entries lost, count unknown",
		"reason", loss.Cause, "entry_id", subject)
	return nil
}
