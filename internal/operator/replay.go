package operator

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Replay says which entries of the stream are read again.
type Replay struct {
	Since, Until time.Time // stream time; a zero Until is now
	Device       string    // "" for all
	DryRun       bool
	PauseAt      int64                          // pause while so many entries are pending; 0 is 50,000
	Progress     func(done int, upTo time.Time) // may be nil
}

// Replayed is what was read again, or would be.
type Replayed struct {
	DryRun      bool       `json:"dry_run"`
	Entries     int        `json:"entries"`
	Devices     int        `json:"devices"`
	First       *string    `json:"first"` // null if there is none
	Last        *string    `json:"last"`
	OldestKept  *time.Time `json:"oldest_kept"` // stream time of the oldest entry that the stream still has
	Incomplete  bool       `json:"incomplete"`  // entries since the begin were trimmed
	Interrupted bool       `json:"interrupted"`
}

const (
	replayPage  = 1000
	replayPause = 50_000
)

// ReplayEntries puts entries that the stream still holds, and that were dispatched,
// on the queues of their shards again. Their owners take the idempotent path: what is
// stored stays, what is missing is added. Entries that are not dispatched yet are
// left alone. Interrupted, it can be repeated.
func (f *Fleet) ReplayEntries(ctx context.Context, o Replay) (out Replayed, err error) {
	out.DryRun = o.DryRun
	if o.Since.IsZero() || !o.Until.IsZero() && o.Until.Before(o.Since) {
		return out, fault.Exitf(fault.Config, "say since when, and an end that is not before it")
	}
	group, pinned, err := f.changeable(ctx)
	if err != nil {
		return out, err
	}
	info, err := group.Info(ctx)
	if err != nil {
		return out, err
	}
	if !info.GroupExists {
		return out, fault.Exitf(fault.Finding, "there is no group: everything will be read anyway")
	}
	if !info.First.IsZero() {
		oldest := info.First.Time()
		out.OldestKept, out.Incomplete = &oldest, info.Added > info.Length && oldest.After(o.Since)
	}
	end := info.Delivered
	if until := (telemetry.EntryID{Ms: uint64(max(0, o.Until.UnixMilli()))}); !o.Until.IsZero() && until.Less(end) {
		end = until
	}
	if o.PauseAt == 0 {
		o.PauseAt = replayPause
	}
	defer func() {
		if !o.DryRun && out.Entries > 0 {
			noting, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
			defer cancel()
			err = errors.Join(err, f.explained(f.audit().Note(noting, f.by, "replay", f.scope.Stream, out.Entries, map[string]any{
				"group": f.scope.Group, "device": o.Device, "since": o.Since.UTC(), "until": end.Time().UTC(),
			})))
		}
	}()
	devices := make(map[string]bool)
	after := telemetry.EntryID{Ms: uint64(max(0, o.Since.UnixMilli()-1)), Seq: 1<<64 - 1}
	for {
		if ctx.Err() != nil {
			out.Interrupted = true
			return out, errInterrupted
		}
		entries, err := group.ReadRange(ctx, after, replayPage)
		if err != nil {
			return out, err
		}
		queues := make(map[int][]telemetry.EntryID)
		over := len(entries) < replayPage
		for i := range entries {
			e := &entries[i]
			if end.Less(e.ID) {
				over = true
				break
			}
			after = e.ID
			device := e.DeviceID()
			if o.Device != "" && device != o.Device {
				continue
			}
			shard := telemetry.ShardOf(device, pinned.Shards)
			queues[shard] = append(queues[shard], e.ID)
			out.Entries++
			devices[device] = true
			text := e.ID.String()
			if out.First == nil {
				out.First = &text
			}
			out.Last = &text
		}
		out.Devices = len(devices)
		if !o.DryRun && len(queues) > 0 {
			if err := group.Requeue(ctx, queues); err != nil {
				return out, err
			}
			shards := make([]int, 0, len(queues))
			for shard := range queues {
				shards = append(shards, shard)
			}
			slices.Sort(shards)
			if err := group.Notify(ctx, shards); err != nil {
				return out, err
			}
		}
		if o.Progress != nil {
			o.Progress(out.Entries, after.Time())
		}
		if over {
			return out, nil
		}
		for !o.DryRun && ctx.Err() == nil {
			now, err := group.Info(ctx)
			if err != nil {
				return out, err
			}
			if now.Pending < o.PauseAt {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
}
