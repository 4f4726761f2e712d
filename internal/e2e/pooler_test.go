package e2e_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

// A pooler that lends its sessions would take time limits, prepared statements and
// notifications away: it is refused before anything is done, and the doctor says so.
func TestAPoolerThatLendsSessionsIsRefused(t *testing.T) {
	for _, mode := range []string{"transaction", "statement"} {
		t.Run(mode, func(t *testing.T) {
			dep := servicetest.New(t)
			dep.Publish(servicetest.Records(0, 4)...)
			environ := dep.Environ("POSTGRES_URL="+testenv.PgBouncer(t, dep.PostgresURL, mode), "POSTGRES_MIGRATE_URL="+dep.PostgresURL, servicetest.FourShards)
			p := servicetest.Spawn(t, environ, "run")
			require.Equal(t, 3, p.Exit(40*time.Second), p.Output())
			require.Contains(t, p.Output(), "a pooler in transaction or statement mode")
			stored, err := dep.Stored()
			require.NoError(t, err)
			require.Zero(t, stored)
			doctor := servicetest.Spawn(t, environ, "doctor", "--json")
			require.NotZero(t, doctor.Exit(30*time.Second))
			require.Contains(t, doctor.Output(), "a pooler in transaction or statement mode")
		})
	}
}

func TestAPoolerInSessionModeWorks(t *testing.T) {
	dep := servicetest.New(t)
	dep.Publish(servicetest.Records(0, 4)...)
	p := dep.Run("POSTGRES_URL="+testenv.PgBouncer(t, dep.PostgresURL, "session"), servicetest.FourShards)
	p.AwaitReady()
	dep.AwaitStored(4, 20*time.Second)
	require.Zero(t, p.Terminate())
}

// The driver's way to run queries is the operator's to choose, as far as it can send
// everything that is stored.
func TestTheQueryModeOfTheURLIsHonouredOrRefused(t *testing.T) {
	for _, mode := range []string{"cache_describe", "describe_exec"} {
		t.Run(mode, func(t *testing.T) {
			dep := servicetest.New(t)
			dep.Publish(append(servicetest.Records(0, 4), servicetest.InvalidRecord("device-1", 10), servicetest.Record(servicetest.IMEI, -100))...)
			foreign := dep.Client()
			require.NoError(t, foreign.XGroupCreateMkStream(t.Context(), dep.Stream, dep.Group, "0").Err())
			url := dep.PostgresURL + "&default_query_exec_mode=" + mode
			p := dep.Run("POSTGRES_URL="+url, servicetest.FourShards)
			p.AwaitReady()
			dep.AwaitStored(5, 20*time.Second)
			dep.AwaitDeadLetters(1)
			for _, request := range []string{"recompute", "rehydrate"} {
				dep.Ask(0, nil, "device", request, servicetest.IMEI)
			}
			fences := servicetest.File(t, `{"type": "Feature", "properties": {"id": "a", "name": "a"}, "geometry":
				{"type": "Polygon", "coordinates": [[[-80, -80], [80, -80], [80, 80], [-80, 80], [-80, -80]]]}}`)
			dep.Ask(0, nil, "geofence", "import", fences)
			// An incident, whose detail is JSON.
			other := *dep
			other.PostgresURL = url
			require.NoError(t, p.Kill())
			next := other.Run(servicetest.FourShards)
			next.AwaitReady()
			dep.Ask(0, nil, "device", "erase", servicetest.IMEI, "--yes", "--reason", "test")
			require.Zero(t, next.Terminate())
			require.NotContains(t, p.Output()+next.Output(), "22P02")
		})
	}
	for _, parameter := range []string{"default_query_exec_mode=exec", "default_query_exec_mode=simple_protocol", "statement_cache_capacity=0"} {
		t.Run(parameter, func(t *testing.T) {
			dep := servicetest.New(t)
			p := dep.Run("POSTGRES_URL=" + dep.PostgresURL + "&" + parameter)
			require.Equal(t, 3, p.Exit(40*time.Second), p.Output())
			require.Contains(t, p.Output()+p.Errors(), parameter)
		})
	}
}
