package pipeline

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/telemetry"
)

// A shard that is acquired without the state that its last owner left, as after a kill,
// begins with all of its devices unknown. Those that wait are looked up as their queue is
// read, in one statement for each page, and so come first. The others would be looked up a
// few at a time for each batch, until all have sent. So they are loaded ahead, page by page,
// while nothing that has arrived waits for their worker. It changes no row: a device that was
// loaded ahead is one that was looked up a moment earlier, and is registered when it sends.

const (
	wantedPage = 4096 // registered devices found at once, which bounds those that wait in memory
	lookUpPage = 256  // devices of one statement
)

// ahead finds the devices of a worker's shards that began without state, and passes them to
// it. Each worker has its own: one that is busy would hold up the others.
type ahead struct {
	table    *table
	worker   int
	requests Requests
	metrics  *metrics
	log      *slog.Logger
	one      chan struct{} // of size one, held during a statement: one connection of all workers
	wake     chan struct{} // size one, coalesced

	mu     sync.Mutex
	shards map[int]struct{} // that want it; under mu
}

func newAhead(p *Pipeline, worker int, one chan struct{}) *ahead {
	return &ahead{
		table: p.table, worker: worker, requests: p.scheduler.requests, metrics: p.metrics, log: p.log,
		one: one, wake: make(chan struct{}, 1), shards: make(map[int]struct{}),
	}
}

// want has the devices of a shard loaded.
func (a *ahead) want(shard int) {
	a.mu.Lock()
	a.shards[shard] = struct{}{}
	a.mu.Unlock()
	wakeUp(a.wake)
}

func (a *ahead) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		}
		a.mu.Lock()
		shards := maps.Clone(a.shards)
		clear(a.shards)
		a.mu.Unlock()
		if err := a.pass(ctx, shards); err != nil && ctx.Err() == nil {
			a.log.Warn("devices are not loaded ahead", "err", err)
		}
	}
}

// pass goes through the registered devices once, a page at a time, as the worker finds time for them.
func (a *ahead) pass(ctx context.Context, shards map[int]struct{}) error {
	for after := ""; ; {
		var page []string
		if err := retry(ctx, a.log, "read registered devices", a.metrics.historyErrors, isTransient, func() (err error) {
			if !a.begin(ctx) {
				return ctx.Err()
			}
			defer a.end()
			page, err = a.requests.Registered(ctx, after, wantedPage)
			return err
		}); err != nil {
			return err
		}
		if !a.offer(ctx, page, shards) || len(page) < wantedPage {
			return ctx.Err()
		}
		after = page[len(page)-1]
	}
}

// begin waits for the other workers' statements, and reports whether ours may begin.
func (a *ahead) begin(ctx context.Context) bool {
	select {
	case a.one <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (a *ahead) end() { <-a.one }

// offer passes devices to the worker, and waits until it is through with them. It reports
// whether it still has any of the shards.
func (a *ahead) offer(ctx context.Context, devices []string, shards map[int]struct{}) bool {
	var list []string
	a.table.mu.Lock()
	for shard := range shards {
		if s := &a.table.slots[shard]; !s.owned || s.worker != a.worker {
			delete(shards, shard)
		}
	}
	a.table.mu.Unlock()
	for _, id := range devices {
		if _, wants := shards[telemetry.ShardOf(id, len(a.table.slots))]; wants {
			list = append(list, id)
		}
	}
	if len(list) == 0 {
		return len(shards) > 0
	}
	done := make(chan struct{})
	a.table.workers[a.worker].box.put(message{kind: wanted, shard: -1, devices: list, done: func() { close(done) }})
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

// lookUp is a page of devices that are looked up beside their worker. What was found holds
// unless the state of the shard became invalid, or a device was forgotten, since it began.
type lookUp struct {
	devices     []string
	generations []uint32 // of their shards when it began
	drops       uint64   // of the state when it began
	found       []geofence.Fix
}

// lookAhead begins to look up devices that are wanted and unknown, while there is room for them.
func (w *worker) lookAhead(ctx context.Context) {
	for len(w.wanted) > 0 && !w.looking {
		m := &w.wanted[0]
		l := &lookUp{drops: w.state.drops}
		for len(m.devices) > 0 && len(l.devices) < lookUpPage {
			id := m.devices[0]
			m.devices = m.devices[1:]
			shard := telemetry.ShardOf(id, w.cfg.Shards)
			if w.mayLookAhead(id, shard) && w.state.len+len(l.devices) < w.state.max {
				l.devices, l.generations = append(l.devices, id), append(l.generations, w.state.generations[shard])
				l.found = append(l.found, geofence.Fix{TimeUS: never})
			}
		}
		if len(l.devices) == 0 {
			m.done()
			w.wanted[0] = message{}
			w.wanted = w.wanted[1:]
			continue
		}
		w.looking = true
		w.stepping.Go(func() {
			defer endWithPanic(w.panicked)
			w.lookUp(ctx, l)
			w.box.put(message{kind: lookedUp, shard: -1, looked: l})
		})
	}
}

// mayLookAhead reports whether a device is unknown, and nothing of its shard commits that was
// begun under an earlier grant: what a look-up does not see of that, the queue would not bring
// again if it is acknowledged first.
func (w *worker) mayLookAhead(id string, shard int) bool {
	t, ok := w.owned[shard]
	if !ok || w.state.find(id, shard) != nil {
		return false
	}
	return !w.commitsEarlier(shard, t.grant)
}

// commitsEarlier reports whether something of a shard commits that was begun under an earlier grant.
func (w *worker) commitsEarlier(shard int, grant uint64) bool {
	return w.busy && slices.ContainsFunc(w.committing.parts, func(p part) bool { return p.shard == shard && p.grant != grant })
}

// lookUp looks devices up once: those that it does not find, and those of which a crossing is
// recorded behind what it finds, are looked up when they send.
func (w *worker) lookUp(ctx context.Context, l *lookUp) {
	if !w.ahead.begin(ctx) {
		return
	}
	defer w.ahead.end()
	err := w.history.RecentFixes(ctx, l.devices, w.cfg.Eligibility, func(i int, last geofence.Fix) { l.found[i] = last })
	if err == nil && w.fences.now().Len() > 0 {
		err = w.history.LastCrossings(ctx, l.devices, func(i int, us int64) {
			if l.found[i].TimeUS < us { // bereft
				l.found[i].TimeUS = never
			}
		})
	}
	if err != nil {
		w.metrics.historyErrors.Inc()
		for i := range l.found {
			l.found[i].TimeUS = never
		}
	}
}

// learnAhead learns what a look-up found, of devices that are unknown still.
func (w *worker) learnAhead(l *lookUp) {
	w.looking = false
	if l.drops != w.state.drops {
		return // one of them may have been known meanwhile, with records that the look-up did not see
	}
	n := 0
	for i, id := range l.devices {
		shard := telemetry.ShardOf(id, w.cfg.Shards)
		if l.found[i].TimeUS == never || l.generations[i] != w.state.generations[shard] || w.state.find(id, shard) != nil || w.state.len >= w.state.max {
			continue
		}
		w.state.learn(id, shard, l.found[i]).size |= unheard
		n++
	}
	w.metrics.loads.WithLabelValues(loadedAhead).Add(float64(n))
	w.stateSize.Store(int64(w.state.len))
}
