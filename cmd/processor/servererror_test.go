package main

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// Each line is: settings, command, exit code, what it says.
func TestAServerThatIsAwayOrRefusesIsSaidWithItsVariableAndTheRemedy(t *testing.T) {
	dep := servicetest.New(t)
	elsewhere := func(change func(u *url.URL)) string {
		u, err := url.Parse(dep.PostgresURL)
		require.NoError(t, err)
		change(u)
		return "POSTGRES_URL=" + u.String()
	}
	u, err := url.Parse(dep.PostgresURL)
	require.NoError(t, err)
	address := u.Host
	if address == "" { // a socket
		address = u.Query().Get("host")
	}
	const (
		noRedis     = "REDIS_URL=redis://u:hidden-word@127.0.0.1:1"
		noPostgres  = "POSTGRES_URL=postgres://u:hidden-word@127.0.0.1:1/d"
		redisAway   = "Redis at 127.0.0.1:1 (REDIS_URL) does not answer: connection refused; see processor doctor"
		pgAway      = "Postgres at 127.0.0.1:1 (POSTGRES_URL) does not answer: connection refused; see processor doctor"
		migrateAway = "Postgres at 127.0.0.1:1 (POSTGRES_MIGRATE_URL) does not answer: connection refused; see processor doctor"
	)
	nobody := elsewhere(func(u *url.URL) { u.User = url.UserPassword("nosuch", "hidden-word") })
	nowhere := elsewhere(func(u *url.URL) { u.Path = "/nodb" })
	wrongRole := `Postgres at ` + address + ` (POSTGRES_URL) refused the connection: role "nosuch" does not exist; correct POSTGRES_URL`
	wrongDatabase := `Postgres at ` + address + ` (POSTGRES_URL) refused the connection: database "nodb" does not exist; correct POSTGRES_URL`
	var all []func()
	for _, tt := range []struct {
		setting, line string
		code          int
		want          string
	}{
		{noRedis, "lag", fault.Finding, redisAway},
		{noRedis, "shards", fault.Finding, redisAway},
		{noRedis, "trace 1", fault.Finding, redisAway},
		{noRedis, "dlq list", fault.Finding, redisAway},
		{noPostgres, "members", fault.Finding, pgAway},
		{noPostgres, "claim --shard 1", fault.Finding, pgAway},
		{noPostgres, "trace 1", fault.Finding, pgAway},
		{noPostgres, "device show 1", fault.Finding, pgAway},
		{noPostgres, "migrate verify", fault.Finding, pgAway},
		{noPostgres, "migrate up", fault.Finding, pgAway},
		{strings.Replace(noPostgres, "POSTGRES_URL", "POSTGRES_MIGRATE_URL", 1), "migrate up", fault.Finding, migrateAway},
		{"REDIS_URL=redis://nosuch.invalid", "lag", fault.Finding, "Redis at nosuch.invalid:6379 (REDIS_URL) does not answer: "},
		{nobody, "shards", fault.Config, wrongRole},
		{nobody, "trace 1", fault.Config, wrongRole},
		{nobody, "migrate up", fault.Config, wrongRole},
		{nowhere, "shards", fault.Config, wrongDatabase},
		{nowhere, "migrate status", fault.Config, wrongDatabase},
	} {
		p := servicetest.Spawn(t, dep.Environ(tt.setting), strings.Fields(tt.line)...)
		all = append(all, func() {
			require.Equal(t, tt.code, p.Exit(time.Minute), tt.line)
			require.Contains(t, p.Errors(), "processor: "+tt.want, tt.line)
			require.Equal(t, 1, strings.Count(p.Errors(), "\n"), "%s: one line: %s", tt.line, p.Errors())
			require.NotContains(t, p.Errors(), "migrate up")
			require.NotContains(t, p.Errors(), "hidden-word")
		})
	}
	for _, check := range all {
		check()
	}

	_, d := examined(dep, nobody)
	require.Equal(t, "correct POSTGRES_URL", d.remedy(`role "nosuch" does not exist`), "it answered")
	_, d = examined(dep, noRedis)
	require.Contains(t, d.remedy("Redis: "), "correct REDIS_URL; see ")

	// A password may be fixed while it waits; until then the log says what to correct.
	run := dep.Run(nobody, "START_TIMEOUT=1s")
	require.Equal(t, fault.Dependency, run.Exit(30*time.Second))
	require.Equal(t, 2, strings.Count(run.Output(), "correct POSTGRES_URL"), "while it waits, and at the end: %s", run.Output())
	require.Equal(t, 1, strings.Count(run.Output(), `"level":"ERROR"`), "said once: %s", run.Output())
}
