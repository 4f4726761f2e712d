package tasks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// recomputeSource is the stream of recompute requests from other services.
type recomputeSource interface {
	Stream() string
	Read(ctx context.Context, count int) ([]telemetry.Entry, error)
	Recorded(ctx context.Context, ids []telemetry.EntryID) error
}

// recomputeSink records the requests for the owners of the shards.
type recomputeSink interface {
	Recompute(ctx context.Context, term int64, shards int, list []protocol.Window) error
}

// Recompute is the leader's task that passes requests of other services to the
// owners. A request is acknowledged when it is recorded; an invalid one becomes
// an incident and blocks no other.
type Recompute struct {
	shards  int
	source  recomputeSource
	sink    recomputeSink
	ledger  coordination.Ledger
	log     *slog.Logger
	outcome *prometheus.CounterVec
}

// NewRecompute returns the task.
func NewRecompute(shards int, source recomputeSource, sink recomputeSink, ledger coordination.Ledger, log *slog.Logger, reg prometheus.Registerer) *Recompute {
	r := &Recompute{
		shards: shards, source: source, sink: sink, ledger: ledger, log: log.With("component", "recompute"),
		outcome: promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
			Name: "processor_coordination_recompute_requests_total", Help: "Requests read from recompute:requests, by outcome.",
		}, []string{"outcome"}),
	}
	for _, o := range []string{"recorded", "rejected"} {
		r.outcome.WithLabelValues(o)
	}
	return r
}

// Bounds of one pass, so that the leader renews in time.
const (
	recomputePages = 10
	recomputePage  = 200
)

// Do records the requests that have arrived.
func (r *Recompute) Do(ctx context.Context, term int64) error {
	for range recomputePages {
		entries, err := r.source.Read(ctx, recomputePage)
		if err != nil || len(entries) == 0 {
			return err
		}
		if err := r.record(ctx, term, entries); err != nil {
			return err
		}
	}
	return nil
}

func (r *Recompute) record(ctx context.Context, term int64, entries []telemetry.Entry) error {
	var list []protocol.Window
	ids := make([]telemetry.EntryID, len(entries))
	rejected := 0
	for i := range entries {
		e := &entries[i]
		ids[i] = e.ID
		w, err := r.window(e)
		if err == nil {
			list = append(list, w)
			continue
		}
		rejected++
		r.log.Error("recompute request rejected; resend it as specified", "entry_id", e.ID.String(), "err", err)
		// Opened and closed: nothing remains wrong after the rejection.
		subject := r.source.Stream() + " " + e.ID.String()
		if err := r.ledger.Open(ctx, protocol.RecomputeRejected, subject, map[string]any{"error": err.Error()}); err != nil {
			return err
		}
		if err := r.ledger.Close(ctx, protocol.RecomputeRejected, subject); err != nil {
			return err
		}
	}
	if len(list) > 0 {
		if err := r.sink.Recompute(ctx, term, r.shards, list); err != nil {
			return err
		}
	}
	if err := r.source.Recorded(ctx, ids); err != nil {
		return err
	}
	r.outcome.WithLabelValues("recorded").Add(float64(len(list)))
	r.outcome.WithLabelValues("rejected").Add(float64(rejected))
	return nil
}

// maxWindow is the longest window that a request may cover.
const maxWindow = 10 * 366 * 24 * time.Hour

// window parses a request: device_id, from, to and optionally reason.
func (r *Recompute) window(e *telemetry.Entry) (protocol.Window, error) {
	w := protocol.Window{Source: r.source.Stream() + "|" + e.ID.String()}
	if len(e.Fields) == 0 {
		return w, errors.New("it was removed before it was read")
	}
	w.DeviceID, _ = e.Field("device_id")
	if n := utf8.RuneCountInString(w.DeviceID); n < 1 || n > 64 || !storable(w.DeviceID) {
		return w, fmt.Errorf("device_id %.80q: want 1 to 64 characters", w.DeviceID)
	}
	w.Shard = telemetry.ShardOf(w.DeviceID, r.shards)
	var err error
	if w.FromUS, err = instantOf(e, "from"); err != nil {
		return w, err
	}
	if w.ToUS, err = instantOf(e, "to"); err != nil {
		return w, err
	}
	switch {
	case w.FromUS > w.ToUS:
		return w, errors.New("from is after to")
	case w.ToUS-w.FromUS > maxWindow.Microseconds():
		return w, errors.New("the window is longer than ten years")
	}
	w.Reason, _ = e.Field("reason")
	const longest = 1000
	if len(w.Reason) > longest {
		w.Reason = w.Reason[:longest]
	}
	if !storable(w.Reason) {
		w.Reason = strconv.QuoteToASCII(w.Reason)
	}
	// A recreated stream assigns the same IDs again, so the content belongs to
	// the key.
	w.Source += fmt.Sprintf("|%s|%d|%d", w.DeviceID, w.FromUS, w.ToUS)
	return w, nil
}

// storable reports whether Postgres accepts s as text.
func storable(s string) bool {
	for i := range len(s) {
		if s[i] == 0 {
			return false
		}
	}
	return utf8.ValidString(s)
}

// instantOf parses a device time: RFC 3339, or milliseconds since 1970 as in
// the source stream's entries.
func instantOf(e *telemetry.Entry, field string) (int64, error) {
	text, ok := e.Field(field)
	if !ok {
		return 0, fmt.Errorf("%s is missing", field)
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if ms, numErr := strconv.ParseInt(text, 10, 64); numErr == nil && ms > -1<<50 && ms < 1<<50 {
		at, err = time.UnixMilli(ms), nil
	}
	if err != nil || at.Year() < 1 || at.Year() > 9998 {
		return 0, fmt.Errorf("%s %.80q: want a time like 2026-05-01T00:00:00Z, or milliseconds since 1970", field, text)
	}
	return at.UnixMicro(), nil
}
