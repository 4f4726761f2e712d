// Package logbuffer keeps a stalled or closed log reader from stalling the
// service: lines go into a bounded buffer, one goroutine writes them out, and
// lines that do not fit are dropped and counted.
//
// Without it every goroutine that logs waits for the reader of a full pipe, the
// watchdog and the reaction to SIGTERM included.
package logbuffer

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Writer is a buffered log output. Write never blocks and never fails. Its
// methods may be called from any goroutine.
type Writer struct {
	out   io.Writer
	limit int

	mu      sync.Mutex
	pending [][]byte      // lines not written yet; under mu
	bytes   int           // of pending and of the line being written; under mu
	wake    chan struct{} // has room for one
	idle    chan struct{} // closed while nothing is pending; under mu

	dropped atomic.Uint64
}

// New returns a Writer that holds at most limit bytes of lines for out. Its
// goroutine lives until Close.
func New(out io.Writer, limit int) *Writer {
	w := &Writer{out: out, limit: limit, wake: make(chan struct{}, 1), idle: make(chan struct{})}
	close(w.idle)
	go w.run()
	return w
}

// Write takes one line, or drops and counts it when the buffer is full. It
// reports success in any case: there is nothing a caller could do.
func (w *Writer) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.bytes+len(line) > w.limit {
		w.dropped.Add(1)
		return len(line), nil
	}
	if w.bytes == 0 {
		w.idle = make(chan struct{})
	}
	w.bytes += len(line)
	w.pending = append(w.pending, append([]byte(nil), line...))
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return len(line), nil
}

// Close ends the goroutine once it has written what is pending; Flush first.
// Nothing may be written afterwards.
func (w *Writer) Close() { close(w.wake) }

// Dropped returns the number of lines that were dropped because the buffer was
// full, or could not be written because the reader is gone.
func (w *Writer) Dropped() uint64 { return w.dropped.Load() }

// Flush waits until all lines are written, at most for limit.
func (w *Writer) Flush(limit time.Duration) {
	w.mu.Lock()
	idle := w.idle
	w.mu.Unlock()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
	}
}

func (w *Writer) run() {
	for range w.wake {
		for {
			line := w.next()
			if line == nil {
				break
			}
			if _, err := w.out.Write(line); err != nil {
				w.dropped.Add(1)
			}
			w.done(len(line))
		}
	}
}

// next takes the oldest line, nil if there is none.
func (w *Writer) next() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending) == 0 {
		w.pending = nil // lets go of the array that a burst has grown
		return nil
	}
	line := w.pending[0]
	w.pending = w.pending[1:]
	return line
}

func (w *Writer) done(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.bytes -= n; w.bytes == 0 {
		close(w.idle)
	}
}
