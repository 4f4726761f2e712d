package coordination

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	leader      prometheus.Gauge
	terms       prometheus.Counter
	renewals    *prometheus.CounterVec
	taken       prometheus.Counter
	seized      prometheus.Counter
	released    prometheus.Counter
	dropped     prometheus.Counter
	redealt     prometheus.Counter
	claimed     prometheus.Counter
	losses      prometheus.Counter
	takeSeconds prometheus.Histogram
	handSeconds prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	seconds := []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20}
	m := &metrics{
		leader: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "processor_coordination_leader", Help: "1 while this instance leads.",
		}),
		terms: counter("processor_coordination_terms_total", "Terms this instance began."),
		renewals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_coordination_lease_renewals_total", Help: "Renewals of the leader's lock, by result.",
		}, []string{"result"}),
		taken:    counter("processor_coordination_taken_shards_total", "Shards taken."),
		seized:   counter("processor_coordination_seized_shards_total", "Shards taken without a release."),
		released: counter("processor_coordination_released_shards_total", "Shards released."),
		dropped:  counter("processor_coordination_dropped_shards_total", "Shards found to be somebody else's."),
		redealt:  counter("processor_coordination_redealt_entries_total", "Entries dealt again because their commit may be lost."),
		claimed:  counter("processor_coordination_claimed_entries_total", "Entries claimed from foreign consumers."),
		losses:   counter("processor_coordination_recorded_losses_total", "Entries recorded as lost."),
		takeSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "processor_coordination_take_duration_seconds", Help: "Time to take the shards of one pass.", Buckets: seconds,
		}),
		handSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "processor_coordination_handoff_duration_seconds", Help: "Time from the decision to hand a shard over to its release.", Buckets: seconds,
		}),
	}
	for _, r := range []string{"ok", "error", "lost"} {
		m.renewals.WithLabelValues(r)
	}
	reg.MustRegister(m.leader, m.terms, m.renewals, m.taken, m.seized, m.released, m.dropped, m.redealt, m.claimed,
		m.losses, m.takeSeconds, m.handSeconds)
	return m
}
