package scenarios_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/store/schema"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/scenarios"
)

func migrated(t *testing.T) string {
	t.Helper()
	return testenv.Postgres(t, testenv.WithTemplate("loadtest", func(ctx context.Context, url string) error {
		_, err := schema.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	}))
}

func config(t *testing.T) scenarios.Config {
	t.Helper()
	return scenarios.Config{
		Processor: "never started", Seed: 1, Slack: 1, Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
	}
}

func TestNamedServersThatHoldPositionsAreRefused(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.RedisURL, cfg.PostgresURL = testenv.Redis(t).URL, migrated(t)
	conn, err := pgx.Connect(t.Context(), cfg.PostgresURL)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `
insert into public.positions (device_id, ts, latitude, longitude, altitude, angle, speed, satellites, priority, codec, attributes)
values ('platform', now(), 1, 1, 0, 0, 0, 0, 0, '8', '{}')`)
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))

	s, err := scenarios.ByName("split")
	require.NoError(t, err)
	_, err = scenarios.Run(t.Context(), s, cfg)
	require.ErrorContains(t, err, "public.positions hold rows already")
}

func TestTheHistoryOfAnEarlierRunIsNotJudged(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.RedisURL, cfg.PostgresURL, cfg.Rare = "redis://127.0.0.1:1", "postgres://127.0.0.1:1", t.TempDir()
	old := filepath.Join(cfg.Dir, "history", "i1.jsonl")
	require.NoError(t, os.Mkdir(filepath.Dir(old), 0o755))
	require.NoError(t, os.WriteFile(old, nil, 0o600))
	s, err := scenarios.ByName("split")
	require.NoError(t, err)
	_, err = scenarios.Run(t.Context(), s, cfg)
	require.Error(t, err, "without servers")
	require.NoFileExists(t, old)
	require.DirExists(t, filepath.Dir(old))
}

func TestAScenarioThatMeasuresByCommitsIsRefusedWithoutTheirTimes(t *testing.T) {
	t.Parallel()
	env := testenv.OwnServers(t, devenv.Options{Redis: true, Postgres: true, PostgresArgs: []string{"-c", "track_commit_timestamp=off"}})
	cfg := config(t)
	cfg.RedisURL, cfg.PostgresURL, cfg.AllowFaults = env.Redis.URL(), env.Postgres.URL(), true
	s, err := scenarios.ByName("kill")
	require.NoError(t, err)
	_, err = scenarios.Run(t.Context(), s, cfg)
	require.ErrorContains(t, err, "scenario kill measures by the times of commits")
	require.ErrorContains(t, err, "track_commit_timestamp = on")
}

// left returns what a database and a Redis hold of load tests: tables with rows of
// theirs, schemas, keys.
func left(t *testing.T, cfg scenarios.Config, corner *testenv.RedisCorner) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), cfg.PostgresURL)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	rows, err := conn.Query(t.Context(), `
select table_schema || '.' || table_name
from information_schema.tables
where table_schema not in ('pg_catalog', 'information_schema')`)
	require.NoError(t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	var found []string
	for _, table := range tables {
		var n int
		require.NoError(t, conn.QueryRow(t.Context(), "select count(*) from "+table).Scan(&n))
		found = append(found, fmt.Sprintf("%s %d", table, n))
	}
	keys, err := corner.Client().Keys(t.Context(), "*loadtest-*").Result()
	require.NoError(t, err)
	slices.Sort(found)
	return append(found, keys...)
}

// A run that ends at its first instance has made the schema, fences, requests
// and the observer by then.
func TestNamedServersAreLeftAsTheyWere(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	program, err := exec.LookPath("false")
	require.NoError(t, err)
	for name, url := range map[string]string{"without tables": testenv.Postgres(t), "with empty tables": migrated(t)} {
		t.Run(name, func(t *testing.T) {
			cfg, corner := config(t), testenv.Redis(t)
			cfg.Processor, cfg.RedisURL, cfg.PostgresURL = program, corner.URL, url
			before := left(t, cfg, corner)
			s, err := scenarios.ByName("split")
			require.NoError(t, err)
			_, err = scenarios.Run(t.Context(), s, cfg)
			require.ErrorContains(t, err, "ended at once")
			require.Equal(t, before, left(t, cfg, corner))
		})
	}
}

// The same with instances that work.
func TestNamedServersAreLeftAsTheyWereAfterALoad(t *testing.T) {
	testenv.Full(t)
	program := build(t)
	for name, url := range map[string]string{"without tables": testenv.Postgres(t), "with empty tables": migrated(t)} {
		t.Run(name, func(t *testing.T) {
			cfg, corner := config(t), testenv.Redis(t)
			cfg.Processor, cfg.RedisURL, cfg.PostgresURL = program, corner.URL, url
			cfg.AllowFaults, cfg.Slack = true, 3
			cfg.Plan = scenarios.Plan{Rate: 1000, Duration: 2 * time.Second, Profile: "polluted"}
			before := left(t, cfg, corner)
			s, err := scenarios.ByName("failover")
			require.NoError(t, err)
			r, err := scenarios.Run(t.Context(), s, cfg)
			require.NoError(t, err)
			require.Empty(t, r.Missed)
			require.Positive(t, r.Stored)
			require.Equal(t, before, left(t, cfg, corner))
		})
	}
}

func TestNothingIsBrokenOnNamedServersUnlessAllowed(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.RedisURL, cfg.PostgresURL = "redis://127.0.0.1:1", "postgres://127.0.0.1:1"
	for _, s := range scenarios.All() {
		if s.Breaks {
			_, err := scenarios.Run(t.Context(), s, cfg)
			require.Error(t, err, s.Name)
			require.Regexp(t, "--allow-faults|starts its own servers", err.Error(), s.Name)
		}
	}
}
