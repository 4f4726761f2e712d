package stream

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// ReadQueues reads several shards' queues, in one round trip unless the entries
// are too large for it. Reading has no lasting effect: a lost reply is read again.
func (g *Group) ReadQueues(ctx context.Context, reads []protocol.QueueRead) ([]protocol.QueueReply, error) {
	replies := make([]protocol.QueueReply, len(reads))
	wanted := 0
	for _, r := range reads {
		wanted += r.Count
	}
	for from := 0; from < len(reads); {
		limit := g.queuePace.count(wanted)
		to := min(len(reads), from+limit)
		if err := g.readQueues(ctx, reads[from:to], max(1, limit/(to-from)), replies[from:to]); err != nil {
			return nil, err
		}
		from = to
	}
	return replies, nil
}

// readQueues reads at most this many entries of each queue in one round trip.
func (g *Group) readQueues(ctx context.Context, reads []protocol.QueueRead, each int, replies []protocol.QueueReply) error {
	const op = "read queues"
	raws := make([]*rawReply, len(reads))
	pipe := g.client.Pipeline()
	began, asked := time.Now(), 0
	for i, r := range reads {
		asked += min(r.Count, each)
		raws[i] = g.queuePace.buffer(len(reads))
		cmd := redis.NewRawWriteToCmd(ctx, raws[i], "xreadgroup", "group", g.names.Group, g.consumers[r.Shard],
			"count", min(r.Count, each), "streams", g.names.Stream, r.After.String())
		cmd.SetFirstKeyPos(7)
		if err := pipe.Process(ctx, cmd); err != nil {
			return failure(op, err)
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return g.queuePace.readFailure(ctx, g.client, op, asked, began, err)
	}
	entries, bytes, full := 0, 0, false
	for i, raw := range raws {
		b, err := parseRead(raw.bytes())
		if err != nil {
			return failure(op, g.redirected(ctx, err))
		}
		n := len(b.entries)
		if n > 0 {
			g.observed(b.entries[n-1].ID)
		}
		replies[i] = protocol.QueueReply{Entries: b.entries, Full: n >= min(reads[i].Count, each), Bytes: len(raw.b)}
		entries, bytes, full = entries+n, bytes+len(raw.b), full || replies[i].Full
	}
	g.queuePace.passed(entries, bytes, full, time.Since(began))
	return nil
}

// readPages reads at most count entries in stream order with commands that read
// asks for, as many as their size permits with each, and passes each page on. It
// ends early where the stream does.
func (p *readPace) readPages(ctx context.Context, client redis.UniversalClient, op string, after telemetry.EntryID, count int,
	read func(after telemetry.EntryID, count int) *redis.RawCmd, parse func(raw []byte) (batch, error), page func(b batch) error,
) error {
	for count > 0 {
		n := p.count(min(count, rangePage))
		began := time.Now()
		cmd := read(after, n)
		if err := client.Process(ctx, cmd); err != nil {
			return p.readFailure(ctx, client, op, n, began, err)
		}
		b, err := parse(cmd.Val())
		if err != nil {
			return err
		}
		p.passed(len(b.entries), len(cmd.Val()), len(b.entries) >= n, time.Since(began))
		if len(b.entries) == 0 {
			return nil
		}
		after, count = b.entries[len(b.entries)-1].ID, count-len(b.entries)
		if err := page(b); err != nil || len(b.entries) < n {
			return err
		}
	}
	return nil
}
