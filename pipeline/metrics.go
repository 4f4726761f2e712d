package pipeline

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// The outcomes of an entry.
const (
	outcomeStored    = "stored"
	outcomeDuplicate = "duplicate"
	outcomeConflict  = "conflict"
	outcomeDeferred  = "deferred"
	outcomeLost      = "lost"
	outcomeSwallowed = "swallowed"

	outcomeDeadLettered = "dead_lettered"
)

// The results of a read.
const (
	readOK    = "ok"
	readEmpty = "empty"
	readError = "error"
)

// What became of the state of shards that changed owners.
const (
	snapshotLeft    = "left"
	snapshotUsed    = "used"
	snapshotMissing = "missing"
	snapshotRefused = "refused"
)

// What the state of a device was loaded for.
const (
	loadedForRecord = "record"
	loadedAhead     = "ahead"
)

type metrics struct {
	records          *prometheus.CounterVec
	latency          prometheus.Histogram
	writes           prometheus.Histogram
	batchRecords     prometheus.Histogram
	readResults      *prometheus.CounterVec
	arrivals         prometheus.Counter
	acks             prometheus.Counter
	positions        *prometheus.CounterVec
	excluded         *prometheus.CounterVec
	conflicts        *prometheus.CounterVec
	stayed           prometheus.Counter
	lastRecord       prometheus.Gauge
	dispatcher       prometheus.Gauge
	fenced           prometheus.Counter
	indeterminate    prometheus.Counter
	dispatchErrors   prometheus.Counter
	commitErrors     prometheus.Counter
	ackErrors        prometheus.Counter
	historyErrors    prometheus.Counter
	fenceErrors      prometheus.Counter
	requestErrors    prometheus.Counter
	deadLetterErrors prometheus.Counter
	deferErrors      prometheus.Counter
	isolationErrors  prometheus.Counter
	deadLetters      *prometheus.CounterVec
	failedRequests   *prometheus.CounterVec
	crossings        *prometheus.CounterVec
	fenceCount       prometheus.Gauge
	badFences        prometheus.Gauge
	evictions        prometheus.Counter
	snapshots        *prometheus.CounterVec
	loads            *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, t *table) *metrics {
	with := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return with.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	errs := with.NewCounterVec(prometheus.CounterOpts{
		Name: "processor_pipeline_errors_total", Help: "Failed attempts of a retried step, by step.",
	}, []string{"step"})
	m := &metrics{
		records: with.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_pipeline_records_total",
			Help: "Entries finished, by outcome: stored, duplicate, conflict (another record has its device and time), deferred (to be tried again), dead_lettered, lost (trimmed while pending), swallowed (by a trigger on positions that returned null).",
		}, []string{"outcome"}),
		latency: with.NewHistogram(prometheus.HistogramOpts{
			Name:    "processor_pipeline_record_latency_seconds",
			Help:    "Time from an entry's stream ID to the commit of its record.",
			Buckets: []float64{.005, .01, .02, .03, .045, .06, .08, .1, .15, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800},
		}),
		writes: with.NewHistogram(prometheus.HistogramOpts{
			Name:    "processor_position_write_duration_seconds",
			Help:    "Time of one transaction.",
			Buckets: prometheus.ExponentialBuckets(.001, 2, 14),
		}),
		batchRecords: with.NewHistogram(prometheus.HistogramOpts{
			Name:    "processor_pipeline_batch_records",
			Help:    "Records of one transaction.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 8),
		}),
		readResults: with.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_consumer_reads_total", Help: "Reads of the stream and of queues, by result.",
		}, []string{"result"}),
		arrivals: counter("processor_consumer_records_total", "Entries read from the stream and dispatched to their shards by this instance."),
		acks:     counter("processor_acks_total", "Entries acknowledged."),
		positions: with.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_position_writes_total", Help: "Records written to positions, by status.",
		}, []string{"status"}),
		excluded: with.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_pipeline_excluded_records_total",
			Help: "Records stored that take no part in state and crossings, by reason: no_fix, future, ancient.",
		}, []string{"reason"}),
		conflicts: with.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_pipeline_conflicts_total",
			Help: "Records that lost their device and time to one with other content and were listed in processor.conflicts, by priority: panic, other.",
		}, []string{"priority"}),
		stayed: with.NewCounter(prometheus.CounterOpts{
			Name: "processor_pipeline_stayed_rows_total",
			Help: "Rows of positions that take no part and did not give way to a record that does, since Postgres refused to delete them.",
		}),
		lastRecord: with.NewGauge(prometheus.GaugeOpts{
			Name: "processor_pipeline_last_record_timestamp_seconds",
			Help: "When this instance last committed a record, in seconds since 1970.",
		}),
		dispatcher: with.NewGauge(prometheus.GaugeOpts{
			Name: "processor_pipeline_dispatcher", Help: "1 while this instance is the dispatcher.",
		}),
		fenced:           counter("processor_pipeline_fenced_commits_total", "Commits refused because another member owns the shards."),
		indeterminate:    counter("processor_pipeline_indeterminate_commits_total", "Commits whose outcome is unknown; their shards are reacquired."),
		dispatchErrors:   errs.WithLabelValues("dispatch"),
		commitErrors:     errs.WithLabelValues("commit"),
		ackErrors:        errs.WithLabelValues("ack"),
		historyErrors:    errs.WithLabelValues("rehydrate"),
		fenceErrors:      errs.WithLabelValues("fences"),
		requestErrors:    errs.WithLabelValues("request"),
		deadLetterErrors: errs.WithLabelValues("dead_letter"),
		deferErrors:      errs.WithLabelValues("defer"),
		isolationErrors:  errs.WithLabelValues("isolation"),
		deadLetters: with.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_pipeline_dead_letters_total", Help: "Entries moved to the dead letters, by class.",
		}, []string{"class"}),
		failedRequests: with.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_pipeline_failed_requests_total", Help: "Requests that failed for good, by kind: rehydrate, recompute, erase.",
		}, []string{"kind"}),
		crossings: with.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_pipeline_crossings_total",
			Help: "Crossings written: derived from records in order, or corrected by late ones.",
		}, []string{"kind"}),
		fenceCount: with.NewGauge(prometheus.GaugeOpts{
			Name: "processor_pipeline_fences_loaded", Help: "Fence versions loaded.",
		}),
		badFences: with.NewGauge(prometheus.GaugeOpts{
			Name: "processor_pipeline_invalid_fences", Help: "Invalid fences that were skipped; the log names them.",
		}),
		snapshots: with.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_pipeline_snapshots_total",
			Help: "States of shards that were left for the next owner, and at acquisitions: used, missing though the last owner released the shard, refused.",
		}, []string{"result"}),
		loads: with.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_device_state_loads_total",
			Help: "Devices looked up in the tables, by reason: record (one came) or ahead (after their shard was acquired without their state).",
		}, []string{"reason"}),
		evictions: counter("processor_device_state_evictions_total", "Devices evicted to bound the state."),
	}
	for _, o := range []string{outcomeStored, outcomeDuplicate, outcomeConflict, outcomeDeferred, outcomeDeadLettered, outcomeLost} {
		m.records.WithLabelValues(o)
	}
	for _, r := range []string{readOK, readEmpty, readError} {
		m.readResults.WithLabelValues(r)
	}
	for _, r := range []string{snapshotLeft, snapshotUsed, snapshotMissing, snapshotRefused} {
		m.snapshots.WithLabelValues(r)
	}
	for _, r := range []string{loadedForRecord, loadedAhead} {
		m.loads.WithLabelValues(r)
	}
	for _, s := range []string{"inserted", "duplicate"} {
		m.positions.WithLabelValues(s)
	}
	for _, p := range []string{"panic", "other"} {
		m.conflicts.WithLabelValues(p)
	}
	for _, x := range telemetry.Exclusions() {
		m.excluded.WithLabelValues(string(x))
	}
	for _, c := range telemetry.Classes() {
		m.deadLetters.WithLabelValues(string(c))
	}
	for _, k := range []string{protocol.RequestRehydrate, protocol.RequestRecompute, protocol.RequestErase} {
		m.failedRequests.WithLabelValues(k)
	}
	for _, k := range []string{"derived", "corrected"} {
		m.crossings.WithLabelValues(k)
	}
	gauge := func(name, help string, f func() float64) {
		with.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			t.mu.Lock()
			defer t.mu.Unlock()
			return f()
		})
	}
	count := func(which func(s *slot) bool) (n float64) {
		for i := range t.slots {
			if s := &t.slots[i]; s.owned && which(s) {
				n++
			}
		}
		return n
	}
	gauge("processor_pipeline_in_flight_records", "Entries in memory that are not finished.", func() float64 { return float64(t.records) })
	gauge("processor_pipeline_in_flight_bytes", "Bytes of entries in memory that are not finished.", func() float64 { return float64(t.bytes) })
	gauge("processor_pipeline_paused_shards", "Shards that wait because the sink refuses their rows for a reason that is not theirs.", func() float64 {
		return float64(t.pausing(""))
	})
	gauge("processor_pipeline_quarantined_shards", "Quarantined shards of this instance.", func() float64 {
		return count(func(s *slot) bool { return s.quarantine.Limit > 0 })
	})
	gauge("processor_pipeline_owned_shards", "Shards this instance owns.", func() float64 {
		return count(func(*slot) bool { return true })
	})
	return m
}

