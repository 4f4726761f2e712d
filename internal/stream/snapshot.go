package stream

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed snapshot.lua
var snapshotSource string

var snapshotScript = redis.NewScript(snapshotSource)

// Snapshot reads the stream's ends, and which of the entries are missing.
func (g *Group) Snapshot(ctx context.Context, ids []telemetry.EntryID) (protocol.StreamSnapshot, error) {
	const op = "look for entries"
	args := make([]any, 0, 1+len(ids))
	args = append(args, g.names.Group)
	for _, id := range ids {
		args = append(args, id.String())
	}
	texts, err := snapshotScript.Run(ctx, g.client, []string{g.names.Stream}, args...).StringSlice()
	if err != nil {
		return protocol.StreamSnapshot{}, failure(op, err)
	}
	if len(texts) == 0 {
		return protocol.StreamSnapshot{}, nil
	}
	if len(texts) < 5 {
		return protocol.StreamSnapshot{}, fmt.Errorf("%s: %d values", op, len(texts))
	}
	snapshot := protocol.StreamSnapshot{Exists: true, Whole: texts[4] == "0", Missing: make([]telemetry.EntryID, len(texts)-5)}
	where := []*telemetry.EntryID{&snapshot.First, &snapshot.Newest, &snapshot.Last, &snapshot.Deleted, nil}
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
