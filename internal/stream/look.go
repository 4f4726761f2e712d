package stream

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed look.lua
var lookSource string

var lookScript = redis.NewScript(lookSource)

// Look looks at the stream, and for entries.
func (g *Group) Look(ctx context.Context, ids []telemetry.EntryID) (protocol.Sight, error) {
	const op = "look for entries"
	args := make([]any, 0, 1+len(ids))
	args = append(args, g.names.Group)
	for _, id := range ids {
		args = append(args, id.String())
	}
	texts, err := lookScript.Run(ctx, g.client, []string{g.names.Stream}, args...).StringSlice()
	if err != nil {
		return protocol.Sight{}, failure(op, err)
	}
	if len(texts) == 0 {
		return protocol.Sight{}, nil
	}
	if len(texts) < 5 {
		return protocol.Sight{}, fmt.Errorf("%s: %d values", op, len(texts))
	}
	sight := protocol.Sight{Exists: true, Whole: texts[4] == "0", Missing: make([]telemetry.EntryID, len(texts)-5)}
	where := []*telemetry.EntryID{&sight.First, &sight.Newest, &sight.Last, &sight.Deleted, nil}
	for i := range sight.Missing {
		where = append(where, &sight.Missing[i])
	}
	for i, text := range texts {
		if where[i] == nil || text == "" {
			continue
		}
		if *where[i], err = telemetry.ParseEntryID(text); err != nil {
			return protocol.Sight{}, failure(op, err)
		}
	}
	return sight, nil
}

// Before is the newest entry that precedes an ID, zero where there is none.
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
