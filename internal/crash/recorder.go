package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// every is the maximum age of a snapshot when the runtime ends the process.
	every = time.Second
	// stallLimit bounds the delay of a panic: the lock that a
	// snapshot needs may be held by the goroutine that panics.
	stallLimit = 2 * time.Second
	// kept is the number of dumps kept.
	kept = 10
	// marker separates the snapshot from what the runtime writes.
	marker = "\n--- crash\n"
)

// Config is the content of a dump and its destination. Every field but Flush is required.
type Config struct {
	Dir      string
	MaxBytes int64  // maximum bytes of one dump
	Name     string // of the process, part of the file's name
	Header   []byte // identifies the process: version, member, settings
	Flush    func() // writes out the log before a panic ends the process; may be nil
}

// Recorder keeps a dump ready. Its methods may be called from any goroutine.
type Recorder struct {
	cfg      Config
	log      *slog.Logger
	snapshot atomic.Pointer[func(io.Writer)]
	panicked sync.Once

	mu     sync.Mutex
	folder *os.Root    // nil until it could be opened; under mu
	files  [2]*os.File // opened when they are first written; under mu
	active int         // the runtime's output, -1 while it has none; under mu
	failed bool        // the last write, so that it is logged once; under mu
	buf    bytes.Buffer
}

// Record keeps a dump ready while work runs, and returns what work returns. It
// first names the dumps of earlier processes. A folder that is not writable is
// retried every second.
func Record(ctx context.Context, cfg Config, log *slog.Logger, work func(r *Recorder) error) error {
	r := &Recorder{cfg: cfg, log: log.With("component", "crash"), active: -1}
	debug.SetTraceback("all")
	if r.openFolder() == nil {
		r.collect()
	}
	r.write()
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx)) // work may outlive the caller's
	var running sync.WaitGroup
	running.Go(func() { r.run(ctx) })
	err := work(r) // nothing is deferred here: a panic must find the dump in place
	stop()
	running.Wait()
	r.close()
	return err
}

// Watch adds the output of snapshot to the dump from now on.
func (r *Recorder) Watch(snapshot func(w io.Writer)) { r.snapshot.Store(&snapshot) }

// run takes a snapshot every second until ctx ends.
func (r *Recorder) run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.write()
		}
	}
}

// Panicked records the value of a panic, before the panic propagates and ends
// the process. It always returns: within stallLimit, and what Flush takes.
func (r *Recorder) Panicked(value any) {
	r.panicked.Do(func() {
		done := make(chan string, 1)
		go func() {
			r.write()
			done <- r.name()
		}()
		var dump string
		select {
		case dump = <-done:
		case <-time.After(stallLimit):
		}
		r.log.Error("fatal panic", "reason", fmt.Sprint(value), "dump", dump)
		if r.cfg.Flush != nil {
			r.cfg.Flush()
		}
	})
}

// name gives the dump its final name, and returns it.
func (r *Recorder) name() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.active < 0 {
		return ""
	}
	name := final(time.Now(), r.cfg.Name)
	if err := r.folder.Rename(r.spare(r.active), name); err != nil {
		return r.files[r.active].Name()
	}
	return filepath.Join(r.cfg.Dir, name)
}

// close removes the files when the process ends without a crash.
func (r *Recorder) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = debug.SetCrashOutput(nil, debug.CrashOptions{}) // resetting it cannot fail
	for i, f := range r.files {
		if f != nil {
			_ = r.folder.Remove(r.spare(i)) // the next start removes it otherwise
			_ = f.Close()
			r.files[i] = nil
		}
	}
	r.active = -1
	if r.folder != nil {
		_ = r.folder.Close() // nothing is buffered
		r.folder = nil
	}
}

// write writes a snapshot to the spare file and makes it the runtime's output. If
// that fails the previous one stays.
func (r *Recorder) write() {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.renew()
	if err != nil && !r.failed {
		r.log.Warn("panic dumps unavailable; a crash will be reported on standard error only", "err", err)
	}
	r.failed = err != nil
}

func (r *Recorder) renew() error {
	spare := (r.active + 1) % len(r.files)
	f, err := r.open(spare)
	if err != nil {
		return err
	}
	r.compose()
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("empty dump: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("rewind dump: %w", err)
	}
	if _, err := f.Write(r.buf.Bytes()); err != nil {
		return fmt.Errorf("write dump: %w", err)
	}
	// The runtime's copy shares the position, which is now the end.
	if err := debug.SetCrashOutput(f, debug.CrashOptions{}); err != nil {
		return fmt.Errorf("set dump as crash output: %w", err)
	}
	r.active = spare
	return nil
}

// compose fills the buffer. The caller holds the lock.
func (r *Recorder) compose() {
	most := int(r.cfg.MaxBytes / 2)
	r.buf.Reset()
	r.buf.Write(r.cfg.Header)
	fmt.Fprintf(&r.buf, "\n--- in flight at %s\n", time.Now().UTC().Format(time.RFC3339Nano))
	if snapshot := r.snapshot.Load(); snapshot != nil {
		(*snapshot)(&limited{to: &r.buf, left: most - r.buf.Len()})
	}
	if r.buf.Len() > most {
		r.buf.Truncate(most)
	}
	if r.buf.Len() == most {
		r.buf.WriteString("\n(cut here, see PANIC_DUMP_MAX_BYTES)")
	}
	r.buf.WriteString(marker)
}

// open opens one of the two files and locks it; the lock shows other processes
// that this one is alive.
func (r *Recorder) open(i int) (*os.File, error) {
	if r.files[i] != nil {
		return r.files[i], nil
	}
	if err := r.openFolder(); err != nil {
		return nil, err
	}
	f, err := openFile(r.folder, r.spare(i), os.O_CREATE|os.O_RDWR)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		return nil, errors.Join(fmt.Errorf("lock dump: %w", err), f.Close())
	}
	r.files[i] = f
	return f, nil
}

// openFolder opens the folder unless that was done. The caller holds the lock, or is
// the only goroutine.
func (r *Recorder) openFolder() (err error) {
	if r.folder == nil {
		r.folder, err = OpenFolder(r.cfg.Dir)
	}
	return err
}

// spare is the name of one of the two files while the process lives.
func (r *Recorder) spare(i int) string { return fmt.Sprintf("%s%s.%d", running, r.cfg.Name, i) }

func lock(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// limited writes up to a limit and discards the rest.
type limited struct {
	to   io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), max(0, l.left))
	l.left -= n
	if _, err := l.to.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}
