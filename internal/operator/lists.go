package operator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

// lists returns the lists in Postgres once it answers.
func (f *Fleet) lists(ctx context.Context) (*store.Lists, error) {
	if _, err := f.postgres(ctx); err != nil {
		return nil, err
	}
	return store.NewLists(f.pool, f.scope, askTimeout), nil
}

// Page is a part of a list, newest first.
type Page[T any] struct {
	Rows []T   `json:"rows"`
	Next int64 `json:"next"` // where the next page begins; 0 if there is none
}

// paged asks for one row more than it shows.
func paged[T any](ctx context.Context, f *Fleet, limit int, number func(T) int64, ask func(l *store.Lists, limit int) ([]T, error)) (Page[T], error) {
	out := Page[T]{Rows: []T{}}
	l, err := f.lists(ctx)
	if err != nil {
		return out, err
	}
	rows, err := ask(l, limit+1)
	if err != nil {
		return out, f.explained(err)
	}
	if len(rows) > limit {
		rows = rows[:limit]
		out.Next = number(rows[limit-1])
	}
	out.Rows = append(out.Rows, rows...)
	return out, nil
}

// Audit returns changes by operators.
func (f *Fleet) Audit(ctx context.Context, before int64, limit int) (Page[store.AuditRow], error) {
	return paged(ctx, f, limit, func(r store.AuditRow) int64 { return r.Number }, func(l *store.Lists, n int) ([]store.AuditRow, error) { return l.Audit(ctx, before, n) })
}

// Incidents returns incidents, open and closed ones.
func (f *Fleet) Incidents(ctx context.Context, openOnly bool, before int64, limit int) (Page[store.NumberedIncident], error) {
	return paged(ctx, f, limit, func(r store.NumberedIncident) int64 { return r.Number }, func(l *store.Lists, n int) ([]store.NumberedIncident, error) {
		return l.Incidents(ctx, openOnly, before, n)
	})
}

// Losses returns the ledger of losses.
func (f *Fleet) Losses(ctx context.Context, before int64, limit int) (Page[store.NumberedLoss], error) {
	return paged(ctx, f, limit, func(r store.NumberedLoss) int64 { return r.Number }, func(l *store.Lists, n int) ([]store.NumberedLoss, error) { return l.Losses(ctx, before, n) })
}

// Requests returns requests; device "" is all.
func (f *Fleet) Requests(ctx context.Context, device string, before int64, limit int) (Page[store.RequestStatus], error) {
	return paged(ctx, f, limit, func(r store.RequestStatus) int64 { return r.ID }, func(l *store.Lists, n int) ([]store.RequestStatus, error) {
		return l.Requests(ctx, device, before, n)
	})
}

