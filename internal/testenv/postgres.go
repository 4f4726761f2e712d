package testenv

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trmtracking/processor/internal/devenv"
)

// PostgresOption changes what Postgres gives.
type PostgresOption func(*postgresSpec)

type postgresSpec struct {
	world    devenv.World
	template string
	build    func(ctx context.Context, url string) error
}

// WithTemplate copies the test's database from a template that build fills,
// once per test process for each name. Callers hand in the migrations, so that
// this package needs to know none. Build must close its connections.
func WithTemplate(name string, build func(ctx context.Context, url string) error) PostgresOption {
	return func(s *postgresSpec) { s.template, s.build = name, build }
}

// InWorld makes the test's database in a world of the test's choice, unless
// WorldVariable names one. A test skips when this machine cannot offer it.
func InWorld(w devenv.World) PostgresOption {
	return func(s *postgresSpec) { s.world = w }
}

// Postgres makes a database for the test and returns its URL; it is dropped
// when the test ends. Without WithTemplate it is empty.
func Postgres(tb testing.TB, opts ...PostgresOption) string {
	tb.Helper()
	var spec postgresSpec
	for _, opt := range opts {
		opt(&spec)
	}
	w := World(tb)
	if spec.world != "" && !worldNamed() {
		w = spec.world
	}
	var server string
	reach := func(database string) (string, error) { return database, nil }
	if w.Private() {
		env := process.private.of(tb, w)
		server, reach = env.Postgres.URL(), env.PostgresFor
	} else {
		server = process.postgres.use(tb, postgresVariable, devenv.Options{Postgres: true}, checkPostgres)
	}
	ctx, cancel := context.WithTimeout(tb.Context(), setupTimeout)
	defer cancel()

	template := "template0"
	if spec.build != nil {
		var err error
		if template, err = process.templates.get(ctx, server, w, spec); err != nil {
			tb.Fatal(err)
		}
	}
	name := "test_" + unique()
	made, err := createDatabase(ctx, server, name, template)
	if err == nil {
		made, err = reach(made)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), setupTimeout)
		defer cancel()
		if err := dropDatabase(ctx, server, name); err != nil {
			tb.Error(err)
		}
	})
	return made
}

func checkPostgres(ctx context.Context, server string) error {
	return devenv.RequireEmptyPostgres(ctx, postgresVariable, server)
}

// templates are the template databases of this process.
type templates struct {
	mu    sync.Mutex // held while one is built: who waits for it needs it
	names map[templateKey]template
}

type templateKey struct {
	world devenv.World
	name  string
}

type template struct{ server, database string }

func (t *templates) get(ctx context.Context, server string, w devenv.World, spec postgresSpec) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := templateKey{w, spec.template}
	if made, ok := t.names[key]; ok {
		return made.database, nil
	}
	database := "template_" + unique()
	made, err := createDatabase(ctx, server, database, "template0")
	if err != nil {
		return "", err
	}
	if w != devenv.Neighbours { // which every test's database has anyway
		_, err = w.Prepare(ctx, made)
	}
	if err == nil {
		err = spec.build(ctx, made)
	}
	if err == nil {
		err = execute(ctx, server, "alter database "+database+" with allow_connections false")
	}
	if err == nil {
		// TimescaleDB keeps a session of its own in each database that allows it,
		// and a template with sessions is not copied.
		err = execute(ctx, server, "select pg_terminate_backend(pid) from pg_stat_activity where datname = '"+database+"'")
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("build template %s: %w", spec.template, err),
			dropDatabase(context.WithoutCancel(ctx), server, database))
	}
	if t.names == nil {
		t.names = make(map[templateKey]template)
	}
	t.names[key] = template{server, database}
	return database, nil
}

func (t *templates) drop() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	var err error
	for _, made := range t.names {
		err = errors.Join(err, dropDatabase(ctx, made.server, made.database))
	}
	t.names = nil
	return err
}

func createDatabase(ctx context.Context, server, name, template string) (string, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme == "" {
		return "", fmt.Errorf("%s must be a URL, postgres://user@host:port/database", postgresVariable)
	}
	err = execute(ctx, server, "create database "+name+" template "+template)
	if err != nil {
		return "", fmt.Errorf("create database for a test: %w", err)
	}
	u.Path = "/" + name
	return u.String(), nil
}

func dropDatabase(ctx context.Context, server, name string) error {
	if err := execute(ctx, server, "drop database if exists "+name+" with (force)"); err != nil {
		return fmt.Errorf("drop database of a test: %w", err)
	}
	return nil
}

func execute(ctx context.Context, server, sql string) error {
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	return err
}
