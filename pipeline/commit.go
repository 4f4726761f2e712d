package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// commitLoop commits one batch at a time. It retries in place while the server
// is unavailable; any other outcome goes to the worker.
func (w *worker) commitLoop(ctx context.Context) error {
	defer close(w.ackQueue)
	defer endWithPanic(w.panicked)
	for b := range w.commits {
		w.ackEarlyIfMutant(ctx, b)
		c := w.commit(ctx, b)
		if c.err == nil {
			select {
			case w.ackQueue <- b:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		w.results <- c
	}
	return nil
}

// commit writes a batch until it has an outcome other than unavailable.
func (w *worker) commit(ctx context.Context, b *batch) committed {
	c := committed{batch: b, seq: b.seq, entries: b.entries, apart: b.apart}
	content := b.write()
	content.Shards = w.cfg.Shards
	held := false
	defer func() {
		if held {
			w.table.resume(b.parts)
		}
	}()
	repeat := notApplied
	writesRows := len(content.Fresh)+len(content.Late)+len(content.Rivals) > 0
	if !writesRows && len(content.Deferred) == 0 {
		if len(content.Letters) == 0 && len(content.Resolved) == 0 && len(content.Applied) == 0 {
			return c // all its entries were lost: nothing to write
		}
		repeat = isRowIndependent
	}
	var started time.Time
	taken := false // others were, after an attempt
	c.err = retry(ctx, w.log, "commit", w.metrics.commitErrors, func(err error) bool {
		switch {
		case !repeat(err):
			return false
		case !isTooMuch(err):
			return true
		case b.entries != 1 || isOverLimit(err):
			return false
		case !writesRows:
			return true
		case taken || !b.idempotent || b.parts[0].again != nil || w.breaker.storedSince(started):
			return false // by itself; in the batch that is computed ahead, the worker finds out
		}
		taken, _ = w.othersTaken(ctx, &b.parts[0].entries[0], false, started)
		return true
	}, func() error {
		started = time.Now()
		defer func() { c.took = time.Since(started) }()
		// In this order: shards are given up before the server's next generation is numbered.
		content.ServerGeneration = w.sink.Generation()
		if gone := w.table.gone(b.parts); len(gone) > 0 {
			return &protocol.Failure{
				Kind: protocol.Fenced, Shards: gone, Err: fmt.Errorf("shards %v were given up before the commit", gone),
			}
		}
		var err error
		c.written, err = w.mutantWrites(ctx, content)
		w.callsReturned.Add(1)
		if err != nil && dispositionOf(err) == pauseSame {
			held = true
			w.hold(b.parts, err)
		}
		if err == nil {
			w.breaker.stored(started, b, c.written, w.cfg.Shards)
			w.metrics.wrote(b, c.written, time.Since(started))
			w.costs.add(time.Now(), b.fresh, b.late, time.Since(started))
			w.swallowed(c.written)
			w.stayed(c.written)
			w.metrics.outcome(outcomeDeferred, b.newlyDeferred())
		}
		return err
	})
	if b.apart {
		c.shard = b.parts[0].shard
	} else if c.took >= slowAfter {
		c.shard, c.late = b.heaviest(w.cfg.Shards)
	}
	return c
}

// handleResult processes the outcome of a commit.
func (w *worker) handleResult(ctx context.Context, c committed) error {
	if c.err == nil {
		w.pace.passed(c.entries, c.took)
		w.weigh(&c)
		w.ackPending++
		w.state.evict(c.seq)
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	v := dispositionOf(c.err)
	if v != setAside && !(c.apart && w.table.paused(c.shard)) { // which say so themselves, once
		w.log.Warn("commit failed; recomputing batch", "count", c.batch.entries, "err", c.err)
	}
	if isTooMuch(c.err) {
		w.weigh(&c)
		if w.slow[c.shard] == nil || !c.apart {
			w.pace.tooMuch(c.entries, c.took)
		}
		c.batch.smaller = v == retrySame
	}
	switch v {
	case fatal:
		return c.err
	case reacquire:
		rare.Reached(rare.OutcomeUnknown)
		w.metrics.indeterminate.Inc()
		w.giveUp(c.batch, nil, OutcomeUnknown)
		w.put(c.batch)
		return nil
	case reloadFences:
		if err := w.fences.refresh(ctx); err != nil {
			return err
		}
		return w.redo(ctx, c.batch, false)
	case dropFenced:
		rare.Reached(rare.Fenced)
		w.metrics.fenced.Inc()
		lost := lostShards(c.err, c.batch)
		w.giveUp(c.batch, lost, shardFenced)
		return w.redo(ctx, c.batch, false)
	case setAside:
		w.setAside(c.batch, lostShards(c.err, c.batch))
		return w.redo(ctx, c.batch, false)
	default:
		if v == recompute {
			rare.Reached(rare.Recomputed)
		}
		c.batch.culprit = culprit(c.err, c.batch)
		return w.redo(ctx, c.batch, v == bisect)
	}
}

// culprit returns the entry of the fresh record that the server named; zero if
// it named none.
func culprit(err error, b *batch) telemetry.EntryID {
	if f, ok := errors.AsType[*protocol.Failure](err); ok && f.Row > 0 && f.Row <= len(b.fresh) {
		return b.fresh[f.Row-1].ID
	}
	return telemetry.EntryID{}
}

// lostShards returns the shards of a batch that a failure named; all if it named none.
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

// giveUp drops shards of a batch (all if none are named) together with
// everything computed on top of it, and notifies coordination. A shard granted
// again since then depends on nothing of the batch and continues.
func (w *worker) giveUp(b *batch, named map[int]bool, cause Cause) {
	w.dropWork(b, named, func(p part) {
		if w.table.dropGrant(p.shard, p.grant) {
			w.lost(ShardLost{Shard: p.shard, Epoch: p.epoch, Cause: cause})
		}
	})
}

// setAside drops shards of a batch whose rows another session has locked, together
// with everything computed on top of it. They stay ours, and their queues are read
// again after a pause: meanwhile neither other shards nor a release wait for the lock.
func (w *worker) setAside(b *batch, locked map[int]bool) {
	rare.Reached(rare.SetAside)
	w.dropWork(b, locked, func(p part) {
		if w.table.restartLocked(p.shard, p.grant) {
			w.log.Warn("shard set aside: another session has its row locked, will retry", "shard", p.shard)
		}
	})
}

// dropWork drops shards of a batch, all if none are named, and everything computed
// on top of it, and calls end for each that was current.
func (w *worker) dropWork(b *batch, named map[int]bool, end func(p part)) {
	dropped, gone := make(map[int]bool), make(map[int]bool)
	for _, p := range b.parts {
		if named != nil && !named[p.shard] || dropped[p.shard] {
			continue
		}
		dropped[p.shard] = true
		if t, ok := w.owned[p.shard]; ok && t.grant != p.grant {
			continue
		}
		gone[p.shard] = true
		delete(w.owned, p.shard)
		w.state.invalidate(p.shard)
		end(p)
	}
	w.current.without(func(shard int) bool { return gone[shard] }, w.cfg.Shards)
	b.without(func(shard int) bool { return dropped[shard] }, w.cfg.Shards)
}

// redo recomputes the entries of a batch that did not commit, and of the batch
// that may be computed on top of it: on fresh state, by the idempotent path, one
// transaction after the other. With isolate it bisects until the rejected entry
// is alone.
func (w *worker) redo(ctx context.Context, b *batch, isolate bool) error {
	for w.ackPending > 0 { // work of a shard finishes in order
		select {
		case <-ctx.Done():
			return ctx.Err()
		case done := <-w.ackDone:
			w.ackPending--
			w.finish(done)
			w.put(done)
		}
	}
	todo, named, smaller := byShard(b.parts, w.current.parts), b.culprit, b.smaller
	// What has no entries carries a progress mark only: nothing was computed by it.
	own := slices.DeleteFunc(byShard(b.parts), func(p part) bool { return len(p.entries) == 0 })
	if b.apart && (len(own) == 0 || !w.current.has(own[0].shard)) { // it has none once its shard was taken
		todo = own // nothing was computed on top of it
	} else {
		w.current.reset(w.current.seq, false)
	}
	for _, p := range b.parts {
		if at := slices.IndexFunc(b.applied, func(a protocol.Applied) bool { return a.Shard == p.shard }); at >= 0 {
			w.owesMark(p, b.applied[at].ID)
		}
	}
	w.put(b)
	for _, p := range todo {
		w.state.invalidate(p.shard)
	}
	defer func() { w.rest = nil }()
	for i, p := range todo {
		w.rest = todo[i:]
		if s := w.slow[p.shard]; s != nil && smaller && p.again == nil && s.limit > 1 {
			m := message{kind: work, shard: p.shard, grant: p.grant, entries: p.entries}
			s.queue = slices.Insert(s.queue, 0, m.detached())
			w.owesMark(p, telemetry.EntryID{}) // its next batch does
			continue
		}
		if n := len(p.entries); n > 0 {
			w.owesMark(p, p.entries[n-1].ID)
		}
		for len(p.entries) > 0 {
			n := min(w.pace.limit, len(p.entries))
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

// owesMark notes up to where the progress mark of a shard is to be written once what is redone of it is
// committed, which writes none: otherwise a shard that falls silent would keep its old one.
func (w *worker) owesMark(p part, id telemetry.EntryID) {
	if t, ok := w.owned[p.shard]; ok && t.grant == p.grant {
		t.unmarked = id
		w.owned[p.shard] = t
	}
}

// redoPart commits and acknowledges entries of one shard separately.
func (w *worker) redoPart(ctx context.Context, p part, isolate bool) error {
	if t, ok := w.owned[p.shard]; !ok || t.grant != p.grant {
		return nil
	}
	if p.again != nil && len(p.again) < w.againClaimed && time.Since(w.againSince) > againFor {
		return nil // they wait for another claim, and the queues go first
	}
	w.seq++
	b := &batch{}
	b.reset(w.seq, true)
	if err := w.apply(ctx, b, p); err != nil {
		return err
	}
	b.resolveDeferred(&p)
	return w.decide(ctx, b, p, isolate)
}

// decide commits and acknowledges a batch made of one part, or bisects it.
func (w *worker) decide(ctx context.Context, b *batch, p part, isolate bool) error {
	c := w.commit(ctx, b)
	switch {
	case c.err == nil:
		w.pace.passed(b.entries, c.took)
	case isTooMuch(c.err):
		w.pace.tooMuch(b.entries, c.took)
	}
	return w.conclude(ctx, b, p, isolate, c.err)
}

// conclude acts upon the outcome of the commit of one part.
func (w *worker) conclude(ctx context.Context, b *batch, p part, isolate bool, outcome error) error {
	// A record that was not new did not move the device: only the table knows.
	w.state.invalidate(p.shard)
	if outcome == nil {
		if err := w.ack(ctx, b); err != nil {
			return err
		}
		w.finish(b)
		if b.stale[p.shard] {
			return nil // entries without an outcome are returned
		}
		for i := range p.entries {
			if p.again[p.entries[i].ID].Class == telemetry.ClassSink && len(b.deferred) == 0 {
				w.breaker.passed()
			}
			delete(p.again, p.entries[i].ID)
		}
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch dispositionOf(outcome) {
	case fatal:
		return outcome
	case retrySame: // too much, or it would have been retried
		if len(p.entries) == 1 {
			return w.keep(ctx, p, outcome)
		}
		for rest := p.entries; len(rest) > 0; {
			piece := p
			n := min(w.pace.limit, len(rest))
			piece.entries, rest = rest[:n:n], rest[n:]
			if err := w.redoPart(ctx, piece, isolate); err != nil {
				return err
			}
		}
		return nil
	case reacquire:
		rare.Reached(rare.OutcomeUnknown)
		w.metrics.indeterminate.Inc()
		w.giveUp(b, nil, OutcomeUnknown)
		return nil
	case reloadFences:
		if err := w.fences.refresh(ctx); err != nil {
			return err
		}
		return w.redoPart(ctx, p, isolate)
	case dropFenced:
		rare.Reached(rare.Fenced)
		w.metrics.fenced.Inc()
		w.giveUp(b, lostShards(outcome, b), shardFenced)
		return nil
	case setAside:
		w.setAside(b, lostShards(outcome, b))
		return nil
	default:
	}
	if len(p.entries) == 1 {
		return w.judge(ctx, p, outcome)
	}
	rare.Reached(rare.Bisected)
	half := len(p.entries) / 2
	left, right := p, p
	left.entries, right.entries = p.entries[:half], p.entries[half:]
	if err := w.redoPart(ctx, left, true); err != nil {
		return err
	}
	return w.redoPart(ctx, right, true)
}

// rejectEntry defers or dead-letters the one entry of a part. The batch that does so writes no record, but it
// checks the epoch: another member may own the shard.
func (w *worker) rejectEntry(ctx context.Context, p part, err error) error {
	if t, ok := w.owned[p.shard]; !ok || t.grant != p.grant {
		return nil
	}
	w.seq++
	b := &batch{}
	b.reset(w.seq, true)
	b.rules = w.rules()
	b.parts, b.entries = append(b.parts, p), 1
	w.reject(b, &p, &p.entries[0], err)
	b.resolveDeferred(&p)
	return w.decide(ctx, b, p, false)
}

// byShard joins the parts of each grant of a shard, in order. Order between
// shards has no meaning.
func byShard(lists ...[]part) []part {
	type shardGrant struct {
		shard int
		grant uint64
	}
	var joined []part
	at := make(map[shardGrant]int)
	for _, list := range lists {
		for _, p := range list {
			k := shardGrant{p.shard, p.grant}
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
