package main

import (
	"context"
	"encoding/json"
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
	"github.com/trmtracking/processor/loadtest/demo"
	"github.com/trmtracking/processor/loadtest/fleet"
)

func TestKilledInTheMiddleAndStartedAgainNothingIsLostDoubledOrWrong(t *testing.T) {
	pl := newPlace(t)
	load := rally(t, 50, 400*time.Second, 50) // 20,000 records in 8 s
	p := pl.run("INSTANCE_ID=victim")
	p.awaitReady()
	kills := []int64{3000, 8000, 14000} // entries sent
	result := pl.feed(load, func(s demo.Snapshot) {
		if len(kills) > 0 && s.Sent >= kills[0] {
			kills = kills[1:]
			p.signal(syscall.SIGKILL)
			require.Equal(t, -1, p.exit(10*time.Second))
			p = pl.run("INSTANCE_ID=victim")
		}
	})
	require.Empty(t, kills, "it was killed each time")
	pl.requireGood(result)
	require.Zero(t, terminated(p))
}

// The same for a moment, and for every other kind of outage, is in outage_test.go.
func TestPostgresAwayUnderLoadCostsTimeAndNothingElse(t *testing.T) {
	testenv.Full(t)
	t.Parallel()
	const away = 20 * time.Second
	env := testenv.OwnServers(t, devenv.Options{Redis: true, Postgres: true})
	pl := &place{t: t, redisURL: env.Redis.URL(), pgURL: env.Postgres.URL(), stream: "telemetry:teltonika", group: "processor"}
	const maxRecords, maxBytes = 4096, 4 << 20
	p := pl.run(fmt.Sprintf("MAX_IN_FLIGHT_RECORDS=%d", maxRecords), fmt.Sprintf("MAX_IN_FLIGHT_BYTES=%d", maxBytes), "READ_BATCH_RECORDS=1000", "BATCH_MAX_RECORDS=1000")
	p.awaitReady()

	var stopped, back time.Time
	var refused int
	var inFlight, bytes, memory float64
	load := rally(t, 100, time.Duration(20)*(away+6*time.Second), 20) // 2,000 records/s
	result := pl.feed(load, func(s demo.Snapshot) {
		switch {
		case stopped.IsZero() && s.Elapsed > 3*time.Second:
			stopped = time.Now()
			require.NoError(t, env.Postgres.Stop(t.Context()))
		case !stopped.IsZero() && back.IsZero():
			status, r, err := p.readiness()
			require.NoError(t, err)
			if status == http.StatusServiceUnavailable && strings.Contains(strings.Join(r.NotReady, " "), "postgres") {
				refused++
			}
			for name, most := range map[string]*float64{
				"processor_pipeline_in_flight_records": &inFlight,
				"processor_pipeline_in_flight_bytes":   &bytes,
				"process_resident_memory_bytes":        &memory,
			} {
				if v, err := p.metric(name); err == nil {
					*most = max(*most, v)
				}
			}
			if time.Since(stopped) > away {
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
	pl.requireGood(result)
	p.awaitReady()
	require.Zero(t, terminated(p))
	require.Equal(t, 1, strings.Count(p.output(), `"msg":"starting to process"`))
}

func TestRecordsOfRealTrackersPassThroughTheWholeService(t *testing.T) {
	pl := newPlace(t)
	file := testenv.Data(t, "teltonika/fmb_session_records.csv.gz")
	load, err := demo.Input{Tracks: []string{file}, Order: fleet.OrderFile, Speed: 0}.Open()
	require.NoError(t, err)
	require.EqualValues(t, 8994, load.Entries)
	p := pl.run()
	result := pl.feed(load, func(demo.Snapshot) {})
	pl.requireGood(result)
	a := result.Account
	require.EqualValues(t, 8994, a.Entries)
	// The trackers send whole batches again until they are acknowledged.
	require.GreaterOrEqual(t, a.Duplicates, int64(1360))
	require.Equal(t, a.Entries-result.Invalid, a.Stored+a.Duplicates)
	require.Zero(t, terminated(p))
}

// The drain cannot end while a lock holds the commit up; a second signal does
// not wait for it.
func TestASecondSignalEndsTheProcessAtOnce(t *testing.T) {
	pl := newPlace(t)
	p := pl.run()
	p.awaitReady()
	conn, err := pgx.Connect(t.Context(), pl.pgURL)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "begin; lock table positions in access exclusive mode")
	require.NoError(t, err)
	pl.publish(good("device-1", 1))
	testenv.Wait(t, 10*time.Second, func() error {
		if n, err := p.metric("processor_pipeline_in_flight_records"); err != nil || n == 0 {
			return fmt.Errorf("nothing in flight: %w", err)
		}
		return nil
	})
	p.signal(syscall.SIGTERM)
	p.await(`"msg":"leaving the fleet"`)
	status, r, err := p.readiness()
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Contains(t, r.NotReady, "shutdown")
	_, err = p.metric("processor_pipeline_in_flight_records")
	require.NoError(t, err, "metrics are there to the end")
	p.signal(syscall.SIGINT)
	require.Equal(t, exitFinding, p.exit(2*time.Second))
}

func TestRunHelpListsEveryVariable(t *testing.T) {
	code, help, _ := call("run", "--help")
	require.Equal(t, exitClean, code)
	for _, name := range []string{"REDIS_URL", "POSTGRES_URL", "DRAIN_TIMEOUT", "SHARDS", "PANIC_DUMP_DIR"} {
		require.Contains(t, help, "  "+name+" (")
	}
}

func TestAWrongNameOfTheStreamIsSaidAloud(t *testing.T) {
	pl := newPlace(t)
	pl.publish(good("device-1", 1))
	other := *pl
	// The platform's streams begin with telemetry:, and this one has entries.
	other.stream = "telemetry:" + pl.stream
	other.publish(good("device-1", 1))
	wrong := *pl
	wrong.stream = pl.stream + ":typo"
	p := wrong.run()
	p.await(`is REDIS_TELEMETRY_STREAM the right one?`)
	require.Contains(t, p.output(), other.stream+" (1)")
	require.Zero(t, terminated(p))
}

func TestLagSaysWhatIsUndoneAndHowOldItIs(t *testing.T) {
	pl := newPlace(t)
	lag := func() lagJSON {
		p := spawn(t, pl.environ(), "lag", "--json")
		require.Zero(t, p.exit(20*time.Second), p.errors())
		var l lagJSON
		require.NoError(t, json.Unmarshal([]byte(p.output()), &l))
		return l
	}
	l := lag()
	require.False(t, l.StreamExists)
	require.Nil(t, l.OldestEntry)
	pl.publish(good("device-1", 1), good("device-1", 2), good("device-1", 3))
	l = lag()
	require.True(t, l.StreamExists)
	require.False(t, l.GroupExists)
	require.EqualValues(t, 3, *l.Lag)
	require.NotNil(t, l.OldestEntry)
	require.Less(t, *l.OldestAgeSeconds, 60.0)

	p := pl.run()
	testenv.Wait(t, 20*time.Second, func() error {
		if l = lag(); l.Undone == nil || *l.Undone != 0 {
			return fmt.Errorf("want nothing undone, have %+v", l)
		}
		return nil
	})
	require.True(t, l.OldestKnown)
	require.Zero(t, *l.Deferred)
	require.Zero(t, *l.Lost)
	require.Nil(t, l.OldestEntry)

	text := spawn(t, pl.environ(), "lag")
	require.Zero(t, text.exit(20*time.Second))
	require.Regexp(t, `undone +0\n`, text.output())
	alone := spawn(t, append(pl.environ(), "POSTGRES_URL="), "lag")
	require.Zero(t, alone.exit(20*time.Second))
	require.Regexp(t, `lag +0\n`, alone.output())
	require.Regexp(t, `undone +unknown\n`, alone.output(), "never 0 for want of knowing")
	require.Zero(t, terminated(p))
}
