package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("STARTS_AN_INSTANCE_IN"); dir != "" {
		d := demoInstance{name: "one"}
		if err := d.start(filepath.Join(dir, "processor"), dir, nil); err != nil {
			panic(err)
		}
		<-d.exited
	}
	servicetest.Main(m, func() int { return run(os.Args[1:], os.Stdout, os.Stderr) })
}

// track writes a small recorded track: three devices, one row twice, one row of
// 1901, which is no valid record.
func track(t *testing.T) string {
	t.Helper()
	rows := []string{"device_id,ts,latitude,longitude,altitude,angle,speed_kmh,satellites"}
	for second := range 50 {
		for _, device := range []string{"a", "b", "c"} {
			at := time.Date(2026, 1, 2, 3, 4, second, 0, time.UTC).Format(time.RFC3339)
			rows = append(rows, device+","+at+",48.1,11.5,,90,,")
		}
	}
	rows = append(rows, rows[1], "a,1901-12-13T20:45:52.207Z,48.1,11.5,,,,")
	file := filepath.Join(t.TempDir(), "track.csv")
	require.NoError(t, os.WriteFile(file, []byte(strings.Join(rows, "\n")+"\n"), 0o644))
	return file
}

func TestDemoEndsWithAnAccountThatBalances(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers; not in short mode")
	}
	// Servers in use elsewhere are none of its business.
	p := servicetest.Spawn(t, []string{"REDIS_URL=redis://production:6379", "POSTGRES_URL=postgres://production/trm", "DATA="},
		"demo", "--once", "--json", "--speed", "0", "--order", "file", "--tracks", track(t))
	require.Zero(t, p.Exit(time.Minute))
	lines := strings.Split(strings.TrimSpace(p.Output()), "\n")
	require.Len(t, lines, 1, "the account is all that goes to standard output")
	var names map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &names))
	require.Equal(t, []string{
		"balanced", "dead_lettered", "duplicates", "entries", "invalid", "latency_ms", "lost", "mismatches", "pending", "per_second", "seconds", "stored",
	}, slices.Sorted(maps.Keys(names)))
	require.Regexp(t, `^\d+(\.\d{1,3})?$`, string(names["seconds"]))
	var account accountJSON
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &account))
	require.EqualValues(t, 152, account.Entries)
	require.EqualValues(t, 150, account.Stored)
	require.EqualValues(t, 1, account.Duplicates)
	require.EqualValues(t, 1, account.DeadLettered+account.Pending, "the row of 1901")
	require.EqualValues(t, 1, account.Invalid)
	require.Zero(t, account.Lost+account.Mismatches)
	require.True(t, account.Balanced)
	require.Positive(t, account.Latency.P50)
	require.GreaterOrEqual(t, account.Latency.P99, account.Latency.P50)
	require.Regexp(t, `stored 150 .* duplicates 1 `, p.Errors())
	require.Contains(t, p.Errors(), "152 entries of 3 devices")
}

func TestDemoStaysUpUntilItIsStopped(t *testing.T) {
	t.Parallel()
	testenv.Full(t) // it builds the processor and runs for a minute
	// Without HOME the Go tool has no cache and builds nothing.
	p := servicetest.Spawn(t, []string{"HOME=" + os.Getenv("HOME")}, "demo", "--speed", "0", "--tracks", track(t))
	testenv.Wait(t, 2*time.Minute, func() error {
		// Two pipes: what was written first may be read last.
		if !strings.Contains(p.Errors(), "still running") || !strings.Contains(p.Output(), "balanced") {
			if !p.Running() {
				require.FailNow(t, "it ended", "%s", p.Errors())
			}
			return errors.New("want the account and that it is still running")
		}
		return nil
	})
	require.Contains(t, p.Errors(), "/console/")
	require.Contains(t, p.Errors(), "killed instance two")
	require.Regexp(t, `0 lost, 0 wrong or double, \d+ shards moved in`, p.Errors())
	require.Zero(t, p.Terminate())
}

func TestInstancesEndWithADemoThatIsKilled(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("a kill ends children on Linux only")
	}
	dir := t.TempDir()
	alive := filepath.Join(dir, "alive")
	require.NoError(t, syscall.Mkfifo(alive, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "processor"), []byte("#!/bin/sh\nexec sleep 60 >"+alive+"\n"), 0o755))
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), "STARTS_AN_INSTANCE_IN="+dir)
	require.NoError(t, cmd.Start())
	instance, err := os.Open(alive) // once it writes
	require.NoError(t, err)
	defer instance.Close()
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.NoError(t, instance.SetReadDeadline(time.Now().Add(20*time.Second)))
	_, err = io.ReadAll(instance)
	require.NoError(t, err, "it outlives the demo")
}

func TestWhatADeadInstanceCountedIsNotForgottenWhenItIsBack(t *testing.T) {
	start, stored := 1.0, 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds %g\n# TYPE processor_pipeline_records_total counter\nprocessor_pipeline_records_total{outcome=\"stored\"} %d\n", start, stored)
	}))
	defer server.Close()
	s := &scraper{instances: []*demoInstance{{name: "two", port: server.Listener.Addr().(*net.TCPAddr).Port}}}
	sum := func() (n float64) {
		families, err := s.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == "processor_pipeline_records_total" {
				n += f.GetMetric()[0].GetCounter().GetValue()
			}
		}
		return n
	}
	stored = 100
	require.InDelta(t, 100, sum(), 0)
	start, stored = 2, 7 // killed, and started again
	require.InDelta(t, 107, sum(), 0)
	stored = 9
	require.InDelta(t, 109, sum(), 0)
}

func TestDemoRefusesServersThatAreInUse(t *testing.T) {
	dep := servicetest.New(t)
	dep.Publish(servicetest.Record("device-1", 1))
	for _, variable := range []string{"DEMO_REDIS_URL=" + dep.RedisURL, "DEMO_POSTGRES_URL=" + dep.PostgresURL} {
		p := servicetest.Spawn(t, []string{variable}, "demo", "--once", "--tracks", track(t))
		require.Equal(t, exitFinding, p.Exit(20*time.Second))
		require.Contains(t, p.Errors(), "use an empty database")
	}
}

func TestDemoFlagsThatMakeNoSenseAreRefused(t *testing.T) {
	for line, want := range map[string]string{
		"demo --speed fast":   `--speed "fast"`,
		"demo --speed -1":     `--speed "-1"`,
		"demo --order random": `order "random"`,
		"demo file.csv":       "follow --tracks",
		"demo --seed x":       `--seed "x": want a whole number, 0 or more`,
	} {
		code, _, errs := call(strings.Fields(line)...)
		require.Equal(t, cli.ExitUsage, code, line)
		require.Contains(t, errs, want, line)
	}
}
