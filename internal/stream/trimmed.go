package stream

import (
	"context"

	"github.com/trmtracking/processor/internal/protocol"
)

// Horizon asks how far the stream is trimmed.
func (g *Group) Horizon(ctx context.Context) (protocol.Horizon, error) {
	info, err := g.Info(ctx)
	if err != nil {
		return protocol.Horizon{}, err
	}
	return info.Horizon(), nil
}

// Horizon is how far the stream was trimmed at that moment.
func (i Info) Horizon() protocol.Horizon {
	return protocol.Horizon{First: i.First, Length: i.Length, Removed: i.Added - i.Length}
}
