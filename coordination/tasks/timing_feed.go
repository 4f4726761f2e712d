package tasks

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/protocol"
)

// timingFeed is the feed of changes of crossings.
type timingFeed interface {
	Begin(ctx context.Context) (protocol.TimingPosition, error)
	Continues(ctx context.Context, p protocol.TimingPosition) (bool, error)
	After(ctx context.Context, p protocol.TimingPosition, most int) ([]protocol.TimingChange, error)
	Held(ctx context.Context) (time.Duration, error)
}

// timingStream is where they are published.
type timingStream interface {
	Name() string
	Last(ctx context.Context) (id string, p protocol.TimingPosition, err error)
	Append(ctx context.Context, after string, changes []protocol.TimingChange) (last string, ok bool, err error)
}

// TimingFeed is the leader's task that watches the feed of changes of crossings, and
// publishes it on a stream. What is there already the stream itself says: its last entry
// tells its position in the feed, and entries are added behind that entry or not at all.
// So leaders that follow each other publish each change once and in order, whenever
// they die; a change comes again only if Redis lost it.
type TimingFeed struct {
	feed    timingFeed
	stream  timingStream // nil for none
	ledger  coordination.Ledger
	log     *slog.Logger
	metrics *timingMetrics

	term    int64
	looked  time.Time // when the metrics were renewed
	known   bool      // whether what follows is
	last    string    // entry of the stream
	at      protocol.TimingPosition
	refused bool // an incident may be open
}

// NewTimingFeed returns the task; stream is nil if nothing is to be published.
func NewTimingFeed(feed timingFeed, stream timingStream, ledger coordination.Ledger, log *slog.Logger, reg prometheus.Registerer) *TimingFeed {
	return &TimingFeed{feed: feed, stream: stream, ledger: ledger, log: log.With("component", "timing feed"), metrics: newTimingMetrics(stream != nil, reg)}
}

// Bounds of one pass, so that the leader renews in time.
const (
	timingPages = 10
	timingPage  = 200
)

// timingEvery is the time between two looks at what is held back.
const timingEvery = 5 * time.Second

// Do publishes what has been added to the feed.
func (t *TimingFeed) Do(ctx context.Context, term int64) error {
	if term != t.term {
		t.term, t.looked, t.known, t.refused = term, time.Time{}, false, true
	}
	if time.Since(t.looked) >= timingEvery {
		held, err := t.feed.Held(ctx)
		if err != nil {
			return err
		}
		t.looked = time.Now()
		t.metrics.show(func(m *timingMetrics) { m.held, m.looked = held, t.looked })
	}
	if t.stream == nil {
		return t.close(ctx)
	}
	err := t.publish(ctx)
	if err == nil {
		return t.close(ctx)
	}
	t.known = false
	if errors.Is(ctx.Err(), context.Canceled) {
		return err // the term ended
	}
	t.metrics.errors.Inc()
	t.metrics.show(func(m *timingMetrics) {
		if m.since.IsZero() {
			m.since = time.Now()
		}
	})
	if f, ok := errors.AsType[*protocol.Failure](err); ok && f.Kind == protocol.Misconfigured && errors.As(err, new(streamError)) {
		t.refused = true
		err = errors.Join(err, t.ledger.Open(ctx, protocol.TimingStream, t.stream.Name(), map[string]any{"error": err.Error()}))
	}
	return err
}

// close ends the incidents of a stream that could not be written to, or is published to
// no more.
func (t *TimingFeed) close(ctx context.Context) error {
	if !t.refused {
		return nil
	}
	open, err := t.ledger.Opened(ctx, protocol.TimingStream)
	if err != nil {
		return err
	}
	for _, name := range open {
		if err := t.ledger.Close(ctx, protocol.TimingStream, name); err != nil {
			return err
		}
	}
	t.refused = false
	return nil
}

// streamError is an error of the stream, not of the feed.
type streamError struct{ error }

func (e streamError) Unwrap() error { return e.error }

