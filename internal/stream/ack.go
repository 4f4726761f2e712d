package stream

import (
	"context"
	_ "embed"
	"slices"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed ack.lua
var ackSource string

var ackScript = redis.NewScript(ackSource)

// ackChunk bounds the arguments of one script call: Lua's stack holds about
// 8,000, and a long script would hold up the server.
const ackChunk = 4096

// Ack acknowledges finished entries and moves their shards' acked marks, in as
// many script calls as their number needs. After an error some of it may have
// happened; the caller calls again, which is harmless.
func (g *Group) Ack(ctx context.Context, acks []protocol.Ack) error {
	args := []any{g.names.Group}
	n := 0
	flush := func() error {
		if n == 0 {
			return nil
		}
		err := ackScript.Run(ctx, g.client, []string{g.names.Stream, g.names.Acked(), g.names.Losses()}, args...).Err()
		args, n = args[:1], 0
		return failure("ack", err)
	}
	add := func(shard int, cause string, ids []telemetry.EntryID) error {
		for len(ids) > 0 {
			chunk := ids[:min(len(ids), ackChunk-n)]
			ids = ids[len(chunk):]
			args = append(args, strconv.Itoa(shard), cause, slices.MaxFunc(chunk, telemetry.EntryID.Compare).String(), len(chunk))
			args = appendIDs(args, chunk)
			if n += len(chunk); n >= ackChunk {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for _, a := range acks {
		if err := add(a.Shard, "", a.IDs); err != nil {
			return err
		}
		if err := add(a.Shard, "trimmed_pending", a.Gone); err != nil {
			return err
		}
	}
	return flush()
}

// appendIDs appends IDs as arguments whose text shares one allocation.
func appendIDs(args []any, ids []telemetry.EntryID) []any {
	ends := make([]int, len(ids))
	buf := make([]byte, 0, 18*len(ids))
	for i, id := range ids {
		buf = id.AppendTo(buf)
		ends[i] = len(buf)
	}
	all, text := string(buf), make([]string, len(ids))
	start := 0
	for i, end := range ends {
		text[i] = all[start:end]
		args = append(args, &text[i]) // a pointer saves the copy that boxing a string makes
		start = end
	}
	return args
}

// Marks returns each shard's highest acknowledged entry, where it is known, and
// the group's last-delivered ID.
func (g *Group) Marks(ctx context.Context) (acked map[int]telemetry.EntryID, delivered telemetry.EntryID, err error) {
	marks, err := g.client.HGetAll(ctx, g.names.Acked()).Result()
	if err != nil {
		return nil, delivered, failure("read the acked marks", err)
	}
	acked = make(map[int]telemetry.EntryID, len(marks))
	for field, value := range marks {
		shard, err := strconv.Atoi(field)
		if err != nil {
			continue
		}
		if acked[shard], err = telemetry.ParseEntryID(value); err != nil {
			return nil, delivered, failure("read the acked marks", err)
		}
	}
	info, err := g.Info(ctx)
	return acked, info.Delivered, err
}
