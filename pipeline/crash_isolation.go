package pipeline

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
)

// ProbeLog records probe batches of quarantined shards, so that the next owner
// of the shard knows of one that did not finish.
type ProbeLog interface {
	Begin(ctx context.Context, shard int, r protocol.ProbeBatch) error
	// Retract records of a probe batch that was begun that it is not exclusive. It waits for no shard.
	Retract(ctx context.Context, shard int, r protocol.ProbeBatch) error
	Pass(ctx context.Context, shard int, r protocol.ProbeBatch, over bool) error
}

// Attempts keeps attempts apart to which a crash is attributed. It is for all pipelines of a
// process, since any of their entries may crash it.
type Attempts struct {
	one    chan struct{}         // of size one, held during an attempt
	holder atomic.Pointer[table] // of the worker that holds it
	// applying is shared by the workers that apply entries, and exclusive to an attempt
	// that proves something of its only entry.
	applying sync.RWMutex
}

// NewAttempts returns the attempts of a process.
func NewAttempts() *Attempts { return &Attempts{one: make(chan struct{}, 1)} }

// exclusiveFor is how long the entries of others wait for an exclusive attempt, which may wait for a
// row that is locked, or refused for now; and retractFor how long for each note of it.
const (
	exclusiveFor = 5 * time.Second
	retractFor   = time.Second
)

