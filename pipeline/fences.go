package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
)

// fences is the set of fences from which all workers derive crossings. Every
// commit checks that it is the current one, so a stale set costs recomputation,
// never correctness.
type fences struct {
	loader  fenceLoader
	every   time.Duration
	metrics *metrics
	log     *slog.Logger
	changed chan struct{} // size one, coalesced

	mu      sync.Mutex // one refresh at a time
	present atomic.Pointer[protocol.Fences]
}

func newFences(loader fenceLoader, every time.Duration, m *metrics, log *slog.Logger) *fences {
	return &fences{loader: loader, every: every, metrics: m, log: log, changed: make(chan struct{}, 1)}
}

// now returns the set loaded last. It is loaded before any worker runs.
func (f *fences) now() *protocol.Fences { return f.present.Load() }

// refresh loads the set if it changed, and retries until it succeeds or ctx ends.
func (f *fences) refresh(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := retry(ctx, f.log, "load fences", f.metrics.fenceErrors, isTransient, func() error { return f.load(ctx) })
	if err == nil || ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("load fences: %w", err)
}

// unknownVersion is that of no set.
const unknownVersion = -1

// forget has the set loaded again whatever its version is: another server may call another
// set by the same number. Until then no commit accepts what is derived.
func (f *fences) forget() {
	var has protocol.Fences
	if present := f.present.Load(); present != nil {
		has = *present
	}
	has.Version = unknownVersion
	f.present.Store(&has)
	wakeUp(f.changed)
}

// load loads the set if it changed. The caller holds the lock.
func (f *fences) load(ctx context.Context) error {
	has := f.present.Load()
	if has != nil {
		version, err := f.loader.Version(ctx)
		if err != nil || version == has.Version {
			return err
		}
	}
	set, bad, err := f.loader.Load(ctx)
	if err != nil {
		return err
	}
	for _, err := range bad {
		f.log.Error("invalid fence skipped; fix it and re-import", "err", err)
	}
	f.metrics.fenceCount.Set(float64(set.Len()))
	f.metrics.badFences.Set(float64(len(bad)))
	if set.Len() > 0 || has != nil {
		f.log.Info("fences loaded", "count", set.Len(), "version", set.Version)
	}
	if !f.present.CompareAndSwap(has, set) {
		return f.load(ctx) // forgotten meanwhile: it may be the earlier server's
	}
	return nil
}

// run keeps the set up to date until ctx ends.
func (f *fences) run(ctx context.Context) error {
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.changed:
		case <-tick.C:
		}
		if err := f.refresh(ctx); err != nil {
			return err
		}
	}
}
