package stream

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed requeue.lua
var requeueSource string

var requeueScript = redis.NewScript(requeueSource)

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

// Requeue puts entries back on the queues of shards at work, acknowledged or not, by the
// fleet's number of shards: where that was changed it fails as Lost, without effect.
// The owners are to be told by Notify, since the entries may precede their cursors.
func (g *Group) Requeue(ctx context.Context, queues map[int][]telemetry.EntryID) error {
	const op = "put entries on their queues again"
	args := []any{g.names.Group, g.shards}
	for shard, list := range queues {
		for some := range slices.Chunk(list, dispatchChunk) {
			args = append(args, len(some)+6, g.consumers[shard], "0")
			for _, id := range some {
				args = append(args, id.String())
			}
			args = append(args, "RETRYCOUNT", "0", "FORCE", "JUSTID")
		}
	}
	if len(args) == 2 {
		return nil
	}
	fleets, err := requeueScript.Run(ctx, g.client, []string{g.names.Stream, g.names.Shards(), g.names.Pending()}, args...).Text()
	if errors.Is(err, redis.Nil) {
		return nil
	}
	if err == nil {
		err = &protocol.Failure{Kind: protocol.Lost, Code: "shards", Err: fmt.Errorf("%s: the number of shards was changed from %d to %s: run it again", op, g.shards, fleets)}
	}
	return failure(op, err)
}
