package stream

import (
	"context"
	_ "embed"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed turn.lua
var turnSource string

var turnScript = redis.NewScript(turnSource)

// AcquireTurn takes the turn when it is free or held under the token before,
// and makes the group at 0 where it is missing. The token must be new for each
// acquisition and after each error. Where another number of shards was pinned
// meanwhile it is given back: dealing by the old one would break the order of
// devices.
func (g *Group) AcquireTurn(ctx context.Context, before, token string, ttl time.Duration) (protocol.Turn, error) {
	res, err := turnScript.Run(ctx, g.client, []string{g.names.Stream, g.names.Turn(), g.names.Dealt(), g.names.Acked(), g.names.Made()},
		g.names.Group, before, token, ttl.Milliseconds(), g.shards, g.names.Bell()).Slice()
	if err != nil {
		return protocol.Turn{}, failure("acquire the turn", err)
	}
	if res[0].(int64) == 0 {
		return protocol.Turn{Left: time.Duration(res[1].(int64)) * time.Millisecond}, nil
	}
	after, err := telemetry.ParseEntryID(res[1].(string))
	if err != nil {
		return protocol.Turn{}, failure("acquire the turn", err)
	}
	// Asked after the turn was acquired, so that a number pinned under an earlier
	// turn is seen.
	if err := g.checkShards(ctx); err != nil {
		return protocol.Turn{}, errors.Join(err, g.ReleaseTurn(ctx, token))
	}
	return protocol.Turn{Held: true, After: after, Pending: int(res[3].(int64)), GroupMade: res[2].(int64) == 1, Moved: res[2].(int64) == 2}, nil
}

//go:embed release.lua
var releaseSource string

var releaseScript = redis.NewScript(releaseSource)

// ReleaseTurn gives the turn back if it is still held under the token, so that
// another member need not wait for the lease to end.
func (g *Group) ReleaseTurn(ctx context.Context, token string) error {
	return failure("release the turn", releaseScript.Run(ctx, g.client, []string{g.names.Turn()}, token, g.names.Bell()).Err())
}
