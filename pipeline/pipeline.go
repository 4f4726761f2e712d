package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

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
	// Work is how far the work of the shards got.
	Work(ctx context.Context) (map[int]protocol.ShardWork, error)
}

// Acker acknowledges entries whose effect is committed.
type Acker interface {
	Ack(ctx context.Context, acks []protocol.Ack) error
}

// Sink commits batches, each in one transaction that ends with the check of epochs.
type Sink interface {
	Write(ctx context.Context, b *protocol.Batch) (protocol.CommitResult, error)
	// Generation numbers the runs of the server, as far as they were noticed. A batch is
	// refused on another run than the one it names.
	Generation() uint64
}

// History knows what is stored.
type History interface {
	LastFixes(ctx context.Context, devices []string, skew time.Duration,
		found func(i int, us int64, lat, lon float64)) error
}

// FenceLoader reads the fences. Those that are invalid are skipped and reported.
type FenceLoader interface {
	Version(ctx context.Context) (int64, error)
	Load(ctx context.Context) (set *protocol.Fences, bad []error, err error)
}

// Cause is why a shard was given up.
type Cause uint8

const (
	// ShardFenced means that another owner has taken the shard.
	ShardFenced Cause = iota + 1
	// OutcomeUnknown means that a commit may or may not have happened. Taking the
	// shard again settles it.
	OutcomeUnknown
)

// ShardLost tells the owner's side that the pipeline gave a shard up by itself.
type ShardLost struct {
	Shard int
	Epoch int64
	Cause Cause
}

// Pipeline is the work of one instance: it dispatches while it holds the dispatch lease, reads
// the queues of the shards granted to it, and runs them to the commit and the
// acknowledgement. Who owns what is decided elsewhere.
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
	leaseFree      chan struct{}
	peers          func() int
	commitCount    atomic.Uint64

	deferrals Deferrals
	probeLog  ProbeLog
	trial     chan struct{}
}

// Deps is what a pipeline works with.
type Deps struct {
	Source         Source
	Acker          Acker
	Sink           Sink
	History        History
	Fences         FenceLoader
	DeadLetterSink DeadLetterSink

	Deferrals Deferrals
	ProbeLog  ProbeLog
	// Requests is what operators and neighbours ask for.
	Requests Requests
	// Lost is called, from a worker, for each shard that was given up.
	Lost func(ShardLost)
	// Peers is how many other members wait for entries.
	Peers func() int
}

// New returns a pipeline that holds no shard yet.
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
		deadLetterSink: deps.DeadLetterSink, deferrals: deps.Deferrals, probeLog: deps.ProbeLog, trial: make(chan struct{}, 1),
		lost: deps.Lost, peers: deps.Peers, metrics: newMetrics(reg, t),
		log: log.With("component", "pipeline"), leaseFree: make(chan struct{}, 1),
	}
	p.sink = commitCountingSink{deps.Sink, &p.commitCount}
	p.scheduler = newRequestScheduler(p, stepCountingRequests{deps.Requests, &p.commitCount})
	p.fences = newFences(deps.Fences, cfg.FenceRefresh, p.metrics, p.log)
	for range cfg.Workers {
		p.workers = append(p.workers, newWorker(p, newMailbox()))
	}
	t.workers = p.workers
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "processor_device_state_size", Help: "Devices whose state is in memory.",
	}, func() float64 {
		var n int64
		for _, w := range p.workers {
			n += w.stateSize.Load()
		}
		return float64(n)
	}))
	return p, nil
}

// Run dispatches, reads and works until ctx ends. Then it takes nothing in any more,
// finishes what is in flight and returns. Work outlives ctx until work ends too:
// what is in flight then is given up, and stays on its queues.
func (p *Pipeline) Run(ctx, work context.Context) error {
	if err := p.fences.refresh(ctx); err != nil {
		return nil
	}
	intakeEnded := make(chan struct{})
	workers, workCtx := errgroup.WithContext(work)
	for _, w := range p.workers {
		workers.Go(func() error { return w.run(workCtx, intakeEnded) })
	}
	// Intake ends when it is told to, or when a worker has failed for good.
	intakeCtx, stop := context.WithCancel(ctx)
	defer stop()
	context.AfterFunc(workCtx, stop)
	intake, intakeCtx := errgroup.WithContext(intakeCtx)
	intake.Go(func() error {
		d := &dispatcher{
			cfg: p.cfg, table: p.table, source: p.source, metrics: p.metrics,
			log: p.log, leaseFree: p.leaseFree, peers: p.peers, wait: newBackOff(),
			progress: protocol.NewProgressTracker(p.cfg.StallAfter),
		}
		return d.run(intakeCtx)
	})
	intake.Go(func() error {
		r := &reader{cfg: p.cfg, table: p.table, source: p.source, metrics: p.metrics, log: p.log, wait: newBackOff()}
		return r.run(intakeCtx)
	})
	intake.Go(func() error { return p.fences.run(intakeCtx) })
	intake.Go(func() error {
		r := &retrier{cfg: p.cfg, table: p.table, deferrals: p.deferrals, metrics: p.metrics, log: p.log}
		return r.run(intakeCtx)
	})
	intake.Go(func() error { return p.scheduler.run(intakeCtx) })
	err := intake.Wait()
	close(intakeEnded)
	if workErr := workers.Wait(); workErr != nil {
		return workErr
	}
	return err
}

// Grant starts a shard under the epoch at which it was taken. Its queue is read
// from the start, on fresh state.
func (p *Pipeline) Grant(h protocol.ShardLease) error { return p.table.grant(h) }

// Stop ends intake for a shard. The channel is closed once nothing of it is in
// flight; then Drop forgets it.
func (p *Pipeline) Stop(shard int) <-chan struct{} { return p.table.stop(shard) }

// Drop forgets a shard and whatever of it is in flight.
func (p *Pipeline) Drop(shard int) { p.table.drop(shard) }

// Owned tells under which epoch a shard is held, and up to which entry it was
// finished since it was granted.
func (p *Pipeline) Owned(shard int) (epoch int64, applied telemetry.EntryID, ok bool) {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	s := &p.table.slots[shard]
	return s.epoch, s.applied, s.owned
}

// InFlight is how many entries are in memory and not finished.
func (p *Pipeline) InFlight() int {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	return p.table.records
}

// Notify says that shards may have got something, or all when none is named.
func (p *Pipeline) Notify(shards []int) { p.table.markDue(shards) }

// NotifyDispatchLease says that the dispatch lease was given back.
func (p *Pipeline) NotifyDispatchLease() { ring(p.leaseFree) }

// FencesChanged says that fences may have changed.
func (p *Pipeline) FencesChanged() { ring(p.fences.changed) }

// RequestsChanged says that there may be a new request.
func (p *Pipeline) RequestsChanged() { ring(p.scheduler.wake) }

// Reread says that shards got something that may lie before what was read.
func (p *Pipeline) Reread(shards []int) { p.table.reread(shards) }

// Abandon gives all shards and the dispatch lease up at once: a server is another one than
// before, or has another past, and nothing in flight can be trusted. The owner's
// side takes the shards again, which compares what both servers know.
func (p *Pipeline) Abandon() {
	for _, l := range p.table.abandon() {
		p.lost(l)
	}
}

// Rewind reads all queues from their start again: the server may not hold what
// it held.
func (p *Pipeline) Rewind() { p.table.rewind() }
