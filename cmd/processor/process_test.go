package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/httpserver"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/demo"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/modules"
)

// asProcessor makes the test's own program the processor, so that processes of
// a test are what is being tested, race detector included.
const asProcessor = "PROCESSOR_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asProcessor) != "" {
		modules.QuietDrivers()
		os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	flag.Parse()
	// Most of the time these tests wait for a process to come up, or to notice.
	if flag.Lookup("test.parallel").Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		_ = flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))) // the flag exists, and takes numbers
	}
	testenv.Main(m)
}

// process is a processor that runs as a process of its own.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended

	mu     sync.Mutex
	stdout strings.Builder
	stderr strings.Builder
	addr   string // of its endpoint
}

// spawn starts a command line with nothing but the given environment.
func spawn(t *testing.T, environ []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(os.Args[0], args...), done: make(chan struct{})}
	p.cmd.Env = append([]string{asProcessor + "=1", "PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, environ...)
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	errs, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	var reading sync.WaitGroup
	reading.Go(func() { p.read(out, &p.stdout) })
	reading.Go(func() { p.read(errs, &p.stderr) })
	go func() {
		defer close(p.done)
		reading.Wait()
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%v wrote:\n%s\n%s", args, p.output(), p.errors())
		}
	})
	return p
}

func (p *process) read(r io.Reader, into *strings.Builder) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		p.mu.Lock()
		into.WriteString(lines.Text() + "\n")
		var line struct{ Msg, Address string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "metrics and health are served" {
			p.addr = line.Address
		}
		p.mu.Unlock()
	}
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stdout.String()
}

func (p *process) errors() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

func (p *process) signal(s os.Signal) { require.NoError(p.t, p.cmd.Process.Signal(s)) }

// exit waits for the end and returns the exit code, -1 when a signal ended it.
func (p *process) exit(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		require.FailNow(p.t, "it does not end", "within %s", within)
		return 0
	}
}

func (p *process) get(path string) (*http.Response, error) {
	p.mu.Lock()
	addr := p.addr
	p.mu.Unlock()
	if addr == "" {
		return nil, errors.New("it does not listen yet")
	}
	client := http.Client{Timeout: 10 * time.Second}
	return client.Get("http://" + addr + path)
}

// readiness is the status and the answer of /readyz.
func (p *process) readiness() (int, httpserver.Readiness, error) {
	var r httpserver.Readiness
	res, err := p.get("/readyz")
	if err != nil {
		return 0, r, err
	}
	defer res.Body.Close()
	return res.StatusCode, r, json.NewDecoder(res.Body).Decode(&r)
}

// metric is the value of a metric without labels, or with exactly those given.
func (p *process) metric(name string) (float64, error) {
	res, err := p.get("/metrics")
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("no metric %s, %w", name, errors.Join(lines.Err()))
}

func (p *process) awaitReady() {
	p.t.Helper()
	testenv.Wait(p.t, 30*time.Second, func() error {
		status, r, err := p.readiness()
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("want ready, have %v", r.Checks)
		}
		return err
	})
}

// await waits until the process has written a text to its log.
func (p *process) await(text string) {
	p.t.Helper()
	testenv.Wait(p.t, 30*time.Second, func() error {
		if !strings.Contains(p.output(), text) {
			return fmt.Errorf("want %q in the log", text)
		}
		return nil
	})
}

// place is a stream and a database for processes.
type place struct {
	t        *testing.T
	redisURL string
	pgURL    string
	stream   string
	group    string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	t.Parallel()
	r := testenv.Redis(t)
	return &place{t: t, redisURL: r.URL, stream: r.Stream, group: r.Group, pgURL: testenv.Postgres(t, migrated())}
}

func migrated() testenv.PostgresOption {
	return testenv.WithTemplate("migrated", func(ctx context.Context, url string) error {
		_, err := store.Migrate(ctx, url, slog.New(slog.DiscardHandler))
		return err
	})
}

func (pl *place) environ(settings ...string) []string {
	return append([]string{
		"REDIS_URL=" + pl.redisURL, "POSTGRES_URL=" + pl.pgURL,
		"REDIS_TELEMETRY_STREAM=" + pl.stream, "REDIS_CONSUMER_GROUP=" + pl.group,
		"METRICS_HOST=127.0.0.1", "METRICS_PORT=0", "LOG_FORMAT=json",
		"MEMBER_TTL=2s", "LEADER_TTL=1s",
	}, settings...)
}

func (pl *place) run(settings ...string) *process {
	pl.t.Helper()
	return spawn(pl.t, pl.environ(settings...), "run")
}

// rally is a small fleet with everything that happens to trackers.
func rally(t *testing.T, devices int, length time.Duration, speed float64) *demo.Load {
	t.Helper()
	const seed = 20260117
	t.Logf("fleet seed %d", seed)
	profile := fleet.Rally(seed)
	profile.Devices, profile.Duration = devices, length
	load, err := demo.NewLoad("rally", speed, func() (fleet.Source, error) { return profile.Source() })
	require.NoError(t, err)
	return load
}

// feed sends a load, waits until the service has done it, and judges. show is
// called meanwhile with the progress.
func (pl *place) feed(load *demo.Load, show func(demo.Snapshot)) *demo.Result {
	pl.t.Helper()
	result, err := demo.Run(pl.t.Context(), demo.Config{
		RedisURL: pl.redisURL, PostgresURL: pl.pgURL, Stream: pl.stream, Group: pl.group,
		Load: load, Metrics: prometheus.NewRegistry(), Show: show, Every: 50 * time.Millisecond, Patience: 40 * time.Second,
	}, slog.New(slog.NewTextHandler(pl.t.Output(), nil)))
	require.NoError(pl.t, err)
	return result
}

func (pl *place) requireGood(r *demo.Result) {
	pl.t.Helper()
	require.True(pl.t, r.Good(), "%+v\n%v", r.Account, r.Findings)
	require.Positive(pl.t, r.Account.Stored)
}

func terminated(p *process) int {
	p.signal(syscall.SIGTERM)
	return p.exit(40 * time.Second)
}

// full tells whether the long campaigns run.
func full() bool { return os.Getenv("TEST_FULL") != "" }
