package tasks

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// DeadLetters is the stream of dead letters.
type DeadLetters interface {
	// Now returns the time of the server that assigned the dead letters' IDs.
	Now(ctx context.Context) (time.Time, error)
	List(ctx context.Context, after telemetry.EntryID, count int) ([]protocol.DLQEntry, error)
	Remove(ctx context.Context, ids []telemetry.EntryID) (int, error)
	// Room returns how many there are, and how full the server is.
	Room(ctx context.Context) (protocol.DLQRoom, error)
	Known(ctx context.Context, refs []telemetry.Ref) ([]telemetry.EntryID, error)
	Durable(ctx context.Context) (telemetry.EntryID, error)
	Restore(ctx context.Context, l *protocol.Unconfirmed) (protocol.Restored, error)
	ForgetDeadLettered(ctx context.Context, before telemetry.EntryID, cursor uint64) (forgotten int, next uint64, err error)
}

// Archive stores what retention removes from the stream.
type Archive interface {
	Now(ctx context.Context) (time.Time, error)
	Export(ctx context.Context, letters []protocol.DLQEntry, by string) error
	Dropped(ctx context.Context, letters []protocol.DLQEntry) error
	Moved(ctx context.Context, refs []telemetry.Ref, letters []telemetry.EntryID) error
}

// Unconfirmed stores the dead letters that Redis could still lose.
type Unconfirmed interface {
	Page(ctx context.Context, after protocol.UnconfirmedMark, ago time.Duration, limit int) ([]protocol.UnconfirmedMark, error)
	Get(ctx context.Context, refs []telemetry.Ref) ([]protocol.Unconfirmed, error)
	Added(ctx context.Context, refs []telemetry.Ref) error
	Queued(ctx context.Context, refs []telemetry.Ref) error
	Confirmed(ctx context.Context, refs []telemetry.Ref) error
}

// auditor records who changed what.
type auditor interface {
	Note(ctx context.Context, who, action, target string, count int, detail map[string]any) error
}

// Deferred counts the entries that wait for another attempt.
type Deferred interface {
	Count(ctx context.Context) (int64, error)
}

// DLQJanitorDeps are the collaborators of a DLQJanitor.
type DLQJanitorDeps struct {
	DeadLetters DeadLetters
	Archive     Archive
	Unconfirmed Unconfirmed
	Audit       auditor
	Deferred    Deferred
	Ledger      coordination.Ledger
}

const (
	dlqScanPage       = 200              // dead letters per page
	houseFor          = time.Second      // per pass, so that the leader renews in time
	dlqScanBytes      = 4 << 20          // bytes of retained dead letters after which a pass reads no further page
	dlqScanInterval   = 15 * time.Second // between two scans
	dlqWholeInterval  = time.Hour        // between two that read again what has not changed
	dlqIncidentGroups = 20               // fingerprints that are opened as incidents
	dlqStale          = 2 * time.Minute  // age at which counts are no longer reported
	deadLetteredScan  = time.Hour        // between two scans of the record of dead-lettered entries
)

// DLQJanitor maintains the dead letters of the whole fleet: it counts them,
// groups equal failures, and archives those older than the retention. Two at
// the same time are harmless: exporting is idempotent, and removal names IDs.
type DLQJanitor struct {
	DLQJanitorDeps
	bounds  DLQBounds
	member  string
	metrics *janitorMetrics
	log     *slog.Logger

	meanSize int64 // of the dead letters read last; 0 while unknown

	scan         *scan
	scannedAt    time.Time
	scanned      *scan                    // the last one that counted all; nil for none
	mark         protocol.UnconfirmedMark // where the next pass continues
	deadLettered struct {
		cursor uint64
		began  time.Time
	}
}

// scan is one pass over all dead letters, in pages.
type scan struct {
	began     time.Time
	continues bool // reads only what was added since another one
	after     telemetry.EntryID
	count     int64
	tally     countsByClass
	kinds     map[string]*kind
	moved     int
}

