package pipeline

import (
	"context"
	"crypto/rand"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// dealer holds the turn when it can get it, and deals what is new to the
// queues of its shards. What belongs to a shard of this instance is handed to
// its worker at once, as far as protocol.Queue allows; the rest is read from
// the queues by whoever owns them.
type dealer struct {
	cfg     Config
	table   *table
	source  Source
	metrics *metrics
	log     *slog.Logger
	bell    <-chan struct{} // the turn was given back by its holder
	peers   func() int      // other members that wait for entries

	headway *protocol.Headway
	looked  time.Time // at how far the shards got

	wait       *backoff.ExponentialBackOff
	complained time.Time
}

// run deals until ctx ends, and then gives the turn back.
func (d *dealer) run(ctx context.Context) error {
	token := ""
	defer func() {
		d.table.nextTurn(false)
		if token != "" {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			if err := d.source.ReleaseTurn(ctx, token); err != nil {
				d.log.Warn("turn not given back, it ends by itself", "err", err)
			}
		}
	}()
	for ctx.Err() == nil {
		before := token
		token = rand.Text()
		turn, err := d.source.AcquireTurn(ctx, before, token, d.cfg.TurnTTL)
		switch {
		case err != nil:
			// The turn may be held under the new token, the old one, or not at all.
			// Both names are given up; the lease ends by itself.
			if before != "" {
				token = before
			}
			d.table.nextTurn(false)
			d.complain(ctx, "acquire the turn", err)
		case !turn.Held:
			token = ""
			d.table.nextTurn(false)
			d.metrics.turn.Set(0)
			d.await(ctx, min(turn.Left, d.cfg.DealBlock))
		default:
			d.hold(ctx, token, turn)
		}
	}
	d.metrics.turn.Set(0)
	return nil
}

// await waits for the turn to become free, or for wait.
func (d *dealer) await(ctx context.Context, wait time.Duration) {
	t := time.NewTimer(max(wait, 10*time.Millisecond))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-d.bell:
	case <-t.C:
	}
}

// hold deals under one token until an error or until the turn is lost.
func (d *dealer) hold(ctx context.Context, token string, turn protocol.Turn) {
	number := d.table.nextTurn(true)
	d.metrics.turn.Set(1)
	d.noteGroup(turn)
	if turn.Moved {
		d.log.Warn("somebody else had moved the group's last-delivered ID forward; dealing goes on where it was")
	}
	after, pending, renewed := turn.After, turn.Pending, time.Now()
	for ctx.Err() == nil {
		if time.Since(renewed) > d.cfg.TurnTTL/4 {
			started := time.Now()
			turn, err := d.source.AcquireTurn(ctx, token, token, d.cfg.TurnTTL)
			if err != nil {
				d.complain(ctx, "renew the turn", err)
				return
			}
			d.noteGroup(turn)
			if !turn.Held || turn.GroupMade || turn.After != after {
				return
			}
			renewed, pending = started, turn.Pending
		}
		if !d.table.holdsTurn(number) {
			return
		}
		if err := d.lookAhead(ctx, pending); err != nil {
			d.complain(ctx, "look how far the shards got", err)
			return
		}
		if !d.hasRoom(pending) {
			d.pause(ctx)
			continue
		}
		started := time.Now()
		a, err := d.source.ReadNew(ctx, after, d.count(), d.cfg.DealBlock)
		if err != nil {
			d.metrics.read(readError)
			d.complain(ctx, "read new entries", err)
			return
		}
		if len(a.Entries) == 0 {
			d.metrics.read(readEmpty)
			d.wait.Reset()
			continue
		}
		d.metrics.read(readOK)
		if !d.table.holdsTurn(number) {
			return
		}
		known := d.knownEmpty(number, a.Shards)
		dealt, err := d.source.Deal(ctx, protocol.Dealing{
			Token: token, TTL: d.cfg.TurnTTL, After: after, Ring: d.peers() > 0,
		}, &a)
		if err != nil {
			// It may have happened. The next turn knows nothing of any queue.
			d.complain(ctx, "deal", err)
			return
		}
		d.wait.Reset()
		renewed, after, pending = started, a.Last, dealt.Pending
		d.metrics.arrived(&a)
		d.feed(number, &a, known, dealt.Gone)
	}
}

