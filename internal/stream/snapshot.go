package stream

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed snapshot.lua
var snapshotSource string

var snapshotScript = withPrelude(snapshotSource)

// Snapshot reads the stream's ends, and which of the entries are missing. Losses
// that it shows are among the Losses afterwards.
func (g *Group) Snapshot(ctx context.Context, ids []telemetry.EntryID) (protocol.StreamSnapshot, error) {
	const op = "look for entries"
	before, same, keep := g.resting(ctx, ids)
	if same {
		return before, nil
	}
	args := make([]any, 0, 2+len(ids))
	args = append(args, g.names.Group, g.shards)
	for _, id := range ids {
		args = append(args, id.String())
	}
	texts, err := snapshotScript.Run(ctx, g.client, []string{g.names.Stream, g.names.Pending(), g.names.Losses(), g.names.Applied(), g.names.DispatchLease(), g.names.Dispatched()}, args...).StringSlice()
	if err != nil {
		return protocol.StreamSnapshot{}, failure(op, err)
	}
	if len(texts) == 0 {
		return protocol.StreamSnapshot{}, nil
	}
	if len(texts) < 6 {
		return protocol.StreamSnapshot{}, fmt.Errorf("%s: %d values", op, len(texts))
	}
	snapshot := protocol.StreamSnapshot{Exists: true, Whole: texts[4] == "0", Missing: make([]telemetry.EntryID, len(texts)-6)}
	if snapshot.Now, err = strconv.ParseUint(texts[5], 10, 64); err != nil {
		return protocol.StreamSnapshot{}, fmt.Errorf("%s: the time: %w", op, err)
	}
	where := []*telemetry.EntryID{&snapshot.First, &snapshot.Newest, &snapshot.Last, &snapshot.Deleted, nil, nil}
	for i := range snapshot.Missing {
		where = append(where, &snapshot.Missing[i])
	}
	for i, text := range texts {
		if where[i] == nil || text == "" {
			continue
		}
		if *where[i], err = telemetry.ParseEntryID(text); err != nil {
			return protocol.StreamSnapshot{}, failure(op, err)
		}
	}
	keep(snapshot)
	return snapshot, nil
}

// Before returns the newest entry that precedes an ID, zero if there is none.
func (g *Group) Before(ctx context.Context, id telemetry.EntryID) (telemetry.EntryID, error) {
	const op = "look for the entry before another"
	found, err := g.client.XRevRangeN(ctx, g.names.Stream, "("+id.String(), "-", 1).Result()
	if err != nil {
		return telemetry.EntryID{}, failure(op, err)
	}
	if len(found) == 0 {
		return telemetry.EntryID{}, nil
	}
	before, err := telemetry.ParseEntryID(found[0].ID)
	return before, failure(op, err)
}

// After is the oldest entry that follows an ID, zero where there is none.
func (g *Group) After(ctx context.Context, id telemetry.EntryID) (telemetry.EntryID, error) {
	const op = "look for the entry after another"
	found, err := g.client.XRangeN(ctx, g.names.Stream, "("+id.String(), "+", 1).Result()
	if err != nil {
		return telemetry.EntryID{}, failure(op, err)
	}
	if len(found) == 0 {
		return telemetry.EntryID{}, nil
	}
	after, err := telemetry.ParseEntryID(found[0].ID)
	return after, failure(op, err)
}

// observed raises the high-water mark to an entry. A mark ahead of the clock would hide
// what comes once the entry is gone, so it gives way to any other.
func (g *Group) observed(id telemetry.EntryID) {
	for {
		before := g.newest.Load()
		if before != nil && id.Compare(*before) <= 0 && !protocol.FarAhead(*before, uint64(time.Now().UnixMilli())) || g.newest.CompareAndSwap(before, &id) {
			return
		}
	}
}

// HighWatermark is the newest entry that was read from here, to be dispatched or
// to be finished; zero for none. After another server answered it is for a while the
// newest that was read before: a newer one would hide that it is gone there.
func (g *Group) HighWatermark() telemetry.EntryID {
	if k := g.kept.Load(); k != nil && time.Now().Before(k.until) {
		return k.id
	}
	if id := g.newest.Load(); id != nil {
		return *id
	}
	return telemetry.EntryID{}
}

// keptFor is long enough for the mark to be written and for the leader to look for it,
// or for the next one.
const keptFor = 5 * time.Second

// kept is a high-water mark that nothing newer replaces yet.
type kept struct {
	id    telemetry.EntryID
	until time.Time
}

// keep keeps the high-water mark. One that is kept already stays.
func (g *Group) keep() {
	now := time.Now()
	if id, before := g.newest.Load(), g.kept.Load(); id != nil && (before == nil || !now.Before(before.until)) {
		g.kept.CompareAndSwap(before, &kept{*id, now.Add(keptFor)})
	}
}