func (t *TimingFeed) publish(ctx context.Context) error {
	for range timingPages {
		if !t.known {
			if err := t.resume(ctx); err != nil {
				return err
			}
		}
		changes, err := t.feed.After(ctx, t.at, timingPage)
		if err != nil {
			return err
		}
		if len(changes) == 0 {
			t.metrics.show(func(m *timingMetrics) { m.since = time.Time{} })
			return nil
		}
		t.metrics.show(func(m *timingMetrics) { m.since = changes[0].At })
		if err := t.append(ctx, changes); err != nil {
			return err
		}
	}
	return nil
}

// append adds changes behind the last entry. If another leader has added some, that one
// is read again.
func (t *TimingFeed) append(ctx context.Context, changes []protocol.TimingChange) error {
	last, ok, err := t.stream.Append(ctx, t.last, changes)
	if err != nil {
		return streamError{err}
	}
	if t.known = ok; ok {
		t.last, t.at = last, changes[len(changes)-1].TimingPosition
		t.metrics.published.Add(float64(len(changes)))
	}
	return nil
}

// resume finds where the stream ends. Where changes may be missing behind that, readers
// are told to start over.
func (t *TimingFeed) resume(ctx context.Context) error {
	id, at, err := t.stream.Last(ctx)
	if err != nil {
		return streamError{err}
	}
	continues := false
	if id != "" {
		if continues, err = t.feed.Continues(ctx, at); err != nil {
			return err
		}
	}
	t.last, t.at, t.known = id, at, true
	if continues {
		return nil
	}
	begin, err := t.feed.Begin(ctx)
	if err != nil {
		return err
	}
	t.log.Info("publishing changes of crossings from here on; readers start over", "timing_stream", t.stream.Name(), "last_entry", id)
	if err := t.append(ctx, []protocol.TimingChange{{TimingPosition: begin, Change: protocol.TimingRestart}}); err != nil || t.known {
		return err
	}
	return t.resume(ctx)
}

// timingMetrics are exported by the leader only.
type timingMetrics struct {
	published prometheus.Counter
	errors    prometheus.Counter

	mu          sync.Mutex
	held        time.Duration
	looked      time.Time // when that was so
	publishes   bool
	since       time.Time // the oldest change that is not published waits; zero if there is none
	heldOf      *prometheus.Desc
	unpublished *prometheus.Desc
}

func newTimingMetrics(publishes bool, reg prometheus.Registerer) *timingMetrics {
	m := &timingMetrics{
		publishes: publishes,
		published: promauto.With(reg).NewCounter(prometheus.CounterOpts{
			Name: "processor_coordination_timing_changes_published_total", Help: "Changes of crossings added to TIMING_STREAM.",
		}),
		errors: promauto.With(reg).NewCounter(prometheus.CounterOpts{
			Name: "processor_coordination_timing_stream_errors_total", Help: "Attempts to publish changes of crossings that failed.",
		}),
		heldOf: prometheus.NewDesc("processor_group_timing_feed_held_seconds",
			"Age of the oldest change of a crossing that the feed holds back for a transaction that still runs; 0 if there is none.", nil, nil),
		unpublished: prometheus.NewDesc("processor_group_timing_unpublished_seconds",
			"Age of the oldest change of a crossing in the feed that is not on TIMING_STREAM yet; 0 if there is none, absent without a stream.", nil, nil),
	}
	reg.MustRegister(m)
	return m
}

func (m *timingMetrics) show(change func(*timingMetrics)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m)
}

// Describe implements prometheus.Collector.
func (m *timingMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.heldOf
	ch <- m.unpublished
}

// timingStale is the age from which what was seen is unknown.
const timingStale = 6 * timingEvery

// Collect implements prometheus.Collector.
func (m *timingMetrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.looked) >= timingStale {
		return
	}
	ch <- prometheus.MustNewConstMetric(m.heldOf, prometheus.GaugeValue, m.held.Seconds())
	if !m.publishes {
		return
	}
	waits := 0.0
	if !m.since.IsZero() {
		waits = max(0, time.Since(m.since).Seconds())
	}
	ch <- prometheus.MustNewConstMetric(m.unpublished, prometheus.GaugeValue, waits)
}