// noteGroup has all queues read anew when the group was made again: they hold
// what will be dealt once more. The script tells the other members.
func (d *dealer) noteGroup(turn protocol.Turn) {
	if turn.GroupMade {
		d.log.Warn("consumer group made at the start of the stream; what is known already ends as duplicates")
		d.table.rewind()
	}
}

// lookAhead looks how far the shards got while much is dealt and undone, so that
// those that stand are known by the time it is too much.
func (d *dealer) lookAhead(ctx context.Context, pending int) error {
	if pending < d.cfg.DealAhead/2 || time.Since(d.looked) < d.cfg.StallAfter/16 {
		return nil
	}
	work, err := d.source.Work(ctx)
	if err != nil {
		return err
	}
	d.looked = time.Now()
	d.headway.See(d.looked, work)
	return nil
}

// hasRoom tells whether to deal on. Dealing pauses while too much is dealt and
// undone, but not for the sake of shards that stand while others advance: the
// leader opens an incident for each. It also pauses while this instance has its hands full and the others
// have plenty: then it is cheaper to wait than to read our own entries back.
func (d *dealer) hasRoom(pending int) bool {
	if pending >= d.cfg.DealAhead && d.headway.Ahead(time.Now(), pending, d.cfg.DealAhead) >= d.cfg.DealAhead {
		return false
	}
	d.table.mu.Lock()
	defer d.table.mu.Unlock()
	own := d.table.records
	if own == 0 || d.table.free() >= max(1, d.cfg.ReadBatchRecords/4) {
		return true
	}
	return d.peers() > 0 && pending-own < 2*d.cfg.ReadBatchRecords
}

// pause waits until something is finished here, or a moment.
func (d *dealer) pause(ctx context.Context) {
	t := time.NewTimer(d.cfg.TurnTTL / 8)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-d.table.room:
	case <-t.C:
	}
}

// count is how many entries to ask for.
func (d *dealer) count() int {
	d.table.mu.Lock()
	defer d.table.mu.Unlock()
	return max(1, min(d.cfg.ReadBatchRecords, d.table.free()))
}

// knownEmpty tells which of the shards' queues may be passed by, before a deal
// is sent. A read that finds a queue empty while the deal is under way may have
// found a group that was made anew, without what the old one held.
func (d *dealer) knownEmpty(turn uint64, shards []int) map[int]bool {
	d.table.mu.Lock()
	defer d.table.mu.Unlock()
	known := make(map[int]bool, len(shards))
	for _, shard := range shards {
		if s := &d.table.slots[shard]; s.held && s.queue.MayFeed(turn) {
			known[shard] = true
		}
	}
	return known
}

// feed hands what was dealt to the workers, as far as it may pass the queues by.
func (d *dealer) feed(turn uint64, a *protocol.Arrivals, known map[int]bool, gone map[telemetry.EntryID]struct{}) {
	t := d.table
	t.mu.Lock()
	defer t.mu.Unlock()
	t.learn(len(a.Entries), a.Bytes)
	unread := false
	a.Each(func(shard int, entries []telemetry.Entry) {
		s := &t.slots[shard]
		if !s.held || s.stopping {
			return
		}
		if len(gone) > 0 || !known[shard] || !s.queue.MayFeed(turn) || t.turnNumber() != turn || !t.fits(s, len(entries)) {
			s.queue.Dealt()
			s.due, unread = true, true
			return
		}
		for i := range entries {
			s.queue.Fed(entries[i].ID)
		}
		t.hand(shard, entries)
	})
	if unread {
		ring(t.wake)
	}
}

// complain logs a failure, and waits before the next try.
func (d *dealer) complain(ctx context.Context, what string, err error) {
	if ctx.Err() != nil {
		return
	}
	d.metrics.dealErrors.Inc()
	if lostState(err) {
		d.log.Debug("turn or group changed", "what", what, "err", err)
		return
	}
	if time.Since(d.complained) >= complainEvery {
		d.complained = time.Now()
		d.log.Warn("does not succeed, trying again", "what", what, "err", err)
	}
	_ = sleep(ctx, d.wait.NextBackOff())
}
