package schema

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pressly/goose/v3"

	"github.com/trmtracking/processor/migrations"
)

// versionTable records what goose applied. The platform has a schema_migrations
// of its own in public.
const versionTable = "processor.goose_db_version"

// defaultMigrationLockTimeout is how long Migrate waits for another migrating
// process by default.
const defaultMigrationLockTimeout = time.Minute

// Option changes how Migrate works.
type Option func(*migrateOptions)

type migrateOptions struct {
	lockTimeout time.Duration
	applying    func(ctx context.Context) (context.Context, context.CancelFunc)
}

// AppliedUnder has migrations applied under another context than that of the waits before.
func AppliedUnder(of func(ctx context.Context) (context.Context, context.CancelFunc)) Option {
	return func(o *migrateOptions) { o.applying = of }
}

// MigrationLockTimeout bounds the wait for the migration lock, and for tables that other sessions have locked:
// these are tried again and again, since all who want a table queue behind a wait for it.
func MigrationLockTimeout(d time.Duration) Option {
	return func(o *migrateOptions) { o.lockTimeout = d }
}

// Migrate applies the migrations the database does not have yet, in order and
// each in its own transaction, and returns their file names.
//
// It uses one private connection, and the lock that excludes other migrating
// processes lives and dies with that connection. Any number of processes may
// call it concurrently: one applies, the others wait and find nothing to do. A
// database newer than this binary is left unchanged; Verify decides about it.
//
// The error matches ErrMigrationLock, ErrOld, ErrPooler or ErrSchema where one of
// those is the reason.
func Migrate(ctx context.Context, url string, log *slog.Logger, options ...Option) (applied []string, err error) {
	o := migrateOptions{lockTimeout: defaultMigrationLockTimeout, applying: context.WithCancel}
	for _, option := range options {
		option(&o)
	}

	s, err := openMigrationSession(ctx, url, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.refuseOld(ctx); err != nil {
		return nil, err
	}
	if err := s.refusePooler(ctx); err != nil {
		return nil, err
	}
	if err := s.lock(ctx, o.lockTimeout); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.unlock(context.WithoutCancel(ctx))) }()
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}

	provider, err := newProvider(s.db)
	if err != nil {
		return nil, err
	}
	applying, cancel := o.applying(ctx)
	defer cancel()
	for began := time.Now(); ; {
		some, locked, err := apply(applying, provider, log)
		applied = append(applied, some...)
		if len(some) > 0 {
			began = time.Now()
		}
		if !locked || time.Since(began) >= o.lockTimeout {
			return applied, err
		}
		log.Warn("migration waits: a table is locked; the next attempt follows, others have it meanwhile", "err", err)
		pause := time.NewTimer(tableLockPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return applied, err
		}
	}
}

// apply applies what is missing. locked reports that another session has a table locked.
func apply(ctx context.Context, provider *goose.Provider, log *slog.Logger) (applied []string, locked bool, err error) {
	results, err := provider.Up(ctx)
	var partial *goose.PartialError
	if errors.As(err, &partial) {
		results = partial.Applied
		pgErr, ok := errors.AsType[*pgconn.PgError](partial.Err)
		locked = ok && (pgErr.Code == lockNotAvailable || pgErr.Code == deadlockDetected)
		err = migrationFailed(path.Base(partial.Failed.Source.Path), partial.Err)
	} else if err != nil {
		err = fmt.Errorf("read applied migrations: %w", err)
	}
	for _, r := range results {
		name := path.Base(r.Source.Path)
		log.Info("migration applied", "name", name, "seconds", r.Duration.Seconds())
		applied = append(applied, name)
	}
	return applied, locked, err
}

func newProvider(db *sql.DB) (*goose.Provider, error) {
	p, err := goose.NewProvider(goose.DialectPostgres, db, migrations.FS,
		goose.WithTableName(versionTable),
		goose.WithDisableGlobalRegistry(true),
		goose.WithSlog(slog.New(slog.DiscardHandler)),
	)
	if err != nil {
		return nil, fmt.Errorf("read embedded migrations: %w", err)
	}
	return p, nil
}

// Migration is one migration as Status reports it.
type Migration struct {
	Version int64  `json:"version"`
	Name    string `json:"name"` // empty when this binary does not know it
	// AppliedAt is when Migrate applied it; nil if it did not, which says
	// nothing about SQL that was printed and applied by hand.
	AppliedAt *time.Time `json:"applied_at"`
}

const (
	versionTableExistsSQL = `
select to_regclass('` + versionTable + `') is not null`

	appliedSQL = `
select distinct on (version_id) version_id, tstamp at time zone current_setting('TimeZone')
from ` + versionTable + `
where version_id > 0
  and is_applied
order by version_id, id desc`
)

// Status lists the migrations this binary and the database know, in
// order. It changes nothing.
func Status(ctx context.Context, url string) ([]Migration, error) {
	conn, err := connectPlain(ctx, url)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // only read from
	return migrateStatus(ctx, conn)
}

type queryer interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func migrateStatus(ctx context.Context, db queryer) ([]Migration, error) {
	known, err := knownMigrations()
	if err != nil {
		return nil, err
	}
	var exists bool
	if err := db.QueryRow(ctx, versionTableExistsSQL).Scan(&exists); err != nil {
		return nil, fmt.Errorf("look for %s: %w", versionTable, err)
	}
	if !exists {
		return known, nil
	}
	rows, err := db.Query(ctx, appliedSQL)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", versionTable, err)
	}
	var version int64
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&version, &at}, func() error {
		applied := at
		for i := range known {
			if known[i].Version == version {
				known[i].AppliedAt = &applied
				return nil
			}
		}
		known = append(known, Migration{Version: version, AppliedAt: &applied})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", versionTable, err)
	}
	return known, nil
}

// Version is the newest migration that was applied to the database, 0
// where none was.
func Version(ctx context.Context, pool *pgxpool.Pool) (int64, error) {
	list, err := migrateStatus(ctx, pool)
	if err != nil {
		return 0, fmt.Errorf("read the schema version: %w", err)
	}
	newest := int64(0)
	for _, m := range list {
		if m.AppliedAt != nil {
			newest = max(newest, m.Version)
		}
	}
	return newest, nil
}
