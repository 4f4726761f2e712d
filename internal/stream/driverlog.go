package stream

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/redis/go-redis/v9"
)

// LogDriver redirects the Redis client's own messages, about connections it
// will retry, to log at debug level. It affects the whole process; call it
// once, at start.
func LogDriver(log *slog.Logger) { redis.SetLogger(driverLog{log.With("component", "redis")}) }

type driverLog struct{ log *slog.Logger }

// Printf implements the client's logger.
func (d driverLog) Printf(ctx context.Context, format string, v ...any) {
	d.log.DebugContext(ctx, "Redis client message", "text", fmt.Sprintf(format, v...))
}
