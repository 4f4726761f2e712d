package devenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// startTimeout bounds a start whose caller gave no deadline. Creating a
// Postgres cluster takes two seconds on a laptop, more on a busy CI machine.
const startTimeout = 90 * time.Second

// Options says which servers to start and how.
type Options struct {
	// Dir is the folder in which the environment makes its own, removable
	// folder. Empty means $TMPDIR, else /var/tmp: unlike /tmp it is a real
	// disk everywhere, and a sync to memory would measure nothing.
	Dir string

	Redis    bool // start a Redis server
	Postgres bool // start a Postgres server

	RedisArgs    []string // added to redis-server's command line, e.g. "--maxmemory", "100mb"
	PostgresArgs []string // added to postgres' command line, e.g. "-c", "max_connections=20"
}

// Env is a set of running servers and the folder they live in.
type Env struct {
	Redis    *Server // nil if not asked for
	Postgres *Server // nil if not asked for

	dir       string
	dog       *watchdog
	closeOnce sync.Once
	closeErr  error
}

// Start starts the servers asked for and returns when they answer. The context
// bounds the start only; the servers run until Close or the end of this
// process. A program that is not installed is reported as a *MissingError.
func Start(ctx context.Context, opts Options) (_ *Env, err error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, startTimeout)
		defer cancel()
	}
	var kinds []kind
	var missing []error
	if opts.Redis {
		k, err := findRedis(opts.RedisArgs)
		kinds, missing = append(kinds, k), append(missing, err)
	}
	if opts.Postgres {
		k, err := findPostgres(opts.PostgresArgs)
		kinds, missing = append(kinds, k), append(missing, err)
	}
	if err := errors.Join(missing...); err != nil {
		return nil, err
	}

	user, err := serverUser()
	if err != nil {
		return nil, err
	}
	dir, err := makeHome(opts.Dir, user)
	if err != nil {
		return nil, err
	}
	dog, err := startWatchdog(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	env := &Env{dir: dir, dog: dog}
	defer func() {
		if err != nil {
			err = errors.Join(err, env.Close())
		}
	}()

	starts, ctx := errgroup.WithContext(ctx)
	for _, k := range kinds {
		server := newServer(k, dir, user, dog)
		switch k.(type) {
		case redisKind:
			env.Redis = server
		case postgresKind:
			env.Postgres = server
		}
		starts.Go(func() error { return server.create(ctx) })
	}
	if err := starts.Wait(); err != nil {
		return nil, err
	}
	return env, nil
}

// Dir returns the folder that holds all data of the environment.
func (e *Env) Dir() string { return e.dir }

// Close stops the servers and removes their folder. It may be called more than
// once.
func (e *Env) Close() error {
	e.closeOnce.Do(func() {
		//nolint:forbidigo // a caller's cancelled context must not leave servers behind
		ctx, cancel := context.WithTimeout(context.Background(), 2*stopTimeout)
		defer cancel()
		var stops errgroup.Group
		for _, s := range []*Server{e.Redis, e.Postgres} {
			if s != nil {
				stops.Go(func() error { return s.dispose(ctx) })
			}
		}
		err := stops.Wait()
		if rm := os.RemoveAll(e.dir); rm != nil {
			err = errors.Join(err, fmt.Errorf("remove server folder: %w", rm))
		}
		e.closeErr = errors.Join(err, e.dog.close())
	})
	return e.closeErr
}
