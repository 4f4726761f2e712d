package httpserver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// freshness is how long the result of a check is reused, so that frequent probes
// do not add load to the dependencies.
const freshness = time.Second

var (
	errUnregistered = errors.New("not started yet")
	errDraining     = errors.New("draining")
	errStopped      = errors.New("the endpoint is closing")
)

// check is one named condition of readiness.
type check struct {
	run     func(ctx context.Context) error
	timeout time.Duration

	mu      sync.Mutex
	running chan struct{} // closed by the probe when it ends; nil while none runs
	at      time.Time     // when the last probe ended
	err     error         // its result
}

// status returns the last result while it is fresh, otherwise that of a new
// probe. It returns within the timeout even if the probe does not. launch starts
// the probe; it refuses once the server closes.
func (c *check) status(ctx context.Context, launch func(probe func()) bool) error {
	c.mu.Lock()
	if !c.at.IsZero() && time.Since(c.at) < freshness {
		defer c.mu.Unlock()
		return c.err
	}
	if c.running == nil {
		c.running = make(chan struct{})
		if !launch(func() { c.probe(ctx) }) {
			c.running = nil
			c.mu.Unlock()
			return errStopped
		}
	}
	done := c.running
	c.mu.Unlock()

	late := time.NewTimer(c.timeout)
	defer late.Stop()
	select {
	case <-done:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.err
	case <-late.C:
		return fmt.Errorf("no answer within %v", c.timeout)
	}
}

func (c *check) probe(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err := c.run(ctx)

	c.mu.Lock()
	defer c.mu.Unlock()
	c.err, c.at = err, time.Now()
	close(c.running)
	c.running = nil
}
