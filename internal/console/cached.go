package console

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// freshness is how long an answer of Redis is reused, slower that of Postgres, which
	// changes less and costs more, and slowest either where only their silence is shown.
	freshness = 900 * time.Millisecond
	slower    = 1900 * time.Millisecond
	slowest   = 4900 * time.Millisecond
	// maxWait bounds the wait for an answer while a page is made.
	maxWait = 1500 * time.Millisecond
	// askFor bounds a question: one that takes longer is asked again.
	askFor = 8 * time.Second
)

// errSlow is shown while a server has not answered yet.
var errSlow = errors.New("no answer yet")

// reading is an answer with its age. Err is set while the server is silent; then
// Value is its last one, of At, or nothing if At is zero.
type reading[T any] struct {
	Value T
	At    time.Time
	Err   error
}

// Known reports whether there is a value.
func (r reading[T]) Known() bool { return !r.At.IsZero() }

// Stale reports whether the value is an old one.
func (r reading[T]) Stale() bool { return r.Err != nil }

// cached asks once for all who want to know, and keeps the last answer while
// there is no new one.
type cached[T any] struct {
	ask   func(ctx context.Context) (T, error)
	fresh time.Duration
	bound time.Duration

	mu     sync.Mutex
	last   reading[T]
	tried  time.Time
	asking chan struct{} // closed when the question under way is answered; nil while none is
}

func newCached[T any](fresh time.Duration, ask func(ctx context.Context) (T, error)) *cached[T] {
	return &cached[T]{ask: ask, fresh: fresh, bound: askFor}
}

// get returns the answer, a fresh one if it comes within maxWait.
func (c *cached[T]) get(ctx context.Context) reading[T] { return c.within(ctx, c.fresh) }

// within is get for those who are content with an older answer.
func (c *cached[T]) within(ctx context.Context, fresh time.Duration) reading[T] {
	c.mu.Lock()
	if time.Since(c.tried) < max(fresh, c.fresh) && c.asking == nil {
		defer c.mu.Unlock()
		return c.last
	}
	if c.asking == nil {
		c.asking = make(chan struct{})
		go c.refresh(context.WithoutCancel(ctx)) // ends within askFor
	}
	done := c.asking
	c.mu.Unlock()

	late := time.NewTimer(maxWait)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.last
	if c.asking == done && last.Err == nil {
		last.Err = errSlow
	}
	return last
}

// peek returns the last answer and asks nothing.
func (c *cached[T]) peek() reading[T] {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

func (c *cached[T]) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.bound)
	defer cancel()
	value, err := c.ask(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tried = time.Now()
	if c.last.Err = err; err == nil {
		c.last.Value, c.last.At = value, c.tried
	}
	close(c.asking)
	c.asking = nil
}
