package stream

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed register_owner.lua
var registerOwnerSource string

var registerOwnerScript = withPrelude(registerOwnerSource)

// RegisterOwner makes token the one under which shards are acknowledged, and
// returns what Redis knows of them. After it, an acknowledgement under an earlier
// token, whose commit Postgres may have lost, is rejected.
func (g *Group) RegisterOwner(ctx context.Context, token string, shards []int) (protocol.Entered, error) {
	const op = "register the owner of shards"
	in := protocol.Entered{Acked: make(map[int]telemetry.EntryID, len(shards)), Applied: make(map[int]telemetry.EntryID, len(shards))}
	args := make([]any, 0, 2*len(shards)+3)
	args = append(args, g.names.Group, token, g.belongs())
	for _, s := range shards {
		args = append(args, s, g.consumers[s])
	}
	keys := []string{g.names.Stream, g.names.Acked(), g.names.OwnerTokens(), g.names.Pending(), g.names.Applied(), g.names.Losses(), g.names.Database(), g.names.Dispatched()}
	res, err := registerOwnerScript.Run(ctx, g.client, keys, args...).StringSlice()
	if err != nil {
		return in, failure(op, err)
	}
	if len(res) != 2*len(shards)+2 {
		return in, fmt.Errorf("%s: %d values for %d shards", op, len(res), len(shards))
	}
	for i, text := range res {
		if text == "" {
			continue
		}
		id, err := telemetry.ParseEntryID(text)
		switch {
		case err != nil:
			return in, failure(op, err)
		case i == 0:
			in.Dispatched = id
		case i == 1:
			in.Trimmed = id
		case i%2 == 0:
			in.Acked[shards[i/2-1]] = id
		default:
			in.Applied[shards[i/2-1]] = id
		}
	}
	return in, nil
}

//go:embed set_applied.lua
var setAppliedSource string

var setAppliedScript = redis.NewScript(setAppliedSource)

// SetApplied makes the applied ID of a shard in Redis that of Postgres, once what
// lies between is accounted for.
func (g *Group) SetApplied(ctx context.Context, shard int, applied telemetry.EntryID) error {
	return failure("set an applied ID", setAppliedScript.Run(ctx, g.client, []string{g.names.Applied()}, shard, applied.String()).Err())
}

// Marks reads the same as RegisterOwner without registering anything.
func (g *Group) Marks(ctx context.Context) (acked map[int]telemetry.EntryID, delivered telemetry.EntryID, err error) {
	if acked, err = g.marks(ctx); err != nil {
		return nil, delivered, err
	}
	info, err := g.Info(ctx)
	return acked, info.Delivered, err
}
