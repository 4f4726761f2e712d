package stream

import (
	"context"

	"github.com/trmtracking/processor/internal/protocol"
)

// TrimPoint returns how far the stream is trimmed.
func (g *Group) TrimPoint(ctx context.Context) (protocol.TrimPoint, error) {
	info, err := g.Info(ctx)
	if err != nil {
		return protocol.TrimPoint{}, err
	}
	return info.TrimPoint(), nil
}

// TrimPoint returns how far the stream was trimmed at that moment.
func (i Info) TrimPoint() protocol.TrimPoint {
	return protocol.TrimPoint{First: i.First, Last: i.Last, Length: i.Length, Removed: i.Added - i.Length}
}
