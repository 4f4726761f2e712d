package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// commitLoop commits one batch at a time. It tries again in place while the
// server cannot take it; any other outcome is for the worker to settle.
func (w *worker) commitLoop(ctx context.Context) error {
	defer close(w.toAck)
	for b := range w.commits {
		w.mutantAcks(ctx, b)
		c := w.commit(ctx, b)
		if c.err == nil {
			select {
			case w.toAck <- b:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		w.results <- c
	}
	return nil
}

// commit writes a batch until it is decided.
func (w *worker) commit(ctx context.Context, b *batch) committed {
	c := committed{batch: b, seq: b.seq}
	content := b.write()
	repeat := nothingHappened
	if len(content.Fresh) == 0 && len(content.Late) == 0 && len(content.Deferred) == 0 {
		if len(content.Letters) == 0 && len(content.Settled) == 0 {
			return c // nothing but what was lost: there is nothing to write
		}
		repeat = nobodysFault
	}
	c.err = retry(ctx, w.log, "commit", w.metrics.commitErrors, repeat, func() error {
		started := time.Now()
		// In this order: shards are given up before another run is numbered.
		content.Run = w.sink.Run()
		if gone := w.table.gone(b.parts); len(gone) > 0 {
			return &protocol.Failure{
				Kind: protocol.Fenced, Shards: gone, Err: fmt.Errorf("shards %v were given up meanwhile", gone),
			}
		}
		var err error
		c.written, err = w.mutantWrites(ctx, content)
		w.tried.Add(1)
		if err == nil {
			w.metrics.wrote(b, c.written, time.Since(started))
			w.metrics.outcome(outcomeDeferred, b.newlyDeferred())
		}
		return err
	})
	return c
}

// settle acts upon the outcome of a commit.
func (w *worker) settle(ctx context.Context, c committed) error {
	if c.err == nil {
		w.unacked++
		w.state.evict(c.seq)
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	v := judge(c.err)
	w.log.Warn("batch not committed as computed", "count", c.batch.entries, "err", c.err)
	switch v {
	case fatal:
		return c.err
	case retake:
		w.metrics.retaken.Inc()
		w.giveUp(c.batch, nil, OutcomeUnknown)
		w.put(c.batch)
		return nil
	case renew:
		if err := w.fences.refresh(ctx); err != nil {
			return err
		}
		return w.redo(ctx, c.batch, false)
	case yield:
		w.metrics.fenced.Inc()
		lost := lostShards(c.err, c.batch)
		w.giveUp(c.batch, lost, ShardFenced)
		return w.redo(ctx, c.batch, false)
	default:
		c.batch.guilty = guilty(c.err, c.batch)
		return w.redo(ctx, c.batch, v == split)
	}
}

// guilty is the entry of the fresh record that the server named; zero where it
// named none.
func guilty(err error, b *batch) telemetry.EntryID {
	if f, ok := errors.AsType[*protocol.Failure](err); ok && f.Row > 0 && f.Row <= len(b.fresh) {
		return b.fresh[f.Row-1].ID
	}
	return telemetry.EntryID{}
}

// lostShards is which shards of a batch a fence named; all where it did not say.
func lostShards(err error, b *batch) map[int]bool {
	lost := make(map[int]bool)
	if f, ok := errors.AsType[*protocol.Failure](err); ok {
		for _, shard := range f.Shards {
			lost[shard] = true
		}
	}
	if len(lost) == 0 {
		for _, p := range b.parts {
			lost[p.shard] = true
		}
	}
	return lost
}

// giveUp drops shards of a batch, all of them where none are named, together
// with everything computed for them since, and tells the owner's side. A shard
// that was granted anew meanwhile rests on nothing of the batch, and goes on.
func (w *worker) giveUp(b *batch, named map[int]bool, cause Cause) {
	dropped, gone := make(map[int]bool), make(map[int]bool)
	for _, p := range b.parts {
		if named != nil && !named[p.shard] || dropped[p.shard] {
			continue
		}
		dropped[p.shard] = true
		if t, ok := w.held[p.shard]; ok && t.grant != p.grant {
			continue
		}
		gone[p.shard] = true
		delete(w.held, p.shard)
		w.state.void(p.shard)
		if w.table.dropGrant(p.shard, p.grant) {
			w.lost(Lost{Shard: p.shard, Epoch: p.epoch, Cause: cause})
		}
	}
	w.current.without(func(shard int) bool { return gone[shard] }, w.cfg.Shards)
	b.without(func(shard int) bool { return dropped[shard] }, w.cfg.Shards)
}

// redo applies the entries of a batch that did not commit, and of the one
// computed on top of it, again: on fresh state, by the idempotent path, one
// transaction after the other. With isolate it divides until what the server
// refuses is alone.
func (w *worker) redo(ctx context.Context, b *batch, isolate bool) error {
	for w.unacked > 0 { // work of a shard finishes in order
		select {
		case <-ctx.Done():
			return ctx.Err()
		case done := <-w.acked:
			w.unacked--
			w.finish(done)
			w.put(done)
		}
	}
	todo, named := byShard(b.parts, w.current.parts), b.guilty
	w.current.reset(w.current.seq, false)
	w.put(b)
	for _, p := range todo {
		w.state.void(p.shard)
	}
	limit := w.cfg.BatchMaxRecords
	for _, p := range todo {
		for len(p.entries) > 0 {
			n := min(limit, len(p.entries))
			// An entry that the server named is alone from the start.
			if at := slices.IndexFunc(p.entries[:n], func(e telemetry.Entry) bool { return e.ID == named }); at >= 0 {
				n = max(1, at)
			}
			piece := p
			piece.entries, p.entries = p.entries[:n], p.entries[n:]
			if err := w.redoPart(ctx, piece, isolate); err != nil {
				return err
			}
		}
	}
	return nil
}

// redoPart commits and acknowledges entries of one shard by themselves.
func (w *worker) redoPart(ctx context.Context, p part, isolate bool) error {
	if t, ok := w.held[p.shard]; !ok || t.grant != p.grant {
		return nil
	}
	w.seq++
	b := &batch{}
	b.reset(w.seq, true)
	if err := w.apply(ctx, b, p); err != nil {
		return err
	}
	b.settleAgain(&p)
	return w.decide(ctx, b, p, isolate)
}

// decide commits and acknowledges a batch made of one part, or divides it.
func (w *worker) decide(ctx context.Context, b *batch, p part, isolate bool) error {
	c := w.commit(ctx, b)
	// What was not new did not move the device: only the table knows.
	w.state.void(p.shard)
	if c.err == nil {
		if err := w.ack(ctx, b); err != nil {
			return err
		}
		w.finish(b)
		if b.stale[p.shard] {
			return nil // what of it is not decided is returned
		}
		for i := range p.entries {
			delete(p.again, p.entries[i].ID)
		}
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch judge(c.err) {
	case fatal:
		return c.err
	case retake:
		w.metrics.retaken.Inc()
		w.giveUp(b, nil, OutcomeUnknown)
		return nil
	case renew:
		if err := w.fences.refresh(ctx); err != nil {
			return err
		}
		return w.redoPart(ctx, p, isolate)
	case yield:
		w.metrics.fenced.Inc()
		w.giveUp(b, lostShards(c.err, b), ShardFenced)
		return nil
	default:
	}
	if len(p.entries) == 1 {
		return w.condemn(ctx, p, c.err)
	}
	half := len(p.entries) / 2
	left, right := p, p
	left.entries, right.entries = p.entries[:half], p.entries[half:]
	if err := w.redoPart(ctx, left, true); err != nil {
		return err
	}
	return w.redoPart(ctx, right, true)
}

// condemn gives the one entry of a part up, for a reason that another attempt
// would not change. The batch that does so writes nothing, but it does not
// commit for a shard that is somebody else's by now.
func (w *worker) condemn(ctx context.Context, p part, err error) error {
	if t, ok := w.held[p.shard]; !ok || t.grant != p.grant {
		return nil
	}
	w.seq++
	b := &batch{}
	b.reset(w.seq, true)
	b.rules = w.rules()
	b.parts, b.entries = append(b.parts, p), 1
	w.refuse(b, &p, &p.entries[0], err)
	b.settleAgain(&p)
	return w.decide(ctx, b, p, false)
}

// byShard joins the parts of each grant of a shard, in order. Order between
// shards means nothing.
func byShard(lists ...[]part) []part {
	type tenancy struct {
		shard int
		grant uint64
	}
	var joined []part
	at := make(map[tenancy]int)
	for _, list := range lists {
		for _, p := range list {
			k := tenancy{p.shard, p.grant}
			i, ok := at[k]
			if !ok {
				at[k] = len(joined)
				p.entries = slices.Clip(p.entries)
				joined = append(joined, p)
				continue
			}
			joined[i].entries = append(joined[i].entries, p.entries...)
		}
	}
	return joined
}
