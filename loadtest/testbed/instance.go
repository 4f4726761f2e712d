package testbed

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/trmtracking/processor/internal/devenv"
)

// Instance is one process of the service. A slot of the fleet is filled by one
// instance after the other.
type Instance struct {
	Slot    int
	Name    string
	logFile string
	docker  *Docker // nil for a process
	address string  // of a container
	Cmd     *exec.Cmd
	tap     *tap
	exited  chan struct{} // closed when the process is gone
	Err     error         // of Wait; read after exited is closed

	Redis, Postgres *devenv.Proxy // nil without proxies

	mu     sync.Mutex
	frozen bool
	ended  syscall.Signal // the last one sent that ends it
	left   bool           // its slot while it ran
	last   Figures        // of the last scrape that succeeded
}

// SigStop pauses an instance, whatever it is.
const SigStop = syscall.SIGSTOP

// launch starts the program, or a container of it. It is up when ready says so.
func launch(program, name string, slot int, environ []string, dir string, engine *Docker) (*Instance, error) {
	in := &Instance{Slot: slot, Name: name, logFile: filepath.Join(dir, name+".log"), exited: make(chan struct{}), docker: engine}
	file, err := os.Create(in.logFile)
	if err != nil {
		return nil, fmt.Errorf("make the log of an instance: %w", err)
	}
	in.tap = &tap{to: file}
	environ = append([]string{"INSTANCE_ID=" + name, "LOG_FORMAT=json", "PPROF=true"}, environ...)
	if engine != nil {
		var argv []string
		argv, in.address = engine.command(name, environ)
		in.Cmd = exec.Command(argv[0], argv[1:]...)
	} else {
		in.Cmd = exec.Command(program, "run")
		in.Cmd.Env = append([]string{
			"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir(),
			"METRICS_HOST=127.0.0.1", "METRICS_PORT=0", "PANIC_DUMP_DIR=" + filepath.Join(dir, "dumps"),
		}, environ...)
	}
	in.Cmd.Dir = dir
	in.Cmd.Stdout, in.Cmd.Stderr = in.tap, in.tap
	in.Cmd.WaitDelay = time.Second
	in.Cmd.SysProcAttr = Detached()
	if err := in.Cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start an instance: %w", err), file.Close())
	}
	go func() {
		defer close(in.exited)
		in.Err = errors.Join(in.Cmd.Wait(), file.Close())
	}()
	return in, nil
}

// Known returns where it listens and its name as a member, "" before it has said so.
func (in *Instance) Known() (address, member string) {
	address, member = in.tap.known()
	if in.docker != nil && address != "" { // what it says is inside the container
		address = in.address
	}
	return address, member
}

// tap writes a log to a file and notes what is learned from it.
type tap struct {
	mu      sync.Mutex
	to      io.Writer
	rest    []byte // of a line that is not complete
	address string
	member  string
}

// Write implements io.Writer.
func (t *tap) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.address == "" || t.member == "" {
		t.rest = append(t.rest, p...)
		for {
			line, rest, found := bytes.Cut(t.rest, []byte("\n"))
			if !found {
				break
			}
			t.learn(line)
			t.rest = rest
		}
	}
	return t.to.Write(p)
}

func (t *tap) learn(line []byte) {
	var said struct {
		Address string `json:"address"`
		Member  string `json:"member"`
	}
	if json.Unmarshal(line, &said) != nil {
		return
	}
	if t.address == "" {
		t.address = said.Address
	}
	if t.member == "" {
		t.member = said.Member
	}
}

func (t *tap) known() (address, member string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.address, t.member
}

// Member returns the name under which it owns shards and commits.
func (in *Instance) Member() string {
	_, member := in.tap.known()
	return member
}

// Gone reports whether the process has ended.
func (in *Instance) Gone() bool {
	select {
	case <-in.exited:
		return true
	default:
		return false
	}
}

// ready waits until the instance says that it works.
func (in *Instance) ready(ctx context.Context) error {
	return Until(ctx, 50*time.Millisecond, func() error {
		if in.Gone() {
			return GiveUp(fmt.Errorf("instance %s ended at once (%w), its log ends with:\n%s", in.Name, in.Err, in.Tail(5)))
		}
		address, member := in.Known()
		if address == "" || member == "" {
			return fmt.Errorf("instance %s has not said where it listens", in.Name)
		}
		resp, err := Get(ctx, "http://"+address+"/readyz")
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("instance %s is not ready: %s", in.Name, resp.Status)
		}
		return nil
	})
}

// Signal sends a signal to a living process.
func (in *Instance) Signal(s syscall.Signal) error {
	send := in.Cmd.Process.Signal
	if in.docker != nil {
		send = func(os.Signal) error { return in.docker.signal(in.Name, s) }
	}
	if err := send(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to instance %s: %w", s, in.Name, err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	switch s {
	case syscall.SIGSTOP:
		in.frozen = true
	case syscall.SIGCONT:
		in.frozen = false
	case syscall.SIGTERM, syscall.SIGKILL:
		in.ended = s
	default:
	}
	return nil
}

// unexpected reports whether it ended before it was told to, or otherwise than it was told.
func (in *Instance) unexpected() bool {
	if !in.Gone() {
		return false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.left {
		return true
	}
	state := in.Cmd.ProcessState
	status, _ := state.Sys().(syscall.WaitStatus)
	switch code := state.ExitCode(); {
	case in.ended == 0: // by its scenario, which looks at it
		return false
	case status.Signaled() && status.Signal() == in.ended, code == 128+int(in.ended): // by the signal; in a container
		return false
	default: // a drain that takes its whole budget ends with 1
		return in.ended != syscall.SIGTERM || code != 0 && code != 1
	}
}

// Wait waits for the process to end and returns its exit code, -1 for a signal.
func (in *Instance) Wait(ctx context.Context) (int, error) {
	select {
	case <-in.exited:
		return in.Cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for instance %s to end: %w", in.Name, context.Cause(ctx))
	}
}

// Tail returns the end of its log.
func (in *Instance) Tail(lines int) string {
	file, err := os.Open(in.logFile)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = file.Close() }()
	var last [][]byte
	for scan := bufio.NewScanner(file); scan.Scan(); {
		if last = append(last, bytes.Clone(scan.Bytes())); len(last) > lines {
			last = last[1:]
		}
	}
	return string(bytes.Join(last, []byte("\n")))
}

// close ends the process whatever it does, and its proxies.
func (in *Instance) close() error {
	var errs []error
	if in.docker != nil {
		errs = append(errs, in.docker.remove(in.Name))
	}
	if !in.Gone() {
		_ = in.Cmd.Process.Kill()
		<-in.exited
	}
	for _, p := range []*devenv.Proxy{in.Redis, in.Postgres} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(errs...)
}
