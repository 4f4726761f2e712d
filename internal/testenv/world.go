package testenv

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trmtracking/processor/internal/devenv"
)

// WorldVariable names the world that databases with a template are made in.
const WorldVariable = "TEST_WORLD"

// World returns the world of the test's databases.
func World(tb testing.TB) devenv.World {
	tb.Helper()
	if process.world != "" {
		return process.world
	}
	w, err := devenv.ParseWorld(os.Getenv(WorldVariable))
	if err != nil {
		tb.Fatalf("%s: %v", WorldVariable, err)
	}
	if w == devenv.Turn {
		y, m, d := time.Now().UTC().Date()
		day := uint64(y*10000 + int(m)*100 + d)
		if w = devenv.Turn.By(day); w == devenv.Crowded { // tests run side by side
			w = devenv.Turn.By(day + 1)
		}
	}
	return w
}

// Environ returns the variables of instances in the world of the test.
func Environ(tb testing.TB) []string {
	tb.Helper()
	if w := World(tb); w.Private() {
		return process.private.of(tb, w).Environ()
	}
	return nil
}

// worldNamed reports whether the world of all tests was chosen.
func worldNamed() bool { return process.world != "" || os.Getenv(WorldVariable) != "" }

// SameInEveryWorld skips a test that does not depend on the world, in all but
// the plain one.
func SameInEveryWorld(tb testing.TB) {
	tb.Helper()
	if w := World(tb); w != devenv.Plain {
		tb.Skipf("the same in the world %s", w)
	}
}

// SkipIn skips a test in a world that cannot be what it needs, and says why.
func SkipIn(tb testing.TB, w devenv.World, why string) {
	tb.Helper()
	if World(tb) == w {
		tb.Skipf("in the world %s: %s", w, why)
	}
}

// MainInEveryWorld is Main for a package whose statements must hold in every
// world: where slow tests run its tests run once in each, else in the plain one, or
// only in the one that WorldVariable names. A world that this machine cannot offer is skipped with a message.
func MainInEveryWorld(m *testing.M, ignore ...goleak.Option) {
	r := runner{tests: m}
	if os.Getenv(WorldVariable) == "" && IsThorough() {
		r.worlds = devenv.Heaps()
	}
	goleak.VerifyTestMain(r, ignore...)
}

func (r runner) run() (code int) {
	if len(r.worlds) == 0 {
		return r.tests.Run()
	}
	for i, w := range r.worlds {
		if i > 0 && process.postgres.url == "" {
			break // no test that was chosen has a database
		}
		if err := w.Missing(); err != nil {
			fmt.Printf("SKIPPED: the world %s: %v\n", w, err)
			continue
		}
		fmt.Printf("in the world %s:\n", w)
		process.world = w
		code = max(code, r.tests.Run())
	}
	return code
}

// privateServers are those of the worlds that take servers of their own.
type privateServers struct {
	mu   sync.Mutex
	envs map[devenv.World]*shared
}

// of returns both servers of a world, which a test asks for.
func (p *privateServers) of(tb testing.TB, w devenv.World) *devenv.Env {
	tb.Helper()
	if err := w.Missing(); err != nil {
		tb.Skipf("SKIPPED: the world %s: %v", w, err)
	}
	p.mu.Lock()
	if p.envs == nil {
		p.envs = make(map[devenv.World]*shared)
	}
	s := p.envs[w]
	if s == nil {
		s = &shared{}
		p.envs[w] = s
	}
	p.mu.Unlock()
	s.use(tb, "", devenv.Options{Redis: true, Postgres: true, World: w}, nil)
	return s.env
}

func (p *privateServers) close() (err error) {
	for _, s := range p.envs {
		err = errors.Join(err, s.close())
	}
	return err
}
