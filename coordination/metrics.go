package coordination

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Why a shard was assigned to another member.
const (
	movedForLoad   = "load"   // the busiest member was relieved
	movedForDeploy = "deploy" // its owner leaves on request
	movedForJoin   = "join"   // members came, and have too few
	movedForDrain  = "drain"  // an operator drains its owner
	movedForKill   = "kill"   // its owner is gone without a release
	movedByForce   = "forced" // its owner is cut off from Postgres, or stalled
	movedAtStart   = "start"  // none had it, since the fleet had stopped
)

type metrics struct {
	leader              prometheus.Gauge
	terms               prometheus.Counter
	renewals            *prometheus.CounterVec
	moved               *prometheus.CounterVec
	acquired            prometheus.Counter
	forceAcquired       prometheus.Counter
	released            prometheus.Counter
	lost                prometheus.Counter
	acquisitionsDelayed prometheus.Counter
	redelivered         prometheus.Counter
	claimed             prometheus.Counter
	acquireSeconds      prometheus.Histogram
	handoffSeconds      prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	with := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return with.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	seconds := []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20}
	m := &metrics{
		leader: with.NewGauge(prometheus.GaugeOpts{
			Name: "processor_coordination_leader", Help: "1 while this instance leads.",
		}),
		terms: counter("processor_coordination_terms_total", "Terms this instance began."),
		renewals: with.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_coordination_lease_renewals_total", Help: "Renewals of the leader's lock, by result.",
		}, []string{"result"}),
		moved: with.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_coordination_shards_moved_total",
			Help: "Shards that this instance, as the leader, assigned to another member, by reason: load, deploy (its owner leaves), join (members came), drain, kill (its owner is gone), forced (its owner is cut off or stalled), start (none had it).",
		}, []string{"reason"}),
		acquired:            counter("processor_coordination_shards_acquired_total", "Shards acquired."),
		forceAcquired:       counter("processor_coordination_shards_force_acquired_total", "Shards force-acquired."),
		released:            counter("processor_coordination_shards_released_total", "Shards released."),
		lost:                counter("processor_coordination_shards_lost_total", "Shards lost to another member."),
		acquisitionsDelayed: counter("processor_coordination_acquisitions_delayed_total", "Passes that put off a shard given up again and again."),
		redelivered:         counter("processor_coordination_redelivered_entries_total", "Entries redelivered because their commit is unconfirmed."),
		claimed:             counter("processor_coordination_claimed_entries_total", "Entries claimed from foreign consumers."),
		acquireSeconds: with.NewHistogram(prometheus.HistogramOpts{
			Name: "processor_coordination_shard_acquire_duration_seconds", Help: "Time to acquire the shards of one pass.", Buckets: seconds,
		}),
		handoffSeconds: with.NewHistogram(prometheus.HistogramOpts{
			Name: "processor_coordination_handoff_duration_seconds", Help: "Time from the decision to hand a shard over to its release.", Buckets: seconds,
		}),
	}
	for _, r := range []string{movedForLoad, movedForDeploy, movedForJoin, movedForDrain, movedForKill, movedByForce, movedAtStart} {
		m.moved.WithLabelValues(r)
	}
	for _, r := range []string{"ok", "error", "lost"} {
		m.renewals.WithLabelValues(r)
	}
	return m
}
