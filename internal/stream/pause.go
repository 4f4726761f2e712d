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

// Paused reports whether dispatching is paused.
func (g *Group) Paused(ctx context.Context) (bool, error) {
	n, err := g.client.Exists(ctx, g.names.Paused()).Result()
	return n > 0, failure("ask whether dispatching is paused", err)
}
