package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/rare"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Deferrals keeps entries until their next attempt. Batches add and remove them;
// see protocol.Batch.
type Deferrals interface {
	// Claim returns due entries of these shards, at most limit and of so many bytes, or one
	// that is larger, and leases them so that they are not claimed again; and whether more
	// are due. Attempts includes the one to be made next. An entry whose last attempt had
	// no outcome, since the process crashed, has class crash and is returned alone.
	Claim(ctx context.Context, held []protocol.ShardLease, lease time.Duration, limit int, maxBytes int64) (claimed []protocol.Deferred, more bool, err error)
	// Begin notes that attempts begin, and returns the entries that are still leased.
	Begin(ctx context.Context, claimed []protocol.Deferred) ([]protocol.Deferred, error)
	// Return gives up attempts that were not made.
	Return(ctx context.Context, claimed []protocol.Deferred) error
	// Added records which entries are dead letters in their stream.
	Added(ctx context.Context, refs []telemetry.Ref) error
}

// delay returns the wait after this many attempts, with jitter so that entries
// which failed together are not retried together.
func (c DeadLetterConfig) delay(attempts int) time.Duration {
	d := c.RetryDelays[min(attempts, len(c.RetryDelays))-1]
	return d + rand.N(d/4+1)
}

// claimAtOnce bounds the deferred entries of one claim, and so how long they keep
// a worker from its queues. They are not in flight: what bounds a batch bounds their size.
const claimAtOnce = 500

// againFor is after how long the rest of a claim waits for another one, once some have an outcome: one that
// is refused takes several transactions.
const againFor = time.Second

// retrier polls for deferred entries of owned shards and passes them to their
// workers. It claims nothing while a claimed entry has no outcome, so that a
// quarantined entry is alone.
type retrier struct {
	cfg       Config
	table     *table
	source    Source
	deferrals Deferrals
	metrics   *metrics
	log       *slog.Logger
}

