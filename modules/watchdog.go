package modules

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/pipeline"
)

// watchdog ends a stuck instance: for STALL_TIMEOUT entries were in flight, none
// was finished, no server call returned, and the servers answer a probe. While a
// server fails, calls return with errors, so an outage never counts as a stall.
type watchdog struct {
	workStatus func() pipeline.WorkStatus
	answers    func(ctx context.Context) error // probes the servers
	giveUp     func()                          // releases the shards and the heartbeat
	timeout    time.Duration
	log        *slog.Logger
}

// watchTicks is the number of consecutive polls without progress. Polls are
// counted rather than time, so that a frozen process does not count as stuck
// when it resumes.
const watchTicks = 20

// maxStacks bounds the stacks in the log.
const maxStacks = 256 << 10

// Run polls until ctx ends or the instance is stuck.
func (w *watchdog) Run(ctx context.Context) error {
	// A poll may need the lock that a stuck goroutine holds, so another goroutine
	// polls; it may never return, but then the process is about to end.

	var latest atomic.Pointer[pipeline.WorkStatus]
	every := w.timeout / watchTicks
	go func() {
		for pause(ctx, every/2) {
			v := w.workStatus()
			latest.Store(&v)
		}
	}()
	var before pipeline.WorkStatus
	quiet := 0
	for pause(ctx, every) {
		if v := latest.Swap(nil); v != nil {
			moved := v.InFlight == 0 || v.Finished != before.Finished || v.CallsReturned != before.CallsReturned
			before = *v
			if moved {
				quiet = 0
				continue
			}
		}
		if quiet++; quiet < watchTicks {
			continue
		}
		if err := w.answers(ctx); err != nil {
			quiet = 0
			continue
		}
		w.giveUp() // first, since logging may be what is stuck
		stacks := make([]byte, maxStacks)
		stacks = stacks[:runtime.Stack(stacks, true)]
		w.log.Error("stuck: entries in flight, servers responding, no progress; releasing shards to restart",
			"count", before.InFlight, "duration", w.timeout, "stacks", string(stacks))
		return fault.Exitf(fault.Unexpected, "stuck for STALL_TIMEOUT=%v with %d entries in flight, see the stacks in the log", w.timeout, before.InFlight)
	}
	return nil
}

// pause reports whether the time passed before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func startWatchdog(s *supervisor, parts parts, sessions *store.Sessions) {
	for _, p := range parts {
		s.run("watchdog", &watchdog{
			workStatus: p.Pipeline.WorkStatus,
			answers: func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, checkTimeout)
				defer cancel()
				return errors.Join(p.Group.Ping(ctx), sessions.Ping(ctx))
			},
			giveUp:  func() { p.drainer.expireDrain(); p.fleet.Abandon() },
			timeout: p.Service.Instance.StallTimeout,
			log:     p.Log.With("component", "watchdog"),
		})
	}
}
