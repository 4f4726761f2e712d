package coordination

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// GroupRecreations is the stream, and what the script that makes a missing group notes of it.
type GroupRecreations interface {
	GroupRecreations(ctx context.Context) ([]protocol.GroupRecreation, error)
	ResolveRecreation(ctx context.Context, m *protocol.GroupRecreation) error
	Backlog(ctx context.Context) (protocol.Backlog, error)
	Snapshot(ctx context.Context, ids []telemetry.EntryID) (protocol.StreamSnapshot, error)
	Before(ctx context.Context, id telemetry.EntryID) (telemetry.EntryID, error)
}

// RecreationLedger is where it is noted for good.
type RecreationLedger interface {
	Ledger
	GroupHistory(ctx context.Context, subject string, ago time.Duration) (protocol.GroupHistory, error)
	OpenIncidents(ctx context.Context) (map[string]int, error)
	HighWatermark(ctx context.Context) (protocol.HighWatermark, error)
	Observe(ctx context.Context, term int64, newest, gone telemetry.EntryID) error
}

// progressEvery is how often a shard's progress mark is written, at most: what
// was written shortly before a recreation may have been written after it.
const progressEvery = time.Second

// DataLossDetector is the leader's task to note when a group was lost and made again:
// as an incident, which says how many entries were redelivered and is closed
// when all of them are done, and as a loss where something must have been lost.
// It notes the same when Redis goes on with an older state of stream and group.
// It also exports the number of incidents that last.
type DataLossDetector struct {
	stream GroupRecreations
	ledger RecreationLedger
	log    *slog.Logger
	lost   *prometheus.CounterVec
	open   *openIncidents

	term    int64
	noted   map[string]string // kinds of the recreations noted in this term, by receipt
	counted time.Time
	polled  time.Time
}

// NewDataLossDetector returns the task.
func NewDataLossDetector(source GroupRecreations, ledger RecreationLedger, log *slog.Logger, reg prometheus.Registerer) *DataLossDetector {
	w := &DataLossDetector{
		stream: source, ledger: ledger, log: log.With("component", "data loss detector"),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_coordination_data_loss_events_total", Help: "Times the group was lost and made again, or Redis went on with an older state, by kind: group_lost, redis_lost, redis_failover.",
		}, []string{"kind"}),
		open: &openIncidents{desc: prometheus.NewDesc("processor_group_open_incidents", "Incidents that last, by kind; at the leader.", []string{"kind"}, nil)},
	}
	for _, kind := range []string{protocol.GroupLost, protocol.RedisLost, protocol.RedisFailedOver} {
		w.lost.WithLabelValues(kind)
	}
	reg.MustRegister(w.lost, w.open)
	return w
}

// Do looks at what was made and not settled yet.
func (w *DataLossDetector) Do(ctx context.Context, term int64) error {
	if term != w.term {
		w.term, w.noted, w.counted, w.polled = term, make(map[string]string), time.Time{}, time.Time{}
	}
	recreations, err := w.stream.GroupRecreations(ctx)
	if err != nil {
		return err
	}
	for i := range recreations {
		if err := w.resolve(ctx, &recreations[i], i == len(recreations)-1); err != nil {
			return err
		}
	}
	if len(recreations) == 0 {
		if err := w.detectFailover(ctx, term); err != nil {
			return err
		}
		if time.Since(w.counted) < openEvery {
			return nil
		}
	}
	open, err := w.ledger.OpenIncidents(ctx)
	if err == nil {
		w.counted = time.Now()
		w.open.publish(open)
	}
	return err
}

func subjectOf(m *protocol.GroupRecreation) string {
	return m.At.UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

// resolve notes a recreation, and closes its incident when all is done that it had
// redelivered, or when the group was lost once more.
func (w *DataLossDetector) resolve(ctx context.Context, m *protocol.GroupRecreation, last bool) error {
	kind, ok := w.noted[m.Receipt]
	if !ok {
		var err error
		if kind, err = w.note(ctx, m); err != nil {
			return err
		}
		w.noted[m.Receipt] = kind
	}
	detail := detailOf(m)
	switch {
	case kind == protocol.GroupCreated:
	case !last:
		detail["ended"] = "lost once more"
	default:
		b, err := w.stream.Backlog(ctx)
		if err != nil {
			return err
		}
		if !b.OldestKnown || !b.Oldest.IsZero() && b.Oldest.Compare(m.Last) <= 0 {
			return nil
		}
		detail["seconds"] = m.Ago.Round(time.Millisecond).Seconds()
		w.log.Info("redelivery complete", "count", m.Entries, "duration", m.Ago)
	}
	// Its detail, then its end, then nothing more to do: each may be repeated.
	if err := w.ledger.Open(ctx, kind, subjectOf(m), detail); err != nil {
		return err
	}
	if err := w.ledger.Close(ctx, kind, subjectOf(m)); err != nil {
		return err
	}
	return w.stream.ResolveRecreation(ctx, m)
}

func detailOf(m *protocol.GroupRecreation) map[string]any {
	return map[string]any{
		"entries": m.Entries, "first": m.First.String(), "last": m.Last.String(), "dealt_before": m.Dispatched.String(), "made_at": m.At.UTC(),
	}
}

// note opens the incident of a recreation, unless an earlier leader has.
func (w *DataLossDetector) note(ctx context.Context, m *protocol.GroupRecreation) (string, error) {
	history, err := w.ledger.GroupHistory(ctx, subjectOf(m), m.Ago+progressEvery)
	if err != nil || history.Kind != "" {
		return history.Kind, err
	}
	kind, loss := m.Classify(history)
	if loss != nil {
		if err := w.ledger.RecordLosses(ctx, []protocol.Loss{*loss}); err != nil {
			return "", err
		}
	}
	if err := w.ledger.Open(ctx, kind, subjectOf(m), detailOf(m)); err != nil {
		return "", err
	}
	if kind != protocol.GroupCreated {
		w.lost.WithLabelValues(kind).Inc()
		w.log.Error("consumer group was lost and recreated; redelivering the whole stream", "reason", kind, "count", m.Entries)
	}
	if loss != nil {
		w.log.Error("entries lost, count unknown", "reason", loss.Cause, "entry_id", fmt.Sprint(loss.Last))
	}
	return kind, nil
}

const (
	openEvery = 5 * time.Second  // between two looks at the open incidents
	openStale = 30 * time.Second // after which what was seen counts no more
)

// openIncidents is exported by the leader and absent elsewhere.
type openIncidents struct {
	desc *prometheus.Desc

	mu   sync.Mutex
	kept map[string]int // kinds that were ever seen stay, with 0
	at   time.Time
}

func (o *openIncidents) publish(open map[string]int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	kept := make(map[string]int, len(open)+len(o.kept))
	for kind := range o.kept {
		kept[kind] = 0
	}
	for kind, n := range open {
		kept[kind] = n
	}
	o.kept, o.at = kept, time.Now()
}

// Describe implements prometheus.Collector.
func (o *openIncidents) Describe(ch chan<- *prometheus.Desc) { ch <- o.desc }

// Collect implements prometheus.Collector.
func (o *openIncidents) Collect(ch chan<- prometheus.Metric) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if time.Since(o.at) >= openStale {
		return
	}
	for kind, n := range o.kept {
		ch <- prometheus.MustNewConstMetric(o.desc, prometheus.GaugeValue, float64(n), kind)
	}
}
