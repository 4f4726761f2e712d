package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Source is the stream as the dispatcher and the reader need it.
type Source interface {
	AcquireDispatchLease(ctx context.Context, before, token string, ttl time.Duration) (protocol.DispatchLease, error)
	ReleaseDispatchLease(ctx context.Context, token string) error
	ReadNew(ctx context.Context, after telemetry.EntryID, count int, block time.Duration) (protocol.NewEntries, error)
	Dispatch(ctx context.Context, d protocol.DispatchRequest, a *protocol.NewEntries) (protocol.DispatchResult, error)
	ReadQueues(ctx context.Context, reads []protocol.QueueRead) ([]protocol.QueueReply, error)
	// Undecided returns those of some entries that are still to be decided from their queues.
	Undecided(ctx context.Context, ids []telemetry.EntryID) ([]telemetry.EntryID, error)
	// Work returns the progress of every shard, and how many entries are pending for foreign consumers.
	Work(ctx context.Context) (work map[int]protocol.ShardWork, foreign int, err error)
}

// Acker acknowledges entries whose effect is committed.
type Acker interface {
	Ack(ctx context.Context, acks []protocol.Ack) error
}

// Sink commits batches, each in one transaction that ends with the check of epochs.
type Sink interface {
	Write(ctx context.Context, b *protocol.Batch) (protocol.CommitResult, error)
	// Generation numbers the lives of the server that were noticed. A batch is
	// rejected by another generation than the one it names.
	Generation() uint64
	// Probe counts which records would be stored now, and which refused, until enough
	// are taken, and stores none. An error says that it is not known.
	Probe(ctx context.Context, records []telemetry.Record, enough int) (taken, refused int, err error)
}

// History reads what is stored.
type History interface {
	LastFixes(ctx context.Context, devices []string, rules telemetry.Eligibility,
		found func(i int, last geofence.Fix)) error
	// RecentFixes is LastFixes for devices that sent lately, in one short statement.
	RecentFixes(ctx context.Context, devices []string, rules telemetry.Eligibility,
		found func(i int, last geofence.Fix)) error
	// LastCrossings calls found for each device of which a crossing is recorded, with the
	// device time of the fix of the last one.
	LastCrossings(ctx context.Context, devices []string, found func(i int, us int64)) error
}

// fenceLoader reads the fences. Invalid ones are skipped and reported.
type fenceLoader interface {
	Version(ctx context.Context) (int64, error)
	Load(ctx context.Context) (set *protocol.Fences, bad []error, err error)
}

// Cause is the reason why a shard was given up.
type Cause uint8

const (
	// ShardFenced means that another owner has acquired the shard.
	shardFenced Cause = iota + 1
	// OutcomeUnknown means that a commit may or may not have happened. Reacquiring the
	// shard settles it.
	OutcomeUnknown
)

// ShardLost tells coordination that the pipeline gave a shard up.
type ShardLost struct {
	Shard int
	Epoch int64
	Cause Cause
}

// Pipeline is the work of one instance: it dispatches while it holds the
// dispatch lease, reads the queues of the shards granted to it, and processes
// them up to commit and acknowledgement. Coordination decides who owns a shard.
type Pipeline struct {
	cfg            Config
	table          *table
	source         Source
	acker          Acker
	sink           Sink
	history        History
	fences         *fences
	scheduler      *requestScheduler
	deadLetterSink DeadLetterSink
	lost           func(ShardLost)
	metrics        *metrics
	log            *slog.Logger
	workers        []*worker
	panicked       func(value any) // see OnPanic
	leaseFree      chan struct{}
	peers          func() int
	spread         *protocol.SpreadLease // the dispatch lease
	commitCount    atomic.Uint64
	blocked        atomic.Bool // the last commit failed because another session held a lock

	deferrals Deferrals
	probeLog  ProbeLog
	attempts  *Attempts
	breaker   *breaker
}

// Deps are what a pipeline works with.
type Deps struct {
	Source         Source
	Acker          Acker
	Sink           Sink
	History        History
	Fences         fenceLoader
	DeadLetterSink DeadLetterSink

	Deferrals Deferrals
	ProbeLog  ProbeLog
	// Requests returns what operators and the leader request.
	Requests Requests
	// Lost is called from a worker for each shard that was given up.
	Lost func(ShardLost)
	// Peers returns how many other members can accept entries.
	Peers func() int
	// Attempts are those of the process; nil for a pipeline alone.
	Attempts *Attempts
	// DispatchLease is the one of this stream among those of all; nil for a stream alone.
	DispatchLease *protocol.SpreadLease
}

// New returns a pipeline that owns no shard yet.
func New(cfg Config, deps Deps, log *slog.Logger, reg prometheus.Registerer) (*Pipeline, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if deps.Source == nil || deps.Acker == nil || deps.Sink == nil || deps.History == nil || deps.Fences == nil || deps.Requests == nil ||
		deps.DeadLetterSink == nil || deps.Deferrals == nil || deps.ProbeLog == nil || deps.Lost == nil || deps.Peers == nil {
		return nil, fmt.Errorf("pipeline: a dependency is missing: %+v", deps)
	}
	t := newTable(cfg)
	p := &Pipeline{
		cfg: cfg, table: t, source: deps.Source, acker: deps.Acker, history: deps.History,
		deadLetterSink: deps.DeadLetterSink, deferrals: deps.Deferrals, probeLog: deps.ProbeLog, attempts: deps.Attempts,
		lost: deps.Lost, peers: deps.Peers, spread: deps.DispatchLease, metrics: newMetrics(reg, t),
		log: log.With("component", "pipeline"), leaseFree: make(chan struct{}, 1),
	}
	if p.attempts == nil {
		p.attempts = NewAttempts()
	}
	p.breaker = newBreaker()
	p.sink = commitCountingSink{deps.Sink, &p.commitCount, &p.blocked}
	p.scheduler = newRequestScheduler(p, stepCountingRequests{deps.Requests, &p.commitCount})
	p.fences = newFences(deps.Fences, cfg.FenceRefresh, p.metrics, p.log)
	loading := make(chan struct{}, 1)
	for n := range cfg.Workers {
		p.workers = append(p.workers, newWorker(p, newMailbox(), newAhead(p, n, loading)))
	}
	t.workers = p.workers
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "processor_device_state_size", Help: "Devices whose state is in memory.",
	}, func() float64 {
		var n int64
		for _, w := range p.workers {
			n += w.stateSize.Load()
		}
		return float64(n)
	})
	return p, nil
}

