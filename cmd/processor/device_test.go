package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

const squareFence = `{"type":"FeatureCollection","features":[
	{"type":"Feature","id":"yard","properties":{"name":"the yard"},"geometry":{"type":"Polygon","coordinates":[[[11.0,48.0],[11.1,48.0],[11.1,48.1],[11.0,48.1],[11.0,48.0]]]}},
	{"type":"Feature","id":"bow tie","geometry":{"type":"Polygon","coordinates":[[[11,48],[12,49],[12,48],[11,49],[11,48]]]}},
	{"type":"Feature","id":"nothing","geometry":{"type":"Polygon","coordinates":[]}},
	{"type":"Feature","id":"swapped","geometry":{"type":"LineString","coordinates":[[48.1,111.5],[48.2,111.6]]}},
	{"type":"Feature","id":"yard","geometry":{"type":"Point","coordinates":[11,48]},"properties":{"radius_m":10}}
]}`

// ask runs a command of an operator and decodes its JSON.
func (pl *place) ask(want int, into any, args ...string) string {
	pl.t.Helper()
	p := spawn(pl.t, pl.environ(), append(args, "--json")...)
	require.Equal(pl.t, want, p.exit(30*time.Second), "%v: %s", args, p.errors())
	if into != nil {
		require.NoError(pl.t, json.Unmarshal([]byte(p.output()), into), p.output())
	}
	return p.errors()
}

func (pl *place) sql(sql string, args ...any) {
	pl.t.Helper()
	conn, err := pgx.Connect(pl.t.Context(), pl.pgURL)
	require.NoError(pl.t, err)
	defer func() { _ = conn.Close(pl.t.Context()) }()
	_, err = conn.Exec(pl.t.Context(), sql, args...)
	require.NoError(pl.t, err)
}

