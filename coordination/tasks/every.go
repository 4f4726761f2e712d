package tasks

import (
	"context"
	"time"
)

// Periodic is a task that runs at most once per interval.
type Periodic struct {
	every time.Duration
	do    func(ctx context.Context) error
	last  time.Time
}

// Every returns a task that calls do at most once per interval.
func Every(interval time.Duration, do func(ctx context.Context) error) *Periodic {
	return &Periodic{every: interval, do: do}
}

// Do implements coordination.Task.
func (p *Periodic) Do(ctx context.Context, _ int64) error {
	if time.Since(p.last) < p.every {
		return nil
	}
	p.last = time.Now()
	return p.do(ctx)
}
