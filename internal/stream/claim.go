package stream

import (
	"context"
	_ "embed"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed claim.lua
var claimSource string

//go:embed undecided.lua
var undecidedSource string

//go:embed remove_consumer.lua
var removeConsumerSource string

var (
	claimScript          = withPrelude(claimSource)
	undecidedScript      = withPrelude(undecidedSource)
	removeConsumerScript = redis.NewScript(removeConsumerSource)
)

// Consumers lists the consumers of the group: the queues of our shards, and
// foreign ones.
func (g *Group) Consumers(ctx context.Context) ([]protocol.Consumer, error) {
	rows, err := g.client.XInfoConsumers(ctx, g.names.Stream, g.names.Group).Result()
	if err != nil {
		if IsNoSuchKey(err) {
			return nil, nil
		}
		return nil, failure("list consumers", err)
	}
	list := make([]protocol.Consumer, len(rows))
	for i, row := range rows {
		list[i] = protocol.Consumer{Name: row.Name, Pending: row.Pending, Idle: row.Idle, Shard: -1}
		if shard, ok := ShardOfConsumer(row.Name, g.shards); ok {
			list[i].Shard = shard
		}
	}
	return list, nil
}

// Claim moves one page of the entries that a foreign consumer has held for at
// least minIdle to the queues of their shards, starting at an ID. Next is where
// the next page begins; More reports whether there is one. An empty page is not
// the end.
func (g *Group) Claim(ctx context.Context, consumer string, minIdle time.Duration, from telemetry.EntryID, page int) (protocol.Claimed, error) {
	pending, err := g.client.XPendingExt(ctx, &redis.XPendingExtArgs{
		Stream: g.names.Stream, Group: g.names.Group, Consumer: consumer,
		Start: from.String(), End: "+", Count: int64(page),
	}).Result()
	if err != nil {
		return protocol.Claimed{}, failure("list what "+consumer+" holds", err)
	}
	out := protocol.Claimed{More: len(pending) == page, Next: from, Shards: make(map[int]int)}
	if len(pending) == 0 {
		return out, nil
	}
	last, err := telemetry.ParseEntryID(pending[len(pending)-1].ID)
	if err != nil {
		return out, failure("list what "+consumer+" holds", err)
	}
	out.Next = last.Next()

	// The shard follows from the entry's own field. An entry whose content is
	// gone has none; the script detects that and records the loss.
	ids := make(map[int][]any)
	var old []string
	for _, p := range pending {
		if p.Idle >= minIdle {
			old = append(old, p.ID)
		}
	}
	for len(old) > 0 {
		some := old[:g.rangePace.count(len(old))]
		shards, err := g.shardsOf(ctx, some)
		if err != nil {
			return out, failure("look at what "+consumer+" holds", err)
		}
		for i, id := range some {
			ids[shards[i]] = append(ids[shards[i]], id)
		}
		old = old[len(some):]
	}
	for shard, list := range ids {
		args := append([]any{g.names.Group, consumer, minIdle.Milliseconds(), shard, g.consumers[shard]}, list...)
		res, err := claimScript.Run(ctx, g.client, []string{g.names.Stream, g.names.Losses(), g.names.Pending(), g.names.Dispatched()}, args...).Int64Slice()
		if err != nil {
			return out, failure("claim from "+consumer, err)
		}
		out.Entries += int(res[0])
		out.Gone += int(res[1])
		if res[0] > 0 {
			out.Shards[shard] += int(res[0])
		}
	}
	return out, nil
}

// shardsOf returns the shard of each entry, 0 of those whose content is gone.
func (g *Group) shardsOf(ctx context.Context, ids []string) ([]int, error) {
	const op = "look at pending entries"
	cmds := make([]*redis.RawCmd, len(ids))
	pipe := g.client.Pipeline()
	began := time.Now()
	for i, id := range ids {
		cmds[i] = redis.NewRawCmd(ctx, "xrange", g.names.Stream, id, id)
		if err := pipe.Process(ctx, cmds[i]); err != nil {
			return nil, err
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, g.rangePace.readFailure(ctx, g.client, op, len(ids), began, err)
	}
	shards, entries, bytes := make([]int, len(ids)), 0, 0
	for i, cmd := range cmds {
		b, err := parseRange(cmd.Val())
		if err != nil {
			return nil, g.redirected(ctx, err)
		}
		if len(b.entries) > 0 {
			shards[i] = telemetry.ShardOf(b.entries[0].DeviceID(), g.shards)
		}
		entries, bytes = entries+len(b.entries), bytes+len(cmd.Val())
	}
	g.rangePace.passed(entries, bytes, true, time.Since(began))
	return shards, nil
}

// Notify tells the owners of shards that entries were put on their queues,
// possibly before the cursor.
func (g *Group) Notify(ctx context.Context, shards []int) error {
	return failure("ring", g.client.Publish(ctx, g.names.NotifyChannel(), notifyPayload(shards, nil)).Err())
}

// Undecided returns those of some entries that the owners of their shards have still to decide, or to
// decide again: they are in the stream, and pending or beyond the last-delivered ID.
func (g *Group) Undecided(ctx context.Context, ids []telemetry.EntryID) ([]telemetry.EntryID, error) {
	args := make([]any, 0, 1+len(ids))
	args = append(args, g.names.Group)
	for _, id := range ids {
		args = append(args, id.String())
	}
	texts, err := undecidedScript.Run(ctx, g.client, []string{g.names.Stream}, args...).StringSlice()
	if err != nil {
		return nil, failure("ask which entries are undecided", err)
	}
	found := make([]telemetry.EntryID, len(texts))
	for i, text := range texts {
		if found[i], err = telemetry.ParseEntryID(text); err != nil {
			return nil, failure("ask which entries are undecided", err)
		}
	}
	return found, nil
}

// Remove removes a foreign consumer that has nothing pending and has been idle
// for at least minIdle. It reports whether it did.
func (g *Group) Remove(ctx context.Context, consumer string, minIdle time.Duration) (bool, error) {
	n, err := removeConsumerScript.Run(ctx, g.client, []string{g.names.Stream}, g.names.Group, consumer, minIdle.Milliseconds()).Int()
	return n == 1, failure("remove consumer "+consumer, err)
}
