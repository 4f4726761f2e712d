package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
)

// Request is what the owner of a device's shard is asked to do.
type Request struct {
	Kind     string // protocol.RequestRehydrate, RequestRecompute or RequestErase
	Device   string
	From, To *time.Time // of a recompute: the window of device time; nil is open
	Reason   string     // for the audit
}

// ErrNotDone is that the time to wait for a request is up; the request continues.
var ErrNotDone = errors.New("the request is not done yet and continues")

// Ask makes a request, an audited row that waits while the shard has no owner. An
// unknown device is an error, but for an erasure, which is recorded as proof.
func (f *Fleet) Ask(ctx context.Context, r Request) (store.RequestStatus, error) {
	var none store.RequestStatus
	if err := store.CheckWindow(r.From, r.To); err != nil {
		return none, fault.Exit(fault.Config, err)
	}
	f, err := f.home(ctx, r.Device)
	if err != nil {
		return none, err
	}
	pinned, err := f.postgres(ctx)
	if err != nil {
		return none, err
	}
	if r.Kind != protocol.RequestErase {
		if err := f.mustKnow(ctx, pinned, r.Device); err != nil {
			return none, err
		}
	}
	id, err := f.devices(pinned).Ask(ctx, r.Kind, r.Device, r.From, r.To, r.Reason)
	if err != nil {
		return none, f.explained(err)
	}
	return f.Request(ctx, id)
}

// Mark flags positions of a device as faulty, or takes that back, and asks for the
// recompute that follows from it. Without positions that are not so yet it changes
// nothing. An unknown device is an error.
func (f *Fleet) Mark(ctx context.Context, m store.Mark) (out store.Marked, err error) {
	if m.From.IsZero() || m.To.IsZero() {
		return out, fault.Exitf(fault.Config, "say the device time of the first and of the last position")
	}
	if err := store.CheckWindow(&m.From, &m.To); err != nil {
		return out, fault.Exit(fault.Config, err)
	}
	if f, err = f.home(ctx, m.Device); err != nil {
		return out, err
	}
	pinned, err := f.postgres(ctx)
	if err != nil {
		return out, err
	}
	if err := f.mustKnow(ctx, pinned, m.Device); err != nil {
		return out, err
	}
	out, id, err := f.devices(pinned).Mark(ctx, m)
	switch {
	case errors.Is(err, store.ErrMarkRights), errors.Is(err, store.ErrMarkTooMany):
		return out, fault.Exit(fault.Config, err)
	case err != nil || id == 0:
		return out, f.explained(err)
	}
	status, err := f.Request(ctx, id)
	out.Request = &status
	return out, err
}

// MarkedText says what was flagged, or would be.
func MarkedText(m store.Marked) string {
	flag := "flagged as faulty"
	if !m.Faulty {
		flag += " no more"
	}
	if m.Positions == 0 {
		return "nothing to change: no position of this window is not " + flag
	}
	if m.DryRun {
		flag = "would be " + flag
	}
	return fmt.Sprintf("%s: %s from %s to %s; %s recorded between them and their neighbours",
		flag, cli.Count(m.Positions, "position"), m.First.UTC().Format(time.RFC3339Nano), m.Last.UTC().Format(time.RFC3339Nano), cli.Count(m.Crossings, "crossing"))
}

// Request returns the state of a request.
func (f *Fleet) Request(ctx context.Context, id int64) (store.RequestStatus, error) {
	status, err := f.devices(store.FleetSettings{}).Request(ctx, id)
	return status, f.explained(err)
}

// OpenRequests returns the unfinished requests and those that failed within the
// last day.
func (f *Fleet) OpenRequests(ctx context.Context) ([]store.RequestStatus, error) {
	list, err := f.devices(store.FleetSettings{}).OpenRequests(ctx, time.Now().Add(-24*time.Hour))
	return list, f.explained(err)
}

// Cancel ends a request that is not over and returns its state.
func (f *Fleet) Cancel(ctx context.Context, id int64, reason string) (status store.RequestStatus, cancelled bool, err error) {
	if cancelled, err = f.devices(store.FleetSettings{}).Cancel(ctx, id, reason); err != nil {
		return status, false, f.explained(err)
	}
	status, err = f.Request(ctx, id)
	return status, cancelled, err
}

// CheckDone returns why a request that is over did not do all that was asked.
func CheckDone(r store.RequestStatus) error {
	switch {
	case !r.Over() || r.State == "done":
		return nil
	case r.State == "cancelled":
		return fault.Exitf(fault.Finding, "request %d was cancelled: what it changed before stays; ask again if it is to be done", r.ID)
	}
	return fault.Exitf(fault.Finding, "request %d %s, its result says why; ask again once that is corrected", r.ID, r.State)
}

// Await returns the state of a request once it is over, or the last known one and
// ErrNotDone when the deadline of ctx is over first.
func (f *Fleet) Await(ctx context.Context, id int64) (status store.RequestStatus, err error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		next, err := f.Request(ctx, id)
		late := errors.Is(ctx.Err(), context.DeadlineExceeded)
		switch {
		case late && status.ID == 0:
			// At least what it was when the time was up.
			asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
			defer cancel()
			if status, err = f.Request(asking, id); err != nil {
				return status, err
			}
			return status, ErrNotDone
		case late:
			return status, ErrNotDone
		case err != nil:
			return status, err
		}
		if status = next; status.Over() {
			return status, nil
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}
