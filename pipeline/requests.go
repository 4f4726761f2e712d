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
	Finish(ctx context.Context, o protocol.RequestStep, result map[string]any, failed string) error
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
	d.mu.Lock()
	delete(d.atWork, id)
	d.over[id] = struct{}{}
	d.mu.Unlock()
	ring(d.wake)
}

// serve runs one step of a request. No commit is in flight then: the step sees
// everything applied before it, and what is applied later sees the step.
func (w *worker) serve(ctx context.Context, m *message) error {
	t, ok := w.owned[m.shard]
	if !ok || t.grant != m.grant {
		w.scheduler.done(m.request.ID)
		return nil
	}
	order := protocol.RequestStep{Request: *m.request, Lease: protocol.ShardLease{Shard: m.shard, Epoch: t.epoch}, Shards: w.cfg.Shards}
	if m.request.Kind == protocol.RequestRehydrate {
		return w.serveRehydrate(ctx, order, m)
	}
	var progress protocol.Progress
	var done bool
	err := w.attempt(ctx, &order, func() (err error) {
		progress, done, err = w.requests.Step(ctx, order)
		w.callsReturned.Add(1)
		return err
	})
	// The step may have changed the tables: reload state from them.
	w.state.invalidate(m.shard)
	if err != nil {
		return w.unserved(ctx, order, m, err)
	}
	if done {
		w.log.Info("request done", "request", m.request.ID, "kind", m.request.Kind, "shard", m.shard,
			"devices", progress.Devices, "count", progress.Fixes+progress.Removed)
		w.scheduler.done(m.request.ID)
		return nil
	}
	// Continue after the messages that arrived during the step.
	next := *m.request
	next.Progress = progress
	w.box.put(message{kind: asked, shard: m.shard, grant: m.grant, request: &next})
	return nil
}

// attempt runs f with the current fences until it has an outcome.
func (w *worker) attempt(ctx context.Context, o *protocol.RequestStep, f func() error) error {
	for {
		o.Rules = w.rules()
		err := retry(ctx, w.log, "run a request", w.metrics.requestErrors, notApplied, f)
		if err == nil || ctx.Err() != nil || dispositionOf(err) != reloadFences {
			return err
		}
		if err := w.fences.refresh(ctx); err != nil {
			return err
		}
	}
}

// unserved handles a request whose step did not commit.
func (w *worker) unserved(ctx context.Context, o protocol.RequestStep, m *message, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	w.scheduler.done(m.request.ID)
	cause := OutcomeUnknown
	switch dispositionOf(err) {
	case dropFenced:
		cause = ShardFenced
	case reacquire:
	default:
		w.log.Error("request failed", "request", m.request.ID, "kind", m.request.Kind, "err", err)
		return w.attempt(ctx, &o, func() error { return w.requests.Finish(ctx, o, nil, err.Error()) })
	}
	b := &batch{parts: []part{{shard: m.shard, grant: m.grant, epoch: o.Lease.Epoch}}}
	w.giveUp(b, nil, cause)
	return nil
}

// serveRehydrate reloads the state of one device or of the whole shard.
func (w *worker) serveRehydrate(ctx context.Context, o protocol.RequestStep, m *message) error {
	result := map[string]any{"devices": w.state.known(m.shard)}
	if id := m.request.Device; id != "" {
		result = map[string]any{"before": w.describe(id, m.shard)}
	}
	w.state.invalidate(m.shard)
	if id := m.request.Device; id != "" {
		w.cold = append(w.cold[:0], id)
		if err := w.rehydrate(ctx, m.shard); err != nil {
			return err
		}
		result["after"] = w.describe(id, m.shard)
	}
	if err := w.attempt(ctx, &o, func() error { return w.requests.Finish(ctx, o, result, "") }); err != nil {
		return w.unserved(ctx, o, m, err)
	}
	w.log.Info("request done", "request", m.request.ID, "kind", m.request.Kind, "shard", m.shard)
	w.scheduler.done(m.request.ID)
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
