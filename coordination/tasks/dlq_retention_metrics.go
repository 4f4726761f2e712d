package tasks

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/trmtracking/processor/internal/telemetry"
)

// foreignClass counts entries of the dead-letter stream that this service did
// not write.
const foreignClass = "foreign"

// depth counts the dead letters of one class.
type depth struct {
	count  int
	oldest time.Time
}

type countsByClass map[string]depth

func (t countsByClass) add(class string, at time.Time) {
	d := t[class]
	if d.count == 0 || at.Before(d.oldest) {
		d.oldest = at
	}
	d.count++
	t[class] = d
}

// expired reports whether the oldest is older than the retention.
func (t countsByClass) expired(now time.Time, retention time.Duration) bool {
	for _, d := range t {
		if now.Sub(d.oldest) >= retention {
			return true
		}
	}
	return false
}

// janitorMetrics are exported by the leader only.
type janitorMetrics struct {
	archived prometheus.Counter
	restored prometheus.Counter

	mu         sync.Mutex
	tally      countsByClass
	tallied    time.Time
	waiting    int64
	waitingAt  time.Time
	letters    *prometheus.Desc
	age        *prometheus.Desc
	deferredOf *prometheus.Desc
}

func newJanitorMetrics(reg prometheus.Registerer) *janitorMetrics {
	m := &janitorMetrics{
		archived: promauto.With(reg).NewCounter(prometheus.CounterOpts{
			Name: "processor_coordination_archived_dead_letters_total", Help: "Dead letters moved to the archive by retention.",
		}),
		restored: promauto.With(reg).NewCounter(prometheus.CounterOpts{
			Name: "processor_coordination_restored_dead_letters_total", Help: "Dead letters that were missing from Redis and were added again.",
		}),
		letters: prometheus.NewDesc("processor_group_dead_letters", "Dead letters in their stream, by class.", []string{"class"}, nil),
		age: prometheus.NewDesc("processor_group_oldest_dead_letter_age_seconds",
			"Age of the oldest dead letter, by class; absent where there is none.", []string{"class"}, nil),
		deferredOf: prometheus.NewDesc("processor_group_deferred_entries", "Entries that wait for another attempt.", nil, nil),
	}
	reg.MustRegister(m)
	return m
}

func (m *janitorMetrics) publish(t countsByClass) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tally, m.tallied = t, time.Now()
}

func (m *janitorMetrics) deferred(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting, m.waitingAt = n, time.Now()
}

// Describe implements prometheus.Collector.
func (m *janitorMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.letters
	ch <- m.age
	ch <- m.deferredOf
}

// Collect implements prometheus.Collector.
func (m *janitorMetrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.waitingAt) < dlqStale {
		ch <- prometheus.MustNewConstMetric(m.deferredOf, prometheus.GaugeValue, float64(m.waiting))
	}
	if time.Since(m.tallied) >= dlqStale {
		return
	}
	classes := []string{foreignClass}
	for _, c := range telemetry.Classes() {
		classes = append(classes, string(c))
	}
	for _, class := range classes {
		d := m.tally[class]
		ch <- prometheus.MustNewConstMetric(m.letters, prometheus.GaugeValue, float64(d.count), class)
		if d.count > 0 {
			ch <- prometheus.MustNewConstMetric(m.age, prometheus.GaugeValue, max(0, time.Since(d.oldest).Seconds()), class)
		}
	}
}
