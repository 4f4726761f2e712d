package devenv

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// Promise 1: a server of the same kind answers at the port, and must not be
// taken for ours. Start then tries another port.
func TestAnotherServerOnThePortIsNotTakenForOurs(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	if os.Getenv("CI") == "" {
		_, redis := findRedisServer()
		_, postgres := findPostgresBin()
		if redis != nil || postgres != nil {
			t.Skip("servers are not installed: run `make setup`")
		}
	}
	envs := make([]*Env, 2)
	for i := range envs {
		env, err := Start(t.Context(), Options{Redis: true, Postgres: true})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, env.Close()) })
		envs[i] = env
	}
	ours, other := envs[0], envs[1]
	for _, pair := range [][2]*Server{{ours.Redis, other.Redis}, {ours.Postgres, other.Postgres}} {
		mine, foreign := pair[0], pair[1]
		require.NoError(t, mine.Stop(t.Context()))
		free := mine.port
		mine.port = foreign.port
		require.ErrorIs(t, mine.Start(t.Context()), errPortTaken)
		require.Zero(t, mine.PID())
		require.NotZero(t, foreign.PID())
		mine.port = free
		require.NoError(t, mine.Start(t.Context()))
	}
}

func TestNewestPostgresComesFirst(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, dir := range []string{"9.6", "15", "17", "postgresql@18", "strange"} {
		require.NoError(t, os.MkdirAll(root+"/"+dir+"/bin", 0o755))
	}
	require.Equal(t, []string{
		root + "/postgresql@18/bin", root + "/17/bin", root + "/15/bin", root + "/9.6/bin", root + "/strange/bin",
	}, newestFirst(root+"/*/bin"))
}
