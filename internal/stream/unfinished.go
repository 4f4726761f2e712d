package stream

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/telemetry"
)

// pendingPage is how many pending entries are listed in one reply.
const pendingPage = 1000

// Oldest is the oldest entry that is not finished: pending, or not dealt yet.
// It is false where there is none. Info is the state that was found just before.
func (g *Group) Oldest(ctx context.Context, info Info) (telemetry.EntryID, bool, error) {
	const op = "look for the oldest unfinished entry"
	var oldest telemetry.EntryID
	found := false
	note := func(text string) error {
		id, err := telemetry.ParseEntryID(text)
		if err == nil && (!found || id.Less(oldest)) {
			oldest, found = id, true
		}
		return failure(op, err)
	}
	if info.GroupExists {
		pending, err := g.client.XPending(ctx, g.names.Stream, g.names.Group).Result()
		if err != nil {
			return oldest, false, failure(op, err)
		}
		if pending.Count > 0 {
			if err := note(pending.Lower); err != nil {
				return oldest, false, err
			}
		}
	}
	if !info.Exists {
		return oldest, found, nil
	}
	next, err := g.client.XRangeN(ctx, g.names.Stream, "("+info.Delivered.String(), "+", 1).Result()
	if err != nil {
		return oldest, false, failure(op, err)
	}
	if len(next) > 0 {
		if err := note(next[0].ID); err != nil {
			return oldest, false, err
		}
	}
	return oldest, found, nil
}

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

// ReadRange returns at most count entries that follow an ID, in stream order;
// fewer only at the end of the stream. The group is not touched.
func (g *Group) ReadRange(ctx context.Context, after telemetry.EntryID, count int) ([]telemetry.Entry, error) {
	cmd := redis.NewRawCmd(ctx, "xread", "count", count, "streams", g.names.Stream, after.String())
	cmd.SetFirstKeyPos(4)
	if err := g.client.Process(ctx, cmd); err != nil {
		return nil, failure("read entries", err)
	}
	b, err := parseRead(cmd.Val())
	if err != nil {
		return nil, failure("read entries", g.redirected(ctx, err))
	}
	return b.entries, nil
}