func (m *metrics) read(result string) { m.readResults.WithLabelValues(result).Inc() }

func (m *metrics) snapshot(result string) { m.snapshots.WithLabelValues(result).Inc() }

func (m *metrics) outcome(outcome string, n int) {
	m.records.WithLabelValues(outcome).Add(float64(n))
}

func (m *metrics) arrived(a *protocol.NewEntries) { m.arrivals.Add(float64(len(a.Entries))) }

func (m *metrics) acked(acks []protocol.Ack) {
	n, lost := 0, 0
	for _, a := range acks {
		n += len(a.IDs) + len(a.Unqueued) + len(a.Gone)
		lost += len(a.Gone)
	}
	m.acks.Add(float64(n))
	m.outcome(outcomeLost, lost)
}

// wrote counts a committed batch.
func (m *metrics) wrote(b *batch, w protocol.CommitResult, took time.Duration) {
	stored := len(b.fresh) - w.Swallowed
	for i, isNew := range w.Stored {
		if isNew {
			stored++
			if x := b.rules.Eligibility.Of(b.undetermined(i)); x != telemetry.Eligible {
				m.excluded.WithLabelValues(string(x)).Inc()
			}
		}
	}
	m.outcome(outcomeConflict, w.Conflicts)
	m.conflicts.WithLabelValues("panic").Add(float64(w.NewPanics))
	m.conflicts.WithLabelValues("other").Add(float64(w.NewConflicts - w.NewPanics))
	m.stayed.Add(float64(w.Stayed))
	repeats := len(b.fresh) - w.Swallowed + len(b.late) + len(b.rivals) - stored - w.Conflicts - w.SwallowedLate + b.repeats
	m.outcome(outcomeStored, stored)
	m.outcome(outcomeDuplicate, repeats)
	m.outcome(outcomeSwallowed, w.Swallowed+w.SwallowedLate)
	m.positions.WithLabelValues("inserted").Add(float64(stored))
	m.positions.WithLabelValues("duplicate").Add(float64(repeats))
	m.excluded.WithLabelValues(string(telemetry.Jump)).Add(float64(w.Jumps))
	m.crossings.WithLabelValues("derived").Add(float64(len(b.crossings)))
	m.crossings.WithLabelValues("corrected").Add(float64(w.Corrected))
	m.writes.Observe(took.Seconds())
	m.batchRecords.Observe(float64(len(b.fresh) + len(b.late)))
	now := time.Now()
	m.lastRecord.Set(float64(now.UnixMilli()) / 1000)
	us := now.UnixMicro()
	for _, records := range [][]telemetry.Record{b.fresh, b.late} {
		for i := range records {
			m.latency.Observe(float64(us-records[i].StreamUS) / 1e6)
		}
	}
}
