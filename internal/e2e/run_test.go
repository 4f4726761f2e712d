package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/demo"
	"github.com/trmtracking/processor/loadtest/fleet"
)

func TestKilledInTheMiddleAndStartedAgainNothingIsLostDoubledOrWrong(t *testing.T) {
	dep := servicetest.New(t)
	load := rally(t, 50, 400*time.Second, 50) // 20,000 records in 8 s
	p := dep.Run("INSTANCE_ID=victim")
	p.AwaitReady()
	kills := []int64{3000, 8000, 14000} // entries sent
	result := feed(dep, load, func(s demo.Snapshot) {
		if len(kills) > 0 && s.Sent >= kills[0] {
			kills = kills[1:]
			p.Signal(syscall.SIGKILL)
			require.Equal(t, -1, p.Exit(40*time.Second))
			p = dep.Run("INSTANCE_ID=victim")
		}
	})
	require.Empty(t, kills, "it was killed each time")
	requireGood(dep, result)
	require.Zero(t, p.Terminate())
}

// The same for a moment, and for every other kind of outage, is in outage_test.go.
func TestPostgresAwayUnderLoadCostsTimeAndNothingElse(t *testing.T) {
	testenv.Full(t)
	t.Parallel()
	const away = 20 * time.Second
	env := testenv.OwnServers(t, devenv.Options{Redis: true, Postgres: true})
	dep := &servicetest.Deployment{T: t, RedisURL: env.Redis.URL(), PostgresURL: env.Postgres.URL(), Stream: "telemetry:teltonika", Group: "processor"}
	const maxRecords, maxBytes = 4096, 4 << 20
	p := dep.Run(fmt.Sprintf("MAX_IN_FLIGHT_RECORDS=%d", maxRecords), fmt.Sprintf("MAX_IN_FLIGHT_BYTES=%d", maxBytes), "READ_BATCH_RECORDS=1000", "BATCH_MAX_RECORDS=1000")
	p.AwaitReady()

	var stopped, back time.Time
	var refused int
	var inFlight, bytes, memory float64
	load := rally(t, 100, time.Duration(20)*(away+6*time.Second), 20) // 2,000 records/s
	result := feed(dep, load, func(s demo.Snapshot) {
		switch {
		case stopped.IsZero() && s.Elapsed > 3*time.Second:
			stopped = time.Now()
			require.NoError(t, env.Postgres.Stop(t.Context()))
		case !stopped.IsZero() && back.IsZero():
			status, r, err := p.Readiness()
			require.NoError(t, err)
			if status == http.StatusServiceUnavailable && strings.Contains(strings.Join(r.NotReady, " "), "postgres") {
				refused++
			}
			for name, most := range map[string]*float64{
				"processor_pipeline_in_flight_records": &inFlight,
				"processor_pipeline_in_flight_bytes":   &bytes,
				"process_resident_memory_bytes":        &memory,
			} {
				if v, err := p.Metric(name); err == nil {
					*most = max(*most, v)
				}
			}
			if refused > 0 && time.Since(stopped) > away {
				require.NoError(t, env.Postgres.Start(t.Context()))
				back = time.Now()
			}
		}
	})
	require.False(t, back.IsZero())
	t.Logf("away %s, done %s after it was back; in flight at most %.0f records, %.0f bytes, %.0f MB resident",
		back.Sub(stopped).Round(time.Millisecond), time.Since(back).Round(time.Millisecond), inFlight, bytes, memory/1e6)
	require.Positive(t, refused, "readiness said 503 and named postgres")
	require.Positive(t, inFlight)
	require.LessOrEqual(t, inFlight, float64(maxRecords))
	require.LessOrEqual(t, bytes, float64(2*maxBytes), "the bound and one reply")
	require.Less(t, memory, 512e6)
	requireGood(dep, result)
	p.AwaitReady()
	require.Zero(t, p.Terminate())
	require.Equal(t, 1, strings.Count(p.Output(), `"msg":"starting to process"`))
}

func TestRecordsOfRealTrackersPassThroughTheWholeService(t *testing.T) {
	testenv.SkipIn(t, devenv.Hypertable, "its chunks of 20 s are thousands for logs of years")
	dep := servicetest.New(t)
	file := testenv.Data(t, "teltonika/fmb_session_records.csv.gz")
	load, err := demo.Input{Tracks: []string{file}, Order: fleet.OrderFile, Speed: 0}.Open()
	require.NoError(t, err)
	require.EqualValues(t, 8994, load.Entries)
	p := dep.Run()
	result := feed(dep, load, func(demo.Snapshot) {})
	requireGood(dep, result)
	a := result.Account
	require.EqualValues(t, 8994, a.Entries)
	// The trackers send whole batches again until they are acknowledged.
	require.GreaterOrEqual(t, a.Duplicates, int64(1360))
	require.Equal(t, a.Entries-result.Invalid, a.Stored+a.Duplicates)
	require.Zero(t, p.Terminate())
}

// The drain cannot end while a lock holds the commit up; a second signal does
// not wait for it.
func TestASecondSignalEndsTheProcessAtOnce(t *testing.T) {
	dep := servicetest.New(t)
	p := dep.Run()
	p.AwaitReady()
	conn, err := pgx.Connect(t.Context(), dep.PostgresURL)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "begin; lock table positions in access exclusive mode")
	require.NoError(t, err)
	dep.Publish(servicetest.Record("device-1", 1))
	testenv.Wait(t, 10*time.Second, func() error {
		if n, err := p.Metric("processor_pipeline_in_flight_records"); err != nil || n == 0 {
			return fmt.Errorf("nothing in flight: %w", err)
		}
		return nil
	})
	p.Signal(syscall.SIGTERM)
	p.Await(`"msg":"leaving fleet"`)
	status, r, err := p.Readiness()
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Contains(t, r.NotReady, "shutdown")
	_, err = p.Metric("processor_pipeline_in_flight_records")
	require.NoError(t, err, "metrics are there to the end")
	p.Signal(syscall.SIGINT)
	require.Equal(t, 1, p.Exit(10*time.Second), "DRAIN_TIMEOUT is 20s")
}

func TestAWrongNameOfTheStreamIsSaidAloud(t *testing.T) {
	dep := servicetest.New(t)
	dep.Publish(servicetest.Record("device-1", 1))
	other := *dep
	// The platform's streams begin with telemetry:, and this one has entries.
	other.Stream = "telemetry:" + dep.Stream
	other.Publish(servicetest.Record("device-1", 1))
	wrong := *dep
	wrong.Stream = dep.Stream + ":typo"
	p := wrong.Run()
	p.Await(`check REDIS_TELEMETRY_STREAM`)
	p.Await(other.Stream + " (1)")
	require.Zero(t, p.Terminate())
}
