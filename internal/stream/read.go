package stream

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
)

// ReadQueues reads several shards' queues in one round trip. Reading has no
// lasting effect: a lost reply is read again.
func (g *Group) ReadQueues(ctx context.Context, reads []protocol.QueueRead) ([]protocol.QueueReply, error) {
	cmds := make([]*redis.RawCmd, len(reads))
	pipe := g.client.Pipeline()
	for i, r := range reads {
		cmds[i] = redis.NewRawCmd(ctx, "xreadgroup", "group", g.names.Group, g.consumers[r.Shard],
			"count", r.Count, "streams", g.names.Stream, r.After.String())
		cmds[i].SetFirstKeyPos(7)
		if err := pipe.Process(ctx, cmds[i]); err != nil {
			return nil, failure("read queues", err)
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, failure("read queues", err)
	}
	replies := make([]protocol.QueueReply, len(reads))
	for i, cmd := range cmds {
		b, err := parseRead(cmd.Val())
		if err != nil {
			return nil, failure("read queues", g.redirected(ctx, err))
		}
		if n := len(b.entries); n > 0 {
			g.observed(b.entries[n-1].ID)
		}
		replies[i] = protocol.QueueReply{Entries: b.entries, Bytes: len(cmd.Val())}
	}
	return replies, nil
}
