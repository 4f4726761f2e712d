package devenv_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
)

// What an instance meets in each world that takes servers of its own.
func TestEachWorldIsWhatItSays(t *testing.T) {
	t.Parallel()
	for world, want := range map[devenv.World]struct{ sql, value string }{
		devenv.Pooled:     {"show server_version", "1"},
		devenv.Encrypted:  {"select ssl::text from pg_stat_ssl where pid = pg_backend_pid()", "true"},
		devenv.Crowded:    {"show max_connections", "30"},
		devenv.Impatient:  {"show statement_timeout", "3s"},
		devenv.Limited:    {"select 1::text", "1"},
		devenv.Neighbours: {"select count(*)::text from pg_database where not datistemplate", "3"},
	} {
		t.Run(string(world), func(t *testing.T) {
			t.Parallel()
			if err := world.Missing(); err != nil {
				t.Skipf("SKIPPED: %v", err)
			}
			env := start(t, devenv.Options{Redis: true, Postgres: true, World: world})
			database, err := world.Prepare(t.Context(), env.Postgres.URL())
			require.NoError(t, err)
			database, err = env.PostgresFor(database)
			require.NoError(t, err)
			conn, err := pgx.Connect(t.Context(), database)
			require.NoError(t, err)
			defer conn.Close(t.Context())
			var got string
			require.NoError(t, conn.QueryRow(t.Context(), want.sql).Scan(&got))
			require.True(t, strings.HasPrefix(got, want.value), got)

			options, err := redis.ParseURL(env.RedisFor())
			require.NoError(t, err)
			if world == devenv.Encrypted {
				file, _ := strings.CutPrefix(env.Environ()[0], "SSL_CERT_FILE=")
				text, err := os.ReadFile(file)
				require.NoError(t, err)
				pool := x509.NewCertPool()
				require.True(t, pool.AppendCertsFromPEM(text))
				options.TLSConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
			}
			client := redis.NewClient(options)
			defer client.Close()
			had, err := client.ConfigGet(t.Context(), "maxmemory").Result()
			require.NoError(t, err)
			require.Equal(t, world == devenv.Limited, had["maxmemory"] != "0")
		})
	}
}

// Turns go round all that this machine offers.
func TestTheTurnGoesRoundAllWorlds(t *testing.T) {
	t.Parallel()
	seen := make(map[devenv.World]bool)
	for seed := range uint64(20) {
		w := devenv.Turn.By(seed)
		require.NoError(t, w.Missing())
		require.Equal(t, w, devenv.Turn.By(seed))
		seen[w] = true
	}
	require.GreaterOrEqual(t, len(seen), 7)
	require.Equal(t, devenv.Pooled, devenv.Pooled.By(3))
}
