package coordination

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// DeadLetters is the stream of dead letters as its housekeeper needs it.
type DeadLetters interface {
	// Now is the time of the server that gave the letters their IDs.
	Now(ctx context.Context) (time.Time, error)
	List(ctx context.Context, after telemetry.EntryID, count int) ([]protocol.Letter, error)
	Remove(ctx context.Context, ids []telemetry.EntryID) (int, error)
	Known(ctx context.Context, refs []telemetry.Ref) ([]telemetry.EntryID, error)
	Durable(ctx context.Context) (telemetry.EntryID, error)
	Restore(ctx context.Context, l *protocol.Unconfirmed) (protocol.Restored, error)
	ForgetParked(ctx context.Context, before telemetry.EntryID, cursor uint64) (forgotten int, next uint64, err error)
}

// Archive keeps what retention takes out of the stream.
type Archive interface {
	Now(ctx context.Context) (time.Time, error)
	Export(ctx context.Context, letters []protocol.Letter, by string) error
	Dropped(ctx context.Context, letters []protocol.Letter) error
}

// Unconfirmed is the dead letters that Redis could still lose.
type Unconfirmed interface {
	Page(ctx context.Context, after protocol.UnconfirmedMark, ago time.Duration, limit int) ([]protocol.UnconfirmedMark, error)
	Get(ctx context.Context, refs []telemetry.Ref) ([]protocol.Unconfirmed, error)
	Added(ctx context.Context, refs []telemetry.Ref) error
	Queued(ctx context.Context, refs []telemetry.Ref) error
	Confirmed(ctx context.Context, refs []telemetry.Ref) error
}

// Auditor keeps who changed what.
type Auditor interface {
	Note(ctx context.Context, who, action, target string, count int, detail map[string]any) error
}

// Deferred counts the entries that wait for another attempt.
type Deferred interface {
	Count(ctx context.Context) (int64, error)
}

// HousekeepingDeps is what a housekeeper works with.
type HousekeepingDeps struct {
	DeadLetters DeadLetters
	Archive     Archive
	Unconfirmed Unconfirmed
	Audit       Auditor
	Deferred    Deferred
	Ledger      Ledger
}

const (
	housePage  = 200              // dead letters looked at at once
	houseFor   = time.Second      // of one pass, so that the leader renews in time
	houseBytes = 4 << 20          // of letters that stay, after which a pass reads no further page
	houseEvery = 15 * time.Second // between two walks through all of them
	houseKinds = 20               // fingerprints that are shown as incidents
	houseStale = 2 * time.Minute  // after which what was counted counts no more
	parkedScan = time.Hour        // between two walks through what is remembered of parked entries
)

// Housekeeper looks after the dead letters for the whole fleet: it counts them,
// groups those that failed alike, and moves those that are older than the
// retention to the archive. Two that do so at once do no harm: exporting again
// changes nothing, and what is removed is named by its ID.
type Housekeeper struct {
	HousekeepingDeps
	retention time.Duration
	member    string
	metrics   *houseMetrics
	log       *slog.Logger

	walk   *walk
	walked time.Time
	mark   protocol.UnconfirmedMark // where the next pass goes on
	parked struct {
		cursor uint64
		began  time.Time
	}
}

// walk is one way through all dead letters, in pages.
type walk struct {
	after telemetry.EntryID
	last  []protocol.Letter // the page before, which tells how large they are
	tally tally
	kinds map[string]*kind
	moved int
}

// kind is the dead letters that failed alike.
type kind struct {
	count       int
	first, last time.Time
	example     telemetry.EntryID
}

// NewHousekeeper returns a housekeeper that has not looked yet.
func NewHousekeeper(deps HousekeepingDeps, retention time.Duration, member string, log *slog.Logger, reg prometheus.Registerer) *Housekeeper {
	return &Housekeeper{
		HousekeepingDeps: deps, retention: retention, member: member,
		metrics: newHouseMetrics(reg), log: log.With("component", "housekeeping"),
	}
}

// Deferring is how many entries wait for another attempt, if that was counted lately.
func (h *Housekeeper) Deferring() (n int64, known bool) {
	if h == nil {
		return 0, true // nobody defers
	}
	h.metrics.mu.Lock()
	defer h.metrics.mu.Unlock()
	return h.metrics.waiting, time.Since(h.metrics.waitingAt) < houseStale
}

