package devenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	stopTimeout  = 15 * time.Second // for an orderly end, then SIGKILL
	portAttempts = 8
	pollEvery    = 20 * time.Millisecond
	tailBytes    = 4 << 10
)

// errPortTaken means that another program got the port before the server.
var errPortTaken = errors.New("port is taken")

// kind is what differs between Redis and Postgres.
type kind interface {
	name() string
	url(addr string) string
	// prepare fills an empty data folder.
	prepare(ctx context.Context, data string, user *account) error
	// command is the server's command line.
	command(data string, port int) []string
	// answers returns nil when the server that answers is process pid on data.
	answers(ctx context.Context, url string, pid int, data string) error
	// stopSignal asks for an orderly end.
	stopSignal() syscall.Signal
	// lastSignal is what the watchdog sends: a quick end that leaves no shared
	// memory behind; the data is thrown away.
	lastSignal() string
	// discard gives back what a killed server left outside its data folder.
	discard(data string) error
}

// Server is one private server. Its methods may be called from any goroutine.
type Server struct {
	kind kind
	home string // everything of this server
	user *account
	dog  *watchdog

	mu   sync.Mutex // held for whole operations: stop and start do not mix
	port int
	proc *process // nil before the first start; ended ones stay until the next
}

func newServer(k kind, envDir string, user *account, dog *watchdog) *Server {
	return &Server{kind: k, home: filepath.Join(envDir, k.name()), user: user, dog: dog}
}

// URL returns how clients name the server.
func (s *Server) URL() string { return s.kind.url(s.Addr()) }

// Addr returns the server's host and port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port())) }

// Port returns the server's TCP port; it stays over restarts.
func (s *Server) Port() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.port
}

// PID returns the server's process ID, 0 when it does not run.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return 0
	}
	return s.proc.pid()
}

// Dir returns the server's folder: its data and its log.
func (s *Server) Dir() string { return s.home }

// LogTail returns the end of the server's log.
func (s *Server) LogTail() string { return strings.TrimSpace(tail(s.logPath(), 0)) }

// Stop ends the server in an orderly way and waits for it. A server that does
// not run is no error.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop(ctx)
}

// Start starts a stopped server on its port with its data.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running() {
		return nil
	}
	return s.start(ctx)
}

// Restart stops and starts the server; port and data stay.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stop(ctx); err != nil {
		return err
	}
	return s.start(ctx)
}

// RestartEmpty stops the server, removes its data and starts it on its port.
func (s *Server) RestartEmpty(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stop(ctx); err != nil {
		return err
	}
	if err := s.kind.discard(s.dataPath()); err != nil {
		return err
	}
	if err := os.RemoveAll(s.dataPath()); err != nil {
		return fmt.Errorf("remove %s data: %w", s.kind.name(), err)
	}
	if err := s.makeData(ctx); err != nil {
		return err
	}
	return s.start(ctx)
}

// Kill ends the server and its children immediately with SIGKILL, like a crash of
// the machine that keeps the disk's cache.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return nil
	}
	err := s.proc.signalAll(syscall.SIGKILL)
	<-s.proc.done
	return err
}

// Pause freezes the server and its children: connections stay open and nothing
// answers, like a suspended machine.
func (s *Server) Pause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return fmt.Errorf("pause %s: it does not run", s.kind.name())
	}
	return s.proc.signalAll(syscall.SIGSTOP)
}

// Resume resumes a paused server.
func (s *Server) Resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return fmt.Errorf("resume %s: it does not run", s.kind.name())
	}
	return s.proc.signalAll(syscall.SIGCONT)
}