// kind is a group of dead letters with the same failure.
type kind struct {
	count       int
	first, last time.Time
	example     telemetry.EntryID
}

// NewDLQJanitor returns a janitor that has not scanned yet.
func NewDLQJanitor(deps DLQJanitorDeps, bounds DLQBounds, member string, log *slog.Logger, reg prometheus.Registerer) *DLQJanitor {
	return &DLQJanitor{
		DLQJanitorDeps: deps, bounds: bounds, member: member,
		metrics: newJanitorMetrics(reg), log: log.With("component", "housekeeping"),
	}
}

// Deferring returns the number of entries that wait for another attempt, if it
// was counted recently.
func (h *DLQJanitor) Deferring() (n int64, known bool) {
	h.metrics.mu.Lock()
	defer h.metrics.mu.Unlock()
	return h.metrics.waiting, time.Since(h.metrics.waitingAt) < dlqStale
}

// Pass does a bounded part of the work. Only the leader calls it.
func (h *DLQJanitor) Pass(ctx context.Context) error {
	// First, since in a full Redis all else may fail.
	if err := h.bound(ctx); err != nil {
		return err
	}
	n, err := h.Deferred.Count(ctx)
	if err != nil {
		return err
	}
	h.metrics.deferred(n)
	if err := h.confirm(ctx); err != nil {
		return err
	}
	now, err := h.now(ctx)
	if err != nil {
		return err
	}
	if err := h.forget(ctx, now); err != nil {
		return err
	}
	if h.scan == nil {
		if time.Since(h.scannedAt) < dlqScanInterval {
			return nil
		}
		if h.scan, err = h.next(ctx, now); err != nil {
			return err
		}
	}
	began := time.Now()
	for bytes := 0; time.Since(began) < houseFor && bytes < dlqScanBytes; {
		done, kept, err := h.page(ctx, now)
		if err != nil {
			return err
		}
		bytes += kept
		if done {
			err := h.finish(ctx)
			h.scan, h.scannedAt = nil, time.Now()
			return err
		}
	}
	return nil
}

// next returns the scan to do now. What was counted is not read again, since it may
// be large, unless some of it has expired or was removed.
func (h *DLQJanitor) next(ctx context.Context, now time.Time) (*scan, error) {
	room, err := h.DeadLetters.Room(ctx)
	if err != nil {
		return nil, err
	}
	before := h.scanned
	h.scanned = nil
	if before == nil || room.Letters < before.count || time.Since(before.began) >= dlqWholeInterval || before.tally.expired(now, h.bounds.Retention) {
		return &scan{began: time.Now(), tally: make(countsByClass), kinds: make(map[string]*kind)}, nil
	}
	before.continues, before.moved = true, 0
	return before, nil
}

// now returns the time that retention compares with: the earlier of both
// servers' clocks, so that one clock that runs ahead removes nothing early.
func (h *DLQJanitor) now(ctx context.Context) (time.Time, error) {
	redis, err := h.DeadLetters.Now(ctx)
	if err != nil {
		return redis, err
	}
	postgres, err := h.Archive.Now(ctx)
	if postgres.Before(redis) {
		return postgres, err
	}
	return redis, err
}

// page archives the expired dead letters of one page. It returns the bytes of
// those that stay.
func (h *DLQJanitor) page(ctx context.Context, now time.Time) (done bool, kept int, err error) {
	letters, err := h.DeadLetters.List(ctx, h.scan.after, dlqScanPage)
	if err != nil {
		return false, 0, err
	}
	h.sized(letters)
	expired := slices.IndexFunc(letters, func(l protocol.DLQEntry) bool { return now.Sub(l.ID.Time()) < h.bounds.Retention })
	if expired < 0 {
		expired = len(letters)
	}
	moved, err := h.archive(ctx, letters[:expired], map[string]any{"retention": h.bounds.Retention.String()})
	if err != nil {
		return false, 0, err
	}
	h.scan.moved += moved
	for _, l := range letters[expired:] {
		h.scan.note(&l)
	}
	if len(letters) > 0 {
		h.scan.after = letters[len(letters)-1].ID
	}
	return len(letters) == 0, protocol.DLQBytes(letters[expired:]), nil
}