// begin waits until no other attempt is in progress. The caller calls end.
func (w *worker) begin(ctx context.Context) (end func(), err error) {
	look := time.NewTicker(viewEvery)
	defer look.Stop()
	for {
		select {
		case w.attempts.one <- struct{}{}:
			w.attempts.holder.Store(w.table)
			return func() { <-w.attempts.one }, nil
		case <-look.C:
			if w.attempts.holder.Load() != w.table {
				w.callsReturned.Add(1) // this pipeline is not stuck, the other may be
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// exclusively makes an attempt while no other worker applies entries, so that a crash proves that it is
// of this entry: prove notes so, and retract that it proves nothing. Others wait for exclusiveFor, longer
// only while the entry is being applied. The attempt says whether it has an outcome.
// That it began was noted before: what keeps that from being written keeps no other waiting.
func (w *worker) exclusively(ctx context.Context, prove, retract func(ctx context.Context) error, attempt func() (decided bool, err error)) error {
	briefly := func(ctx context.Context, note func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, retractFor)
		defer cancel()
		return note(ctx)
	}
	w.attempts.applying.Lock()
	open := sync.OnceFunc(w.attempts.applying.Unlock)
	defer open()
	if err := briefly(ctx, prove); err != nil {
		open()
		w.log.Warn("an attempt proves nothing of its entry: it could not be recorded as exclusive", "err", err)
		// It may have been nevertheless.
		if err := retry(ctx, w.log, "record that an attempt is not exclusive", w.metrics.isolationErrors, always, func() error { return retract(ctx) }); err != nil {
			return err
		}
		_, err := attempt()
		return err
	}
	w.exclusive = true
	defer func() { w.exclusive = false }()
	waiting, end := context.WithCancel(ctx)
	var others sync.WaitGroup
	others.Go(func() {
		for wait := exclusiveFor; sleep(waiting, wait) == nil; wait = retractFor {
			if w.inApply.Load() {
				continue
			}
			err := briefly(waiting, retract)
			open()
			if err == nil {
				return
			}
		}
	})
	decided, err := attempt()
	end()
	others.Wait()
	if !decided || err != nil {
		if failed := briefly(context.WithoutCancel(ctx), retract); failed != nil {
			w.log.Warn("recording that an attempt is over failed; a crash may be held against its entry", "err", failed)
		}
	}
	return err
}

// lockApply and unlockApply enclose whatever of an entry may crash the process, and no
// wait for a server.
func (w *worker) lockApply() {
	if w.exclusive {
		w.inApply.Store(true)
		return
	}
	w.attempts.applying.RLock()
}

func (w *worker) unlockApply() {
	if w.exclusive {
		w.inApply.Store(false)
		return
	}
	w.attempts.applying.RUnlock()
}

// crashError is the reason to dead-letter an entry that was alone in flight when processes crashed.
type crashError struct{ crashCount int }

func (e *crashError) Error() string {
	return fmt.Sprintf("crash: processes died %d times, the last time with only this entry in flight", e.crashCount)
}

// try runs a probe batch of a quarantined shard: recorded first, committed separately, and
// one at a time in the whole process. At a limit of one entry nothing else is applied
// meanwhile, so that a crash proves that it is of this entry.
func (w *worker) try(ctx context.Context, p part, s protocol.Quarantine) error {
	end, err := w.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	r := protocol.ProbeBatch{
		Epoch: p.epoch, First: p.entries[0].ID, Last: p.entries[len(p.entries)-1].ID, Entries: len(p.entries), Until: s.Until,
	}
	rare.Reached(rare.Probed)
	switch {
	case r.First == s.Culprit && p.entries[0].Fields != nil: // one that was trimmed is lost, and no dead letter
		rare.Reached(rare.CulpritFound)
		err = w.rejectEntry(ctx, p, &crashError{crashCount: s.CrashCount})
	case s.Limit == 1:
		err = w.probeExclusively(ctx, p, r)
	default:
		err = w.probe(ctx, p, r)
	}
	if err != nil {
		return err
	}
	// The worker learns later than the table that a dead letter waits, or what else was not finished:
	// as long as the culprit is on its queue the next owner has to know of it.
	if len(w.table.gone([]part{p})) > 0 {
		return nil
	}
	if err := w.pass(ctx, p, r, !r.Last.Less(s.Until)); err != nil || len(w.table.gone([]part{p})) > 0 {
		return err
	}
	// With the mark that Postgres has now, which may have gone back: if Redis knew of a later one, it would seem
	// that Postgres lost commits.
	passed := &batch{parts: []part{{shard: p.shard, grant: p.grant, epoch: p.epoch, token: p.token}}}
	passed.applied = append(passed.applied, protocol.Applied{Shard: p.shard, ID: r.Last})
	if err := w.ack(ctx, passed); err != nil {
		return err
	}
	w.finish(passed)
	return nil
}

func (w *worker) probe(ctx context.Context, p part, r protocol.ProbeBatch) error {
	if err := w.recordProbe(ctx, p, func() error { return w.probeLog.Begin(ctx, p.shard, r) }); err != nil {
		return err
	}
	return w.redoPart(ctx, p, false)
}

// probeExclusively is probe of one entry, of which it proves something.
func (w *worker) probeExclusively(ctx context.Context, p part, r protocol.ProbeBatch) error {
	if err := w.recordProbe(ctx, p, func() error { return w.probeLog.Begin(ctx, p.shard, r) }); err != nil {
		return err
	}
	if len(w.table.gone([]part{p})) > 0 {
		return nil // or others would wait for nothing
	}
	exclusive := r
	exclusive.Exclusive = true
	prove := func(ctx context.Context) error { return w.probeLog.Begin(ctx, p.shard, exclusive) }
	retract := func(ctx context.Context) error { return w.probeLog.Retract(ctx, p.shard, exclusive) }
	return w.exclusively(ctx, prove, retract, func() (decided bool, err error) {
		err = w.redoPart(ctx, p, false)
		return len(w.table.gone([]part{p})) == 0, err
	})
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

// recordProbe runs note, gives the shard up if it is no longer ours, and sets it aside
// while another session has its row locked.
func (w *worker) recordProbe(ctx context.Context, p part, note func() error) error {
	if t, ok := w.owned[p.shard]; !ok || t.grant != p.grant {
		return nil
	}
	// note is idempotent, so an unknown outcome is simply retried.
	repeat := func(err error) bool { v := dispositionOf(err); return v == retrySame || v == reacquire }
	err := retry(ctx, w.log, "record a probe batch", w.metrics.isolationErrors, repeat, func() error {
		defer w.callsReturned.Add(1)
		return note()
	})
	if err == nil || ctx.Err() != nil {
		return err
	}
	switch dispositionOf(err) {
	case dropFenced:
		w.giveUp(&batch{parts: []part{p}}, nil, shardFenced)
	case setAside:
		w.setAside(&batch{parts: []part{p}}, nil)
	default:
		return err
	}
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
