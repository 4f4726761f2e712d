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

// GroupRecreations reads the records that dispatch_lease.lua writes whenever it
// has to create the consumer group, or another client did.
type GroupRecreations interface {
	GroupRecreations(ctx context.Context) (recreations []protocol.GroupRecreation, foreign []string, err error)
	ResolveRecreation(ctx context.Context, m *protocol.GroupRecreation) error
	Backlog(ctx context.Context) (protocol.Backlog, error)
	Snapshot(ctx context.Context, ids []telemetry.EntryID) (protocol.StreamSnapshot, error)
	Before(ctx context.Context, id telemetry.EntryID) (telemetry.EntryID, error)
	After(ctx context.Context, id telemetry.EntryID) (telemetry.EntryID, error)
}

// RecreationLedger stores them durably.
type RecreationLedger interface {
	Ledger
	GroupHistory(ctx context.Context, subject string, ago time.Duration) (protocol.GroupHistory, error)
	OpenIncidents(ctx context.Context) (map[string]int, error)
	HighWatermark(ctx context.Context) (protocol.HighWatermark, error)
	Observe(ctx context.Context, term int64, newest, gone telemetry.EntryID) error
}

// progressEvery is the minimum interval between writes of a shard's applied ID:
// one written shortly before a recreation may have been written after it.
const progressEvery = time.Second

// DataLossDetector is the leader's task that records a lost and recreated
// group: an incident that says how many entries were redelivered and closes
// when all of them are finished, and a loss where entries must be lost. It
// records the same when Redis failed over to an older state. It also exports
// the number of open incidents.
type DataLossDetector struct {
	stream GroupRecreations
	ledger RecreationLedger
	losses *Losses
	log    *slog.Logger
	lost   *prometheus.CounterVec
	open   *openIncidents

	term    int64
	noted   map[string]string // kind of each recreation recorded in this term, by receipt
	counted time.Time
	polled  time.Time
}

// NewDataLossDetector returns the task.
func NewDataLossDetector(source GroupRecreations, ledger RecreationLedger, losses *Losses, log *slog.Logger, reg prometheus.Registerer) *DataLossDetector {
	w := &DataLossDetector{
		stream: source, ledger: ledger, losses: losses, log: log.With("component", "data loss detector"),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_coordination_data_loss_events_total", Help: "Times the group was lost and recreated, or Redis failed over to an older state, by kind: group_lost, redis_lost, redis_failover.",
		}, []string{"kind"}),
		open: &openIncidents{desc: prometheus.NewDesc("processor_group_open_incidents", "Incidents that last, by kind; at the leader.", []string{"kind"}, nil)},
	}
	for _, kind := range []string{protocol.GroupLost, protocol.RedisLost, protocol.RedisFailedOver} {
		w.lost.WithLabelValues(kind)
	}
	reg.MustRegister(w.lost, w.open)
	return w
}

// Do processes the recreations that are not resolved yet.
func (w *DataLossDetector) Do(ctx context.Context, term int64) error {
	if term != w.term {
		w.term, w.noted, w.counted, w.polled = term, make(map[string]string), time.Time{}, time.Time{}
	}
	recreations, foreign, err := w.stream.GroupRecreations(ctx)
	if err != nil {
		return err
	}
	for i := range recreations {
		if err := w.resolve(ctx, &recreations[i], i == len(recreations)-1); err != nil {
			return err
		}
	}
	if err := recordUnreadable(ctx, w.ledger, w.log, "recreations of the group", foreign, func(text string) error {
		return w.stream.ResolveRecreation(ctx, &protocol.GroupRecreation{Receipt: text})
	}); err != nil {
		return err
	}
	if err := w.detectFailover(ctx, term); err != nil {
		return err
	}
	if len(recreations) == 0 && time.Since(w.counted) < openEvery {
		return nil
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

// resolve records a recreation. It closes the incident when every redelivered
// entry is finished, or when the group was lost again.
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
	// Detail, close, forget: in this order, each step can be repeated.
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
		"entries": m.Entries, "first": m.First.String(), "last": m.Last.String(), "dispatched_before": m.Dispatched.String(), "recreated_at": m.At.UTC(),
	}
}

// note opens the incident of a recreation, unless an earlier leader did.
func (w *DataLossDetector) note(ctx context.Context, m *protocol.GroupRecreation) (string, error) {
	history, err := w.ledger.GroupHistory(ctx, subjectOf(m), m.Ago+progressEvery)
	if err != nil || history.Kind != "" {
		return history.Kind, err
	}
	kind, loss := m.Classify(history)
	if loss != nil {
		if err := w.losses.Record(ctx, []protocol.Loss{*loss}); err != nil {
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
	openEvery = 5 * time.Second  // between two reads of the open incidents
	openStale = 30 * time.Second // age at which they are no longer reported
)

// openIncidents is exported by the leader only.
type openIncidents struct {
	desc *prometheus.Desc

	mu   sync.Mutex
	kept map[string]int // a kind stays, with 0, once it has occurred
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
