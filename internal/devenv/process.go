package devenv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// launcher waits for one line before it becomes the server, so that the
// watchdog knows the process ID first. The end of its input means that we died.
const launcher = `read -r go || exit 1; exec "$@" </dev/null`

// process is one run of a server.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed by the goroutine that reaps it
}

// launch starts argv under the watchdog's eyes, its output appended to log.
func launch(argv []string, dir, log string, user *account, dog *watchdog, lastSignal string) (_ *process, err error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open server log: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()

	cmd := exec.Command("/bin/sh", append([]string{"-c", launcher, "sh"}, argv...)...)
	cmd.Dir, cmd.Env = dir, serverEnviron(dir)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = user.attributes()
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("open launcher pipe: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(argv[0]), err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	err = dog.guard(cmd.Process.Pid, lastSignal)
	if err == nil {
		_, err = in.Write([]byte("go\n"))
	}
	err = errors.Join(err, in.Close()) // without its line the launcher gives up
	go func() {
		defer close(p.done)
		_ = cmd.Wait()                  // how it ended is in its log
		_ = dog.forget(cmd.Process.Pid) // fails only when the watchdog is gone
	}()
	if err != nil {
		<-p.done
		return nil, fmt.Errorf("launch %s: %w", filepath.Base(argv[0]), err)
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// signal sends to the server process alone. One that has ended is no error.
func (p *process) signal(sig syscall.Signal) error {
	err := p.cmd.Process.Signal(sig)
	if err == nil || errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return fmt.Errorf("send %s to process %d: %w", sig, p.pid(), err)
}

// signalAll sends to the server and then to its children (Postgres has one per
// connection, each in a session of its own). The parent comes first: stopped
// or dead, it makes no new ones.
func (p *process) signalAll(sig syscall.Signal) error {
	children, errList := childrenOf(p.pid())
	err := p.signal(sig)
	if errList != nil {
		return errors.Join(err, errList)
	}
	if more, listErr := childrenOf(p.pid()); listErr == nil {
		children = append(children, more...) // born between the list and the signal
	}
	for _, child := range children {
		if kill := syscall.Kill(child, sig); kill != nil && !errors.Is(kill, syscall.ESRCH) {
			err = errors.Join(err, fmt.Errorf("send %s to process %d: %w", sig, child, kill))
		}
	}
	return err
}

// childrenOf lists the children of a process: from /proc, or from ps where
// there is no /proc. Slim container images have no ps, macOS has no /proc.
func childrenOf(parent int) ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		return childrenFromPS(parent)
	}
	var children []int
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil { // it ended in between
			continue
		}
		// pid (name, which may hold anything) state ppid ...
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) > 1 && string(fields[1]) == strconv.Itoa(parent) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", path, err)
			}
			children = append(children, pid)
		}
	}
	return children, nil
}

func childrenFromPS(parent int) ([]int, error) {
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=").Output()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var children []int
	for line := range bytes.Lines(out) {
		var pid, ppid int
		if n, err := fmt.Sscan(string(line), &pid, &ppid); err == nil && n == 2 && ppid == parent {
			children = append(children, pid)
		}
	}
	return children, nil
}

// serverEnviron keeps PGDATA, PGPORT, LC_ALL and the like of the caller away.
func serverEnviron(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LC_ALL=C", "TZ=UTC"}
}
