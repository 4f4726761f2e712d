package stream

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// ForceAcquireDispatchLease takes the dispatch lease from its current holder,
// whose dispatches in progress fail.
func (g *Group) ForceAcquireDispatchLease(ctx context.Context, token string, ttl time.Duration) error {
	return failure("force-acquire the dispatch lease", g.client.Set(ctx, g.names.DispatchLease(), token, ttl).Err())
}

// PinShards stops dispatching by members with another number of shards.
func (g *Group) PinShards(ctx context.Context, shards int) error {
	return failure("pin the number of shards", g.client.Set(ctx, g.names.Shards(), shards, 0).Err())
}

// PinnedShards returns the pinned number, 0 if none is.
func (g *Group) PinnedShards(ctx context.Context) (int, error) {
	n, err := g.client.Get(ctx, g.names.Shards()).Int()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	return n, failure("read the number of shards", err)
}

// ForgetMarks removes the acked marks: another number of shards makes other
// shards.
func (g *Group) ForgetMarks(ctx context.Context) error {
	return failure("forget the acked marks", g.client.Del(ctx, g.names.Acked()).Err())
}

// Queues returns the state of the shards' queues, without empty ones.
func (g *Group) Queues(ctx context.Context) (map[int]protocol.QueueState, error) {
	consumers, err := g.Consumers(ctx)
	if err != nil {
		return nil, err
	}
	return g.queuesOf(ctx, consumers)
}

func (g *Group) queuesOf(ctx context.Context, consumers []protocol.Consumer) (map[int]protocol.QueueState, error) {
	queues := make(map[int]protocol.QueueState)
	asked := make(map[int]*redis.XPendingExtCmd)
	pipe := g.client.Pipeline()
	for _, c := range consumers {
		if c.Shard < 0 || c.Pending == 0 {
			continue
		}
		queues[c.Shard] = protocol.QueueState{Pending: c.Pending}
		asked[c.Shard] = pipe.XPendingExt(ctx, &redis.XPendingExtArgs{
			Stream: g.names.Stream, Group: g.names.Group, Start: "-", End: "+", Count: 1, Consumer: c.Name,
		})
	}
	if len(asked) == 0 {
		return queues, nil
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, failure("look at the queues", err)
	}
	for shard, cmd := range asked {
		if found := cmd.Val(); len(found) > 0 {
			oldest, err := telemetry.ParseEntryID(found[0].ID)
			if err != nil {
				return nil, failure("look at the queues", err)
			}
			queues[shard] = protocol.QueueState{Pending: queues[shard].Pending, Oldest: oldest}
		}
	}
	return queues, nil
}

// Idle returns how many entries a consumer has held for at least minIdle.
func (g *Group) Idle(ctx context.Context, consumer string, minIdle time.Duration) (int, error) {
	n, from := 0, "-"
	for {
		page, err := g.client.XPendingExt(ctx, &redis.XPendingExtArgs{
			Stream: g.names.Stream, Group: g.names.Group, Consumer: consumer, Idle: minIdle,
			Start: from, End: "+", Count: pendingPage,
		}).Result()
		if err != nil {
			return n, failure("list what "+consumer+" holds", err)
		}
		n += len(page)
		if len(page) < pendingPage {
			return n, nil
		}
		from = "(" + page[len(page)-1].ID
	}
}
