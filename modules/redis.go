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

// redisParts are made for each stream: a client of its own notices for it which server
// answers.
func redisParts() fx.Option {
	return fx.Provide(newStreamConfig, newRedisClient, newStreamGroup, fx.Private)
}

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
func startRedis(lc fx.Lifecycle, st *starter, parts parts, server *httpserver.Server, log *slog.Logger) {
	lc.Append(fx.StartHook(func(ctx context.Context) error {
		for _, p := range parts {
			if err := p.awaitRedis(ctx, st); err != nil {
				return err
			}
		}
		server.Ready(checkRedis, discreet(log.With("component", "redis"), checkRedis,
			parts.check(func(ctx context.Context, p *part) error { return p.Group.Writable(ctx) })))
		return nil
	}))
}

func (p *part) awaitRedis(ctx context.Context, st *starter) error {
	log, cfg := p.Log.With("component", "redis"), p.Service
	err := st.wait(ctx, "Redis", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		return fault.RedisError(cfg.Redis, p.Group.Ping(ctx))
	})
	if err != nil {
		return err
	}
	about, err := p.Group.Server(ctx)
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
}
