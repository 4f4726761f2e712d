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

// Source is the stream as the dealer and the reader need it.
type Source interface {
	AcquireTurn(ctx context.Context, before, token string, ttl time.Duration) (protocol.Turn, error)
	ReleaseTurn(ctx context.Context, token string) error
	ReadNew(ctx context.Context, after telemetry.EntryID, count int, block time.Duration) (protocol.Arrivals, error)
	Deal(ctx context.Context, d protocol.Dealing, a *protocol.Arrivals) (protocol.Dealt, error)
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
	Write(ctx context.Context, b *protocol.Batch) (protocol.Written, error)
	// Run numbers the runs of the server, as far as they were noticed. A batch is
	// refused on another run than the one it names.
	Run() uint64
}

// History knows what is stored.
type History interface {
	LastFixes(ctx context.Context, devices []string, skew time.Duration,
		found func(i int, us int64, lat, lon float64)) error
}

// FenceLoader reads the fences. Those that are no good are left out and named.
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

// Lost tells the owner's side that the pipeline gave a shard up by itself.
type Lost struct {
	Shard int
	Epoch int64
	Cause Cause
}

// Pipeline is the work of one instance: it deals while it holds the turn, reads
// the queues of the shards granted to it, and runs them to the commit and the
// acknowledgement. Who owns what is decided elsewhere.
type Pipeline struct {
	cfg     Config
	table   *table
	source  Source
	acker   Acker
	sink    Sink
	history History
	fences  *fences
	desk    *desk
	parker  Parker
	lost    func(Lost)
	metrics *metrics
	log     *slog.Logger
	workers []*worker
	bells   chan struct{}
	peers   func() int
	worked  atomic.Uint64

	deferrals Deferrals
	trials    Trials
	trial     chan struct{}
}

// Deps is what a pipeline works with.
type Deps struct {
	Source  Source
	Acker   Acker
	Sink    Sink
	History History
	Fences  FenceLoader
	Parker  Parker

	Deferrals Deferrals
	Trials    Trials
	// Requests is what operators and neighbours ask for.
	Requests Requests
	// Lost is called, from a worker, for each shard that was given up.
	Lost func(Lost)
	// Peers is how many other members wait for entries.
	Peers func() int
}

// New returns a pipeline that holds no shard yet.
func New(cfg Config, deps Deps, log *slog.Logger, reg prometheus.Registerer) (*Pipeline, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if deps.Source == nil || deps.Acker == nil || deps.Sink == nil || deps.History == nil || deps.Fences == nil || deps.Requests == nil ||
		deps.Parker == nil || deps.Deferrals == nil || deps.Trials == nil || deps.Lost == nil || deps.Peers == nil {
		return nil, fmt.Errorf("pipeline: a dependency is missing: %+v", deps)
	}
	t := newTable(cfg)
	p := &Pipeline{
		cfg: cfg, table: t, source: deps.Source, acker: deps.Acker, history: deps.History,
		parker: deps.Parker, deferrals: deps.Deferrals, trials: deps.Trials, trial: make(chan struct{}, 1),
		lost: deps.Lost, peers: deps.Peers, metrics: newMetrics(reg, t),
		log: log.With("component", "pipeline"), bells: make(chan struct{}, 1),
	}
	p.sink = workedSink{deps.Sink, &p.worked}
	p.desk = newDesk(p, workedRequests{deps.Requests, &p.worked})
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

// Run deals, reads and works until ctx ends. Then it takes nothing in any more,
// finishes what is in hand and returns. Work outlives ctx until work ends too:
// what is in hand then is given up, and stays on its queues.
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
		d := &dealer{
			cfg: p.cfg, table: p.table, source: p.source, metrics: p.metrics,
			log: p.log, bell: p.bells, peers: p.peers, wait: newBackOff(),
			headway: protocol.NewHeadway(p.cfg.StallAfter),
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
	intake.Go(func() error { return p.desk.run(intakeCtx) })
	err := intake.Wait()
	close(intakeEnded)
	if workErr := workers.Wait(); workErr != nil {
		return workErr
	}
	return err
}

// Grant starts a shard under the epoch at which it was taken. Its queue is read
// from the start, on fresh state.
func (p *Pipeline) Grant(h protocol.Held) error { return p.table.grant(h) }

// Stop ends intake for a shard. The channel is closed once nothing of it is in
// flight; then Drop forgets it.
func (p *Pipeline) Stop(shard int) <-chan struct{} { return p.table.stop(shard) }

// Drop forgets a shard and whatever of it is in flight.
func (p *Pipeline) Drop(shard int) { p.table.drop(shard) }

// Held tells under which epoch a shard is held, and up to which entry it was
// finished since it was granted.
func (p *Pipeline) Held(shard int) (epoch int64, applied telemetry.EntryID, ok bool) {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	s := &p.table.slots[shard]
	return s.epoch, s.applied, s.held
}

// InFlight is how many entries are in memory and not finished.
func (p *Pipeline) InFlight() int {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	return p.table.records
}

// Ring says that shards may have got something, or all when none is named.
func (p *Pipeline) Ring(shards []int) { p.table.rung(shards) }

// RingTurn says that the turn was given back.
func (p *Pipeline) RingTurn() { ring(p.bells) }

// FencesChanged says that fences may have changed.
func (p *Pipeline) FencesChanged() { ring(p.fences.changed) }

// Asked says that there may be a new request.
func (p *Pipeline) Asked() { ring(p.desk.bell) }

// Reread says that shards got something that may lie before what was read.
func (p *Pipeline) Reread(shards []int) { p.table.reread(shards) }

// Abandon gives all shards and the turn up at once: a server is another one than
// before, or has another past, and nothing in hand can be trusted. The owner's
// side takes the shards again, which compares what both servers know.
func (p *Pipeline) Abandon() {
	for _, l := range p.table.abandon() {
		p.lost(l)
	}
}

// Rewind reads all queues from their start again: the server may not hold what
// it held.
func (p *Pipeline) Rewind() { p.table.rewind() }
