package pipeline

import (
	"context"
	"time"

	"github.com/trmtracking/processor/internal/telemetry"
)

// A shard whose records cost far more than others, such as late ones of a thousand
// devices, would delay every shard of its worker: they share its batches. What it
// has waits apart then, and has every second batch to itself, as large as takes
// about slowBatch.
const (
	slowAfter = 500 * time.Millisecond // a batch that took this long is looked into
	slowBatch = 200 * time.Millisecond
)

// slowShard is a shard that is worked off apart.
type slowShard struct {
	limit int       // of entries in its batches
	queue []message // work, in order
	seq   uint64    // of its last batch
}

// shift removes the first message that waits, and what it holds.
func (s *slowShard) shift() {
	s.queue[0] = message{}
	s.queue = s.queue[1:]
}

// heaviest is the shard that most of the late records of a batch belong to, and how
// many; none if the batch is of one shard, or no shard stands out.
func (b *batch) heaviest(shards int) (shard, late int) {
	n := make(map[int]int)
	for i := range b.late {
		n[telemetry.ShardOf(b.late[i].DeviceID, shards)]++
	}
	for s, count := range n {
		if count > late {
			shard, late = s, count
		}
	}
	if 2*late <= len(b.late) || len(b.leases()) < 2 {
		return 0, 0
	}
	return shard, late
}

// weigh notes what a batch took. Slow shards are set apart, and come back when their
// batches are as large as any.
func (w *worker) weigh(c *committed) {
	if s := w.slow[c.shard]; s != nil && c.apart {
		switch {
		case c.took > slowBatch:
			s.limit = max(1, s.limit/2)
		case c.took < slowBatch/4 && c.entries >= s.limit:
			s.limit *= 2
		}
		if s.limit >= w.pace.most && len(s.queue) == 0 {
			delete(w.slow, c.shard)
		}
		return
	}
	if c.took < slowAfter || c.late == 0 || w.slow[c.shard] != nil {
		return
	}
	w.slow[c.shard] = &slowShard{limit: max(1, int(int64(c.late)*int64(slowBatch)/int64(c.took)))}
	w.log.Info("shard set apart: its late records take too long for the others of its worker", "shard", c.shard, "count", c.late, "duration", c.took)
}

// applySlow fills the empty batch with entries of the slow shard whose last turn is
// the longest ago.
func (w *worker) applySlow(ctx context.Context) error {
	var next *slowShard
	for shard, s := range w.slow {
		if len(s.queue) > 0 && w.steps[shard] == nil && (next == nil || s.seq < next.seq) {
			next = s
		}
	}
	if next == nil {
		return nil
	}
	next.seq = w.seq
	for len(next.queue) > 0 && w.current.entries < min(next.limit, w.pace.limit) {
		m := &next.queue[0]
		t, ok := w.owned[m.shard]
		if !ok || t.grant != m.grant {
			next.shift()
			continue
		}
		n := min(len(m.entries), min(next.limit, w.pace.limit)-w.current.entries)
		p := part{shard: m.shard, grant: m.grant, epoch: t.epoch, token: t.token, entries: m.entries[:n:n]}
		if err := w.apply(ctx, w.current, p); err != nil {
			return err
		}
		if m.entries = m.entries[n:]; len(m.entries) == 0 {
			next.shift()
		}
	}
	if w.current.entries > 0 {
		w.current.apart = true
		w.current.due = time.Now()
	}
	return nil
}

// slowWaits reports whether slow shards have work that may be done.
func (w *worker) slowWaits() bool {
	for shard, s := range w.slow {
		if len(s.queue) > 0 && w.steps[shard] == nil {
			return true
		}
	}
	return false
}
