package modules

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/pipeline"
)

// watchdog ends an instance that is stuck: for STALL_TIMEOUT there was work in
// hand, nothing was finished, no call of a server came back, and the servers
// answer when asked. While a server fails, calls come back with errors, so an
// outage is no stall, however long it lasts.
type watchdog struct {
	vitals  func() pipeline.Vitals
	answers func(ctx context.Context) error // whether the servers do
	giveUp  func()                          // of the shards and the heartbeat
	timeout time.Duration
	log     *slog.Logger
}

// watchTicks is how many looks in a row must show no progress. Looks are
// counted rather than time, so that a process that was frozen is not taken for
// one that is stuck.
const watchTicks = 20

// maxStacks bounds the stacks in the log.
const maxStacks = 256 << 10

// Run looks until ctx ends, or until the instance is stuck.
func (w *watchdog) Run(ctx context.Context) error {
	// What is stuck may hold the lock that a look needs, so the looks are taken
	// by a goroutine that may never come back; then the process is about to end.
	var latest atomic.Pointer[pipeline.Vitals]
	every := w.timeout / watchTicks
	go func() {
		for pause(ctx, every/2) {
			v := w.vitals()
			latest.Store(&v)
		}
	}()
	var before pipeline.Vitals
	quiet := 0
	for pause(ctx, every) {
		if v := latest.Swap(nil); v != nil {
			moved := v.InHand == 0 || v.Finished != before.Finished || v.Tried != before.Tried
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
		w.log.Error("stuck: work in hand, servers that answer and no progress; giving up the shards to restart",
			"count", before.InHand, "duration", w.timeout, "stacks", string(stacks))
		return exitError(codeUnexpected, "stuck for STALL_TIMEOUT=%v with %d entries in hand, see the stacks in the log", w.timeout, before.InHand)
	}
	return nil
}

// pause tells whether the time passed before ctx ended.
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

func startWatchdog(s *supervisor, cfg config.Config, p *pipeline.Pipeline, group *stream.Group, sessions *store.Sessions,
	fleet *coordination.Fleet, d *drainer, log *slog.Logger,
) {
	s.run("watchdog", &watchdog{
		vitals: p.Vitals,
		answers: func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, checkTimeout)
			defer cancel()
			return errors.Join(group.Ping(ctx), sessions.Ping(ctx))
		},
		giveUp:  func() { d.hurry(); fleet.Abandon() },
		timeout: cfg.Instance.StallTimeout,
		log:     log.With("component", "watchdog"),
	})
}
