package tasks

import (
	"context"
	"errors"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

const (
	confirmAfter = 3 * time.Second // owners add their recent dead letters themselves
	confirmPage  = 5000            // names per call
	confirmPages = 4               // per pass
	restorePage  = 100             // dead letters per call
	restoreMost  = 2000            // per pass
	restoreBytes = 4 << 20         // per pass
)

// confirm deletes the Postgres copies of dead letters that are durable in
// Redis, and adds those to Redis again that it has lost.
func (h *DLQJanitor) confirm(ctx context.Context) error {
	var durable telemetry.EntryID
	restores, bytes := 0, 0
	for range confirmPages {
		marks, err := h.Unconfirmed.Page(ctx, h.mark, confirmAfter, confirmPage)
		if err != nil {
			return err
		}
		refs := make([]telemetry.Ref, len(marks))
		for i, m := range marks {
			refs[i] = m.Ref
		}
		if len(refs) > 0 && durable.IsZero() {
			if durable, err = h.DeadLetters.Durable(ctx); err != nil {
				return err
			}
		}
		known, err := h.DeadLetters.Known(ctx, refs)
		if err != nil {
			return err
		}
		// An owner, or a pass that ended early, may have added again what Redis lost.
		if err := h.Archive.Moved(ctx, refs, known); err != nil {
			return err
		}
		var safe, missing []telemetry.Ref
		for i, r := range refs {
			switch {
			case !known[i].IsZero():
				if known[i].Less(durable) {
					safe = append(safe, r)
				} else {
					rare.Reached(rare.LetterWaits)
				}
				h.mark = marks[i]
				continue
			case restores < restoreMost && bytes < restoreBytes:
				missing = append(missing, r)
				restores++
			default: // the next pass continues here
				_, err := h.restore(ctx, missing)
				return errors.Join(err, h.Unconfirmed.Confirmed(ctx, safe))
			}
			h.mark = marks[i]
			if len(missing) == restorePage {
				size, err := h.restore(ctx, missing)
				if err != nil {
					return err
				}
				bytes, missing = bytes+size, nil
			}
		}
		if _, err := h.restore(ctx, missing); err != nil {
			return err
		}
		if err := h.Unconfirmed.Confirmed(ctx, safe); err != nil {
			return err
		}
		if len(marks) < confirmPage {
			h.mark = protocol.UnconfirmedMark{}
			return nil
		}
	}
	return nil
}

// restore adds dead letters again that Redis does not have, unless their
// entries are still pending with an owner. It returns the bytes it read.
func (h *DLQJanitor) restore(ctx context.Context, refs []telemetry.Ref) (bytes int, err error) {
	if len(refs) == 0 {
		return 0, nil
	}
	letters, err := h.Unconfirmed.Get(ctx, refs)
	if err != nil {
		return 0, err
	}
	outcomes := make(map[protocol.Restored][]telemetry.Ref)
	for i := range letters {
		l := &letters[i]
		bytes += l.Entry.Size()
		outcome, err := h.DeadLetters.Restore(ctx, l)
		if err != nil {
			return bytes, err
		}
		if outcome == protocol.LetterQueued && !l.Added {
			continue // as expected
		}
		outcomes[outcome] = append(outcomes[outcome], l.Entry.Ref())
	}
	if added := outcomes[protocol.LetterAdded]; len(added) > 0 {
		rare.Reached(rare.LetterRestored)
		h.metrics.restored.Add(float64(len(added)))
		h.log.Warn("added dead letters that Redis did not have", "count", len(added), "entry_id", added[0].ID.String())
	}
	if err := h.Unconfirmed.Added(ctx, outcomes[protocol.LetterAdded]); err != nil {
		return bytes, err
	}
	if err := h.follow(ctx, outcomes[protocol.LetterAdded]); err != nil {
		return bytes, err
	}
	if err := h.Unconfirmed.Queued(ctx, outcomes[protocol.LetterQueued]); err != nil {
		return bytes, err
	}
	return bytes, h.Unconfirmed.Confirmed(ctx, outcomes[protocol.LetterDecided])
}

// follow has edits follow dead letters that were added again: a replay looks for them by ID.
func (h *DLQJanitor) follow(ctx context.Context, refs []telemetry.Ref) error {
	if len(refs) == 0 {
		return nil
	}
	known, err := h.DeadLetters.Known(ctx, refs)
	if err != nil {
		return err
	}
	return h.Archive.Moved(ctx, refs, known)
}
