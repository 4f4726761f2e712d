package loadtest

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

// instance is one process of the service. A slot of the fleet is filled by one
// instance after the other.
type instance struct {
	slot    int
	name    string
	logFile string
	docker  *docker // nil for a process
	address string  // of a container
	cmd     *exec.Cmd
	tap     *tap
	exited  chan struct{} // closed when the process is gone
	err     error         // of Wait; read after exited is closed

	redis, postgres *devenv.Proxy // nil without proxies

	mu     sync.Mutex
	frozen bool
	last   figures // of the last scrape that succeeded
}

// sigStop pauses an instance, whatever it is.
const sigStop = syscall.SIGSTOP

// launch starts the program, or a container of it. It is up when ready says so.
func launch(program, name string, slot int, environ []string, dir string, engine *docker) (*instance, error) {
	in := &instance{slot: slot, name: name, logFile: filepath.Join(dir, name+".log"), exited: make(chan struct{}), docker: engine}
	file, err := os.Create(in.logFile)
	if err != nil {
		return nil, fmt.Errorf("make the log of an instance: %w", err)
	}
	in.tap = &tap{to: file}
	environ = append([]string{"INSTANCE_ID=" + name, "LOG_FORMAT=json", "PPROF=true"}, environ...)
	if engine != nil {
		var argv []string
		argv, in.address = engine.command(name, environ)
		in.cmd = exec.Command(argv[0], argv[1:]...)
	} else {
		in.cmd = exec.Command(program, "run")
		in.cmd.Env = append([]string{
			"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir(),
			"METRICS_HOST=127.0.0.1", "METRICS_PORT=0", "PANIC_DUMP_DIR=" + filepath.Join(dir, "dumps"),
		}, environ...)
	}
	in.cmd.Dir = dir
	in.cmd.Stdout, in.cmd.Stderr = in.tap, in.tap
	in.cmd.WaitDelay = time.Second
	in.cmd.SysProcAttr = detached()
	if err := in.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start an instance: %w", err), file.Close())
	}
	go func() {
		defer close(in.exited)
		in.err = errors.Join(in.cmd.Wait(), file.Close())
	}()
	return in, nil
}

// known returns where it listens and its name as a member, "" before it has said so.
func (in *instance) known() (address, member string) {
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

// member returns the name under which it owns shards and commits.
func (in *instance) member() string {
	_, member := in.tap.known()
	return member
}

// gone reports whether the process has ended.
func (in *instance) gone() bool {
	select {
	case <-in.exited:
		return true
	default:
		return false
	}
}

// ready waits until the instance says that it works.
func (in *instance) ready(ctx context.Context) error {
	return until(ctx, 50*time.Millisecond, func() error {
		if in.gone() {
			return giveUp(fmt.Errorf("instance %s ended at once (%w), its log ends with:\n%s", in.name, in.err, in.tail(5)))
		}
		address, member := in.known()
		if address == "" || member == "" {
			return fmt.Errorf("instance %s has not said where it listens", in.name)
		}
		resp, err := get(ctx, "http://"+address+"/readyz")
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("instance %s is not ready: %s", in.name, resp.Status)
		}
		return nil
	})
}

// signal sends a signal to a living process.
func (in *instance) signal(s syscall.Signal) error {
	send := in.cmd.Process.Signal
	if in.docker != nil {
		send = func(os.Signal) error { return in.docker.signal(in.name, s) }
	}
	if err := send(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to instance %s: %w", s, in.name, err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	switch s {
	case syscall.SIGSTOP:
		in.frozen = true
	case syscall.SIGCONT:
		in.frozen = false
	default:
	}
	return nil
}

// wait waits for the process to end and returns its exit code, -1 for a signal.
func (in *instance) wait(ctx context.Context) (int, error) {
	select {
	case <-in.exited:
		return in.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for instance %s to end: %w", in.name, context.Cause(ctx))
	}
}

// tail returns the end of its log.
func (in *instance) tail(lines int) string {
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
func (in *instance) close() error {
	var errs []error
	if in.docker != nil {
		errs = append(errs, in.docker.remove(in.name))
	}
	if !in.gone() {
		_ = in.cmd.Process.Kill()
		<-in.exited
	}
	for _, p := range []*devenv.Proxy{in.redis, in.postgres} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(errs...)
}
