package stream

import (
	"context"
)

// SetPaused stops the dispatcher of the fleet, or lets it go on. It takes effect
// when the dispatcher renews its lease.
func (g *Group) SetPaused(ctx context.Context, paused bool) error {
	if paused {
		return failure("pause dispatching", g.client.Set(ctx, g.names.Paused(), "1", 0).Err())
	}
	return failure("resume dispatching", g.client.Del(ctx, g.names.Paused()).Err())
}
