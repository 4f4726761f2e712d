package modules

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/fx"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/httpserver"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/pipeline"
)

var postgresModule = fx.Module("postgres", fx.Provide(newMember, newLeases, pipeline.NewAttempts, store.NewServerGeneration, store.NewIdentity, newPool, newSessions, newReader, newFences))

// postgresParts are made for each stream.
func postgresParts() fx.Option { return fx.Provide(newScope, newShards, newWriter, fx.Private) }

func newScope(cfg config.Config) store.Scope {
	return store.Scope{Stream: cfg.Redis.Stream, Group: cfg.Redis.Group}
}

func newPool(lc fx.Lifecycle, cfg config.Config, m Member, runs *store.ServerGeneration, identity *store.Identity) (*pgxpool.Pool, error) {
	pool, err := store.Open(context.Background(), store.Config{
		URL: cfg.Postgres.URL.Reveal(), Rotated: cfg.Postgres.Rotated(), Member: string(m), MaxConns: int32(cfg.Postgres.MaxConns),
		ConnectTimeout:   cfg.Postgres.ConnectTimeout,
		StatementTimeout: cfg.Postgres.StatementTimeout, LockTimeout: cfg.Postgres.LockTimeout,
		Runs: runs, Identity: identity,
	})
	if err != nil {
		return nil, fault.Coded(fault.Config, err)
	}
	lc.Append(fx.StopHook(func(ctx context.Context) error { return closePool(ctx, pool) }))
	return pool, nil
}

