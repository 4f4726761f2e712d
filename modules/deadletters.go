package modules

import (
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"go.uber.org/fx"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/pipeline"
)

var deadLettersModule = fx.Module("deadletters", fx.Provide(newDeadLetterConfig, newDeadLetters, newDeferred))

// deferredPoll is how often each instance looks for deferred entries that are due.
const deferredPoll = time.Second

// retryDelays space the attempts on an entry that cannot be decoded: the first
// for what a restart mends, the others for a rolling deploy.
func retryDelays() []time.Duration { return []time.Duration{30 * time.Second, 2 * time.Minute} }

func newDeadLetterConfig(cfg config.Config, b Build) pipeline.DeadLetterConfig {
	return pipeline.DeadLetterConfig{
		Instance: cfg.Instance.ID, Version: b.Version, MaxAttempts: cfg.DeadLetters.MaxAttempts,
		RetryDelays: retryDelays(), PollEvery: deferredPoll,
	}
}

func newDeadLetters(client redis.UniversalClient, where stream.Config, cfg config.Config) (*stream.DeadLetters, error) {
	dead, err := stream.NewDeadLetters(client, where, cfg.Redis.DLQStream)
	return dead, coded(codeConfig, err)
}

func newDeferred(pool *pgxpool.Pool, scope store.Scope, m Member, cfg config.Config) *store.Deferred {
	return store.NewDeferred(pool, scope, string(m), cfg.Postgres.StatementTimeout)
}
