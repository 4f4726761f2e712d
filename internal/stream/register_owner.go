package stream

import (
	"context"
	_ "embed"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed register_owner.lua
var registerOwnerSource string

var registerOwnerScript = redis.NewScript(registerOwnerSource)

// RegisterOwner makes token the one under which shards are acknowledged, and
// returns each shard's highest acknowledged entry, if known, and the group's
// last-delivered ID. After it, an acknowledgement under an earlier token, whose
// commit Postgres may have lost, is rejected.
func (g *Group) RegisterOwner(ctx context.Context, token string, shards []int) (acked map[int]telemetry.EntryID, delivered telemetry.EntryID, err error) {
	args := make([]any, 0, len(shards)+3)
	args = append(args, g.names.Group, token, g.belongs())
	for _, s := range shards {
		args = append(args, s)
	}
	res, err := registerOwnerScript.Run(ctx, g.client, []string{g.names.Stream, g.names.Acked(), g.names.OwnerTokens(), g.names.Database()}, args...).StringSlice()
	if err != nil {
		return nil, delivered, failure("enter shards", err)
	}
	acked = make(map[int]telemetry.EntryID, len(shards))
	for i, text := range res {
		if text == "" {
			continue
		}
		id, err := telemetry.ParseEntryID(text)
		if err != nil {
			return nil, delivered, failure("enter shards", err)
		}
		if i == 0 {
			delivered = id
		} else {
			acked[shards[i-1]] = id
		}
	}
	return acked, delivered, nil
}

// Marks reads the same as RegisterOwner without registering anything.
func (g *Group) Marks(ctx context.Context) (acked map[int]telemetry.EntryID, delivered telemetry.EntryID, err error) {
	if acked, err = g.marks(ctx); err != nil {
		return nil, delivered, err
	}
	info, err := g.Info(ctx)
	return acked, info.Delivered, err
}
