package stream

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/telemetry"
)

// pendingPage is the number of pending entries per reply.
const pendingPage = 1000

// Pending lists the pending entries of the group in stream order, at most limit.
func (g *Group) Pending(ctx context.Context, limit int) ([]telemetry.EntryID, error) {
	const op = "list pending entries"
	var ids []telemetry.EntryID
	from := "-"
	for len(ids) < limit {
		page, err := g.client.XPendingExt(ctx, &redis.XPendingExtArgs{
			Stream: g.names.Stream, Group: g.names.Group, Start: from, End: "+",
			Count: int64(min(pendingPage, limit-len(ids))),
		}).Result()
		if err != nil {
			return nil, failure(op, err)
		}
		for _, p := range page {
			id, err := telemetry.ParseEntryID(p.ID)
			if err != nil {
				return nil, failure(op, err)
			}
			ids = append(ids, id)
			from = "(" + p.ID
		}
		if len(page) < pendingPage {
			break
		}
	}
	return ids, nil
}

// ReadRange returns at most count entries after an ID, in stream order; fewer
// only at the end of the stream. It does not affect the group.
func (g *Group) ReadRange(ctx context.Context, after telemetry.EntryID, count int) ([]telemetry.Entry, error) {
	const op = "read entries"
	var entries []telemetry.Entry
	err := g.rangePace.readPages(ctx, g.client, op, after, count, func(after telemetry.EntryID, n int) *redis.RawCmd {
		cmd := redis.NewRawCmd(ctx, "xread", "count", n, "streams", g.names.Stream, after.String())
		cmd.SetFirstKeyPos(4)
		return cmd
	}, parseRead, func(b batch) error {
		entries = append(entries, b.entries...)
		return nil
	})
	if err != nil {
		return nil, failure(op, g.redirected(ctx, err))
	}
	return entries, nil
}

// ReadBack returns at most count entries before an ID, newest first; fewer only at
// the beginning of the stream. It does not affect the group.
func (g *Group) ReadBack(ctx context.Context, before telemetry.EntryID, count int) ([]telemetry.Entry, error) {
	cmd := redis.NewRawCmd(ctx, "xrevrange", g.names.Stream, "("+before.String(), "-", "count", count)
	if err := g.client.Process(ctx, cmd); err != nil {
		return nil, failure("read the stream", err)
	}
	b, err := parseRange(cmd.Val())
	if err != nil {
		return nil, failure("read the stream", g.redirected(ctx, err))
	}
	return b.entries, nil
}
