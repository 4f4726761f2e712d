package pipeline

import (
	"context"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/trmtracking/processor/internal/lograte"
	"github.com/trmtracking/processor/internal/protocol"
)

// The waits of queues that nobody told us of. A missed notification of new entries is
// noticed at the next try for the dispatch lease (DISPATCH_BLOCK); one of older
// entries, which are swept or redelivered, after pollAll. Not every queue is polled
// as often: 32 quiet ones five times a second were nine tenths of an idle fleet's commands.
const (
	pollEvery = 200 * time.Millisecond // of queues that have to wait, or are quarantined
	pollAll   = 5 * time.Second
)

// readsAtOnce is the maximum number of queues read in one round trip.
const readsAtOnce = 64

// reader reads the queues of owned shards that may hold entries not delivered
// yet: after a shard was acquired, after a notification, after an error, and
// from the start every QueueRescan.
type reader struct {
	cfg     Config
	table   *table
	source  Source
	metrics *metrics
	log     *slog.Logger

	next    int // the shard that the next pass begins with: none is preferred
	wait    *backoff.ExponentialBackOff
	quiet   lograte.Limit
	failing bool
}

// pendingRead is a read and the snapshot it was based on.
type pendingRead struct {
	read         protocol.QueueRead
	grant        uint64
	readSnapshot protocol.ReadSnapshot
}

func (r *reader) run(ctx context.Context) error {
	poll, all, rescan := time.NewTicker(pollEvery), time.NewTicker(pollAll), time.NewTicker(r.cfg.QueueRescan)
	defer poll.Stop()
	defer all.Stop()
	defer rescan.Stop()
	for {
		more, err := r.pass(ctx)
		if err != nil && ctx.Err() == nil {
			r.metrics.read(readError)
			if r.quiet.Pass() {
				r.log.Warn("operation failed, will retry", "what", "read queues", "err", err)
			}
			// The next reply may come from another server.
			r.failing = true
			r.table.rewind(false)
			_ = sleep(ctx, r.wait.NextBackOff())
			continue
		}
		if err == nil && r.failing {
			r.failing = false
			r.wait.Reset()
		}
		if more {
			if ctx.Err() != nil {
				return nil
			}
			continue
		}
		wakeUp(r.table.room) // the dispatcher may have waited for the queues to be read
		select {
		case <-ctx.Done():
			return nil
		case <-r.table.wake:
		case <-poll.C:
			r.table.poll(false)
		case <-all.C:
			r.table.poll(true)
		case <-rescan.C:
			r.table.rewind(false)
		}
	}
}

// pass reads every queue that is due and has room. It reports whether another
// pass would find more immediately.
func (r *reader) pass(ctx context.Context) (bool, error) {
	batch := r.choose()
	if len(batch) == 0 {
		return false, nil
	}
	reads := make([]protocol.QueueRead, len(batch))
	for i := range batch {
		reads[i] = batch[i].read
	}
	replies, err := r.source.ReadQueues(ctx, reads)
	if err != nil {
		return false, err
	}
	return r.take(batch, replies), nil
}

// choose selects the queues to read and divides the room among them.
func (r *reader) choose() []pendingRead {
	t := r.table
	t.mu.Lock()
	defer t.mu.Unlock()
	var batch []pendingRead
	lease := t.heldLease()
	begin := r.next
	for i := range t.slots {
		shard := (begin + i) % len(t.slots)
		s := &t.slots[shard]
		if !s.owned || s.stopping || !s.due {
			continue
		}
		if lease != 0 && s.queue.CanBypass(lease) && !s.queue.Looks() && s.quarantine.Limit == 0 {
			s.due = false
			continue
		}
		if time.Now().Before(s.notBefore) {
			continue // the next poll looks again
		}
		if !t.fits(s, 1) {
			continue // the worker wakes us when it has room
		}
		batch = append(batch, pendingRead{read: protocol.QueueRead{Shard: shard}, grant: s.grant})
		if len(batch) == readsAtOnce {
			r.next = shard + 1
			break
		}
	}
	if len(batch) == 0 {
		return nil
	}
	free := t.free()
	if free < 1 {
		if t.records > 0 {
			return nil
		}
		free = 1
	}
	if free < len(batch) { // the others' turn comes
		batch = batch[:free]
		r.next = batch[free-1].read.Shard + 1
	}
	share := free / len(batch)
	for i := range batch {
		a := &batch[i]
		s := &t.slots[a.read.Shard]
		a.readSnapshot = s.queue.BeginRead(lease)
		a.read.After = a.readSnapshot.From
		a.read.Count = min(share, max(1, t.left(s)), r.cfg.ReadBatchRecords)
		if limit := s.quarantine.Limit; limit > 0 {
			a.read.Count = min(a.read.Count, limit, r.cfg.BatchMaxRecords)
		}
		s.due = false
	}
	return batch
}

// take delivers the entries found.
func (r *reader) take(batch []pendingRead, replies []protocol.QueueReply) bool {
	t := r.table
	t.mu.Lock()
	defer t.mu.Unlock()
	more := false
	lease := t.heldLease()
	for i, a := range batch {
		s, found := &t.slots[a.read.Shard], replies[i]
		if !s.owned || s.stopping || s.grant != a.grant {
			continue
		}
		t.learn(len(found.Entries), found.Bytes)
		ids := idsOf(found.Entries)
		full := found.Full
		// Entries to deliver stay in place, the rest is squeezed out.
		keep := found.Entries[:0]
		ok := s.queue.EndRead(a.readSnapshot, ids, full, lease, func(j int) { keep = append(keep, found.Entries[j]) })
		if len(keep) > 0 {
			r.metrics.read(readOK)
			t.deliver(a.read.Shard, keep)
		} else {
			r.metrics.read(readEmpty)
			if empty := ok && len(ids) == 0 && s.records == 0; empty {
				if s.quarantine.Limit > 0 && !t.settledID.Less(s.dispatched) {
					t.workers[s.worker].box.put(message{kind: emptied, shard: a.read.Shard, grant: s.grant})
				}
				if s.pause != nil && s.pause.reread {
					s.pause = nil // what it waited with is gone
				}
			}
		}
		// Without the dispatch lease a queue read to its end waits for a notification or the poll.
		if !ok || full || s.queue.Looks() || a.readSnapshot.Looked() || (lease != 0 && !s.queue.CanBypass(lease)) {
			s.due, more = true, true
		}
	}
	t.delivered()
	return more
}
