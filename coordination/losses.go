package coordination

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/trmtracking/processor/internal/protocol"
)

// lossLedger keeps losses. It is idempotent.
type lossLedger interface {
	RecordLosses(ctx context.Context, losses []protocol.Loss) error
}

// Losses is the only way into the ledger of losses, so that none is there which no
// metric tells of.
type Losses struct {
	ledger  lossLedger
	losses  *prometheus.CounterVec
	entries prometheus.Counter
}

// NewLosses returns the way into a ledger.
func NewLosses(ledger lossLedger, reg prometheus.Registerer) *Losses {
	with := promauto.With(reg)
	l := &Losses{
		ledger: ledger,
		losses: with.NewCounterVec(prometheus.CounterOpts{
			Name: "processor_coordination_losses_total", Help: "Losses recorded in the ledger, of known and of unknown size, by cause.",
		}, []string{"cause"}),
		entries: with.NewCounter(prometheus.CounterOpts{
			Name: "processor_coordination_lost_entries_total", Help: "Entries recorded as lost in the ledger, of losses whose size is known.",
		}),
	}
	for _, cause := range protocol.LossCauses() {
		l.losses.WithLabelValues(cause)
	}
	return l
}

// recordUnreadable records what in one of our lists in Redis is none of ours, and has it
// removed, so that what lies behind it is reached. One by one: many may take longer than a step.
func recordUnreadable(ctx context.Context, ledger Ledger, log *slog.Logger, list string, texts []string, remove func(text string) error) error {
	subject := func(text string) string { return fmt.Sprintf("%.100q", text) } // quoted, since Postgres stores no zero bytes
	n := 0
	defer func() {
		if n > 0 {
			log.Error("records in Redis cannot be read, moved to the incidents; find out which program wrote them", "what", list, "count", n, "first", subject(texts[0]))
		}
	}()
	for _, text := range texts {
		if err := ledger.Open(ctx, protocol.UnreadableRecord, subject(text), map[string]any{"list": list, "text": fmt.Sprintf("%.2000q", text)}); err != nil {
			return err
		}
		if err := ledger.Close(ctx, protocol.UnreadableRecord, subject(text)); err != nil {
			return err
		}
		if err := remove(text); err != nil {
			return err
		}
		n++
	}
	return nil
}

// Record records losses and counts them. A repetition counts again: where the reply to
// the first attempt was lost, or its process ended, nothing else would.
func (l *Losses) Record(ctx context.Context, losses []protocol.Loss) error {
	if err := l.ledger.RecordLosses(ctx, losses); err != nil {
		return err
	}
	for _, loss := range losses {
		l.losses.WithLabelValues(loss.Cause).Inc()
		l.entries.Add(float64(max(0, loss.Entries)))
	}
	return nil
}
