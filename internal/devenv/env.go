package devenv

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
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

	// InMemory puts the folder into memory where there is room and neither Dir nor
	// $TMPDIR names one: for tests, which measure nothing and end processes, not
	// machines. A database for a test costs a tenth there.
	InMemory bool

	Redis    bool // start a Redis server
	Cluster  bool // start a Redis Cluster
	Postgres bool // start a Postgres server

	// World adds what instances meet in it, see Env.Instances and Env.Environ.
	World World

	RedisArgs    []string // added to redis-server's command line, e.g. "--maxmemory", "100mb"
	PostgresArgs []string // added to postgres' command line, e.g. "-c", "max_connections=20"
}

// Env is a set of running servers and the folder they live in.
type Env struct {
	Redis    *Server  // nil if not asked for
	Cluster  *Cluster // nil if not asked for
	Postgres *Server  // nil if not asked for
	Pooler   *Server  // before Postgres; nil in most worlds

	world   World
	tls     certificates
	tlsPort int // of Redis; 0 in most worlds

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
	missing := []error{opts.World.Missing()}
	world := opts.World.spec()
	if opts.Redis {
		k, err := findRedis(slices.Concat(world.redis, opts.RedisArgs))
		kinds, missing = append(kinds, k), append(missing, err)
	}
	var node redisKind
	if opts.Cluster {
		k, err := findRedis(opts.RedisArgs)
		node, missing = k, append(missing, err)
	}
	if opts.Postgres {
		k, err := findPostgres(slices.Concat(world.postgres, opts.PostgresArgs))
		kinds, missing = append(kinds, k), append(missing, err)
	}
	if err := errors.Join(missing...); err != nil {
		return nil, err
	}

	user, err := serverUser()
	if err != nil {
		return nil, err
	}
	dir, err := makeHome(cmp.Or(opts.Dir, opts.parent()), user)
	if err != nil {
		return nil, err
	}
	dog, err := startWatchdog(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	env := &Env{dir: dir, dog: dog, world: opts.World}
	defer func() {
		if err != nil {
			err = errors.Join(err, env.Close())
		}
	}()

	if world.tls {
		if env.tls, err = makeCertificates(dir, user); err != nil {
			return nil, err
		}
		if env.tlsPort, err = FreePort(); err != nil {
			return nil, err
		}
	}
	starts, starting := errgroup.WithContext(ctx)
	if opts.Cluster {
		env.Cluster = newCluster(node, dir, user, dog)
		starts.Go(func() error { return env.Cluster.create(starting) })
	}
	for _, k := range kinds {
		k = env.encrypt(k)
		server := newServer(k, dir, user, dog)
		switch k.(type) {
		case redisKind:
			env.Redis = server
		case postgresKind:
			env.Postgres = server
		}
		starts.Go(func() error { return server.create(starting) })
	}
	if err := starts.Wait(); err != nil {
		return nil, err
	}
	if world.pooled && env.Postgres != nil {
		program, err := FindPgBouncer()
		if err != nil {
			return nil, err
		}
		env.Pooler = newServer(poolerKind{program, env.Postgres.Port()}, dir, user, dog)
		if err := env.Pooler.create(ctx); err != nil {
			return nil, err
		}
	}
	return env, nil
}

// encrypt has a server offer TLS, too, in a world that has it.
func (e *Env) encrypt(k kind) kind {
	if e.tlsPort == 0 {
		return k
	}
	switch s := k.(type) {
	case redisKind:
		s.args = append(slices.Clip(s.args), e.tls.redisArgs(strconv.Itoa(e.tlsPort))...)
		return s
	case postgresKind:
		s.args = append(slices.Clip(s.args), e.tls.postgresArgs()...)
		return s
	}
	return k
}

// RedisFor returns how instances reach Redis.
func (e *Env) RedisFor() string {
	if e.Cluster != nil {
		return e.Cluster.URL()
	}
	if e.tlsPort == 0 {
		return e.Redis.URL()
	}
	return fmt.Sprintf("rediss://127.0.0.1:%d/0", e.tlsPort)
}

// PostgresFor returns how instances reach a database of Postgres.
func (e *Env) PostgresFor(database string) (string, error) {
	u, err := url.Parse(database)
	if err != nil {
		return "", fmt.Errorf("parse database URL: %w", withoutURL(err))
	}
	if e.Pooler != nil {
		u.Host = e.Pooler.Addr()
	}
	if e.tlsPort != 0 {
		u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {e.tls.ca}}.Encode()
	}
	return u.String(), nil
}

// Environ returns further variables of instances.
func (e *Env) Environ() []string {
	environ := e.world.spec().environ
	if e.tlsPort != 0 {
		environ = append(slices.Clip(environ), "SSL_CERT_FILE="+e.tls.ca)
	}
	return environ
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
		servers := []*Server{e.Pooler, e.Redis, e.Postgres}
		if e.Cluster != nil {
			servers = append(servers, e.Cluster.nodes...)
		}
		for _, s := range servers {
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
