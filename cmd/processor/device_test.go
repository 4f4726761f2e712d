package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/loadtest/fleet"
)

const squareFence = `{"type":"FeatureCollection","features":[
	{"type":"Feature","id":"yard","properties":{"name":"the yard"},"geometry":{"type":"Polygon","coordinates":[[[11.0,48.0],[11.1,48.0],[11.1,48.1],[11.0,48.1],[11.0,48.0]]]}},
	{"type":"Feature","id":"bow tie","geometry":{"type":"Polygon","coordinates":[[[11,48],[12,49],[12,48],[11,49],[11,48]]]}},
	{"type":"Feature","id":"nothing","geometry":{"type":"Polygon","coordinates":[]}},
	{"type":"Feature","id":"swapped","properties":{"kind":"gate"},"geometry":{"type":"LineString","coordinates":[[48.1,111.5],[48.2,111.6]]}},
	{"type":"Feature","id":"yard","geometry":{"type":"Point","coordinates":[11,48]},"properties":{"radius_m":10}}
]}`

// triesFences tries fences over the drive through the yard, with the numbers that
// follow from the drawing.
func triesFences(t *testing.T, dep *servicetest.Deployment, device string, begin time.Time) {
	t.Helper()
	yard := func(west, east float64) string {
		return fmt.Sprintf(`{"type":"Feature","id":"yard","properties":{},"geometry":{"type":"Polygon","coordinates":[[[%[1]v,48],[%[2]v,48],[%[2]v,48.1],[%[1]v,48.1],[%[1]v,48]]]}}`, west, east)
	}
	const gate = `{"type":"Feature","id":"gate","properties":{"kind":"gate"},"geometry":{"type":"LineString","coordinates":[[11.2,48.1],[11.2,48]]}}`
	since := begin.Format(time.RFC3339)
	try := func(code int, features string, args ...string) (r operator.FenceTrial) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "try.geojson")
		require.NoError(t, os.WriteFile(file, []byte(`{"type":"FeatureCollection","features":[`+features+`]}`), 0o600))
		args = append([]string{"geofence", "try", file}, args...)
		if code == fault.Config {
			require.Contains(t, dep.Ask(code, nil, args...), "exchange --since and --until")
			return r
		}
		dep.Ask(code, &r, args...)
		return r
	}
	count := func(recorded, would, added, removed, changed int64) store.FenceTrialCount {
		return store.FenceTrialCount{Recorded: recorded, Would: would, Added: added, Removed: removed, Changed: changed}
	}
	r := try(fault.Clean, yard(11, 11.1), "--since", since)
	require.Equal(t, count(2, 2, 0, 0, 0), r.FenceTrialCount, "what is in force")
	require.Equal(t, int64(5), r.Positions)
	require.Equal(t, 1, r.Devices)
	r = try(fault.Clean, yard(11.02, 11.08)+","+gate, "--since", since)
	require.Equal(t, count(2, 3, 1, 0, 2), r.FenceTrialCount)
	require.Equal(t, []store.FenceTrialOf{{Fence: "gate", FenceTrialCount: count(0, 1, 1, 0, 0)}, {Fence: "yard", FenceTrialCount: count(2, 2, 0, 0, 2)}}, r.Fences)
	require.Len(t, r.Examples, 3)
	require.Equal(t, begin.Add(90*time.Second), r.Examples[0].Want.UTC(), "half of the way from 10.98 to 11.06 at 11.02")
	require.Equal(t, count(2, 0, 0, 2, 0), try(fault.Clean, yard(12, 13), "--since", since).FenceTrialCount)
	// A window that begins inside knows the fix before it.
	late := begin.Add(2 * time.Minute).Format(time.RFC3339)
	require.Equal(t, count(2, 2, 0, 0, 0), try(fault.Clean, yard(11, 11.1), "--since", late).FenceTrialCount)
	require.Equal(t, count(1, 1, 0, 0, 1), try(fault.Clean, yard(11, 11.08), "--since", begin.Add(2*time.Minute+time.Second).Format(time.RFC3339), "--device", device).FenceTrialCount)
	require.Equal(t, count(0, 1, 1, 0, 0), try(fault.Clean, yard(10.8, 10.81)+","+strings.Replace(yard(10.8, 10.91), "yard", "home", 1), "--since", since, "--until", begin.Add(time.Second).Format(time.RFC3339)).FenceTrialCount, "the first fix of all")
	require.Zero(t, try(fault.Clean, yard(11, 11.1), "--since", since, "--device", "nobody").Positions)
	try(fault.Config, yard(11, 11.1), "--since", late, "--until", since)
	require.Equal(t, []string{`feature 2: has no id`}, try(fault.Finding, gate+`,{"type":"Feature","properties":{},"geometry":null}`, "--since", since).Skipped)
}

