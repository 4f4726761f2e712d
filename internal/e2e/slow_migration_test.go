package e2e_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// A migration that takes longer than START_TIMEOUT, as an index of a large table does, is not cut
// off: it would begin anew at each start.
func TestAStartWaitsForItsOwnMigration(t *testing.T) {
	dep := servicetest.New(t)
	dep.PostgresURL = testenv.Postgres(t) // empty
	conn, err := pgx.Connect(t.Context(), dep.PostgresURL)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	for _, sql := range []string{
		"create sequence public.once",
		`create function public.slow() returns event_trigger language plpgsql as $$
begin
  if nextval('public.once') = 1 then
    perform pg_sleep(4);
  end if;
end $$`,
		"create event trigger slow on ddl_command_start when tag in ('CREATE INDEX') execute function public.slow()",
	} {
		_, err := conn.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	p := dep.Run("SHARDS=8", "START_TIMEOUT=3s")
	p.AwaitReady()
	var slow bool
	require.NoError(t, conn.QueryRow(t.Context(), "select is_called from public.once").Scan(&slow))
	require.True(t, slow)
	require.Zero(t, p.Terminate())
}