// Deferred returns the entries that are tried next, at most limit.
func (f *Fleet) Deferred(ctx context.Context, limit int) ([]store.DeferredRow, error) {
	l, err := f.lists(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := l.Deferred(ctx, "", limit)
	return append([]store.DeferredRow{}, rows...), f.explained(err)
}

// DeferredEntry is an entry that waits for another attempt, with its fields.
type DeferredEntry struct {
	store.DeferredRow
	Fields []Field
}

// DeferredEntry returns one of the entries that wait for another attempt.
func (f *Fleet) DeferredEntry(ctx context.Context, id string) (DeferredEntry, error) {
	l, err := f.lists(ctx)
	if err != nil {
		return DeferredEntry{}, err
	}
	rows, err := l.Deferred(ctx, id, 1)
	if err != nil {
		return DeferredEntry{}, f.explained(err)
	}
	if id == "" || len(rows) == 0 {
		return DeferredEntry{}, fault.Exitf(fault.Finding, "no entry %s waits for another attempt any more: it was stored, or is a dead letter now", id)
	}
	return DeferredEntry{rows[0], fieldsOf(rows[0].Delivered())}, nil
}

// Failing is the entries that failed and are tried again.
type Failing struct {
	Unread, Unstored, Others int64     // cannot be decoded, are rejected by Postgres, or else
	Known                    int64     // came again: they were edited, replayed or dropped as dead letters before
	Last                     time.Time // about when the last of them has its last attempt
}

// failing sums up what waits for another attempt, by the settings of this version.
func (f *Fleet) failing(ctx context.Context) (out Failing, err error) {
	kinds, err := store.NewLists(f.pool, f.scope, askTimeout).DeferredKinds(ctx)
	for _, k := range kinds {
		out.Known += k.Known
		k.Entries -= k.Known
		if k.Entries == 0 {
			continue
		}
		switch telemetry.Class(k.Class) {
		case telemetry.ClassDecode, telemetry.ClassInvalid, telemetry.ClassTooLarge:
			out.Unread += k.Entries
		case telemetry.ClassSink:
			out.Unstored += k.Entries
		default:
			out.Others += k.Entries
		}
		last, delays := k.Next, f.cfg.DeadLetters.RetryDelays
		for n := k.Attempts + 1; n < f.cfg.DeadLetters.MaxAttempts && len(delays) > 0; n++ {
			last = last.Add(delays[min(n, len(delays))-1])
		}
		if last.After(out.Last) {
			out.Last = last
		}
	}
	return out, err
}

// String says what is wrong and what becomes of it; "" if nothing waits.
func (x Failing) String() string {
	all, wrong := x.Unread+x.Unstored+x.Others, "be read or stored"
	switch all {
	case 0:
		return ""
	case x.Unread:
		wrong = "be read"
	case x.Unstored:
		wrong = "be stored"
	}
	text := cli.Count(all, "entry") + " cannot " + wrong + " and are tried again; they become dead letters after the last attempt at about "
	if all == 1 {
		text = "1 entry cannot " + wrong + " and is tried again; it becomes a dead letter after the last attempt at about "
	}
	text += x.Last.UTC().Format("15:04:05") + " UTC"
	if x.Unstored > 0 {
		text += ", or later if Postgres refuses most others too"
	}
	return text
}

// PinnedSettings returns what the fleet has pinned.
func (f *Fleet) PinnedSettings(ctx context.Context) ([]store.SettingRow, error) {
	l, err := f.lists(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := l.Settings(ctx)
	return rows, f.explained(err)
}

// Devices returns IDs of devices that begin with a prefix, after one of them; at
// most limit.
func (f *Fleet) Devices(ctx context.Context, prefix, after string, limit int) ([]string, error) {
	if !utf8.ValidString(prefix+after) || strings.ContainsRune(prefix+after, 0) {
		return []string{}, nil // no stored ID is like that
	}
	l, err := f.lists(ctx)
	if err != nil {
		return nil, err
	}
	ids, err := l.Devices(ctx, prefix, after, limit)
	return append([]string{}, ids...), f.explained(err)
}

// Archived returns dead letters of the archive: dropped, replayed, edited ones and
// those whose retention is over.
func (f *Fleet) Archived(ctx context.Context, by store.ArchiveFilter, before int64, limit int) (Page[store.ArchivedLetter], error) {
	return paged(ctx, f, limit, func(r store.ArchivedLetter) int64 { return r.Number }, func(l *store.Lists, n int) ([]store.ArchivedLetter, error) {
		return l.Archived(ctx, by, before, n)
	})
}

// Restored is a dead letter that is in its stream again.
type Restored struct {
	ID       string `json:"id"` // before
	SourceID string `json:"source_id"`
	As       string `json:"restored_as"` // "" for one that was there
	Outcome  string `json:"outcome"`     // restored, present, replayed
}

// RestoreOptions bound a restoration.
type RestoreOptions struct {
	DryRun   bool
	Limit    int                 // 0 is all
	Progress func(done, all int) // may be nil; all is 0 while it is unknown
}

// restorePage is the number of archived dead letters in memory at a time.
const restorePage = 100

// RestoreDeadLetters puts archived dead letters that were dropped, or whose
// retention is over, back into their stream with their edits. What is there and
// what was replayed is left alone. Interrupted, it continues where it ended. The second
// result is the IDs that nothing in the archive has, or only what was replayed.
func (f *Fleet) RestoreDeadLetters(ctx context.Context, by store.ArchiveFilter, o RestoreOptions) (out []Restored, missing []string, err error) {
	out = []Restored{}
	s, err := selectBy(Filter{IDs: by.IDs})
	if err != nil {
		return out, nil, err
	}
	by.IDs = slices.Collect(maps.Keys(s.ids)) // as the archive has them
	s.Class, s.Device, s.Fingerprint = by.Class, by.Device, by.Fingerprint
	d, err := f.deadLetters(ctx, !o.DryRun)
	if err != nil {
		return out, nil, err
	}
	l, err := f.lists(ctx)
	if err != nil {
		return out, nil, err
	}
	restored := 0
	defer func() {
		if !o.DryRun && restored > 0 {
			err = errors.Join(err, d.note(ctx, "dlq restore", s.String(), restored))
		}
	}()
	limit := o.Limit
	if limit <= 0 {
		limit = math.MaxInt
	}
	for before := int64(0); restored < limit; {
		if err := ctx.Err(); err != nil {
			return out, nil, errors.New("interrupted; run it again for the rest")
		}
		rows, err := l.Archived(ctx, by, before, restorePage)
		if err != nil {
			return out, nil, f.explained(err)
		}
		if len(rows) == 0 {
			if missing = s.missing(); len(out) == 0 && !s.Empty() {
				err = fault.Exitf(fault.Finding, "%w %s in the archive, or it was replayed; processor dlq archive --open lists what can be restored", ErrNoMatch, &s.Filter)
			}
			return out, missing, err
		}
		before = rows[len(rows)-1].Number
		ids := make([]telemetry.EntryID, len(rows))
		for i := range rows {
			if ids[i], err = telemetry.ParseEntryID(rows[i].ID); err != nil {
				return out, nil, err
			}
		}
		present, err := d.dead.Get(ctx, ids)
		if err != nil {
			return out, nil, err
		}
		there := make(map[telemetry.EntryID]bool, len(present))
		for i := range present {
			there[present[i].ID] = true
		}
		for i := range rows {
			if restored == limit {
				break
			}
			s.found(rows[i].ID, rows[i].Source)
			line := Restored{ID: rows[i].ID, SourceID: rows[i].Source, Outcome: "restored"}
			switch {
			case rows[i].ReplayedAs != nil:
				line.Outcome = "replayed"
			case there[ids[i]]:
				line.Outcome = "present"
			case !o.DryRun:
				as, err := d.dead.Add(ctx, rows[i].Letter())
				if err != nil {
					return out, nil, err
				}
				line.As = as.String()
				if err := l.Restored(context.WithoutCancel(ctx), rows[i].Number, as); err != nil {
					return out, nil, f.explained(err)
				}
				restored++
			default:
				restored++
			}
			out = append(out, line)
		}
		if o.Progress != nil {
			o.Progress(restored, 0)
		}
	}
	return out, nil, nil
}

// Fate is what became of entries that were replayed.
type Fate struct {
	Undecided int      // still on their way when the time was up
	Returned  []string // dead-lettered again
	Deferred  int      // tried again later
	Accepted  int      // stored, or known already
}

// Fates waits until the entries of a replay are decided, or until ctx ends, and
// returns what became of them.
func (f *Fleet) Fates(ctx context.Context, ids []string) (Fate, error) {
	var out Fate
	if len(ids) == 0 {
		return out, nil
	}
	group, err := f.redis(ctx, 1)
	if err != nil {
		return out, err
	}
	last, err := telemetry.ParseEntryID(slices.MaxFunc(ids, compareIDs))
	if err != nil {
		return out, err
	}
	for {
		b, err := group.Backlog(ctx)
		if err == nil && b.OldestKnown && (b.Oldest.IsZero() || last.Less(b.Oldest)) {
			break
		}
		select {
		case <-ctx.Done():
			out.Undecided = len(ids)
			return out, nil
		case <-time.After(200 * time.Millisecond):
		}
	}
	asking := context.WithoutCancel(ctx)
	again, err := f.DeadLetters(asking, Filter{IDs: ids}, "", len(ids))
	if err != nil {
		return out, err
	}
	for _, l := range again.Letters {
		out.Returned = append(out.Returned, l.SourceID+": "+l.Error)
	}
	waiting, err := store.NewDeferred(f.pool, f.scope, "", askTimeout).IDs(asking)
	if err != nil {
		return out, f.explained(err)
	}
	for _, id := range waiting {
		if slices.Contains(ids, id.String()) {
			out.Deferred++
		}
	}
	out.Accepted = len(ids) - len(out.Returned) - out.Deferred
	return out, nil
}

func compareIDs(a, b string) int {
	x, _ := telemetry.ParseEntryID(a) // zero for what is none
	y, _ := telemetry.ParseEntryID(b)
	return x.Compare(y)
}

// String says what became of them.
func (x Fate) String() string {
	text := fmt.Sprintf("%d accepted, %d came back, %d deferred", x.Accepted, len(x.Returned), x.Deferred)
	if x.Undecided > 0 {
		text = fmt.Sprintf("%d not decided yet", x.Undecided)
	}
	return text
}

// TrackWindow is a part of a device's past.
type TrackWindow struct {
	From, To    time.Time
	First, Last time.Time // device times of all that is stored; zero for none
	Points      []store.TrackPoint
	Sampled     bool // there are more positions than points
	Crossings   []store.CrossingRow
	MaxGap      time.Duration
}

const (
	trackPoints    = 4000
	trackCrossings = 500
	shownFences    = 2000
)

// Track returns the positions and crossings of a device in a window of device time. A zero end is the last position, a zero begin a day before that.
func (f *Fleet) Track(ctx context.Context, device string, from, to time.Time) (w TrackWindow, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	pinned, err := f.postgres(ctx)
	if err != nil {
		return w, err
	}
	w.MaxGap = pinned.MaxGap
	if !utf8.ValidString(device) || strings.ContainsRune(device, 0) {
		return w, errUnknownDevice(fmt.Sprintf("%q", device), "no stored ID is like that")
	}
	l := store.NewLists(f.pool, f.scope, askTimeout)
	if w.First, w.Last, err = l.Span(ctx, device, time.Now().Add(pinned.Eligibility.MaxFutureSkew)); err != nil {
		return w, f.explained(err)
	}
	if w.To = to; to.IsZero() {
		w.To = w.Last.Add(time.Microsecond)
	}
	if w.From = from; from.IsZero() {
		w.From = w.To.Add(-24 * time.Hour)
		if !w.First.IsZero() && w.First.After(w.From) {
			w.From = w.First
		}
	}
	if w.Points, w.Sampled, err = l.Track(ctx, device, w.From, w.To, trackPoints, pinned.Eligibility); err != nil {
		return w, f.explained(err)
	}
	w.Crossings, err = l.Crossings(ctx, device, w.From, w.To, trackCrossings)
	return w, f.explained(err)
}

// Shapes returns the fences in force, for a map.
func (f *Fleet) Shapes(ctx context.Context) ([]store.FenceShape, error) {
	l, err := f.lists(ctx)
	if err != nil {
		return nil, err
	}
	shapes, err := l.Shapes(ctx, shownFences)
	return shapes, f.explained(err)
}