func TestOperatorsManageFencesAndDevices(t *testing.T) {
	dep := servicetest.New(t)
	device := fleet.DeviceID(1)
	require.Contains(t, dep.Ask(fault.Finding, nil, "device", "show", device), "no instance has ever started")
	p := dep.Run()
	p.AwaitReady()

	// Of a device that nobody knows nothing is asked for.
	for _, kind := range []string{"rehydrate", "recompute"} {
		require.Contains(t, dep.Ask(fault.Finding, nil, "device", kind, "nobody"), "unknown device nobody: nothing is stored of it; check the ID,")
	}
	var status store.RequestStatus
	require.Contains(t, dep.Ask(fault.Finding, &status, "device", "erase", "nobody", "--yes"), "unknown device nobody: nothing was stored of it")
	require.Equal(t, "done", status.State, "it is noted all the same")
	require.Contains(t, dep.Ask(fault.Finding, nil, "device", "verify", "nobody"), "unknown device nobody: nothing is stored of it; check the ID,")
	require.Contains(t, dep.Ask(fault.Finding, nil, "device", "show", "nosuch"), "unknown device nosuch: nothing is known of it; check the ID")
	nosuch := servicetest.Spawn(t, dep.Environ(), "device", "show", "nosuch")
	require.Equal(t, fault.Finding, nosuch.Exit(20*time.Second))
	require.Empty(t, nosuch.Output(), "no table of zeros")

	// Fences: what is invalid is named and skipped, the rest holds.
	file := filepath.Join(t.TempDir(), "fences.geojson")
	require.NoError(t, os.WriteFile(file, []byte(squareFence), 0o600))
	var imported operator.FenceImport
	dep.Ask(fault.Finding, &imported, "geofence", "check", file)
	require.Equal(t, 1, imported.Good)
	require.Len(t, imported.Skipped, 4)
	for i, name := range []string{"bow tie", "nothing", "swapped", "yard"} {
		require.Contains(t, strings.Join(imported.Skipped, "\n"), name, i)
	}
	dep.Ask(fault.Finding, &imported, "geofence", "import", file)
	require.Equal(t, 1, imported.Added)
	require.Contains(t, dep.Ask(fault.Finding, nil, "geofence", "import", "--replace", file), "nothing was changed")
	var list operator.Fences
	dep.Ask(fault.Clean, &list, "geofence", "list")
	require.Len(t, list.Fences, 1)
	require.Equal(t, "the yard", list.Fences[0].Name)
	dep.Ask(fault.Clean, nil, "geofence", "check")
	exported := servicetest.Spawn(t, dep.Environ(), "geofence", "export")
	require.Zero(t, exported.Exit(20*time.Second))
	require.NoError(t, os.WriteFile(file, []byte(exported.Output()), 0o600))
	dep.Ask(fault.Clean, &imported, "geofence", "import", "--replace", file)
	require.Equal(t, 1, imported.Same)
	require.Zero(t, imported.Added+imported.Closed)

	// A device that drives through the yard.
	client, err := stream.Connect(stream.Config{URL: dep.RedisURL, Timeout: 5 * time.Second})
	require.NoError(t, err)
	defer client.Close()
	pub := fleet.NewPublisher(client, dep.Stream, 0)
	begin := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var entries [][]string
	for i := range 5 {
		entries = append(entries, fleet.EntryFields(&fleet.Message{
			DeviceID: device, Codec: "8", Time: begin.Add(time.Duration(i) * time.Minute), Latitude: 48.05, Longitude: 10.9 + float64(i)*0.08, Satellites: 9,
		}))
	}
	_, err = pub.Publish(t.Context(), entries)
	require.NoError(t, err)
	dep.AwaitStored(5, 20*time.Second) // until then the device may be unknown
	var shown operator.Device
	testenv.Wait(t, 20*time.Second, func() error {
		dep.Ask(fault.Clean, &shown, "device", "show", device)
		if len(shown.Recent) != 5 || shown.Pending == nil || *shown.Pending != 0 {
			return fmt.Errorf("want 5 positions and nothing pending: %+v", shown)
		}
		return nil
	})
	require.NotNil(t, shown.Owner)
	require.Equal(t, "exit", shown.Fences[0].Kind)
	require.Zero(t, *shown.Undispatched)
	require.False(t, shown.AtLeast)
	require.Zero(t, *shown.DeadLetters)

	triesFences(t, dep, device, begin)

	// Why a crossing is there: the way from 11.06 to 11.14 leaves at 11.1. An entry sent
	// again is a duplicate.
	_, err = pub.Publish(t.Context(), entries[3:4])
	require.NoError(t, err)
	var explained operator.Explanation
	testenv.Wait(t, 20*time.Second, func() error {
		dep.Ask(fault.Clean, &explained, "device", "explain", device, "yard")
		if n := len(explained.Entries); n != 6 || explained.Entries[n-1].State != "duplicate" {
			return fmt.Errorf("want a duplicate: %+v", explained.Entries)
		}
		return nil
	})
	require.True(t, explained.Agree)
	require.Equal(t, begin.Add(2*time.Minute), explained.Earlier.UTC())
	require.Equal(t, begin.Add(3*time.Minute), explained.Later.UTC())
	require.Equal(t, begin.Add(150*time.Second), explained.Crossings[0].At.UTC())
	require.Equal(t, "row", explained.Entries[0].State)
	require.NotNil(t, explained.Owner)
	text := servicetest.Spawn(t, dep.Environ(), "device", "explain", device, "yard", begin.Add(150*time.Second).Format(time.RFC3339))
	require.Zero(t, text.Exit(20*time.Second))
	require.Regexp(t, `recorded +exit at 2026-03-01T12:02:30.000Z, version 1, interpolated within 30s over 5947 m at 357 km/h, revision 1`, text.Output())
	require.Regexp(t, `12:03:00.000Z .* outside +later fix +\d+-\d+, \d+-\d+ duplicate`, text.Output())
	require.Contains(t, dep.Ask(fault.Finding, nil, "device", "explain", device, "garden", "2026-03-01T12:00:00Z"), "unknown fence garden")
	require.Contains(t, dep.Ask(fault.Finding, nil, "device", "explain", device, "garden"), "no crossing of that fence")
	require.Contains(t, dep.Ask(fault.Finding, nil, "device", "explain", "nobody", "yard"), "unknown device nobody")
	require.Contains(t, dep.Ask(fault.Config, nil, "device", "explain", device, "yard", "noon"), "want 2026-08-01T10:00:00Z")

	// A row that an operator marks is ignored from the recompute on.
	var verified store.Verification
	dep.Ask(fault.Clean, &verified, "device", "verify", device)
	require.Equal(t, int64(2), verified.Crossings)
	require.Equal(t, 1, verified.Fences)
	dep.Exec("update public.positions set faulty = true where device_id = $1 and ts = $2", device, begin.Add(4*time.Minute))
	dep.Exec("update public.positions set faulty = true where device_id = $1 and ts = $2", device, begin.Add(3*time.Minute))
	dep.Ask(fault.Finding, &verified, "device", "verify", device)
	require.Len(t, verified.Extra, 1)
	dep.Ask(fault.Finding, &explained, "device", "explain", device, "yard", begin.Add(150*time.Second).Format(time.RFC3339))
	require.Empty(t, explained.Derived, "no fix outside is left")
	require.Equal(t, "faulty", explained.Fixes[3].Why)
	dep.Ask(fault.Clean, &status, "device", "recompute", device, "--from", "2026-03-01T12:02:00Z", "--reason", "test")
	require.Equal(t, "done", status.State)
	require.Equal(t, int64(1), status.Progress.Changed)
	dep.Ask(fault.Clean, &verified, "device", "verify", device)

	// The same by the command, which asks for the recompute itself.
	var marked store.Marked
	flag := func(args ...string) {
		t.Helper()
		dep.Ask(fault.Clean, &marked, append([]string{"device", "faulty", device, "--from", "2026-03-01T12:03:00Z", "--to", "2026-03-01T12:04:00Z"}, args...)...)
	}
	flag("--take-back", "--dry-run")
	require.Equal(t, int64(2), marked.Positions)
	require.Nil(t, marked.Request)
	flag("--take-back", "--reason", "they were right")
	require.Equal(t, int64(2), marked.Positions)
	require.Equal(t, "done", marked.Request.State)
	dep.Ask(fault.Clean, &verified, "device", "verify", device)
	require.Equal(t, int64(2), verified.Crossings)
	flag("--dry-run")
	require.Equal(t, begin.Add(3*time.Minute), marked.First.UTC())
	require.Equal(t, begin.Add(4*time.Minute), marked.Last.UTC())
	require.Equal(t, int64(1), marked.Crossings)
	flag("--reason", "antenna loose")
	require.Equal(t, int64(1), marked.Request.Progress.Changed)
	dep.Ask(fault.Clean, &verified, "device", "verify", device)
	require.Equal(t, int64(1), verified.Crossings)
	flag()
	require.Zero(t, marked.Positions)
	require.Nil(t, marked.Request)
	n, err := dep.Count("select count(*) from processor.audit where action in ('faulty', 'faulty taken back') and count = 2")
	require.NoError(t, err)
	require.Equal(t, 2, n, "a dry run and a change of nothing leave no row")
	require.Contains(t, dep.Ask(fault.Config, nil, "device", "faulty", device, "--from", "2026-03-01T12:03:00Z"), "of the last position")
	require.Contains(t, dep.Ask(fault.Finding, nil, "device", "faulty", "nobody", "--from", "2026-03-01T12:03:00Z", "--to", "2026-03-01T12:03:00Z"), "unknown device")

	// Rehydration shows what was in memory and what is.
	dep.Ask(fault.Clean, &status, "device", "rehydrate", device)
	require.Contains(t, string(status.Result), `"inside":["yard"]`)
	require.Contains(t, string(status.Result), `"before"`)
	dep.Ask(fault.Config, nil, "device", "recompute", device, "--from", "2026-03-02T00:00:00Z", "--to", "2026-03-01T00:00:00Z")
	dep.Ask(fault.Config, nil, "device", "recompute", device, "--from", "2006-03-02T00:00:00Z", "--to", "2026-03-01T00:00:00Z")
	require.Contains(t, dep.Ask(fault.Config, nil, "device", "recompute", device, "--from", "yesterday"), "--from")

	// Without an owner a request waits, and the command does not.
	require.Zero(t, p.Terminate())
	dep.Ask(fault.Finding, &status, "device", "rehydrate", device, "--timeout", "3s")
	require.Equal(t, "waiting", status.State)
	dep.Ask(fault.Clean, &status, "device", "rehydrate", device, "--no-wait")
	require.Equal(t, "waiting", status.State)
	p = dep.Run()
	p.AwaitReady()

	// Nothing is left of a device that is erased, except the audit.
	dep.Ask(fault.Config, nil, "device", "erase", device)
	dep.Ask(fault.Clean, &status, "device", "erase", device, "--yes")
	require.Equal(t, int64(6), status.Progress.Removed)
	dep.Ask(fault.Clean, &shown, "device", "show", device)
	require.Empty(t, shown.Recent)
	require.Empty(t, shown.Fences)
	require.Len(t, shown.Requests, 5)
	text = servicetest.Spawn(t, dep.Environ(), "device", "show", device)
	require.Zero(t, text.Exit(20*time.Second))
	require.Contains(t, text.Output(), "none eligible")
	require.Zero(t, p.Terminate())
}

