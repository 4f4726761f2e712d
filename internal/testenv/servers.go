package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trmtracking/processor/internal/devenv"
)

// Variables that name servers to test against. They must be empty ones.
const (
	redisVariable    = "TEST_REDIS_URL"
	postgresVariable = "TEST_POSTGRES_URL"
)

// setupTimeout bounds what is done for a test before it begins.
const setupTimeout = 2 * time.Minute

// process is what the tests of one process share: a process has one main.
var process struct {
	redis, postgres shared
	private         privateServers
	templates       templates
	world           devenv.World // set while the tests run in one after the other
}

// shared is a server that is found or started by the first test that asks.
type shared struct {
	once sync.Once
	env  *devenv.Env // nil if the server was named by a variable
	url  string
	err  error
}

// use returns the server's URL. check looks at a server that was named.
func (s *shared) use(tb testing.TB, variable string, opts devenv.Options, check func(ctx context.Context, url string) error) string {
	tb.Helper()
	if testing.Short() {
		tb.Skip("needs a server; not in short mode")
	}
	s.find(variable, opts, check)
	requireStarted(tb, s.err)
	return s.url
}

// find names or starts the server, once.
func (s *shared) find(variable string, opts devenv.Options, check func(ctx context.Context, url string) error) {
	s.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
		defer cancel()
		if s.url = os.Getenv(variable); variable != "" && s.url != "" {
			s.err = check(ctx, s.url)
			return
		}
		opts.InMemory = true
		if s.env, s.err = devenv.Start(ctx, opts); s.err != nil {
			return
		}
		for _, v := range s.env.Environ() {
			if name, file, _ := strings.Cut(v, "="); name == "SSL_CERT_FILE" { // tests use Redis themselves
				s.err = errors.Join(s.err, os.Setenv(name, file))
			}
		}
		if opts.Redis {
			s.url = s.env.Redis.URL()
		} else {
			s.url = s.env.Postgres.URL()
		}
	})
}

func (s *shared) close() error {
	if s.env == nil {
		return nil
	}
	return s.env.Close()
}

// OwnServers starts servers for this test alone, to stop, kill, pause, flush
// or configure at will. They go when the test ends.
func OwnServers(tb testing.TB, opts devenv.Options) *devenv.Env {
	tb.Helper()
	if testing.Short() {
		tb.Skip("needs servers; not in short mode")
	}
	ctx, cancel := context.WithTimeout(tb.Context(), setupTimeout)
	defer cancel()
	opts.InMemory = true
	env, err := devenv.Start(ctx, opts)
	requireStarted(tb, err)
	tb.Cleanup(func() {
		if err := env.Close(); err != nil {
			tb.Errorf("close own servers: %v", err)
		}
	})
	return env
}

// requireStarted fails the test, or skips it when only the program is missing and
// CI does not promise it.
func requireStarted(tb testing.TB, err error) {
	tb.Helper()
	if err == nil {
		return
	}
	var missing *devenv.MissingError
	if inCI, _ := strconv.ParseBool(os.Getenv("CI")); errors.As(err, &missing) && !inCI {
		tb.Skip(err)
	}
	tb.Fatal(err)
}

// Main runs the tests of a package, stops the servers they started and fails
// when goroutines are left. It ends the process.
func Main(m *testing.M, ignore ...goleak.Option) {
	goleak.VerifyTestMain(runner{tests: m}, ignore...)
}

// runner stops the servers after the tests and before goroutines are counted.
type runner struct {
	tests  *testing.M
	worlds []devenv.World // one after the other; none means the one of WorldVariable
}

// Run is called by goleak.
func (r runner) Run() int {
	code := r.run()
	if err := errors.Join(process.templates.drop(), process.redis.close(), process.postgres.close(), process.private.close()); err != nil {
		fmt.Fprintln(os.Stderr, "testenv: clean up:", err)
		return max(code, 1)
	}
	return code
}
