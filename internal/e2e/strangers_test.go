package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// What /readyz says reaches everybody who reaches the port, so it has no user, database or
// address, whichever way a server is away. The log has them.
func TestReadinessTellsStrangersNothingOfTheServers(t *testing.T) {
	testenv.Slow(t)
	dep := servicetest.New(t)
	pg, rd := testenv.Proxy(t, hostOf(t, dep.PostgresURL)), testenv.Proxy(t, hostOf(t, dep.RedisURL))
	postgres, err := pg.URL(dep.PostgresURL)
	require.NoError(t, err)
	redis, err := rd.URL(dep.RedisURL)
	require.NoError(t, err)
	u, err := url.Parse(dep.PostgresURL)
	require.NoError(t, err)
	database := strings.Trim(u.Path, "/")
	u.Path = "/postgres"
	elsewhere := *dep
	elsewhere.PostgresURL = u.String()
	p := dep.Run("POSTGRES_URL="+postgres, "REDIS_URL="+redis, servicetest.FourShards)
	p.AwaitReady()

	secrets := []string{"user=", database, pg.Addr(), rd.Addr(), "127.0.0.1", "dial"}
	discloses := func(missing string) {
		t.Helper()
		testenv.Wait(t, 20*time.Second, func() error {
			_, r, err := p.Readiness()
			if err != nil {
				return err
			}
			text, err := json.Marshal(r)
			if err != nil {
				return err
			}
			for _, s := range secrets {
				require.NotContains(t, string(text), s)
			}
			if !slices.Contains(r.NotReady, missing) {
				return fmt.Errorf("still %s", text)
			}
			return nil
		})
	}
	// Refused by the server, whose message names the database.
	elsewhere.Exec("alter database " + database + " allow_connections false")
	elsewhere.Exec("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", database)
	discloses("postgres")
	p.Await("readiness check fails")
	elsewhere.Exec("alter database " + database + " allow_connections true")
	p.AwaitReady()
	for name, proxy := range map[string]*devenv.Proxy{"postgres": pg, "redis": rd} {
		require.NoError(t, proxy.Refuse())
		discloses(name)
		require.NoError(t, proxy.Resume())
		p.AwaitReady()
	}
	require.NoError(t, pg.Stall())
	discloses("postgres")
}

func hostOf(t *testing.T, server string) string {
	t.Helper()
	u, err := url.Parse(server)
	require.NoError(t, err)
	return u.Host
}
