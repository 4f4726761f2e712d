package pipeline

import (
	"context"
	"fmt"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
)

// ProbeLog records probe batches of quarantined shards, so that the next owner
// of the shard knows of one that did not finish.
type ProbeLog interface {
	Begin(ctx context.Context, shard int, r protocol.ProbeBatch) error
	Pass(ctx context.Context, shard int, r protocol.ProbeBatch, over bool) error
}

// crashError is the reason to dead-letter an entry that was alone in flight when processes crashed.
type crashError struct{ crashCount int }

func (e *crashError) Error() string {
	return fmt.Sprintf("crash: processes died %d times, the last time with only this entry in flight", e.crashCount)
}

// try runs a probe batch of a quarantined shard: recorded first, committed
// separately, and one at a time in the whole process, so that a crash is
// attributed to no other entry.
func (w *worker) try(ctx context.Context, p part, s protocol.Quarantine) error {
	select {
	case w.probe <- struct{}{}:
		defer func() { <-w.probe }()
	case <-ctx.Done():
		return ctx.Err()
	}
	r := protocol.ProbeBatch{
		Epoch: p.epoch, First: p.entries[0].ID, Last: p.entries[len(p.entries)-1].ID, Entries: len(p.entries), Until: s.Until,
	}
	rare.Reached(rare.Probed)
	if r.First == s.Culprit {
		rare.Reached(rare.CulpritFound)
		if err := w.rejectEntry(ctx, p, &crashError{crashCount: s.CrashCount}); err != nil {
			return err
		}
	} else {
		if err := w.recordProbe(ctx, p, func() error { return w.probeLog.Begin(ctx, p.shard, r) }); err != nil {
			return err
		}
		if err := w.redoPart(ctx, p, false); err != nil {
			return err
		}
	}
	t, ok := w.owned[p.shard]
	if !ok || t.grant != p.grant {
		return nil
	}
	return w.pass(ctx, p, r, !r.Last.Less(s.Until))
}

// clear ends the quarantine of a shard whose queue is empty: an idle shard must
// not stay quarantined until its next entry.
func (w *worker) clear(ctx context.Context, m *message) error {
	t, ok := w.owned[m.shard]
	if !ok || t.grant != m.grant || t.quarantine.Limit == 0 {
		return nil
	}
	p := part{shard: m.shard, grant: m.grant, epoch: t.epoch}
	return w.pass(ctx, p, protocol.ProbeBatch{Epoch: t.epoch}, true)
}

// pass records that a probe batch succeeded; over lifts the limit.
func (w *worker) pass(ctx context.Context, p part, r protocol.ProbeBatch, over bool) error {
	if err := w.recordProbe(ctx, p, func() error { return w.probeLog.Pass(ctx, p.shard, r, over) }); err != nil || !over {
		return err
	}
	if t, ok := w.owned[p.shard]; ok && t.grant == p.grant {
		t.quarantine = protocol.Quarantine{}
		w.owned[p.shard] = t
		w.table.endQuarantine(p.shard, p.grant)
		w.log.Info("shard released from quarantine", "shard", p.shard)
	}
	return nil
}

// recordProbe runs note, and gives the shard up if it is no longer ours.
func (w *worker) recordProbe(ctx context.Context, p part, note func() error) error {
	if t, ok := w.owned[p.shard]; !ok || t.grant != p.grant {
		return nil
	}
	// note is idempotent, so an unknown outcome is simply retried.
	repeat := func(err error) bool { v := dispositionOf(err); return v == retrySame || v == reacquire }
	err := retry(ctx, w.log, "record a probe batch", w.metrics.isolationErrors, repeat, note)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if dispositionOf(err) != dropFenced {
		return err
	}
	w.giveUp(&batch{parts: []part{p}}, nil, shardFenced)
	return nil
}

// endQuarantine lifts the limit of a shard.
func (t *table) endQuarantine(shard int, grant uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := &t.slots[shard]; s.owned && s.grant == grant {
		s.quarantine = protocol.Quarantine{}
		s.due = true
		wakeUp(t.wake)
	}
}