// archive moves dead letters to Postgres, noting why, and returns how many.
func (h *DLQJanitor) archive(ctx context.Context, letters []protocol.DLQEntry, why map[string]any) (int, error) {
	if len(letters) == 0 {
		return 0, nil
	}
	if err := h.Archive.Export(ctx, letters, "retention by "+h.member); err != nil {
		return 0, err
	}
	if err := h.Archive.Dropped(ctx, letters); err != nil {
		return 0, err
	}
	ids := make([]telemetry.EntryID, len(letters))
	for i := range letters {
		ids[i] = letters[i].ID
	}
	removed, err := h.DeadLetters.Remove(ctx, ids)
	if err != nil || removed == 0 {
		return 0, err
	}
	h.metrics.archived.Add(float64(removed))
	return removed, h.Audit.Note(ctx, h.member, "dlq retention", fmt.Sprintf("%s to %s", ids[0], ids[len(ids)-1]), removed, why)
}

func (w *scan) note(l *protocol.DLQEntry) {
	class := strings.Clone(string(l.Class))
	if l.Err != nil {
		class = foreignClass
	}
	w.count++
	w.tally.add(class, l.ID.Time())
	k := w.kinds[l.Fingerprint]
	if k == nil {
		if len(w.kinds) >= 1000 {
			return // too many groups to be useful
		}
		k = &kind{first: l.ID.Time(), example: l.ID}
		w.kinds[strings.Clone(l.Fingerprint)] = k // a copy, so that the page can be collected
	}
	k.count++
	k.last = l.ID.Time()
}

// finish publishes the result of a scan.
func (h *DLQJanitor) finish(ctx context.Context) error {
	room, err := h.DeadLetters.Room(ctx)
	if err != nil {
		return err
	}
	switch {
	case room.Letters == h.scan.count:
		h.scanned = h.scan
	case h.scan.continues: // some were removed: the next scan reads all
		return nil
	}
	h.metrics.publish(maps.Clone(h.scan.tally))
	if h.scan.moved > 0 {
		h.log.Info("archived expired dead letters", "count", h.scan.moved)
	}
	names := make([]string, 0, len(h.scan.kinds))
	for name, k := range h.scan.kinds {
		if k.count > 1 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return h.scan.kinds[b].count - h.scan.kinds[a].count })
	names = names[:min(dlqIncidentGroups, len(names))]
	for _, name := range names {
		k := h.scan.kinds[name]
		if err := h.Ledger.Open(ctx, protocol.DeadLettersAlike, name, map[string]any{
			"count": k.count, "first": k.first, "last": k.last, "example": k.example.String(),
		}); err != nil {
			return err
		}
	}
	open, err := h.Ledger.Opened(ctx, protocol.DeadLettersAlike) // including those of earlier leaders
	if err != nil {
		return err
	}
	for _, name := range open {
		if !slices.Contains(names, name) {
			if err := h.Ledger.Close(ctx, protocol.DeadLettersAlike, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// forget scans the record of dead-lettered entries, one page a pass.
func (h *DLQJanitor) forget(ctx context.Context, now time.Time) error {
	if h.deadLettered.cursor == 0 {
		if time.Since(h.deadLettered.began) < deadLetteredScan {
			return nil
		}
		h.deadLettered.began = time.Now()
	}
	before := telemetry.EntryID{Ms: uint64(max(0, now.Add(-h.bounds.Retention).UnixMilli()))}
	_, next, err := h.DeadLetters.ForgetDeadLettered(ctx, before, h.deadLettered.cursor)
	if err != nil {
		return err
	}
	h.deadLettered.cursor = next
	return nil
}
