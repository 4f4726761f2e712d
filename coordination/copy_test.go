package coordination

import (
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
)

// P1: a copy of a database has its identity, and another server; the one that comes second
// while the first one lives is refused, and both are named.
func TestP1ACopyOfTheDatabaseIsRefusedWhileTheOtherIsInUse(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t)
	names := stream.Names{Stream: r.Stream, Group: r.Group}
	client := r.Client()
	cfg := (&bench{t: t}).quick("")
	member := func(instance string, server func() string) *Membership {
		cfg := cfg
		cfg.Instance = instance
		m, err := NewMembership(cfg, client, Keys{Prefix: names.Members(), Lock: names.Lock(), Database: names.Database()},
			func() WorkStatus { return WorkStatus{} }, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		m.Belong(Database{ID: "ID", Created: true, Postgres: instance + ":5432/telemetry", Redis: r.URL, Server: server})
		return m
	}
	on := func(server string) func() string { return func() string { return server } }
	beat := func(m *Membership) { // as it does while it lives
		_, err := m.beat(t.Context(), false)
		require.NoError(t, err)
	}
	production := member("production", on("7001/5"))
	require.NoError(t, production.join(t.Context()))

	alive := make(chan struct{})
	go func() {
		defer close(alive)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for range 35 {
			<-tick.C
			_, _ = production.beat(t.Context(), false)
		}
	}()
	err := member("staging", on("7002/5")).join(t.Context())
	var copied *copyError
	require.ErrorAs(t, err, &copied)
	require.Equal(t, 3, copied.ExitCode())
	require.ErrorContains(t, err, "production:5432/telemetry")
	require.ErrorContains(t, err, "staging:5432/telemetry")
	<-alive

	beat(production)
	require.NoError(t, member("second", on("7001/5")).join(t.Context()), "of the same server")
	require.NoError(t, member("unknowing", on("")).join(t.Context()), "one that may not ask for its server")

	// A failover by logical replication: those that live follow, and one joins meanwhile.
	server := "7001/5"
	production.database.Server = func() string { return server }
	server = "7003/5"
	beat(production)
	_, err = client.Del(t.Context(), names.Heartbeat("second")).Result()
	require.NoError(t, err)
	require.NoError(t, member("joins", on("7003/5")).join(t.Context()))

	// Those that live cannot reach a server that was replaced, and do not follow.
	production.setPostgresUp(false)
	beat(production)
	for _, instance := range []string{"unknowing", "joins"} {
		require.NoError(t, client.Del(t.Context(), names.Heartbeat(instance)).Err())
	}
	members, err := ReadMembers(t.Context(), client, Keys{Prefix: names.Members()})
	require.NoError(t, err)
	require.Len(t, members, 1)
	require.Empty(t, members[0].Server, "it does not know what answers there now")
	require.NoError(t, member("replaced", on("7005/5")).join(t.Context()))

	// A backup that was restored on another server: nobody else lives.
	testenv.Wait(t, 5*time.Second, func() error {
		for _, instance := range []string{"production", "replaced"} {
			if err := client.Get(t.Context(), names.Heartbeat(instance)).Err(); err == nil {
				return redis.Nil
			}
		}
		return nil
	})
	require.NoError(t, member("restored", on("7004/9")).join(t.Context()))
}