// LoadFences loads the fences, without which no entry can be applied. It reports whether an
// error may pass. An instance that cannot load them must not own shards.
func (p *Pipeline) LoadFences(ctx context.Context) (transient bool, err error) {
	p.fences.mu.Lock()
	defer p.fences.mu.Unlock()
	if err := p.fences.load(ctx); err != nil {
		p.metrics.fenceErrors.Inc()
		return isTransient(err), fmt.Errorf("load fences: %w", err)
	}
	return false, nil
}

// Run dispatches, reads and works until ctx ends. Then it stops intake, finishes
// what is in flight and returns. work bounds the drain: when it ends, what is
// still in flight is given up and stays on its queues.
func (p *Pipeline) Run(ctx, work context.Context) error {
	if err := p.fences.refresh(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	intakeEnded := make(chan struct{})
	workers, workCtx := errgroup.WithContext(work)
	for _, w := range p.workers {
		workers.Go(func() error { return w.run(workCtx, intakeEnded) })
	}
	// Intake ends with ctx, or when a worker fails.
	intakeCtx, stop := context.WithCancel(ctx)
	defer stop()
	context.AfterFunc(workCtx, stop)
	intake, intakeCtx := errgroup.WithContext(intakeCtx)
	for _, run := range p.intake() {
		intake.Go(func() error {
			defer endWithPanic(p.panicked)
			return run(intakeCtx)
		})
	}
	err := intake.Wait()
	close(intakeEnded)
	if workErr := workers.Wait(); workErr != nil {
		return workErr
	}
	return err
}

// intake returns what runs beside the workers until intake ends.
func (p *Pipeline) intake() []func(context.Context) error {
	d := &dispatcher{
		cfg: p.cfg, table: p.table, source: p.source, metrics: p.metrics,
		log: p.log, leaseFree: p.leaseFree, peers: p.peers, spread: p.spread, wait: newBackOff(),
		progress: protocol.NewProgressTracker(p.cfg.StallAfter),
	}
	r := &reader{cfg: p.cfg, table: p.table, source: p.source, metrics: p.metrics, log: p.log, wait: newBackOff()}
	q := &retrier{cfg: p.cfg, table: p.table, source: p.source, deferrals: p.deferrals, metrics: p.metrics, log: p.log}
	runs := []func(context.Context) error{d.run, r.run, p.fences.run, q.run, p.scheduler.run}
	for _, w := range p.workers {
		runs = append(runs, w.ahead.run)
	}
	return runs
}

// Grant starts a shard under the epoch at which it was acquired. Its queue is
// read from the start, on fresh state.
func (p *Pipeline) Grant(h protocol.ShardLease) error { return p.table.grant(h) }

// Stop ends intake for a shard. The channel is closed when none of it is in
// flight; then Drop forgets the shard.
func (p *Pipeline) Stop(shard int) <-chan struct{} { return p.table.stop(shard) }

// Drop forgets a shard and all of it that is in flight.
func (p *Pipeline) Drop(shard int) { p.table.drop(shard) }

// Owned returns the epoch under which a shard is owned, and the last entry
// finished since it was granted; ok is false if the shard is not owned.
func (p *Pipeline) Owned(shard int) (epoch int64, applied telemetry.EntryID, ok bool) {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	s := &p.table.slots[shard]
	return s.epoch, s.applied, s.owned
}

// Locked returns the owned shards, ascending, whose rows another session had locked
// when they were to commit last.
func (p *Pipeline) Locked() []int {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	var locked []int
	for shard := range p.table.slots {
		if s := &p.table.slots[shard]; s.owned && s.locked {
			locked = append(locked, shard)
		}
	}
	return locked
}

// InFlight returns the number of entries in memory that are not finished.
func (p *Pipeline) InFlight() int {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	return p.table.records
}

// Notify marks the queues of shards as due to be read, all of them if none is named.
func (p *Pipeline) Notify(shards []int) { p.table.markDue(shards) }

// NotifyDispatchLease wakes the dispatcher: the lease was released.
func (p *Pipeline) NotifyDispatchLease() { wakeUp(p.leaseFree) }

// FencesChanged wakes the refresh of fences.
func (p *Pipeline) FencesChanged() { wakeUp(p.fences.changed) }

// RequestsChanged wakes the poll for requests.
func (p *Pipeline) RequestsChanged() { wakeUp(p.scheduler.wake) }

// Reread reads queues of shards from their start: entries may precede the cursor.
func (p *Pipeline) Reread(shards []int) { p.table.reread(shards) }

// Abandon gives up all shards and the dispatch lease: a server was replaced, or
// lost data, and nothing in flight can be trusted. Coordination reacquires the
// shards, which compares what both servers know.
func (p *Pipeline) Abandon() {
	p.fences.forget()
	for _, l := range p.table.abandon() {
		p.lost(l)
	}
}

// Rewind reads all queues from their start again: the server may have lost
// entries that it held.
func (p *Pipeline) Rewind() { p.table.rewind(true) }
