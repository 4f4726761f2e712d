package pipeline

import (
	"context"
	"fmt"

	"github.com/trmtracking/processor/internal/protocol"
)

// Trials is where runs of shards under suspicion are written down, so that a
// run that is never finished is known to whoever takes the shard next.
type Trials interface {
	Begin(ctx context.Context, shard int, r protocol.Run) error
	Pass(ctx context.Context, shard int, r protocol.Run, over bool) error
}

// crashError is why an entry is given up that was alone in hand when processes died.
type crashError struct{ deaths int }

func (e *crashError) Error() string {
	return fmt.Sprintf("crash: processes died %d times, in the end with nothing but this entry in hand", e.deaths)
}

// try runs entries of a shard under suspicion: written down first, by
// themselves, and one such run at a time in the whole process, so that a death
// is held against no other.
func (w *worker) try(ctx context.Context, p part, s protocol.Suspicion) error {
	select {
	case w.trial <- struct{}{}:
		defer func() { <-w.trial }()
	case <-ctx.Done():
		return ctx.Err()
	}
	r := protocol.Run{
		Epoch: p.epoch, First: p.entries[0].ID, Last: p.entries[len(p.entries)-1].ID, Entries: len(p.entries), Until: s.Until,
	}
	if r.First == s.Condemned {
		if err := w.condemn(ctx, p, &crashError{deaths: s.Deaths}); err != nil {
			return err
		}
	} else {
		if err := w.noteTrial(ctx, p, func() error { return w.trials.Begin(ctx, p.shard, r) }); err != nil {
			return err
		}
		if err := w.redoPart(ctx, p, false); err != nil {
			return err
		}
	}
	t, ok := w.held[p.shard]
	if !ok || t.grant != p.grant {
		return nil
	}
	return w.pass(ctx, p, r, !r.Last.Less(s.Until))
}

// clear ends the suspicion of a shard whose queue holds nothing any more: an idle
// shard must not stand accused until its next entry.
func (w *worker) clear(ctx context.Context, m *message) error {
	t, ok := w.held[m.shard]
	if !ok || t.grant != m.grant || t.suspicion.Limit == 0 {
		return nil
	}
	p := part{shard: m.shard, grant: m.grant, epoch: t.epoch}
	return w.pass(ctx, p, protocol.Run{Epoch: t.epoch}, true)
}

// pass notes that a run ended well, and lifts the limit when it is over.
func (w *worker) pass(ctx context.Context, p part, r protocol.Run, over bool) error {
	if err := w.noteTrial(ctx, p, func() error { return w.trials.Pass(ctx, p.shard, r, over) }); err != nil || !over {
		return err
	}
	if t, ok := w.held[p.shard]; ok && t.grant == p.grant {
		t.suspicion = protocol.Suspicion{}
		w.held[p.shard] = t
		w.table.trust(p.shard, p.grant)
		w.log.Info("shard is under suspicion no more", "shard", p.shard)
	}
	return nil
}

// noteTrial writes down, and gives the shard up when it is not ours any more.
func (w *worker) noteTrial(ctx context.Context, p part, note func() error) error {
	if t, ok := w.held[p.shard]; !ok || t.grant != p.grant {
		return nil
	}
	// Writing the same again changes nothing, so an unknown outcome is no matter.
	repeat := func(err error) bool { v := judge(err); return v == again || v == retake }
	err := retry(ctx, w.log, "write down a run under suspicion", w.metrics.trialErrors, repeat, note)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if judge(err) != yield {
		return err
	}
	w.giveUp(&batch{parts: []part{p}}, nil, ShardFenced)
	return nil
}

// trust lifts the limit of a shard.
func (t *table) trust(shard int, grant uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := &t.slots[shard]; s.held && s.grant == grant {
		s.suspicion = protocol.Suspicion{}
		s.due = true
		ring(t.wake)
	}
}
