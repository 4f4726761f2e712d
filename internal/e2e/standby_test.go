package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// A primary comes back beside its promoted standby: both accept writes, and the URL
// names the old one first. What comes goes to the new one.
func TestAnOldPrimaryBesideItsPromotedStandbyGetsNothing(t *testing.T) {
	testenv.Full(t)
	t.Parallel()
	ctx := t.Context()
	old := testenv.OwnServers(t, devenv.Options{Redis: true, Postgres: true})
	standby := testenv.OwnServers(t, devenv.Options{Postgres: true}).Postgres
	at := func(p *devenv.Server) *servicetest.Deployment {
		return &servicetest.Deployment{T: t, RedisURL: old.Redis.URL(), PostgresURL: p.URL(), Stream: "telemetry:standby", Group: "processor"}
	}
	before, after := at(old.Postgres), at(standby)
	both := "POSTGRES_URL=postgres://postgres@" + old.Postgres.Addr() + "," + standby.Addr() + "/postgres?sslmode=disable"

	source, target := dataOf(t, old.Postgres), dataOf(t, standby)
	require.NoError(t, standby.Stop(ctx))
	p := before.Run(both, servicetest.FourShards)
	p.AwaitReady()
	before.Publish(servicetest.RecordsOfMany(0, 20)...)
	before.AwaitStored(20, 30*time.Second)

	require.NoError(t, old.Postgres.Stop(ctx))
	require.NoError(t, os.RemoveAll(target))
	out, err := exec.CommandContext(ctx, "cp", "-a", source, target).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, os.WriteFile(filepath.Join(target, "standby.signal"), nil, 0o644))
	require.NoError(t, standby.Start(ctx))
	after.Exec("select pg_promote()")
	after.Publish(servicetest.RecordsOfMany(20, 20)...)
	after.AwaitStored(40, 60*time.Second)

	require.NoError(t, old.Postgres.Start(ctx))
	for n := 40; n < 100; n += 20 {
		after.Exec("select pg_terminate_backend(pid) " + serviceSessions)
		after.Publish(servicetest.RecordsOfMany(n, 20)...)
		after.AwaitStored(n+20, 60*time.Second)
	}
	stored, err := before.Stored()
	require.NoError(t, err)
	require.Equal(t, 20, stored, "in the old primary")
	require.Zero(t, p.Terminate(), p.Output())
}

func dataOf(t *testing.T, p *devenv.Server) (folder string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), p.URL())
	require.NoError(t, err)
	defer conn.Close(t.Context())
	require.NoError(t, conn.QueryRow(t.Context(), "select current_setting('data_directory')").Scan(&folder))
	return folder
}