func (r *retrier) run(ctx context.Context) error {
	tick := time.NewTicker(r.cfg.DeadLetters.PollEvery)
	defer tick.Stop()
	for {
		more, err := r.pass(ctx)
		if err != nil && ctx.Err() == nil {
			r.metrics.deferErrors.Inc()
			r.log.Debug("poll of deferred entries failed, will retry", "err", err)
		}
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// pass retries one page of entries. It reports whether there may be more.
func (r *retrier) pass(ctx context.Context) (bool, error) {
	held := r.table.working()
	if len(held) == 0 {
		return false, nil
	}
	rows, more, err := r.deferrals.Claim(ctx, held, r.cfg.DeadLetters.RetryDelays[0], claimAtOnce, r.cfg.batchMaxBytes())
	if err != nil || len(rows) == 0 {
		return false, err
	}
	// One that is delivered again may be stored. Given up here meanwhile it would be a dead letter as well.
	again, err := r.source.Undecided(ctx, idsOfDeferred(rows))
	if err != nil {
		return false, errors.Join(err, giveBack(ctx, r.deferrals, rows))
	}
	rows = slices.DeleteFunc(rows, func(d protocol.Deferred) bool { return slices.Contains(again, d.Entry.ID) }) // due again after the lease
	byShard := make(map[int][]protocol.Deferred)
	for _, row := range rows {
		byShard[row.Shard] = append(byShard[row.Shard], row)
	}
	epochs := make(map[int]int64, len(held))
	for _, h := range held {
		epochs[h.Shard] = h.Epoch
	}
	decided := make(chan struct{}, len(byShard))
	undecided := 0
	var notReturned error
	for shard, list := range byShard {
		if r.table.deliverDeferred(shard, epochs[shard], list, func() { decided <- struct{}{} }) {
			undecided++
			continue
		}
		notReturned = errors.Join(notReturned, giveBack(ctx, r.deferrals, list))
	}
	for range undecided {
		select {
		case <-decided:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	return more && notReturned == nil, notReturned
}

func idsOfDeferred(rows []protocol.Deferred) []telemetry.EntryID {
	ids := make([]telemetry.EntryID, len(rows))
	for i := range rows {
		ids[i] = rows[i].Entry.ID
	}
	return ids
}

// returnWithin bounds the last call to Postgres when the work ends.
const returnWithin = time.Second

// giveBack returns attempts that were not made, also at the end of a drain:
// otherwise they would count as crashes.
func giveBack(ctx context.Context, deferrals Deferrals, rows []protocol.Deferred) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), returnWithin)
	defer cancel()
	return deferrals.Return(ctx, rows)
}

// working returns the owned shards that are not being handed over, and do not wait
// for the sink to take their rows, nor after another session had their row locked: an
// exclusive attempt that meets the lock keeps all other entries waiting.
func (t *table) working() []protocol.ShardLease {
	t.mu.Lock()
	defer t.mu.Unlock()
	var held []protocol.ShardLease
	for i := range t.slots {
		if s := &t.slots[i]; s.owned && !s.stopping && s.pause == nil && !(s.locked && time.Now().Before(s.notBefore)) {
			held = append(held, protocol.ShardLease{Shard: i, Epoch: s.epoch})
		}
	}
	return held
}

// deliverDeferred passes deferred entries to the worker of their shard, if the
// shard is still owned under the epoch under which they were claimed.
func (t *table) deliverDeferred(shard int, epoch int64, rows []protocol.Deferred, done func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.slots[shard]
	if !s.owned || s.epoch != epoch || s.stopping {
		return false
	}
	t.workers[s.worker].box.put(message{kind: retried, shard: shard, grant: s.grant, deferred: rows, done: done})
	return true
}

// tryAgain decides deferred entries, apart from what is in flight: one that
// becomes a record is a late record. Entries that cannot be decided, since the
// shard is lost, are returned.
func (w *worker) tryAgain(ctx context.Context, m *message) error {
	rare.Reached(rare.DeferredRetry)
	defer m.done()
	p := part{shard: m.shard, grant: m.grant}
	t, owned := w.owned[m.shard]
	if !owned || t.grant != m.grant {
		return w.returnDeferred(ctx, m.deferred)
	}
	p.epoch, p.token = t.epoch, t.token
	// Of one that is alone a crash counts, so that it is tried exclusively: not before that.
	alone := m.deferred[0].Class == telemetry.ClassCrash
	toBegin := w.capped(m.deferred)
	if alone {
		end, err := w.begin(ctx)
		if err != nil {
			return errors.Join(err, giveBack(ctx, w.deferrals, m.deferred))
		}
		defer end()
		toBegin = uncounted(m.deferred)
	}
	begun, err := w.beginDeferred(ctx, toBegin)
	if err != nil {
		return errors.Join(err, giveBack(ctx, w.deferrals, m.deferred))
	}
	ids := idsOfDeferred(begun)
	claimed := slices.DeleteFunc(slices.Clone(m.deferred), func(d protocol.Deferred) bool { return !slices.Contains(ids, d.Entry.ID) })
	if len(claimed) == 0 {
		return nil // they wait for another claim
	}
	p.again = make(map[telemetry.EntryID]protocol.Deferred, len(claimed))
	w.againSince, w.againClaimed = time.Now(), len(claimed)
	for _, d := range claimed {
		p.again[d.Entry.ID] = d
		p.entries = append(p.entries, d.Entry)
	}
	switch first := &claimed[0]; {
	case alone && first.Attempts > max(2, w.cfg.DeadLetters.MaxAttempts): // the first one may be from before it was tried alone
		err = w.rejectEntry(ctx, p, &crashError{crashCount: first.Attempts - 1})
	case alone:
		begin := func(list []protocol.Deferred) func(ctx context.Context) error {
			return func(ctx context.Context) error {
				_, err := w.deferrals.Begin(ctx, list)
				return err
			}
		}
		err = w.exclusively(ctx, begin(claimed), begin(uncounted(claimed)), func() (decided bool, err error) {
			err = w.redoPart(ctx, p, false)
			return len(p.again) == 0, err
		})
	default:
		err = w.redoPart(ctx, p, false)
	}
	if len(p.again) == 0 {
		return err
	}
	left := make([]protocol.Deferred, 0, len(p.again))
	for _, d := range p.again {
		left = append(left, d)
	}
	if err != nil {
		return errors.Join(err, giveBack(ctx, w.deferrals, left))
	}
	return w.returnDeferred(ctx, left)
}

func (w *worker) beginDeferred(ctx context.Context, list []protocol.Deferred) (claimed []protocol.Deferred, err error) {
	err = retry(ctx, w.log, "begin attempts of deferred entries", w.metrics.deferErrors, always, func() error {
		defer w.callsReturned.Add(1)
		claimed, err = w.deferrals.Begin(ctx, list)
		return err
	})
	return claimed, err
}

// uncounted returns deferred entries as before the attempt to be made next.
func uncounted(list []protocol.Deferred) []protocol.Deferred {
	list = slices.Clone(list)
	for i := range list {
		list[i].Attempts--
	}
	return list
}

// capped returns deferred entries with no more attempts than leave one that is made alone: of how many were
// allowed before, none was.
func (w *worker) capped(list []protocol.Deferred) []protocol.Deferred {
	list = slices.Clone(list)
	for i := range list {
		list[i].Attempts = min(list[i].Attempts, max(2, w.cfg.DeadLetters.MaxAttempts))
	}
	return list
}

func (w *worker) returnDeferred(ctx context.Context, left []protocol.Deferred) error {
	return retry(ctx, w.log, "return deferred entries", w.metrics.deferErrors, always,
		func() error { return w.deferrals.Return(ctx, left) })
}

// resolveDeferred records which deferred entries of a part have an outcome.
func (b *batch) resolveDeferred(p *part) {
	if p.again == nil {
		return
	}
	retrySame := make(map[telemetry.EntryID]struct{}, len(b.deferred))
	for i := range b.deferred {
		retrySame[b.deferred[i].Entry.ID] = struct{}{}
	}
	for i := range p.entries {
		if _, ok := retrySame[p.entries[i].ID]; !ok {
			b.resolved = append(b.resolved, p.entries[i].Ref())
		}
	}
}
