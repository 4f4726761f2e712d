package stream

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// historyTTL removes the history of a fleet that no longer runs.
const historyTTL = 24 * time.Hour

// AddHistory adds a sample to the fleet's history and keeps the newest limit.
func (g *Group) AddHistory(ctx context.Context, sample string, limit int) error {
	_, err := g.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.RPush(ctx, g.names.History(), sample)
		p.LTrim(ctx, g.names.History(), int64(-limit), -1)
		p.PExpire(ctx, g.names.History(), historyTTL)
		return nil
	})
	return failure("add to the history", err)
}

// History returns the samples of the fleet's history, oldest first.
func (g *Group) History(ctx context.Context) ([]string, error) {
	texts, err := g.client.LRange(ctx, g.names.History(), 0, -1).Result()
	return texts, failure("read the history", err)
}
