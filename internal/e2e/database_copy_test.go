package e2e_test

import (
	"bytes"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// P1: a copy of the database on another server, as of a staging environment whose
// REDIS_URL is production's, does no work while the fleet lives. Once the fleet has
// ended it is a restored backup, and goes on.
func TestP1ACopyOfTheDatabaseNeverWorksBesideTheFleet(t *testing.T) {
	testenv.Full(t) // many starts, and a server of its own
	pgDump, err := exec.LookPath("pg_dump")
	if err != nil {
		t.Skip("SKIPPED: pg_dump is not installed, so no copy of a database was tried")
	}
	dep := servicetest.New(t)
	first := dep.Run(servicetest.FourShards, "INSTANCE_ID=production")
	first.AwaitReady()
	dep.Publish(servicetest.RecordsOfMany(0, 10)...)
	dep.AwaitStored(10, 30*time.Second)

	other := testenv.OwnServers(t, devenv.Options{Postgres: true})
	staging := *dep
	staging.PostgresURL = other.Postgres.URL()
	dump := exec.CommandContext(t.Context(), pgDump, "--dbname="+dep.PostgresURL)
	text, err := dump.Output()
	require.NoError(t, err)
	restore := exec.CommandContext(t.Context(), "psql", "--quiet", "--set=ON_ERROR_STOP=1", staging.PostgresURL)
	restore.Stdin = bytes.NewReader(text)
	out, err := restore.CombinedOutput()
	require.NoError(t, err, string(out))

	refused := func(dep *servicetest.Deployment) {
		t.Helper()
		p := dep.Run(servicetest.FourShards, "INSTANCE_ID=refused")
		require.Equal(t, fault.Config, p.Exit(60*time.Second), p.Output()+p.Errors())
		said := p.Output() + p.Errors()
		require.Contains(t, said, "a copy of it on another server")
		require.Contains(t, said, addressOf(t, dep.PostgresURL))
	}
	refused(&staging)
	var d diagnosis
	staging.Ask(fault.Finding, &d, "doctor")
	require.Equal(t, "trouble", d.level("one of the two is a copy"))
	dep.Publish(servicetest.RecordsOfMany(10, 10)...)
	dep.AwaitStored(20, 30*time.Second)
	staging.AwaitStored(10, 5*time.Second)

	require.Zero(t, first.Terminate())
	restored := staging.Run(servicetest.FourShards, "INSTANCE_ID=restored")
	restored.AwaitReady()
	staging.AwaitStored(20, 60*time.Second) // what it lacks is read again
	refused(dep)
}
