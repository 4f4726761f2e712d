package testenv

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
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
	return w
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

// MainInEveryWorld is Main for a package whose statements must hold in every
// world: its tests run once in each, or only in the one that WorldVariable
// names. A world that this machine cannot offer is skipped with a message.
func MainInEveryWorld(m *testing.M, ignore ...goleak.Option) {
	r := runner{tests: m}
	if os.Getenv(WorldVariable) == "" {
		r.worlds = devenv.Worlds()
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
		if w == devenv.Hypertable {
			if why := noHypertables(); why != "" {
				fmt.Printf("SKIPPED: the world %s: %s\n", w, why)
				continue
			}
		}
		fmt.Printf("in the world %s:\n", w)
		process.world = w
		code = max(code, r.tests.Run())
	}
	return code
}

// noHypertables returns why the server of the tests could have none.
func noHypertables() string {
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	process.postgres.find(postgresVariable, devenv.Options{Postgres: true}, checkPostgres)
	if process.postgres.err != nil {
		return process.postgres.err.Error()
	}
	conn, err := pgx.Connect(ctx, process.postgres.url)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = conn.Close(ctx) }()
	var there bool
	if err := conn.QueryRow(ctx, "select exists (select from pg_available_extensions where name = 'timescaledb')").Scan(&there); err != nil {
		return err.Error()
	}
	if !there {
		return "Postgres has no extension timescaledb"
	}
	return ""
}
