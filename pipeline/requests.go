package pipeline

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Requests reads and runs what operators and the leader request.
type Requests interface {
	Waiting(ctx context.Context, shards []int) ([]protocol.Request, error)
	Step(ctx context.Context, o protocol.RequestStep) (p protocol.Progress, done bool, err error)
	Finish(ctx context.Context, o protocol.RequestStep, result map[string]any) error
	// Failed notes a step that did not commit, and reports whether it was the last one.
	Failed(ctx context.Context, o protocol.RequestStep, cause error) (last bool, err error)
	// Registered returns devices of the stream in order, behind the one given, at most so many.
	Registered(ctx context.Context, after string, most int) ([]string, error)
}

// pollRequests is the interval of polls for requests.
const pollRequests = 2 * time.Second

// requestScheduler brings requests to the workers of their shards: one step per
// worker at a time, with ordinary work in between, so that many requests do not
// delay entries.
type requestScheduler struct {
	table    *table
	requests Requests
	metrics  *metrics
	log      *slog.Logger
	wake     chan struct{} // size one, coalesced

	mu     sync.Mutex
	atWork map[int64]int      // the worker each request is with; under mu
	over   map[int64]struct{} // those finished since the last poll began; under mu
}

func newRequestScheduler(p *Pipeline, requests Requests) *requestScheduler {
	return &requestScheduler{
		table: p.table, requests: requests, metrics: p.metrics, log: p.log,
		wake: make(chan struct{}, 1), atWork: make(map[int64]int), over: make(map[int64]struct{}),
	}
}

func (d *requestScheduler) run(ctx context.Context) error {
	tick := time.NewTicker(pollRequests)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-d.wake:
		}
		if err := retry(ctx, d.log, "poll for requests", d.metrics.requestErrors, always, func() error { return d.poll(ctx) }); err != nil {
			return nil
		}
	}
}

// poll passes requests of owned shards to their workers.
func (d *requestScheduler) poll(ctx context.Context) error {
	var shards []int
	d.table.mu.Lock()
	for i := range d.table.slots {
		if s := &d.table.slots[i]; s.owned && !s.stopping {
			shards = append(shards, i)
		}
	}
	d.table.mu.Unlock()
	if len(shards) == 0 {
		return nil
	}
	d.mu.Lock()
	clear(d.over)
	d.mu.Unlock()
	found, err := d.requests.Waiting(ctx, shards)
	if err != nil {
		return err
	}
	d.table.mu.Lock()
	defer d.table.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	busy := make(map[int]bool, len(d.atWork))
	for _, worker := range d.atWork {
		busy[worker] = true
	}
	for _, r := range found {
		s := &d.table.slots[r.Shard]
		if _, over := d.over[r.ID]; over || !s.owned || s.stopping || busy[s.worker] {
			continue // finished after the poll had read it
		}
		busy[s.worker] = true
		d.atWork[r.ID] = s.worker
		d.table.workers[s.worker].box.put(message{kind: asked, shard: r.Shard, grant: s.grant, request: &r})
	}
	return nil
}

// done removes a finished request; the next one of its shard may follow.
func (d *requestScheduler) done(id int64) {
	d.later(id)
	wakeUp(d.wake)
}

// later returns a request: a later poll finds it again if it is not finished.
func (d *requestScheduler) later(id int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.atWork, id)
	d.over[id] = struct{}{}
}

// step is one step of a request under way.
type step struct {
	stop  context.CancelFunc
	aside []message // of the same shard, which wait for it

	order    protocol.RequestStep
	progress protocol.Progress
	done     bool
	failed   bool // for good
	err      error
}

// serve starts one step of a request, beside the worker, and sets aside what
// arrives for its shard meanwhile. No commit is in flight then: the step sees
// everything applied before it, and what is applied later sees the step. The
// other shards of the worker go on.
func (w *worker) serve(ctx context.Context, m *message) error {
	t, ok := w.owned[m.shard]
	if !ok || t.grant != m.grant || w.ended {
		w.scheduler.done(m.request.ID)
		return nil
	}
	order := protocol.RequestStep{Request: *m.request, Lease: protocol.ShardLease{Shard: m.shard, Epoch: t.epoch}, Shards: w.cfg.Shards}
	if m.request.Kind == protocol.RequestRehydrate {
		return w.serveRehydrate(ctx, order, m)
	}
	ctx, stop := context.WithCancel(ctx)
	s := &step{stop: stop, order: order}
	w.steps[m.shard] = s
	next := message{kind: stepped, shard: m.shard, grant: m.grant, request: m.request, step: s}
	w.stepping.Go(func() {
		defer stop()
		defer endWithPanic(w.panicked)
		w.take(ctx, s)
		w.box.put(next)
	})
	return nil
}

