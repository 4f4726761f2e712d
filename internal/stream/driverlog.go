package stream

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/redis/go-redis/v9"
)

// LogDriver sends what the Redis client has to say of its own, which is about
// connections it will try again, to a log at debug level instead of to standard
// error. It holds for the whole process and is called once, at its start.
func LogDriver(log *slog.Logger) { redis.SetLogger(driverLog{log.With("component", "redis")}) }

type driverLog struct{ log *slog.Logger }

// Printf implements the client's logger.
func (d driverLog) Printf(ctx context.Context, format string, v ...any) {
	d.log.DebugContext(ctx, "Redis client message", "text", fmt.Sprintf(format, v...))
}
