package stream

import (
	"context"
	"strconv"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Work returns the progress of the shards, except those without
// acknowledgements and with an empty queue, and the number of entries that are pending
// for foreign consumers.
func (g *Group) Work(ctx context.Context) (work map[int]protocol.ShardWork, foreign int, err error) {
	consumers, err := g.Consumers(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, c := range consumers {
		if c.Shard < 0 {
			foreign += int(c.Pending)
		}
	}
	queues, err := g.queuesOf(ctx, consumers)
	if err != nil {
		return nil, 0, err
	}
	acked, err := g.marks(ctx)
	if err != nil {
		return nil, 0, err
	}
	work = make(map[int]protocol.ShardWork, len(acked))
	for shard, mark := range acked {
		work[shard] = protocol.ShardWork{Acked: mark}
	}
	for shard, q := range queues {
		work[shard] = protocol.ShardWork{QueueState: q, Acked: acked[shard]}
	}
	return work, foreign, nil
}

// marks returns the acked mark of each shard with acknowledgements.
func (g *Group) marks(ctx context.Context) (map[int]telemetry.EntryID, error) {
	fields, err := g.client.HGetAll(ctx, g.names.Acked()).Result()
	if err != nil {
		return nil, failure("read the acked marks", err)
	}
	acked := make(map[int]telemetry.EntryID, len(fields))
	for field, value := range fields {
		shard, err := strconv.Atoi(field)
		if err != nil {
			continue
		}
		id, err := telemetry.ParseEntryID(value)
		if err != nil {
			return nil, failure("read the acked marks", err)
		}
		if !id.IsZero() {
			acked[shard] = id
		}
	}
	return acked, nil
}
