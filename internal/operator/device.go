package operator

import (
	"context"
	"errors"
	"time"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	streamadmin "github.com/trmtracking/processor/internal/stream/admin"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Device is what is stored of a device, and what waits in Redis.
type Device struct {
	store.Device
	// Counts in Redis; null while it is unavailable.
	Undispatched *int64 `json:"undispatched"` // in the stream, on no queue yet
	Pending      *int64 `json:"pending"`      // on a queue, in flight or not
	DeadLetters  *int64 `json:"dead_letters"`
	// AtLeast: the search ended early, so there may be more undispatched and
	// pending entries.
	AtLeast bool `json:"at_least"`

	// Unanswered says why what Redis knows is unknown; nil if it is known.
	Unanswered error `json:"-"`
}

// Device returns what is known of a device. It needs Postgres; without Redis what
// that knows is unknown. An unknown device is an error beside the answer.
func (f *Fleet) Device(ctx context.Context, device string) (d Device, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if f, err = f.home(ctx, device); err != nil {
		return d, err
	}
	pinned, err := f.postgres(ctx)
	if err != nil {
		return d, err
	}
	if d.Device, err = f.devices(pinned).Show(ctx, device); err != nil {
		return d, f.explained(err)
	}
	d.Unanswered = f.waiting(ctx, pinned.Shards, &d)
	if d.nothing() {
		err = errUnknownDevice(device, "nothing is known of it")
	}
	return d, err
}

// nothing reports whether nothing is known of the device anywhere.
func (d *Device) nothing() bool {
	waits := func(n *int64) bool { return n != nil && *n > 0 }
	return d.Last == nil && len(d.Recent)+len(d.Fences)+len(d.Requests) == 0 && d.Deferred+d.Archived == 0 &&
		!waits(d.Undispatched) && !waits(d.Pending) && !waits(d.DeadLetters)
}

// errUnknownDevice reports a device ID without data, probably mistyped; what says which data is missing.
func errUnknownDevice(device, what string) error {
	return fault.Exitf(fault.Finding, "unknown device %s: %s; check the ID, see processor trace %s", device, what, device)
}

// lastEntries is the number of entries of a device to search for in the stream.
const lastEntries = 500

// waiting counts what waits in Redis.
func (f *Fleet) waiting(ctx context.Context, shards int, d *Device) error {
	group, err := f.redis(ctx, shards)
	if err != nil {
		return err
	}
	backlog, err := group.Backlog(ctx)
	if err != nil {
		return err
	}
	found, reached, err := streamadmin.New(f.client, group).Trace(ctx, d.Device.Device, lastEntries)
	if err != nil {
		return err
	}
	var undispatched, pending int64
	for _, e := range found {
		switch {
		case !e.Dispatched:
			undispatched++
		case e.Pending || e.Unqueued:
			pending++
		}
	}
	// Entries older than the oldest unfinished one are finished.
	d.AtLeast = !backlog.OldestKnown || !backlog.Oldest.IsZero() && backlog.Oldest.Less(reached)
	d.Undispatched, d.Pending = &undispatched, &pending
	dead, err := stream.NewDeadLetters(f.client, f.where(max(1, shards)), f.cfg.Redis.DLQStream)
	if err != nil {
		return err
	}
	var letters int64
	for l, err := range dead.All(ctx) {
		if err != nil {
			return err
		}
		if id, _ := l.Entry.Field("device_id"); id == d.Device.Device {
			letters++
		}
	}
	d.DeadLetters = &letters
	return nil
}

// mustKnow returns an error if nothing is stored of the device.
func (f *Fleet) mustKnow(ctx context.Context, pinned store.FleetSettings, device string) error {
	known, err := f.devices(pinned).Known(ctx, device)
	if err == nil && !known {
		err = errUnknownDevice(device, "nothing is stored of it")
	}
	return err
}

// Verify recomputes the crossings of a device from its stored positions and the
// current fences, and compares them with the recorded ones. It changes nothing.
func (f *Fleet) Verify(ctx context.Context, device string) (store.Verification, error) {
	f, err := f.home(ctx, device)
	if err != nil {
		return store.Verification{}, err
	}
	pinned, err := f.postgres(ctx)
	if err != nil {
		return store.Verification{}, err
	}
	if err := f.mustKnow(ctx, pinned, device); err != nil {
		return store.Verification{}, err
	}
	v, err := f.devices(pinned).Verify(ctx, device)
	return v, f.explained(err)
}

// Explanation replays the decision about one crossing, with the entries of its fixes as
// far as the stream still has them.
type Explanation struct {
	store.Explanation
	// Entries are those of the device times shown, oldest first; null while Redis is
	// unavailable.
	Entries []ExplainedEntry `json:"entries"`

	// Unanswered says why the entries are unknown; nil if they are known.
	Unanswered error `json:"-"`
}

// ExplainedEntry is an entry with one of the device times shown.
type ExplainedEntry struct {
	ID    string    `json:"id"`
	Time  time.Time `json:"ts"`    // device time
	State string    `json:"state"` // row, conflict, duplicate, or pending: not decided yet
}

// Explain replays one decision: why a device crossed a fence, or did not, at a device
// time; without one, its last crossing. It needs Postgres; without Redis the entries
// are unknown.
func (f *Fleet) Explain(ctx context.Context, device, fence string, at time.Time) (x Explanation, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*askTimeout)
	defer cancel()
	if f, err = f.home(ctx, device); err != nil {
		return x, err
	}
	pinned, err := f.postgres(ctx)
	if err != nil {
		return x, err
	}
	if err := f.mustKnow(ctx, pinned, device); err != nil {
		return x, err
	}
	if x.Explanation, err = f.devices(pinned).Explain(ctx, device, fence, at); err != nil {
		if errors.Is(err, store.ErrNoCrossing) {
			return x, fault.Exit(fault.Finding, err)
		}
		return x, f.explained(err)
	}
	if len(x.Versions) == 0 {
		return x, fault.Exitf(fault.Finding, "unknown fence %s: there is no version of it; check the ID, see processor geofence list", fence)
	}
	x.Entries, x.Unanswered = f.entriesOf(ctx, pinned, &x.Explanation)
	return x, nil
}

