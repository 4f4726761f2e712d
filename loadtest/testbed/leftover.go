package testbed

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
)

// NoProgressLimit is how long nothing may be finished before waiting ends.
const NoProgressLimit = 45 * time.Second

// Leftover is what was not finished when waiting ended.
type Leftover struct {
	Pending     map[telemetry.EntryID]bool
	Dispatched  telemetry.EntryID
	Outstanding int64
}

// Left returns what is not done yet.
func (g *Servers) Left(ctx context.Context) (Leftover, error) {
	info, err := g.Inspector.Info(ctx)
	if err != nil {
		return Leftover{}, fmt.Errorf("ask what is left: %w", err)
	}
	deferred, err := g.Observer.Deferred(ctx)
	if err != nil {
		return Leftover{}, err
	}
	var ids []telemetry.EntryID
	if info.GroupExists {
		if ids, err = g.Inspector.Pending(ctx, int(info.Pending)+1); err != nil {
			return Leftover{}, fmt.Errorf("list what is left: %w", err)
		}
	}
	left := Leftover{Pending: map[telemetry.EntryID]bool{}, Dispatched: info.Accounted()}
	for _, id := range append(ids, deferred...) {
		left.Pending[id] = true
	}
	outstanding, _ := backlogOf(info)
	left.Outstanding = outstanding + int64(len(deferred))
	return left, nil
}

// Outstanding returns how many entries are not done, deferred ones included.
func (g *Servers) Outstanding(ctx context.Context) (n int64, known bool, err error) {
	info, err := g.Inspector.Info(ctx)
	if err != nil {
		return 0, false, fmt.Errorf("ask what is left: %w", err)
	}
	deferred, err := g.Observer.Deferred(ctx)
	if err != nil {
		return 0, false, err
	}
	n, known = backlogOf(info)
	return n + int64(len(deferred)), known, nil
}

// Backlog returns what is not done of all streams and how old the oldest of it is.
func (g *Servers) Backlog(ctx context.Context) (outstanding *int64, age *float64) {
	all := g.All()
	counts, ages := make([]*int64, len(all)), make([]*float64, len(all))
	var asked sync.WaitGroup
	for i, s := range all {
		asked.Go(func() { counts[i], ages[i] = s.backlog(ctx) })
	}
	asked.Wait()
	sum, oldest := int64(0), 0.0
	outstanding, age = &sum, &oldest
	for i := range all {
		if counts[i] == nil {
			outstanding = nil
		} else {
			sum += *counts[i]
		}
		if ages[i] == nil {
			age = nil
		} else {
			oldest = max(oldest, *ages[i])
		}
	}
	return outstanding, age
}

func (g *Servers) backlog(ctx context.Context) (outstanding *int64, age *float64) {
	b, err := g.Inspector.Backlog(ctx)
	if err != nil {
		return nil, nil
	}
	if b.LagKnown {
		n := b.Lag + b.Pending
		outstanding = &n
	}
	if b.OldestKnown {
		seconds := 0.0
		if !b.Oldest.IsZero() {
			seconds = max(0, time.Since(b.Oldest.Time()).Seconds())
		}
		age = &seconds
	}
	return outstanding, age
}

// backlogOf returns how many entries are not done, false where that is not known.
func backlogOf(info stream.Info) (int64, bool) {
	switch {
	case !info.Exists:
		return 0, true
	case !info.GroupExists:
		return info.Length, true
	}
	return info.Lag.N + info.Pending, info.Lag.Known
}
