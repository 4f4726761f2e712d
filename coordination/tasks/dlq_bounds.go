package tasks

import (
	"context"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// DLQBounds limit the dead letters in Redis. The oldest beyond a limit are archived.
type DLQBounds struct {
	Retention time.Duration // their age
	Entries   int64         // their number
	Bytes     int64         // of all their fields, estimated from those read last
}

// memoryShare is the share of Redis' memory, in percent, from which dead letters
// give way to entries: whatever fills it, a refused entry is worse than a letter
// that is read from Postgres.
const memoryShare = 75

// excess returns how many dead letters are beyond which limit.
func (h *DLQJanitor) excess(r protocol.DLQRoom) (n int64, bound string) {
	if n := r.Letters - h.bounds.Entries; n > 0 {
		return n, "entries"
	}
	if size := h.meanSize; size > 0 {
		if n := r.Letters - h.bounds.Bytes/size; n > 0 {
			return n, "bytes"
		}
	}
	if r.MemoryMax > 0 && 100*r.MemoryUsed > memoryShare*r.MemoryMax && r.Letters > 0 {
		return min(r.Letters, dlqScanPage), "memory"
	}
	return 0, ""
}

// bound archives the oldest dead letters until all limits hold, for a second at
// most, so that the leader renews in time; the next pass goes on.
func (h *DLQJanitor) bound(ctx context.Context) error {
	moved, why := 0, ""
	defer func() {
		if moved > 0 {
			h.log.Warn("archived the oldest dead letters: there are too many for Redis", "count", moved, "limit", why)
		}
	}()
	for began := time.Now(); time.Since(began) < houseFor; {
		room, err := h.DeadLetters.Room(ctx)
		if err != nil {
			return err
		}
		n, bound := h.excess(room)
		if n <= 0 {
			return nil
		}
		letters, err := h.DeadLetters.List(ctx, telemetry.EntryID{}, int(min(n, dlqScanPage)))
		if err != nil || len(letters) == 0 {
			return err
		}
		h.sized(letters)
		removed, err := h.archive(ctx, letters, map[string]any{"limit": bound})
		if err != nil {
			return err
		}
		if removed == 0 {
			return nil // another leader does the same
		}
		moved, why = moved+removed, bound
	}
	return nil
}

// sized keeps the mean size of the dead letters read last.
func (h *DLQJanitor) sized(letters []protocol.DLQEntry) {
	if len(letters) > 0 {
		h.meanSize = int64(max(1, protocol.DLQBytes(letters)/len(letters)))
	}
}