// entriesOf finds the entries of the device times shown among its last ones.
func (f *Fleet) entriesOf(ctx context.Context, pinned store.FleetSettings, x *store.Explanation) ([]ExplainedEntry, error) {
	group, err := f.redis(ctx, pinned.Shards)
	if err != nil {
		return nil, err
	}
	found, _, err := streamadmin.New(f.client, group).Trace(ctx, x.Device, lastEntries)
	if err != nil {
		return nil, err
	}
	lost, rows := map[string]bool{}, map[int64]*store.ExplainedFix{}
	for _, c := range x.Conflicts {
		if c.Entry != nil {
			lost[*c.Entry] = true
		}
	}
	for i := range x.Fixes {
		rows[x.Fixes[i].Time.UnixMicro()] = &x.Fixes[i]
	}
	list, is := []ExplainedEntry{}, map[int64]bool{}
	for i := len(found) - 1; i >= 0; i-- {
		s := &found[i]
		var r telemetry.Record
		if f.decoder.Decode(&s.Entry, &r) != nil || rows[r.TimeUS] == nil {
			continue
		}
		e := ExplainedEntry{ID: s.ID.String(), Time: time.UnixMicro(r.TimeUS).UTC(), State: "duplicate"}
		switch row := rows[r.TimeUS]; {
		case lost[e.ID]:
			e.State = "conflict"
		case !is[r.TimeUS] && r.StreamUS == row.Ingested.UnixMicro():
			is[r.TimeUS], e.State = true, "row"
		case !s.Dispatched || s.Pending || s.Unqueued:
			e.State = "pending"
		}
		list = append(list, e)
	}
	return list, nil
}
