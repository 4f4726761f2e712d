package coordination

import (
	"context"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
)

// lookEvery is how often the stream is looked at.
const lookEvery = time.Second

// lookBack finds out whether Redis goes on with an older state of stream and
// group: after a fail-over that lost what was not replicated, or with a copy put
// back. Then the newest entry seen before, or one that shards were done with, is
// not there. Entries that followed may have been lost with it, and nobody can
// tell how many; what Postgres has of them is not.
func (w *GroupWatch) lookBack(ctx context.Context, term int64) error {
	if time.Since(w.looked) < lookEvery {
		return nil
	}
	seen, err := w.ledger.Seen(ctx)
	if err != nil {
		return err
	}
	sight, err := w.stream.Look(ctx, seen.Known())
	if err != nil || !sight.Exists {
		return err // without a group, its making will tell
	}
	gone := sight.Rewound()
	if len(gone) == 0 {
		if sight.Newest != seen.Newest {
			err = w.ledger.See(ctx, term, sight.Newest, seen.Gone)
		}
		if err == nil {
			w.looked = time.Now()
		}
		return err
	}
	if makings, err := w.stream.Makings(ctx); err != nil || len(makings) > 0 {
		return err // the group was made meanwhile
	}
	before, err := w.stream.Before(ctx, gone[0])
	if err != nil {
		return err
	}
	kind, loss := protocol.RedisRewound, protocol.Loss{Cause: "failover", Last: gone[len(gone)-1], Entries: -1, Shard: -1}
	if before.IsZero() {
		kind, loss.Cause = protocol.RedisLost, "flush" // and the note of the group's making with it
	} else {
		loss.First = before.Next()
	}
	if !seen.Flushed {
		if err := w.rewound(ctx, kind, loss); err != nil {
			return err
		}
	}
	return w.ledger.See(ctx, term, sight.Newest, loss.Last)
}

// rewound notes that entries are gone. Doing it again adds no loss.
func (w *GroupWatch) rewound(ctx context.Context, kind string, loss protocol.Loss) error {
	if err := w.ledger.Lose(ctx, []protocol.Loss{loss}); err != nil {
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
	w.lost.WithLabelValues(kind).Inc()
	w.log.Error("Redis goes on with an older state of the stream; entries were lost, nobody can tell how many",
		"reason", loss.Cause, "entry_id", subject)
	return nil
}
