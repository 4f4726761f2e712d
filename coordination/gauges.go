package coordination

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trmtracking/processor/internal/protocol"
)

// Backlog is where the group as a whole stands.
type Backlog interface {
	Backlog(ctx context.Context) (protocol.Backlog, error)
	Horizon(ctx context.Context) (protocol.Horizon, error)
}

// groupGauges are exported by the leader and absent elsewhere. What is unknown
// is absent too, never 0.
type groupGauges struct {
	source Backlog
	house  *Housekeeper
	stale  time.Duration

	mu  sync.Mutex
	now protocol.Backlog
	at  time.Time
	to  forecast

	lag, pending, undone, age, left *prometheus.Desc
}

func newGroupGauges(source Backlog, house *Housekeeper, stale time.Duration) *groupGauges {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }
	return &groupGauges{
		source: source, house: house, stale: stale,
		lag:     desc("processor_consumer_lag", "Entries not yet dealt, of the whole group; absent while unknown."),
		pending: desc("processor_group_pending_entries", "Entries dealt and not acknowledged, of the whole group."),
		undone:  desc("processor_group_undone_entries", "Lag plus pending plus deferred; absent while one of them is unknown."),
		age:     desc("processor_group_oldest_pending_age_seconds", "Time since the oldest unfinished entry was added, by its ID."),
		left: desc("processor_group_loss_forecast_seconds",
			"Time until trimming reaches the oldest unfinished entry if that one stays; absent while unknown and while nothing is unfinished."),
	}
}

func (g *groupGauges) refresh(ctx context.Context) {
	b, err := g.source.Backlog(ctx)
	var h protocol.Horizon
	if err == nil {
		h, err = g.source.Horizon(ctx)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		g.at = time.Time{}
		return
	}
	b.Deferred, b.DeferredKnown = g.house.Deferring()
	g.now, g.at = b, time.Now()
	g.to.see(g.at, h)
}

// Describe implements prometheus.Collector.
func (g *groupGauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{g.lag, g.pending, g.undone, g.age, g.left} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g *groupGauges) Collect(ch chan<- prometheus.Metric) {
	g.mu.Lock()
	b, at := g.now, g.at
	left, leftKnown := g.to.reaches(b.Oldest)
	g.mu.Unlock()
	if time.Since(at) > g.stale {
		return
	}
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	gauge(g.pending, float64(b.Pending))
	if b.LagKnown {
		gauge(g.lag, float64(b.Lag))
		if b.DeferredKnown {
			gauge(g.undone, float64(b.Lag+b.Pending+b.Deferred))
		}
	}
	if b.OldestKnown {
		age := 0.0
		if !b.Oldest.IsZero() {
			age = time.Since(b.Oldest.Time()).Seconds()
		}
		gauge(g.age, max(0, age))
		if leftKnown {
			gauge(g.left, left.Seconds())
		}
	}
}
