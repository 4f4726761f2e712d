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
	// watchedFor is how long a question goes on after the last one who wanted to know: a
	// page that is watched asks again sooner, however slow its other questions are.
	watchedFor = 20 * time.Second
)

var (
	// errSlow is shown while a server has not answered yet.
	errSlow = errors.New("no answer yet")
	// errBusy is shown while a question waits for its turn, or was given up.
	errBusy = errors.New("busy with other questions of readers, one at a time: this page is filled in when it is its turn; reload it if it is not live")
)

// lane lets one question at a time through.
type lane chan struct{}

// enter waits for its turn and returns what ends it; false once ctx has ended.
func (l lane) enter(ctx context.Context) (leave func(), ok bool) {
	if l == nil {
		return func() {}, true
	}
	select {
	case l <- struct{}{}:
		return func() { <-l }, true
	case <-ctx.Done():
		return nil, false
	}
}

// lanes bound what readers have asked for at a time, over all streams. Anybody may read,
// and each filter, device and page is a question of its own. They keep a long one from
// holding up the short ones, and leave a session with Postgres to the overview.
type lanes struct {
	lists   lane // read all dead letters
	looks   lane // look for one device or dead letter, in all of them at worst
	tables  lane // read a page of a table
	exports lane // read all dead letters, as fast as their client does
}

func newLanes() *lanes {
	return &lanes{make(lane, 1), make(lane, 1), make(lane, 1), make(lane, 1)}
}

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
	turn  lane // nil for none

	mu        sync.Mutex
	last      reading[T]
	tried     time.Time
	asking    chan struct{} // closed when the question under way is answered; nil while none is
	queued    bool          // it waits for its turn
	giveUp    context.CancelFunc
	unwatched *time.Timer // gives it up
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
		var asking context.Context
		asking, c.giveUp = context.WithCancel(context.WithoutCancel(ctx))
		c.asking, c.queued = make(chan struct{}), c.turn != nil
		c.unwatched = time.AfterFunc(watchedFor, c.giveUp)
		go c.refresh(asking) // ends within bound, and within watchedFor if nobody asks again
	} else {
		c.unwatched.Reset(watchedFor)
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
		if c.queued {
			last.Err = errBusy
		}
	}
	return last
}

// peek returns the last answer and asks nothing.
func (c *cached[T]) peek() reading[T] {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// stop gives the question under way up.
func (c *cached[T]) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asking != nil {
		c.giveUp()
	}
}

func (c *cached[T]) refresh(ctx context.Context) {
	value, err := c.answer(ctx)
	if err != nil && ctx.Err() != nil {
		err = errBusy
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.giveUp()
	c.unwatched.Stop()
	c.tried = time.Now()
	if c.last.Err = err; err == nil {
		c.last.Value, c.last.At = value, c.tried
	}
	close(c.asking)
	c.asking = nil
}

// answer asks, once it is its turn.
func (c *cached[T]) answer(ctx context.Context) (value T, err error) {
	leave, ok := c.turn.enter(ctx)
	if !ok {
		return value, errBusy
	}
	defer leave()
	c.mu.Lock()
	c.queued = false
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, c.bound)
	defer cancel()
	return c.ask(ctx)
}
