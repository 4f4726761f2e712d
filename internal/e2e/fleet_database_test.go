package e2e_test

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// P1: an instance with another database does no work of the fleet, whether the right
// one lives or not, until an operator says that the database is another from now on.
func TestP1AnInstanceWithAnotherDatabaseNeverWorksUntilItIsAdopted(t *testing.T) {
	testenv.Full(t) // many starts
	dep := servicetest.New(t)
	wrong := *dep
	wrong.PostgresURL = testenv.Postgres(t, servicetest.Migrated())
	first := dep.Run(servicetest.FourShards, "INSTANCE_ID=right")
	first.AwaitReady()
	dep.Publish(servicetest.RecordsOfMany(0, 10)...)
	dep.AwaitStored(10, 30*time.Second)

	untouched := func() {
		t.Helper()
		for _, sql := range []string{
			"select count(*) from positions", "select count(*) from processor.shards where owner is not null", "select count(*) from processor.leader where member <> ''",
		} {
			n, err := wrong.Count(sql)
			require.NoError(t, err)
			require.Zero(t, n, sql)
		}
	}
	refused := func() {
		t.Helper()
		p := wrong.Run(servicetest.FourShards, "INSTANCE_ID=wrong")
		require.Equal(t, fault.Config, p.Exit(60*time.Second))
		text := p.Output() + p.Errors()
		require.Contains(t, text, "works with the database")
		require.Contains(t, text, addressOf(t, dep.PostgresURL))
		require.Contains(t, text, addressOf(t, wrong.PostgresURL))
		untouched()
	}
	refused()

	require.NoError(t, first.Kill())
	first.Exit(30 * time.Second)
	names, client := stream.Names{Stream: dep.Stream, Group: dep.Group}, dep.Client()
	acked := client.HGetAll(t.Context(), names.Acked()).Val()
	dep.Publish(servicetest.RecordsOfMany(10, 10)...)
	refused() // while the heartbeat of the right one lives on
	testenv.Wait(t, 30*time.Second, func() error {
		n, err := client.Exists(t.Context(), names.Heartbeat("right")).Result()
		if err == nil && n > 0 {
			err = fmt.Errorf("its heartbeat is still there")
		}
		return err
	})
	refused() // and alone
	require.Equal(t, acked, client.HGetAll(t.Context(), names.Acked()).Val())

	// On purpose.
	var a operator.Adopted
	wrong.Ask(0, &a, "fleet", "adopt")
	require.False(t, a.Changed)
	require.NotEqual(t, a.From.ID, a.To.ID)
	refused()
	require.Contains(t, wrong.Ask(fault.Config, nil, "fleet", "adopt", "--confirm"), "reason")
	wrong.Ask(0, &a, "fleet", "adopt", "--confirm", "--reason", "moved to another server")
	require.True(t, a.Changed)
	var audit operator.Page[store.AuditRow]
	wrong.Ask(0, &audit, "audit")
	require.Equal(t, "fleet adopt", audit.Rows[0].Action)
	require.NotEmpty(t, audit.Rows[0].Who)
	require.Contains(t, string(audit.Rows[0].Detail), "moved to another server")
	require.Contains(t, string(audit.Rows[0].Detail), a.From.ID)

	second := wrong.Run(servicetest.FourShards, "INSTANCE_ID=moved")
	second.AwaitReady()
	wrong.AwaitStored(20, 60*time.Second) // what was acknowledged before is read again
	require.Contains(t, dep.Ask(fault.Finding, nil, "fleet", "adopt", "--confirm", "--reason", "back"), "stop every instance first")
	back := dep.Run(servicetest.FourShards, "INSTANCE_ID=right")
	require.Equal(t, fault.Config, back.Exit(60*time.Second), "the one before is refused now")
	dep.AwaitStored(10, 5*time.Second)
}

// addressOf is how a message names a database.
func addressOf(t *testing.T, server string) string {
	t.Helper()
	u, err := url.Parse(server)
	require.NoError(t, err)
	return u.Host + u.Path
}