func TestOperatorsLookAfterFencesAndDevices(t *testing.T) {
	pl := newPlace(t)
	device := fleet.DeviceID(1)
	require.Contains(t, pl.ask(exitFinding, nil, "device", "show", device), "no instance has ever started")
	p := pl.run()
	p.awaitReady()

	// Of a device that nobody knows nothing is asked for.
	for _, kind := range []string{"rehydrate", "recompute"} {
		require.Contains(t, pl.ask(exitFinding, nil, "device", kind, "nobody"), "nothing is stored of device nobody; is the ID right?")
	}
	var status store.RequestStatus
	require.Contains(t, pl.ask(exitFinding, &status, "device", "erase", "nobody", "--yes"), "nothing was stored of device nobody")
	require.Equal(t, "done", status.State, "it is noted all the same")
	require.Contains(t, pl.ask(exitFinding, nil, "device", "verify", "nobody"), "nothing is stored of device nobody; is the ID right?")
	require.Contains(t, pl.ask(exitFinding, nil, "device", "show", "nosuch"), "nothing is known of device nosuch; is the ID right?")
	nosuch := spawn(t, pl.environ(), "device", "show", "nosuch")
	require.Equal(t, exitFinding, nosuch.exit(20*time.Second))
	require.Empty(t, nosuch.output(), "no table of zeros")

	// Fences: what is no good is named and skipped, the rest holds.
	file := filepath.Join(t.TempDir(), "fences.geojson")
	require.NoError(t, os.WriteFile(file, []byte(squareFence), 0o600))
	var imported fencesImported
	pl.ask(exitFinding, &imported, "geofence", "check", file)
	require.Equal(t, 1, imported.Good)
	require.Len(t, imported.Skipped, 4)
	for i, name := range []string{"bow tie", "nothing", "swapped", "yard"} {
		require.Contains(t, strings.Join(imported.Skipped, "\n"), name, i)
	}
	pl.ask(exitFinding, &imported, "geofence", "import", file)
	require.Equal(t, 1, imported.Added)
	require.Contains(t, pl.ask(exitFinding, nil, "geofence", "import", "--replace", file), "nothing was changed")
	var list fencesListed
	pl.ask(exitClean, &list, "geofence", "list")
	require.Len(t, list.Fences, 1)
	require.Equal(t, "the yard", list.Fences[0].Name)
	pl.ask(exitClean, nil, "geofence", "check")

	// A device that drives through the yard.
	client, err := stream.Connect(stream.Config{URL: pl.redisURL, Timeout: 5 * time.Second})
	require.NoError(t, err)
	defer client.Close()
	pub := stream.NewPublisher(client, pl.stream, 0)
	begin := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var entries [][]string
	for i := range 5 {
		entries = append(entries, telemetry.EntryFields(&telemetry.Message{
			DeviceID: device, Codec: "8", Time: begin.Add(time.Duration(i) * time.Minute), Latitude: 48.05, Longitude: 10.9 + float64(i)*0.08, Satellites: 9,
		}))
	}
	_, err = pub.Publish(t.Context(), entries)
	require.NoError(t, err)
	var shown deviceShown
	testenv.Wait(t, 20*time.Second, func() error {
		pl.ask(exitClean, &shown, "device", "show", device)
		if len(shown.Recent) != 5 || shown.Pending == nil || *shown.Pending != 0 {
			return fmt.Errorf("want 5 positions and nothing pending: %+v", shown)
		}
		return nil
	})
	require.NotNil(t, shown.Owner)
	require.Equal(t, "exit", shown.Fences[0].Kind)
	require.Zero(t, *shown.Undealt)
	require.False(t, shown.AtLeast)
	require.Zero(t, *shown.DeadLetters)

	// A row that an operator marks is ignored from the recompute on.
	var verified store.Verification
	pl.ask(exitClean, &verified, "device", "verify", device)
	require.Equal(t, int64(2), verified.Crossings)
	require.Equal(t, 1, verified.Fences)
	pl.sql("update public.positions set faulty = true where device_id = $1 and ts = $2", device, begin.Add(4*time.Minute))
	pl.sql("update public.positions set faulty = true where device_id = $1 and ts = $2", device, begin.Add(3*time.Minute))
	pl.ask(exitFinding, &verified, "device", "verify", device)
	require.Len(t, verified.Extra, 1)
	pl.ask(exitClean, &status, "device", "recompute", device, "--from", "2026-03-01T12:02:00Z", "--reason", "test")
	require.Equal(t, "done", status.State)
	require.Equal(t, int64(1), status.Progress.Changed)
	pl.ask(exitClean, &verified, "device", "verify", device)

	// Rehydration shows what was in memory and what is.
	pl.ask(exitClean, &status, "device", "rehydrate", device)
	require.Contains(t, string(status.Result), `"inside":["yard"]`)
	require.Contains(t, string(status.Result), `"before"`)
	pl.ask(exitConfig, nil, "device", "recompute", device, "--from", "2026-03-02T00:00:00Z", "--to", "2026-03-01T00:00:00Z")
	pl.ask(exitConfig, nil, "device", "recompute", device, "--from", "2006-03-02T00:00:00Z", "--to", "2026-03-01T00:00:00Z")
	require.Contains(t, pl.ask(exitConfig, nil, "device", "recompute", device, "--from", "yesterday"), "--from")

	// Without an owner a request waits, and the command does not.
	require.Zero(t, terminated(p))
	pl.ask(exitFinding, &status, "device", "rehydrate", device, "--timeout", "300ms")
	require.Equal(t, "waiting", status.State)
	pl.ask(exitClean, &status, "device", "rehydrate", device, "--no-wait")
	require.Equal(t, "waiting", status.State)
	p = pl.run()
	p.awaitReady()

	// Nothing is left of a device that is erased, except the audit.
	pl.ask(exitConfig, nil, "device", "erase", device)
	pl.ask(exitClean, &status, "device", "erase", device, "--yes")
	require.Equal(t, int64(6), status.Progress.Removed)
	pl.ask(exitClean, &shown, "device", "show", device)
	require.Empty(t, shown.Recent)
	require.Empty(t, shown.Fences)
	require.Len(t, shown.Requests, 5)
	text := spawn(t, pl.environ(), "device", "show", device)
	require.Zero(t, text.exit(20*time.Second))
	require.Contains(t, text.output(), "none that takes part in state")
	require.Zero(t, terminated(p))
}
