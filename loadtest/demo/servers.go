package demo

import (
	"context"
	"fmt"

	"github.com/trmtracking/processor/internal/devenv"
)

// The variables that name servers to use instead of private ones.
const (
	RedisVariable    = "DEMO_REDIS_URL"
	PostgresVariable = "DEMO_POSTGRES_URL"
)

// Servers are a Redis and a Postgres for a demo.
type Servers struct {
	RedisURL    string
	PostgresURL string
	env         *devenv.Env // nil when both were named
}

// StartServers starts private servers in the place of each URL that is empty,
// and refuses named servers that hold anything.
func StartServers(ctx context.Context, redisURL, postgresURL string) (*Servers, error) {
	if redisURL != "" {
		if err := devenv.RequireEmptyRedis(ctx, RedisVariable, redisURL, ""); err != nil {
			return nil, err
		}
	}
	if postgresURL != "" {
		if err := devenv.RequireEmptyPostgres(ctx, PostgresVariable, postgresURL); err != nil {
			return nil, err
		}
	}
	s := &Servers{RedisURL: redisURL, PostgresURL: postgresURL}
	if redisURL != "" && postgresURL != "" {
		return s, nil
	}
	env, err := devenv.Start(ctx, devenv.Options{Redis: redisURL == "", Postgres: postgresURL == ""})
	if err != nil {
		return nil, fmt.Errorf("start servers: %w", err)
	}
	s.env = env
	if redisURL == "" {
		s.RedisURL = env.Redis.URL()
	}
	if postgresURL == "" {
		s.PostgresURL = env.Postgres.URL()
	}
	return s, nil
}

// Close stops the private servers and removes their data.
func (s *Servers) Close() error {
	if s.env == nil {
		return nil
	}
	return s.env.Close()
}
