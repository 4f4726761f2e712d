package main

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// named makes run leave the servers to us, so that no test starts any.
func named(t *testing.T) {
	t.Helper()
	t.Setenv("TEST_REDIS_URL", "redis://named")
	t.Setenv("TEST_POSTGRES_URL", "postgres://named")
}

func TestExitCodeIsTheCommands(t *testing.T) {
	named(t)
	for want, script := range map[int]string{0: "exit 0", 3: "exit 3"} {
		code, err := run(t.Context(), []string{"sh", "-c", script})
		require.NoError(t, err)
		require.Equal(t, want, code)
	}
}

func TestNamedServersAreLeftToTheirOwner(t *testing.T) {
	named(t)
	code, err := run(t.Context(), []string{
		"sh", "-c",
		`[ "$TEST_REDIS_URL" = redis://named ] && [ "$TEST_POSTGRES_URL" = postgres://named ]`,
	})
	require.NoError(t, err)
	require.Zero(t, code)
}

func TestCommandGetsTheServersAddresses(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a server")
	}
	named(t)
	require.NoError(t, os.Unsetenv("TEST_REDIS_URL"))
	code, err := run(t.Context(), []string{
		"sh", "-c",
		`case $TEST_REDIS_URL in redis://127.0.0.1:*) exit 0 ;; *) exit 9 ;; esac`,
	})
	if err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	require.NoError(t, err)
	require.Zero(t, code)
}

func TestInterruptReachesTheCommand(t *testing.T) {
	named(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	code, err := run(ctx, []string{"sh", "-c", `trap 'exit 7' INT; while :; do sleep 0.05; done`})
	require.NoError(t, err)
	require.Equal(t, 7, code)
}

func TestUnknownCommandIsAnError(t *testing.T) {
	named(t)
	code, err := run(t.Context(), []string{"no-such-command"})
	require.ErrorContains(t, err, "no-such-command")
	require.NotZero(t, code)
}
