package tasks

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Backlog reads the state of the group as a whole.
type Backlog interface {
	Backlog(ctx context.Context) (protocol.Backlog, error)
	TrimPoint(ctx context.Context) (protocol.TrimPoint, error)
}

// Deferring tells how many entries wait for another attempt; known is false if
// that was not counted recently.
type Deferring interface {
	Deferring() (n int64, known bool)
}

// GroupMetrics are exported by the leader only. An unknown value is absent,
// never 0.
type GroupMetrics struct {
	source   Backlog
	deferred Deferring
	stale    time.Duration

	mu  sync.Mutex
	now protocol.Backlog
	at  time.Time
	to  forecast

	last telemetry.EntryID // of the stream

	lag, pending, outstanding, age, left, ahead *prometheus.Desc
}

// NewGroupMetrics returns gauges that are absent once they were not refreshed for
// about three intervals.
func NewGroupMetrics(source Backlog, deferred Deferring, every time.Duration, reg prometheus.Registerer) *GroupMetrics {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }
	g := &GroupMetrics{
		source: source, deferred: deferred, stale: 3*every + time.Second,
		lag:         desc("processor_consumer_lag", "Entries not yet dispatched, of the whole group; absent while unknown."),
		pending:     desc("processor_group_pending_entries", "Entries dispatched and not acknowledged, of the whole group."),
		outstanding: desc("processor_group_backlog_entries", "Lag plus pending plus deferred; absent while one of them is unknown."),
		age:         desc("processor_group_backlog_age_seconds", "Age of the oldest entry in the backlog, by its ID; absent while unknown and while the ID is ahead of the clock."),
		ahead:       desc("processor_group_ids_ahead_seconds", "By how much the newest ID of the stream is ahead of this instance's clock."),
		left: desc("processor_group_time_to_trim_seconds",
			"Time until trimming reaches the oldest entry in the backlog; absent while unknown and while the backlog is empty."),
	}
	reg.MustRegister(g)
	return g
}

// Refresh reads the state of the group. What cannot be read is unknown then.
func (g *GroupMetrics) Refresh(ctx context.Context) error {
	b, err := g.source.Backlog(ctx)
	var h protocol.TrimPoint
	if err == nil {
		h, err = g.source.TrimPoint(ctx)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		g.at = time.Time{}
		return nil
	}
	b.Deferred, b.DeferredKnown = g.deferred.Deferring()
	g.now, g.at, g.last = b, time.Now(), h.Last
	g.to.see(g.at, h)
	return nil
}

// Describe implements prometheus.Collector.
func (g *GroupMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{g.lag, g.pending, g.outstanding, g.age, g.left, g.ahead} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g *GroupMetrics) Collect(ch chan<- prometheus.Metric) {
	g.mu.Lock()
	b, at, last := g.now, g.at, g.last
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
			gauge(g.outstanding, float64(b.Lag+b.Pending+b.Deferred))
		}
	}
	_, ahead := last.Age(at)
	gauge(g.ahead, ahead)
	if b.OldestKnown {
		age, ahead := time.Duration(0), 0.0
		if !b.Oldest.IsZero() {
			age, ahead = b.Oldest.Age(time.Now())
		}
		if ahead == 0 {
			gauge(g.age, age.Seconds())
		}
		if leftKnown {
			gauge(g.left, left.Seconds())
		}
	}
}
