package stream

import (
	"context"
	_ "embed"

	"github.com/redis/go-redis/v9"
)

//go:embed pause.lua
var pauseSource string

var pauseScript = redis.NewScript(pauseSource)

// SetPaused stops the dispatcher of the fleet, or lets it go on. It takes effect
// when the dispatcher renews its lease.
func (g *Group) SetPaused(ctx context.Context, paused bool) error {
	if paused {
		return failure("pause dispatching", pauseScript.Run(ctx, g.client, []string{g.names.Paused()}).Err())
	}
	return failure("resume dispatching", g.client.Del(ctx, g.names.Paused()).Err())
}
