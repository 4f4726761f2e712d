package modules

import (
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/fx"

	"github.com/trmtracking/processor/coordination/tasks"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/pipeline"
)

// deadLettersParts are made for each stream.
func deadLettersParts() fx.Option {
	return fx.Provide(newDeadLetterConfig, newDeadLetters, newDeferred, newDLQJanitor, fx.Private)
}

// deferredPoll is the interval at which each instance polls for deferred entries that are due.
const deferredPoll = time.Second

func newDeadLetterConfig(cfg config.Config, b Build) pipeline.DeadLetterConfig {
	return pipeline.DeadLetterConfig{
		Instance: cfg.Instance.ID, Version: b.Version, MaxAttempts: cfg.DeadLetters.MaxAttempts,
		RetryDelays: cfg.DeadLetters.RetryDelays, PollEvery: deferredPoll,
	}
}

func newDeadLetters(client redis.UniversalClient, where stream.Config, cfg config.Config) (*stream.DeadLetters, error) {
	dead, err := stream.NewDeadLetters(client, where, cfg.Redis.DLQStream)
	return dead, fault.Coded(fault.Config, err)
}

func newDeferred(pool *pgxpool.Pool, scope store.Scope, m Member, cfg config.Config) *store.Deferred {
	return store.NewDeferred(pool, scope, string(m), cfg.Postgres.StatementTimeout)
}

// dlqJanitorDeps are what the retention of dead letters works with.
type dlqJanitorDeps struct {
	fx.In

	Config  config.Config
	Pool    *pgxpool.Pool
	Scope   store.Scope
	Member  Member
	Dead    *stream.DeadLetters
	Later   *store.Deferred
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

func newDLQJanitor(d dlqJanitorDeps) *tasks.DLQJanitor {
	timeout := d.Config.Postgres.StatementTimeout
	return tasks.NewDLQJanitor(tasks.DLQJanitorDeps{
		DeadLetters: d.Dead, Deferred: d.Later,
		Archive:     store.NewDeadLetters(d.Pool, d.Scope, timeout),
		Unconfirmed: store.NewUnconfirmed(d.Pool, d.Scope, timeout),
		Audit:       store.NewAudit(d.Pool, timeout),
		Ledger:      store.NewLedger(d.Pool, d.Scope, string(d.Member), timeout),
	}, tasks.DLQBounds{
		Retention: d.Config.DeadLetters.Retention, Entries: d.Config.DeadLetters.MaxEntries, Bytes: d.Config.DeadLetters.MaxBytes,
	}, string(d.Member), d.Log, d.Metrics)
}
