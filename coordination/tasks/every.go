package tasks

import (
	"context"
	"time"
)

// Periodic is a task that runs at most once per interval.
type Periodic struct {
	every time.Duration
	do    func(ctx context.Context, term int64) error
	last  time.Time
}

// Every returns a task that calls do at most once per interval.
func Every(interval time.Duration, do func(ctx context.Context) error) *Periodic {
	return EveryTerm(interval, func(ctx context.Context, _ int64) error { return do(ctx) })
}

// EveryTerm is Every for what writes under the leader's term.
func EveryTerm(interval time.Duration, do func(ctx context.Context, term int64) error) *Periodic {
	return &Periodic{every: interval, do: do}
}

// Do implements coordination.Task.
func (p *Periodic) Do(ctx context.Context, term int64) error {
	if time.Since(p.last) < p.every {
		return nil
	}
	p.last = time.Now()
	return p.do(ctx, term)
}
