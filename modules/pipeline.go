package modules

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/history"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/pipeline"
)

// pipelineParts are made for each stream.
func pipelineParts() fx.Option {
	return fx.Provide(newPipelineConfig, newPipeline, newDrainer, fx.Private)
}

func newPipelineConfig(cfg config.Config, dead pipeline.DeadLetterConfig) pipeline.Config {
	p, co := cfg.Pipeline, cfg.Coordination
	return pipeline.Config{
		Shards: co.Shards, Workers: p.Workers,
		MaxInFlightRecords: p.MaxInFlightRecords, MaxInFlightBytes: p.MaxInFlightBytes,
		ReadBatchRecords: p.ReadBatchRecords, BatchMaxRecords: p.BatchMaxRecords, BatchMaxAge: p.BatchMaxAge,
		StateMaxDevices: p.StateMaxDevices, Eligibility: cfg.Telemetry.Eligibility(),
		MaxCrossingGap: cfg.Geofences.MaxCrossingGap, FenceRefresh: cfg.Geofences.Refresh,
		DispatchAhead: co.DispatchAhead, StallAfter: co.ClaimThreshold(), DispatchBlock: co.DispatchBlock, DispatchLeaseTTL: co.DispatchLeaseTTL, QueueRescan: co.QueueRescan,
		Limits: telemetry.Limits{
			MaxPayloadBytes: cfg.Telemetry.MaxPayloadBytes,
			MaxDepth:        cfg.Telemetry.MaxDepth,
			MaxAttributes:   cfg.Telemetry.MaxAttributes,
		},
		DeadLetters: dead,
	}
}

// pipelineDeps are what the pipeline works with.
type pipelineDeps struct {
	fx.In

	Config   pipeline.Config
	Group    *stream.Group
	Writer   *store.Writer
	Feed     *history.Feed
	Reader   *store.Reader
	Fences   *store.Fences
	Dead     *stream.DeadLetters
	Later    *store.Deferred
	Shards   *store.Shards
	Member   Member
	Attempts *pipeline.Attempts
	Leases   leases
	Bridge   *bridge
	Log      *slog.Logger
	Metrics  prometheus.Registerer
}

func newPipeline(d pipelineDeps) (*pipeline.Pipeline, error) {
	return pipeline.New(d.Config, recordPipeline(pipeline.Deps{
		Source: d.Group, Acker: d.Group, Sink: liveSink{d.Writer, d.Feed}, History: d.Reader, Fences: d.Fences, Requests: store.NewRequests(d.Writer),
		DeadLetterSink: d.Dead, Deferrals: d.Later, ProbeLog: store.NewProbeLog(d.Shards, string(d.Member)), Lost: d.Bridge.lost, Peers: d.Bridge.peers,
		Attempts: d.Attempts, DispatchLease: d.Leases.dispatch.Lease(),
	}, d.Member, d.Group.Names().Stream), d.Log, d.Metrics)
}

// errDrained is the cause of the cancelled work context when the drain exceeds
// its budget.
var errDrained = errors.New("the drain exceeded DRAIN_TIMEOUT")

// drainer runs the pipeline with two ends: intake ends with the context, work
// DRAIN_TIMEOUT after the shutdown began.
type drainer struct {
	pipeline *pipeline.Pipeline
	timeout  time.Duration
	log      *slog.Logger

	begin sync.Once
	began time.Time // of the shutdown, under begin
}

func newDrainer(p *pipeline.Pipeline, cfg config.Config, log *slog.Logger) *drainer {
	return &drainer{pipeline: p, timeout: cfg.Instance.DrainTimeout, log: log.With("component", "drain")}
}

// deadline returns the time at which work in flight must be finished; the first call starts the clock.
func (d *drainer) deadline() time.Time {
	d.begin.Do(func() { d.began = time.Now() })
	return d.began.Add(d.timeout)
}

// expireDrain ends the drain: what is in flight is stuck.
func (d *drainer) expireDrain() {
	d.begin.Do(func() { d.began = time.Now().Add(-d.timeout) })
}

// leaving bounds the hand-over while the pipeline still works to half of the
// drain, and leaves the other half for shards that could not be handed over.
func (d *drainer) leaving(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithDeadline(ctx, d.deadline().Add(-d.timeout/2))
}

// Run returns an error with the exit code of an exceeded drain if entries in
// flight were given up. They are not lost: they stay on their queues.
func (d *drainer) Run(ctx context.Context) error {
	work, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	var inFlight int
	drained := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		inFlight = d.pipeline.InFlight()
		timer := time.NewTimer(time.Until(d.deadline()))
		defer timer.Stop()
		select {
		case <-timer.C:
			end(errDrained)
		case <-work.Done():
		}
	})
	err := d.pipeline.Run(ctx, work)
	exceeded := errors.Is(context.Cause(work), errDrained)
	end(nil)
	if stop() {
		return err // it ended before the shutdown
	}
	<-drained
	left := d.pipeline.InFlight()
	d.log.Info("drained", "in_flight", inFlight, "left", left, "duration", time.Since(d.began))
	if err == nil && exceeded {
		return fault.Exitf(fault.Finding, "drain exceeded DRAIN_TIMEOUT=%v; %d entries stay on their queues for the next owner", d.timeout, left)
	}
	return err
}

func startPipeline(s *supervisor, parts parts) {
	s.run("pipeline", parts.run(func(p *part) run { return p.drainer.Run }))
}
