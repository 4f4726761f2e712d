package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// An instance whose connections are ended after both passwords were changed goes on
// with what its files say by then.
func TestPasswordsThatAreRotatedInTheirFilesAreUsed(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	testenv.SkipIn(t, devenv.Pooled, "the pooler has one role for all")
	ctx := t.Context()
	env := testenv.OwnServers(t, devenv.Options{Redis: true})
	dep := &servicetest.Deployment{
		T: t, RedisURL: env.Redis.URL(), Stream: "telemetry:rotated", Group: "processor", PostgresURL: testenv.Postgres(t, servicetest.Migrated()),
	}
	client := dep.Client() // stays the default user's
	folder := t.TempDir()
	postgres, err := url.Parse(dep.PostgresURL)
	require.NoError(t, err)
	// The servers of tests ask roles of Postgres for no password: these differ by name.
	role := func(n int) string { return fmt.Sprintf("%s_%d", postgres.Path[1:], n) }
	for n := 1; n <= 2; n++ {
		dep.Exec("create role " + role(n) + " login superuser")
		defer dep.Exec("drop role " + role(n))
	}
	// rotate changes the password, and then the files: in between new connections fail.
	rotate := func(n int, between func()) []string {
		password := fmt.Sprintf("secret-%d", n)
		require.NoError(t, client.Do(ctx, "acl", "setuser", "service", "on", "resetpass", ">"+password, "~*", "&*", "+@all").Err())
		between()
		var files []string
		for name, address := range map[string]string{"redis": dep.RedisURL, "postgres": dep.PostgresURL} {
			u, err := url.Parse(address)
			require.NoError(t, err)
			u.User = url.UserPassword(map[string]string{"redis": "service", "postgres": role(n)}[name], password)
			path := filepath.Join(folder, name)
			require.NoError(t, os.WriteFile(path+".new", []byte(u.String()+"\n"), 0o600))
			require.NoError(t, os.Rename(path+".new", path))
			files = append(files, map[string]string{"redis": "REDIS", "postgres": "POSTGRES"}[name]+"_URL_FILE="+path)
		}
		return files
	}
	p := dep.Run(append(rotate(1, func() {}), "REDIS_URL=", "POSTGRES_URL=", servicetest.FourShards)...)
	p.AwaitReady()
	dep.Publish(servicetest.Records(0, 3)...)
	dep.AwaitStored(3, 30*time.Second)

	rotate(2, func() {
		dep.Exec("alter role " + role(1) + " nologin")
		require.NoError(t, client.Do(ctx, "client", "kill", "user", "service").Err())
		dep.Exec("select pg_terminate_backend(pid) from pg_stat_activity where usename = $1", role(1))
		testenv.Wait(t, 30*time.Second, func() error { // P7: an outage, for as long as the files are late
			status, r, err := p.Readiness()
			if err == nil && (status != http.StatusServiceUnavailable || len(r.NotReady) < 2) {
				err = fmt.Errorf("want neither server, have %d %+v", status, r)
			}
			return err
		})
		p.Await("replace the content of POSTGRES_URL_FILE")
		require.True(t, p.Running())
	})
	dep.Publish(servicetest.Records(10, 3)...)
	dep.AwaitStored(6, 30*time.Second)
	dep.AwaitCount(1, "select least(1, count(*)) from pg_stat_activity where usename = '"+role(2)+"'")
	dep.AwaitCount(0, "select count(*) from pg_stat_activity where usename = '"+role(1)+"'")
	sessions, err := client.Do(context.Background(), "client", "list").Text()
	require.NoError(t, err)
	require.Contains(t, sessions, "user=service")
	require.Zero(t, p.Terminate())
}
