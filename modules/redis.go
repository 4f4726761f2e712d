package modules

import (
	"context"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/fx"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/httpserver"
	"github.com/trmtracking/processor/internal/stream"
)

var redisModule = fx.Module("redis", fx.Provide(newStreamConfig, newRedisClient, newStreamGroup))

// redisTimeout bounds the wait for one reply. The longest read blocks for half a
// second; the rest allows for a server busy with another client's slow command.
const redisTimeout = 5 * time.Second

func newStreamConfig(cfg config.Config) stream.Config {
	return stream.Config{
		URL: cfg.Redis.URL.Reveal(), Rotated: cfg.Redis.Rotated(), Stream: cfg.Redis.Stream, Group: cfg.Redis.Group,
		Shards: cfg.Coordination.Shards, Timeout: redisTimeout, Name: "processor/" + cfg.Instance.ID,
	}
}

func newRedisClient(lc fx.Lifecycle, cfg stream.Config) (redis.UniversalClient, error) {
	client, err := stream.Connect(cfg)
	if err != nil {
		return nil, fault.Coded(fault.Config, err)
	}
	lc.Append(fx.StopHook(client.Close))
	return client, nil
}

func newStreamGroup(client redis.UniversalClient, cfg stream.Config) (*stream.Group, error) {
	group, err := stream.NewGroup(client, cfg)
	return group, fault.Coded(fault.Config, err)
}

// startRedis waits for Redis, rejects one that is too old, and warns if it may evict
// or forget the stream.
func startRedis(lc fx.Lifecycle, cfg config.Config, st *starter, group *stream.Group, server *httpserver.Server, log *slog.Logger) {
	log = log.With("component", "redis")
	lc.Append(fx.StartHook(func(ctx context.Context) error {
		err := st.wait(ctx, "Redis", func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			return fault.RedisError(cfg.Redis, group.Ping(ctx))
		})
		if err != nil {
			return err
		}
		server.Ready(checkRedis, discreet(log, checkRedis, group.Writable))
		about, err := group.Server(ctx)
		if err != nil {
			log.Warn("could not read the Redis version and eviction policy", "err", err)
			return nil
		}
		if about.TooOld() {
			return fault.Exitf(fault.Config, "Redis at %s has version %s: %d.0 or newer is needed, or Valkey",
				cfg.Redis.URL.Addresses(), about.Version, stream.OldestServer)
		}
		if about.Eviction != "" && about.Eviction != "noeviction" {
			log.Warn("maxmemory-policy allows eviction; set noeviction", "policy", about.Eviction)
		}
		if about.TellsAppendOnly && !about.AppendOnly {
			log.Warn("Redis keeps no append-only file: a crash of it loses entries and dead letters; set appendonly yes")
		}
		return nil
	}))
}
