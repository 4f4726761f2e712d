package stream

import (
	"context"
	"math"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// rangePage is the number of entries per page of a range.
const rangePage = 1000

// Redeliver puts acknowledged entries back on the queues of their shards: for
// each shard those in (From, To]. It is for commits that Postgres may have
// lost; the others end as duplicates. It must precede the first read of the
// queues.
func (g *Group) Redeliver(ctx context.Context, ranges []protocol.Range) (entries int, err error) {
	if len(ranges) == 0 {
		return 0, nil
	}
	of := make(map[int]protocol.Range, len(ranges))
	from, to := telemetry.MaxEntryID, telemetry.EntryID{}
	for _, r := range ranges {
		of[r.Shard] = r
		if r.From.Less(from) {
			from = r.From
		}
		if to.Less(r.To) {
			to = r.To
		}
	}
	const op = "redeliver"
	err = g.rangePace.readPages(ctx, g.client, op, from, math.MaxInt, func(after telemetry.EntryID, n int) *redis.RawCmd {
		return redis.NewRawCmd(ctx, "xrange", g.names.Stream, after.Next().String(), to.String(), "count", n)
	}, parseRange, func(b batch) error {
		a := byShard(b, g.shards)
		pipe := g.client.Pipeline()
		for i, shard := range a.Shards {
			r, wanted := of[shard]
			if !wanted {
				continue
			}
			var ids []string
			for j := a.Starts[i]; j < a.Starts[i+1]; j++ {
				if id := a.Entries[j].ID; r.From.Less(id) && id.Compare(r.To) <= 0 {
					ids = append(ids, a.IDs[j])
				}
			}
			if len(ids) > 0 {
				pipe.Do(ctx, claimArgs(g.names, g.consumers[shard], ids)...)
				// Some may have been pending; the next check counts them.
				pipe.HDel(ctx, g.names.Pending(), g.consumers[shard])
				entries += len(ids)
			}
		}
		if pipe.Len() == 0 {
			return nil
		}
		_, err := pipe.Exec(ctx)
		return err
	})
	if err != nil {
		return entries, failure(op, g.redirected(ctx, err))
	}
	return entries, nil
}

// claimArgs returns an unconditional XCLAIM: from any consumer, pending or not.
func claimArgs(n Names, consumer string, ids []string) []any {
	args := make([]any, 0, len(ids)+9)
	args = append(args, "xclaim", n.Stream, n.Group, consumer, "0")
	for i := range ids {
		args = append(args, &ids[i])
	}
	return append(args, "retrycount", "0", "force", "justid")
}

// Requeue puts entries back on the queues of shards at work, acknowledged or not.
// The owners are to be told by Notify, since the entries may precede their cursors.
func (g *Group) Requeue(ctx context.Context, queues map[int][]telemetry.EntryID) error {
	pipe := g.client.Pipeline()
	for shard, list := range queues {
		ids := make([]string, len(list))
		for i, id := range list {
			ids[i] = id.String()
		}
		pipe.Do(ctx, claimArgs(g.names, g.consumers[shard], ids)...)
		pipe.HDel(ctx, g.names.Pending(), g.consumers[shard]) // some may have been pending
	}
	if pipe.Len() == 0 {
		return nil
	}
	_, err := pipe.Exec(ctx)
	return failure("put entries on their queues again", err)
}