// take does a step. One that failed is noted, unless the shard is to be given up
// for it.
func (w *worker) take(ctx context.Context, s *step) {
	for tries := 0; ; tries++ {
		s.order.Rules = w.rules()
		s.progress, s.done, s.err = w.requests.Step(ctx, s.order)
		w.callsReturned.Add(1)
		if s.err == nil || ctx.Err() != nil {
			return
		}
		w.metrics.requestErrors.Inc()
		if dispositionOf(s.err) != reloadFences {
			break
		}
		if err := w.fences.refresh(ctx); err != nil {
			s.err = err
			return
		}
		if tries > 0 && tries < 10 { // they change faster than that
			s.order.Request.Progress.Halved++
		}
	}
	s.failed = w.failed(ctx, s.order, s.err)
}

// failed notes a failed attempt, and reports whether it was the last one.
func (w *worker) failed(ctx context.Context, o protocol.RequestStep, cause error) bool {
	r := &o.Request
	w.log.Warn("step of a request failed", "request", r.ID, "kind", r.Kind, "shard", r.Shard, "err", cause)
	if dispositionOf(cause) == dropFenced {
		return false
	}
	last, err := w.requests.Failed(ctx, o, cause)
	w.callsReturned.Add(1)
	switch {
	case err != nil:
		w.log.Warn("failed step of a request not noted", "request", r.ID, "err", err)
		return false
	case last:
		w.metrics.failedRequests.WithLabelValues(r.Kind).Inc()
		w.log.Error("request failed; ask again once the cause is gone", "request", r.ID, "kind", r.Kind, "err", cause)
	}
	return last
}

// served handles the outcome of a step, and returns what waited for it.
func (w *worker) served(m *message) {
	s := m.step
	delete(w.steps, m.shard)
	// The step may have changed the tables: reload state from them.
	w.state.invalidate(m.shard)
	rest := append(s.aside, w.inbox[w.next+1:]...)
	t, held := w.owned[m.shard]
	held = held && t.grant == m.grant
	switch {
	case s.err == nil && s.done:
		w.log.Info("request done", "request", m.request.ID, "kind", m.request.Kind, "shard", m.shard,
			"devices", s.progress.Devices, "count", s.progress.Fixes+s.progress.Removed)
		w.scheduler.done(m.request.ID)
	case s.err == nil && held:
		// Continue after the messages that arrived during the step.
		next := *m.request
		next.Progress, next.Attempts = s.progress, 0
		w.box.put(message{kind: asked, shard: m.shard, grant: m.grant, request: &next})
	case s.failed, isTooMuch(s.err):
		w.scheduler.done(m.request.ID)
	default:
		w.scheduler.later(m.request.ID)
	}
	w.inbox, w.next, w.offset = rest, 0, 0
	if s.err == nil || !held {
		return
	}
	switch v := dispositionOf(s.err); v {
	case dropFenced, reacquire:
		cause := OutcomeUnknown
		if v == dropFenced {
			cause = shardFenced
		}
		b := &batch{parts: []part{{shard: m.shard, grant: m.grant, epoch: t.epoch}}}
		w.giveUp(b, nil, cause)
	default:
	}
}

// serveRehydrate reloads the state of one device or of the whole shard.
func (w *worker) serveRehydrate(ctx context.Context, o protocol.RequestStep, m *message) error {
	result := map[string]any{"devices": w.state.known(m.shard)}
	if id := m.request.Device; id != "" {
		result = map[string]any{"before": w.describe(id, m.shard)}
	}
	w.state.invalidate(m.shard)
	var err error
	if id := m.request.Device; id != "" {
		if err = w.load(ctx, m.shard, []string{id}); err == nil {
			result["after"] = w.describe(id, m.shard)
		}
		// Read by its next record again, which registers the device.
		w.state.invalidate(m.shard)
	}
	if err == nil {
		err = w.requests.Finish(ctx, o, result)
		w.callsReturned.Add(1)
	}
	if err == nil {
		w.log.Info("request done", "request", m.request.ID, "kind", m.request.Kind, "shard", m.shard)
		w.scheduler.done(m.request.ID)
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	w.failed(ctx, o, err)
	w.scheduler.later(m.request.ID)
	return nil
}

// describe returns the state of a device for operators. Coordinates are
// personal data: they go only into the result of a request, never into a log.
func (w *worker) describe(id string, shard int) map[string]any {
	d := w.state.find(id, shard)
	switch {
	case d == nil:
		return map[string]any{"known": false}
	case d.watermark == never:
		return map[string]any{"known": true, "positions": false}
	}
	fix := telemetry.Record{TimeUS: d.watermark}
	inside := []string{}
	if set := w.fences.now(); set.Len() > 0 {
		for _, i := range set.At(nil, d.fix()) {
			inside = append(inside, set.Fence(i).ID)
		}
	}
	return map[string]any{
		"known": true, "positions": true, "watermark": fix.Time(), "latitude": d.lat, "longitude": d.lon, "inside": inside,
	}
}
