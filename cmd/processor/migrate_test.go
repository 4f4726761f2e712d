package main

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

func TestMigrateUpStatusVerifyAndPrint(t *testing.T) {
	t.Parallel()
	environ := []string{"POSTGRES_URL=" + testenv.Postgres(t)}
	migrate := func(want int, args ...string) string {
		t.Helper()
		p := servicetest.Spawn(t, environ, append([]string{"migrate"}, args...)...)
		require.Equal(t, want, p.Exit(30*time.Second), p.Errors())
		return p.Output()
	}
	require.Contains(t, migrate(fault.Schema, "verify"), "public.positions")
	var status []schema.Migration
	require.NoError(t, json.Unmarshal([]byte(migrate(0, "status", "--json")), &status))
	require.NotEmpty(t, status)
	for _, m := range status {
		require.Nil(t, m.AppliedAt)
	}

	var up struct{ Applied []string }
	require.NoError(t, json.Unmarshal([]byte(migrate(0, "up", "--json")), &up))
	require.Len(t, up.Applied, len(status))
	require.Equal(t, "nothing to apply\n", migrate(0, "up"))
	require.NoError(t, json.Unmarshal([]byte(migrate(0, "status", "--json")), &status))
	for _, m := range status {
		require.NotNil(t, m.AppliedAt)
	}
	require.Contains(t, migrate(0, "verify"), "ok")
	require.Contains(t, migrate(0, "print"), "create table if not exists public.positions")
	migrate(fault.Config, "print", "--json")
}

// Every instance of a first deployment migrates at start.
func TestManyProcessesMigrateAnEmptyDatabaseAtOnce(t *testing.T) {
	t.Parallel()
	environ := []string{"POSTGRES_URL=" + testenv.Postgres(t)}
	var all []*servicetest.Process
	processes := 5
	if testenv.IsFull() {
		processes = 20
	}
	for range processes {
		all = append(all, servicetest.Spawn(t, environ, "migrate", "up", "--json"))
	}
	applied := map[string]int{}
	for _, p := range all {
		require.Zero(t, p.Exit(time.Minute), p.Errors())
		var up struct{ Applied []string }
		require.NoError(t, json.Unmarshal([]byte(p.Output()), &up))
		for _, name := range up.Applied {
			applied[name]++
		}
	}
	require.NotEmpty(t, applied)
	for name, n := range applied {
		require.Equal(t, 1, n, name)
	}
}