// closePool closes the pool within a budget: Close waits for connections in use,
// which an unresponsive server could delay for ever.
func closePool(ctx context.Context, pool *pgxpool.Pool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, config.CloseBudget/2, errors.New("close the pool: a connection is still in use"))
	defer cancel()
	closed := make(chan struct{})
	go func() { defer close(closed); pool.Close() }()
	select {
	case <-closed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func newShards(cfg config.Config, pool *pgxpool.Pool, scope store.Scope, identity *store.Identity) *store.Shards {
	shards := store.NewShards(pool, scope, cfg.Postgres.StatementTimeout)
	shards.Guard(identity)
	return shards
}

func newSessions(pool *pgxpool.Pool, identity *store.Identity) *store.Sessions {
	sessions := store.NewSessions(pool, checkTimeout)
	sessions.Guard(identity)
	return sessions
}

func newWriter(cfg config.Config, pool *pgxpool.Pool, scope store.Scope, m Member, runs *store.ServerGeneration) *store.Writer {
	// Longer than the server's own limits: those leave no doubt about the outcome.
	w := store.NewWriter(pool, scope, string(m), cfg.Postgres.StatementTimeout+cfg.Postgres.ConnectTimeout)
	w.Guard(runs)
	return w
}

func newReader(cfg config.Config, pool *pgxpool.Pool) *store.Reader {
	return store.NewReader(pool, cfg.Postgres.StatementTimeout)
}

func newFences(cfg config.Config, pool *pgxpool.Pool) *store.Fences {
	return store.NewFences(pool, cfg.Postgres.StatementTimeout)
}

// postgresDeps are what startPostgres checks.
type postgresDeps struct {
	fx.In

	Config   config.Config
	Pool     *pgxpool.Pool
	Sessions *store.Sessions
	Member   Member
	HTTP     *httpserver.Server
	Identity *store.Identity
	Parts    parts
	Log      *slog.Logger
}

// startPostgres waits for Postgres, migrates or checks the schema, and rejects a
// server that may forget commits and a fleet with other pinned settings.
func startPostgres(lc fx.Lifecycle, st *starter, d postgresDeps) {
	log := d.Log.With("component", "postgres")
	steps := []func(ctx context.Context) error{
		func(ctx context.Context) error { return refusePooler(ctx, d.Config.Postgres) }, // before anything is prepared
		d.acceptsWrites,
		func(ctx context.Context) error { return requireFaithfulStorage(ctx, d.Pool, log) },
		func(ctx context.Context) error { return migrate(ctx, st, d.Config.Postgres, log) },
		func(ctx context.Context) error { return checkSchema(ctx, d.Config.Postgres, d.Pool, log) },
	}
	for _, p := range d.Parts {
		steps = append(steps,
			func(ctx context.Context) error { return pinFleetSettings(ctx, d.Config, d.Pool, p.Scope, d.Member) },
			func(ctx context.Context) error { return d.identify(ctx, p) },
			func(ctx context.Context) error {
				transient, err := p.Pipeline.LoadFences(ctx) // or it would take shards that it cannot work for
				if err != nil && !transient {
					return permanent(fault.FirstPostgresError(d.Config.Postgres.URL, err))
				}
				return err
			})
	}
	lc.Append(fx.StartHook(func(ctx context.Context) error {
		for _, step := range steps {
			err := st.wait(ctx, "Postgres", func(ctx context.Context) error {
				return fault.PostgresError("POSTGRES_URL", d.Config.Postgres.URL, step(ctx))
			})
			if err != nil {
				return err
			}
		}
		d.HTTP.Ready(checkPostgres, discreet(log, checkPostgres, d.Sessions.Ping))
		return nil
	}))
}

// acceptsWrites rejects a role whose sessions are read-only; a server that is waits.
func (d postgresDeps) acceptsWrites(ctx context.Context) error {
	err := d.Sessions.Ping(ctx)
	if errors.Is(err, store.ErrReadOnlyRole) {
		return permanent(fault.Exitf(fault.Config, "POSTGRES_URL: %w", store.ErrReadOnlyRole))
	}
	return err
}

// identify reads which database this is, for all that compare it, and
// rejects one that belongs to another stream or group.
func (d postgresDeps) identify(ctx context.Context, p *part) error {
	created, err := d.Identity.Establish(ctx, d.Pool, p.Scope, string(d.Member), d.Config.Postgres.StatementTimeout)
	if _, ok := errors.AsType[*store.ForeignError](err); ok {
		return permanent(fault.Exitf(fault.Config, "Postgres at %s: %w", fault.PostgresDatabase(d.Config.Postgres.URL), err))
	}
	if err != nil {
		return err
	}
	p.Group.Belong(d.Identity.ID())
	p.Membership.Belong(coordination.Database{
		ID: d.Identity.ID(), Created: created,
		Postgres: fault.PostgresDatabase(d.Config.Postgres.URL), Redis: d.Config.Redis.URL.Addresses(), Server: d.Identity.Server,
	})
	return nil
}

// refusePooler rejects a pooler that lends sessions by the transaction or statement.
func refusePooler(ctx context.Context, cfg config.Postgres) error {
	err := store.RefusePooler(ctx, cfg.URL.Reveal(), cfg.ConnectTimeout)
	if errors.Is(err, store.ErrPooler) {
		return permanent(fault.Exitf(fault.Config, "POSTGRES_URL: %w", err))
	}
	return err
}

// migrate applies migrations if MIGRATE says so. START_TIMEOUT bounds the waits and no
// migration: cut off, it would begin anew at each start.
func migrate(ctx context.Context, st *starter, cfg config.Postgres, log *slog.Logger) error {
	if cfg.Migrate != "auto" {
		return nil
	}
	began := time.Now()
	_, err := schema.Migrate(ctx, cfg.MigrateURL.Reveal(), log, schema.MigrationLockTimeout(cfg.MigrateLockTimeout), schema.AppliedUnder(st.detach))
	st.extend(time.Since(began))
	err = fault.PostgresError(cfg.MigrateVariable(), cfg.MigrateURL, err)
	switch {
	case errors.Is(err, schema.ErrSchema):
		return permanent(fault.Exitf(fault.Schema, "%w", err))
	case errors.Is(err, schema.ErrPooler), errors.Is(err, schema.ErrOld):
		return permanent(fault.Exitf(fault.Config, "%w", err))
	}
	return err
}

// checkSchema verifies the schema unless MIGRATE is off.
func checkSchema(ctx context.Context, cfg config.Postgres, pool *pgxpool.Pool, log *slog.Logger) error {
	if cfg.Migrate == "off" {
		return nil
	}
	report, err := schema.Verify(ctx, pool)
	if err != nil {
		return err
	}
	for _, note := range report.Notes {
		log.Info("schema has a harmless difference", "difference", note.String())
	}
	if err := report.Err(); err != nil {
		return permanent(fault.Exitf(fault.Schema, "%w", err))
	}
	return nil
}

// requireFaithfulStorage rejects a server that acknowledges commits it may forget,
// since after its commit an entry is acknowledged and exists nowhere else, and one
// that cannot store every text.
func requireFaithfulStorage(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) error {
	about, err := store.AskServer(ctx, pool)
	if err != nil {
		return err
	}
	if about.Number < store.OldestServer*10000 {
		return permanent(fault.Exitf(fault.Config, "Postgres has version %s: %d or newer is needed", about.Version, store.OldestServer))
	}
	if about.SynchronousCommit == "off" {
		return permanent(fault.Exitf(fault.Config, "Postgres has synchronous_commit = off and may forget commits in a crash, "+
			"which would lose records: set it to on for this database or role"))
	}
	switch about.Encoding {
	case "UTF8":
	case "SQL_ASCII": // stores the bytes as sent, and checks nothing
		log.Warn("database has encoding SQL_ASCII: other programs must read its text as UTF-8")
	default:
		return permanent(fault.Exitf(fault.Config, "the database has encoding %s, which cannot hold every device ID and attribute: "+
			"create it with ENCODING 'UTF8'", about.Encoding))
	}
	if !about.Fsync {
		log.Warn("Postgres has fsync = off: a crash of its machine loses stored records")
	}
	return nil
}
