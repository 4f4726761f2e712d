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

// Makings is the stream, and what the script that makes a missing group notes of it.
type Makings interface {
	Makings(ctx context.Context) ([]protocol.Making, error)
	Settled(ctx context.Context, m *protocol.Making) error
	Backlog(ctx context.Context) (protocol.Backlog, error)
	Look(ctx context.Context, ids []telemetry.EntryID) (protocol.Sight, error)
	Before(ctx context.Context, id telemetry.EntryID) (telemetry.EntryID, error)
}

// MakingsLedger is where it is noted for good.
type MakingsLedger interface {
	Ledger
	Past(ctx context.Context, subject string, ago time.Duration) (protocol.Past, error)
	OpenIncidents(ctx context.Context) (map[string]int, error)
	Seen(ctx context.Context) (protocol.Seen, error)
	See(ctx context.Context, term int64, newest, gone telemetry.EntryID) error
}

// progressEvery is how often a shard's progress mark is written, at most: what
// was written shortly before a making may have been written after it.
const progressEvery = time.Second

// GroupWatch is the leader's task to note when a group was lost and made again:
// as an incident, which says how many entries were dealt again and is closed
// when all of them are done, and as a loss where something must have been lost.
// It notes the same when Redis goes on with an older state of stream and group.
// It also exports the number of incidents that last.
type GroupWatch struct {
	stream Makings
	ledger MakingsLedger
	log    *slog.Logger
	lost   *prometheus.CounterVec
	open   *openIncidents

	term    int64
	noted   map[string]string // kinds of the makings noted in this term, by receipt
	counted time.Time
	looked  time.Time
}

// NewGroupWatch returns the task.
func NewGroupWatch(source Makings, ledger MakingsLedger, log *slog.Logger, reg prometheus.Registerer) *GroupWatch {
	w := &GroupWatch{
		stream: source, ledger: ledger, log: log.With("component", "group watch"),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_coordination_lost_groups_total", Help: "Times the group was lost and made again, or Redis went on with an older state, by kind: group_lost, redis_lost, redis_rewound.",
		}, []string{"kind"}),
		open: &openIncidents{desc: prometheus.NewDesc("processor_group_open_incidents", "Incidents that last, by kind; at the leader.", []string{"kind"}, nil)},
	}
	for _, kind := range []string{protocol.GroupLost, protocol.RedisLost, protocol.RedisRewound} {
		w.lost.WithLabelValues(kind)
	}
	reg.MustRegister(w.lost, w.open)
	return w
}

// Do looks at what was made and not settled yet.
func (w *GroupWatch) Do(ctx context.Context, term int64) error {
	if term != w.term {
		w.term, w.noted, w.counted, w.looked = term, make(map[string]string), time.Time{}, time.Time{}
	}
	makings, err := w.stream.Makings(ctx)
	if err != nil {
		return err
	}
	for i := range makings {
		if err := w.settle(ctx, &makings[i], i == len(makings)-1); err != nil {
			return err
		}
	}
	if len(makings) == 0 {
		if err := w.lookBack(ctx, term); err != nil {
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

func subjectOf(m *protocol.Making) string { return m.At.UTC().Format("2006-01-02T15:04:05.000Z07:00") }

// settle notes a making, and closes its incident when all is done that it had
// dealt again, or when the group was lost once more.
func (w *GroupWatch) settle(ctx context.Context, m *protocol.Making, last bool) error {
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
	case kind == protocol.GroupMade:
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
		w.log.Info("all that was dealt again is done", "count", m.Entries, "duration", m.Ago)
	}
	// Its detail, then its end, then nothing more to do: each may be repeated.
	if err := w.ledger.Open(ctx, kind, subjectOf(m), detail); err != nil {
		return err
	}
	if err := w.ledger.Close(ctx, kind, subjectOf(m)); err != nil {
		return err
	}
	return w.stream.Settled(ctx, m)
}

func detailOf(m *protocol.Making) map[string]any {
	return map[string]any{
		"entries": m.Entries, "first": m.First.String(), "last": m.Last.String(), "dealt_before": m.Dealt.String(), "made_at": m.At.UTC(),
	}
}

// note opens the incident of a making, unless an earlier leader has.
func (w *GroupWatch) note(ctx context.Context, m *protocol.Making) (string, error) {
	past, err := w.ledger.Past(ctx, subjectOf(m), m.Ago+progressEvery)
	if err != nil || past.Kind != "" {
		return past.Kind, err
	}
	kind, loss := m.Judge(past)
	if loss != nil {
		if err := w.ledger.Lose(ctx, []protocol.Loss{*loss}); err != nil {
			return "", err
		}
	}
	if err := w.ledger.Open(ctx, kind, subjectOf(m), detailOf(m)); err != nil {
		return "", err
	}
	if kind != protocol.GroupMade {
		w.lost.WithLabelValues(kind).Inc()
		w.log.Error("the group was lost and made again, all of the stream is dealt anew", "reason", kind, "count", m.Entries)
	}
	if loss != nil {
		w.log.Error("entries were lost, nobody can tell how many", "reason", loss.Cause, "entry_id", fmt.Sprint(loss.Last))
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