// create makes the data and starts the server for the first time, on a port
// that is free now, or on another if that is taken before the start.
func (s *Server) create(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Mkdir(s.home, 0o755); err != nil {
		return fmt.Errorf("make %s folder: %w", s.kind.name(), err)
	}
	if err := s.user.own(s.home); err != nil {
		return err
	}
	if err := s.makeData(ctx); err != nil {
		return err
	}
	for range portAttempts {
		port, err := FreePort()
		if err != nil {
			return err
		}
		s.port = port
		if err = s.start(ctx); !errors.Is(err, errPortTaken) {
			return err
		}
	}
	return fmt.Errorf("start %s: no port stayed free in %d attempts", s.kind.name(), portAttempts)
}

func (s *Server) makeData(ctx context.Context) error {
	if err := os.Mkdir(s.dataPath(), 0o700); err != nil {
		return fmt.Errorf("make %s data folder: %w", s.kind.name(), err)
	}
	if err := s.user.own(s.dataPath()); err != nil {
		return err
	}
	return s.kind.prepare(ctx, s.dataPath(), s.user)
}

// start runs the server and waits until it answers.
func (s *Server) start(ctx context.Context) error {
	var before int64 // the log's length: an earlier run's lines prove nothing
	if info, err := os.Stat(s.logPath()); err == nil {
		before = info.Size()
	}
	proc, err := launch(s.kind.command(s.dataPath(), s.port), s.home, s.logPath(), s.user, s.dog, s.kind.lastSignal())
	if err != nil {
		return err
	}
	s.proc = proc
	url := s.kind.url(net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)))
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		err := s.kind.answers(ctx, url, proc.pid(), s.dataPath())
		if err == nil {
			return nil
		}
		select {
		case <-proc.done:
			log := tail(s.logPath(), before)
			if strings.Contains(strings.ToLower(log), "address already in use") {
				return fmt.Errorf("start %s on port %d: %w", s.kind.name(), s.port, errPortTaken)
			}
			return fmt.Errorf("start %s: it ended immediately; its log says:\n%s", s.kind.name(), strings.TrimSpace(log))
		case <-ctx.Done():
			stopErr := s.stop(context.WithoutCancel(ctx))
			return errors.Join(fmt.Errorf("start %s: %w (last answer: %w); its log says:\n%s",
				s.kind.name(), context.Cause(ctx), err, s.LogTail()), stopErr)
		case <-ticker.C:
		}
	}
}

func (s *Server) stop(ctx context.Context) error {
	if !s.running() {
		return nil
	}
	// A paused server would not hear the request to end.
	err := errors.Join(s.proc.signalAll(syscall.SIGCONT), s.proc.signal(s.kind.stopSignal()))
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	again := time.NewTicker(time.Second)
	defer again.Stop()
waiting:
	for {
		select {
		case <-s.proc.done:
			return err
		case <-again.C:
			// Redis refuses, and forgets, the request while it writes its first
			// append-only file, as it does when it has become a replica.
			err = errors.Join(err, s.proc.signal(s.kind.stopSignal()))
		case <-ctx.Done():
			err = errors.Join(err, fmt.Errorf("stop %s: killed: %w", s.kind.name(), context.Cause(ctx)))
			break waiting
		case <-timeout.C:
			err = errors.Join(err, fmt.Errorf("stop %s: killed, it did not end within %s", s.kind.name(), stopTimeout))
			break waiting
		}
	}
	err = errors.Join(err, s.proc.signalAll(syscall.SIGKILL))
	<-s.proc.done
	return err
}

// dispose stops the server permanently.
func (s *Server) dispose(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.stop(ctx), s.kind.discard(s.dataPath()))
}

func (s *Server) running() bool    { return s.proc != nil && s.proc.alive() }
func (s *Server) dataPath() string { return filepath.Join(s.home, "data") }
func (s *Server) logPath() string  { return filepath.Join(s.home, "log") }

// tail reads the end of a file, nothing before offset. A log that cannot be
// read is empty: it only adds to another error.
func tail(path string, offset int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil {
		offset = max(offset, info.Size()-tailBytes)
	}
	b, err := io.ReadAll(io.NewSectionReader(f, offset, tailBytes))
	if err != nil {
		return ""
	}
	return string(b)
}
