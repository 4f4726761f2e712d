package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// The platform's query takes several times as long as the leader's lock lasts.
func TestASlowFenceQueryIsCopiedOrAnIncidentAndTheLeaderStays(t *testing.T) {
	dep := servicetest.New(t)
	const slow = `GEOFENCE_QUERY=select 'yard' as id, '{"type":"Point","coordinates":[11,48]}' as geometry, 10 as radius_m, pg_sleep(4)`
	term := func() int {
		n, err := dep.Count("select term from processor.leader")
		require.NoError(t, err)
		return n
	}
	p := dep.Run(servicetest.FourShards, "LEADER_TTL=1s", "GEOFENCE_REFRESH=1s", slow)
	p.AwaitReady()
	dep.AwaitCount(1, "select count(*) from processor.geofences where id = 'yard'")
	require.Equal(t, 1, term())
	require.Zero(t, p.Terminate())

	p = dep.Run(servicetest.FourShards, "LEADER_TTL=1s", "GEOFENCE_REFRESH=1s", slow, "STATEMENT_TIMEOUT=2s", "LOCK_TIMEOUT=1s")
	p.AwaitReady()
	dep.AwaitCount(1, "select count(*) from processor.incidents where kind = 'geofence_query' and closed_at is null and detail->>'error' like '%STATEMENT_TIMEOUT=2s%'")
	require.Equal(t, 2, term())
	require.Contains(t, p.Output(), "leader task failed, will retry")
	require.Zero(t, p.Terminate())
}
