package devenv

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"syscall"
)

// watchdogScript outlives this process. It learns of servers by lines
// "+ PID SIGNAL" and "- PID". At the end of its input it sends each its
// signal (and SIGCONT, a paused one would not hear it), waits, kills what is
// left and removes the folder. Ten seconds, because Postgres gives its own
// children five before it kills them.
const watchdogScript = `
trap '' INT TERM HUP QUIT
servers=
while read -r op pid sig; do
	rest=
	for s in $servers; do [ "${s%:*}" = "$pid" ] || rest="$rest $s"; done
	case $op in
	+) servers="$rest $pid:$sig" ;;
	-) servers=$rest ;;
	esac
done
for s in $servers; do
	kill -"${s#*:}" "${s%:*}"
	kill -CONT "${s%:*}"
done
for s in $servers; do
	tries=100
	while kill -0 "${s%:*}" && [ $tries -gt 0 ]; do sleep 0.1; tries=$((tries - 1)); done
	kill -KILL "${s%:*}"
done
rm -rf "$1"
`

// watchdog is the process that cleans up when we cannot.
type watchdog struct {
	cmd *exec.Cmd

	mu   sync.Mutex // guards pipe
	pipe io.WriteCloser
}

func startWatchdog(dir string) (*watchdog, error) {
	cmd := exec.Command("/bin/sh", "-c", watchdogScript, "devenv-watchdog", dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("open watchdog pipe: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start watchdog: %w", err)
	}
	return &watchdog{cmd: cmd, pipe: pipe}, nil
}

// guard tells the watchdog of a process and how to stop it.
func (w *watchdog) guard(pid int, signal string) error {
	return w.tell(fmt.Sprintf("+ %d %s\n", pid, signal))
}

// forget tells the watchdog that a process has ended: its ID may be reused.
func (w *watchdog) forget(pid int) error {
	return w.tell(fmt.Sprintf("- %d\n", pid))
}

func (w *watchdog) tell(line string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := io.WriteString(w.pipe, line); err != nil {
		return fmt.Errorf("tell watchdog: %w", err)
	}
	return nil
}

// close ends the watchdog, which has nothing left to do.
func (w *watchdog) close() error {
	w.mu.Lock()
	err := w.pipe.Close()
	w.mu.Unlock()
	// Its exit status says nothing: the kill of a process that is gone fails.
	var exit *exec.ExitError
	if waited := w.cmd.Wait(); waited != nil && !errors.As(waited, &exit) {
		err = errors.Join(err, fmt.Errorf("wait for watchdog: %w", waited))
	}
	return err
}