// A verification that skips a fence says so, in text and as JSON.
func TestAVerificationThatSkipsAFenceIsPartial(t *testing.T) {
	t.Parallel()
	v := store.Verification{Device: "d", Fences: 2, Positions: 9, Crossings: 4}
	read := func(asJSON bool) (code int, text string) {
		var out bytes.Buffer
		code = fault.ExitCode(verified(cli.New(&out, asJSON), &v))
		return code, out.String()
	}
	code, text := read(false)
	require.Equal(t, fault.Clean, code)
	require.Contains(t, text, "ok: 9 positions, 4 crossings correct")
	v.Skipped = []store.SkippedFence{{Fence: "odd", Reason: "fence odd is odd", Recorded: 3}}
	for _, asJSON := range []bool{false, true} {
		code, text = read(asJSON)
		require.Equal(t, fault.Finding, code)
		require.Contains(t, text, "fence odd is odd")
		require.Equal(t, !asJSON, strings.Contains(text, "partial: 9 positions, 4 crossings correct"), text)
	}
	v.Extra = []store.Difference{{Fence: "yard"}}
	code, text = read(false)
	require.Equal(t, fault.Finding, code)
	require.Contains(t, text, "differs: 9 positions")
}

func TestARequestThatIsNotDoneExits1(t *testing.T) {
	a := asking{timeout: time.Second}
	for state, want := range map[string]string{"done": "", "failed": "request 7 failed", "cancelled": "request 7 was cancelled", "running": "not done after 1s"} {
		err := a.over("d", store.RequestStatus{ID: 7, State: state})
		if want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, want)
		require.Equal(t, fault.Finding, fault.ExitCode(err), state)
	}
}