// Pass does a bounded piece of the work. It is the leader's to call.
func (h *Housekeeper) Pass(ctx context.Context) error {
	if h == nil {
		return nil
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
	if h.walk == nil {
		if time.Since(h.walked) < houseEvery {
			return nil
		}
		h.walk = &walk{tally: make(tally), kinds: make(map[string]*kind)}
	}
	began := time.Now()
	for bytes := 0; time.Since(began) < houseFor && bytes < houseBytes; {
		done, kept, err := h.page(ctx, now)
		if err != nil {
			return err
		}
		bytes += kept
		if done {
			err := h.finish(ctx)
			h.walk, h.walked = nil, time.Now()
			return err
		}
	}
	return nil
}

// now is the time by which retention goes: the earlier one of both servers. The
// clock of a leader, or of one server, that runs ahead removes nothing early.
func (h *Housekeeper) now(ctx context.Context) (time.Time, error) {
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

// page looks at some dead letters and archives those that are too old. It
// returns the size of those that stay.
func (h *Housekeeper) page(ctx context.Context, now time.Time) (done bool, kept int, err error) {
	count := protocol.LetterPage(housePage, h.walk.last)
	letters, err := h.DeadLetters.List(ctx, h.walk.after, count)
	if err != nil {
		return false, 0, err
	}
	h.walk.last = letters
	expired := slices.IndexFunc(letters, func(l protocol.Letter) bool { return now.Sub(l.ID.Time()) < h.retention })
	if expired < 0 {
		expired = len(letters)
	}
	if err := h.archive(ctx, letters[:expired]); err != nil {
		return false, 0, err
	}
	for _, l := range letters[expired:] {
		h.walk.note(&l)
	}
	if len(letters) > 0 {
		h.walk.after = letters[len(letters)-1].ID
	}
	return len(letters) < count, protocol.LetterBytes(letters[expired:]), nil
}

func (h *Housekeeper) archive(ctx context.Context, letters []protocol.Letter) error {
	if len(letters) == 0 {
		return nil
	}
	if err := h.Archive.Export(ctx, letters, "retention by "+h.member); err != nil {
		return err
	}
	if err := h.Archive.Dropped(ctx, letters); err != nil {
		return err
	}
	ids := make([]telemetry.EntryID, len(letters))
	for i := range letters {
		ids[i] = letters[i].ID
	}
	removed, err := h.DeadLetters.Remove(ctx, ids)
	if err != nil || removed == 0 {
		return err
	}
	h.walk.moved += removed
	h.metrics.archived.Add(float64(removed))
	return h.Audit.Note(ctx, h.member, "dlq retention", fmt.Sprintf("%s to %s", ids[0], ids[len(ids)-1]), removed,
		map[string]any{"retention": h.retention.String()})
}

func (w *walk) note(l *protocol.Letter) {
	class := strings.Clone(string(l.Class))
	if l.Err != nil {
		class = foreignClass
	}
	w.tally.add(class, l.ID.Time())
	k := w.kinds[l.Fingerprint]
	if k == nil {
		if len(w.kinds) >= 1000 {
			return // so many kinds are no kinds
		}
		k = &kind{first: l.ID.Time(), example: l.ID}
		w.kinds[strings.Clone(l.Fingerprint)] = k // what is kept must not keep its page
	}
	k.count++
	k.last = l.ID.Time()
}

// finish publishes what the walk has found.
func (h *Housekeeper) finish(ctx context.Context) error {
	h.metrics.publish(h.walk.tally)
	if h.walk.moved > 0 {
		h.log.Info("archived dead letters older than the retention", "count", h.walk.moved)
	}
	names := make([]string, 0, len(h.walk.kinds))
	for name, k := range h.walk.kinds {
		if k.count > 1 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return h.walk.kinds[b].count - h.walk.kinds[a].count })
	names = names[:min(houseKinds, len(names))]
	for _, name := range names {
		k := h.walk.kinds[name]
		if err := h.Ledger.Open(ctx, protocol.DeadLettersAlike, name, map[string]any{
			"count": k.count, "first": k.first, "last": k.last, "example": k.example.String(),
		}); err != nil {
			return err
		}
	}
	open, err := h.Ledger.Opened(ctx, protocol.DeadLettersAlike) // by earlier leaders, too
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

// forget walks through what is remembered of parked entries, one page a pass.
func (h *Housekeeper) forget(ctx context.Context, now time.Time) error {
	if h.parked.cursor == 0 {
		if time.Since(h.parked.began) < parkedScan {
			return nil
		}
		h.parked.began = time.Now()
	}
	before := telemetry.EntryID{Ms: uint64(max(0, now.Add(-h.retention).UnixMilli()))}
	_, next, err := h.DeadLetters.ForgetParked(ctx, before, h.parked.cursor)
	if err != nil {
		return err
	}
	h.parked.cursor = next
	return nil
}
