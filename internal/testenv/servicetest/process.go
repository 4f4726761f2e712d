package servicetest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/httpserver"
	"github.com/trmtracking/processor/internal/testenv"
)

// Process is a processor that runs as a process of its own.
type Process struct {
	t    testing.TB
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended

	mu     sync.Mutex
	stdout strings.Builder
	stderr strings.Builder
	addr   string // of its endpoint
}

// Spawn starts a command line with nothing but the given environment.
func Spawn(t testing.TB, environ []string, args ...string) *Process {
	t.Helper()
	return SpawnCommand(t, exec.Command(Program(t), args...), environ)
}

// SpawnCommand starts a command that becomes a processor, as Spawn does.
func SpawnCommand(t testing.TB, cmd *exec.Cmd, environ []string) *Process {
	t.Helper()
	p := &Process{t: t, cmd: cmd, done: make(chan struct{})}
	p.cmd.Env = append(Environ(), environ...)
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
		_ = p.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%v wrote:\n%s\n%s", cmd.Args, p.Output(), p.Errors())
		}
	})
	return p
}

func (p *Process) read(r io.Reader, into *strings.Builder) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		p.mu.Lock()
		into.WriteString(lines.Text() + "\n")
		var line struct{ Msg, Address string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving metrics and health" {
			p.addr = line.Address
		}
		p.mu.Unlock()
	}
}

// Output returns what it wrote to standard output by now.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stdout.String()
}

// Errors returns what it wrote to standard error by now.
func (p *Process) Errors() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// Signal sends it a signal.
func (p *Process) Signal(s os.Signal) { require.NoError(p.t, p.cmd.Process.Signal(s)) }

// Exit waits for the end and returns the exit code, -1 when a signal ended it.
func (p *Process) Exit(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		require.FailNow(p.t, "it does not end", "within %s", within)
		return 0
	}
}

func (p *Process) get(path string) (*http.Response, error) {
	addr := p.Addr()
	if addr == "" {
		return nil, errors.New("it does not listen yet")
	}
	client := http.Client{Timeout: 10 * time.Second}
	return client.Get("http://" + addr + path)
}

// Readiness returns the status and the answer of /readyz.
func (p *Process) Readiness() (int, httpserver.Readiness, error) {
	var r httpserver.Readiness
	res, err := p.get("/readyz")
	if err != nil {
		return 0, r, err
	}
	defer res.Body.Close()
	return res.StatusCode, r, json.NewDecoder(res.Body).Decode(&r)
}

// Metric returns the value of a metric without labels, or with exactly those given.
func (p *Process) Metric(name string) (float64, error) {
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

// AwaitReady waits until /readyz says that it is ready.
func (p *Process) AwaitReady() {
	p.t.Helper()
	testenv.Wait(p.t, 30*time.Second, func() error {
		status, r, err := p.Readiness()
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("want ready, have %v", r.Checks)
		}
		return err
	})
}

// Await waits until the process has written a text to its log.
func (p *Process) Await(text string) {
	p.t.Helper()
	testenv.Wait(p.t, 30*time.Second, func() error {
		if !strings.Contains(p.Output(), text) {
			return fmt.Errorf("want %q in the log", text)
		}
		return nil
	})
}

// AwaitMatch waits until what the process has written to its log matches a pattern.
func (p *Process) AwaitMatch(pattern string) {
	p.t.Helper()
	want := regexp.MustCompile(pattern)
	testenv.Wait(p.t, 30*time.Second, func() error {
		if !want.MatchString(p.Output()) {
			return fmt.Errorf("want %s in the log", pattern)
		}
		return nil
	})
}

// AwaitMetric waits until a metric has a value: it is counted a moment after what it
// counts can be seen in a server.
func (p *Process) AwaitMetric(name string, want float64) {
	p.t.Helper()
	testenv.Wait(p.t, 30*time.Second, func() error {
		have, err := p.Metric(name)
		if err == nil && have != want {
			err = fmt.Errorf("want %v of %s, have %v", want, name, have)
		}
		return err
	})
}

// Terminate asks it to stop and returns its exit code.
func (p *Process) Terminate() int {
	p.Signal(syscall.SIGTERM)
	return p.Exit(40 * time.Second)
}

// Kill ends it without a chance to clean up.
func (p *Process) Kill() error { return p.cmd.Process.Kill() }

// Running reports whether it has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// PID returns its process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Addr returns the host and port of its HTTP endpoint, empty until it listens.
func (p *Process) Addr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addr
}
