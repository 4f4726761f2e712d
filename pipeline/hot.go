package pipeline

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

const (
	costSample = 8                // of so many records one is looked at
	costsKept  = 64               // devices of a worker: no share is more than 1/64 too small
	costMemory = 30 * time.Second // time constant of the averages
	costsAfter = 10 * time.Second // that a worker has committed before its costs tell something
)

// costs are what devices cost a worker of late, of those that cost most: a sample, in
// Misra and Gries' summary of frequent items, all of which decays. The committer adds, a
// heartbeat reads.
type costs struct {
	mu    sync.Mutex
	began time.Time // of the first batch
	at    time.Time // up to which all has decayed
	all   cost
	of    map[string]*cost
}

// cost is a moving sum. What is in flight follows records, since those of a batch wait alike.
type cost struct{ records, seconds float64 }

// add notes a batch that took some time. Where it took so long that its late records are
// looked into, the time is theirs.
func (c *costs) add(now time.Time, fresh, late []telemetry.Record, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of, c.began, c.at = make(map[string]*cost), now, now
	}
	c.decay(now)
	ofFresh := took.Seconds() / float64(max(1, len(fresh)+len(late)))
	ofLate := ofFresh
	if took >= slowAfter && len(late) > 0 {
		ofFresh, ofLate = 0, took.Seconds()/float64(len(late))
	}
	for i := range fresh {
		c.count(&fresh[i], ofFresh)
	}
	for i := range late {
		c.count(&late[i], ofLate)
	}
}

func (c *costs) decay(now time.Time) {
	passed := now.Sub(c.at)
	if passed < time.Second {
		return
	}
	by := math.Exp(-passed.Seconds() / costMemory.Seconds())
	c.all.records, c.all.seconds, c.at = c.all.records*by, c.all.seconds*by, now
	for _, d := range c.of {
		d.records, d.seconds = d.records*by, d.seconds*by
	}
}

func (c *costs) count(r *telemetry.Record, seconds float64) {
	if rand.Uint32N(costSample) != 0 {
		return
	}
	c.all.records++
	c.all.seconds += seconds
	d := c.of[r.DeviceID]
	if d == nil && len(c.of) == costsKept {
		for id, d := range c.of {
			if d.records--; d.records <= 0 {
				delete(c.of, id)
			}
		}
		return
	}
	if d == nil {
		d = new(cost)
		c.of[strings.Clone(r.DeviceID)] = d // it would pin the reply that it came in
	}
	d.records++
	d.seconds += seconds
}

// hotDevices returns the devices that cost this instance much, the hottest first.
func (p *Pipeline) hotDevices(now time.Time) []protocol.HotDevice {
	var all cost
	rate := 0.0
	var list []protocol.HotDevice
	var of []cost
	for _, w := range p.workers {
		w.costs.mu.Lock()
		if passed := now.Sub(w.costs.began); w.costs.of != nil && passed >= costsAfter {
			w.costs.decay(now)
			// A sum that has not been kept for long is that of a shorter time.
			perSecond := costSample / (costMemory.Seconds() * (1 - math.Exp(-passed.Seconds()/costMemory.Seconds())))
			all.records, all.seconds, rate = all.records+w.costs.all.records, all.seconds+w.costs.all.seconds, rate+w.costs.all.records*perSecond
			for id, d := range w.costs.of {
				list, of = append(list, protocol.HotDevice{Device: id, Shard: telemetry.ShardOf(id, p.cfg.Shards), Rate: d.records * perSecond}), append(of, *d)
			}
		}
		w.costs.mu.Unlock()
	}
	if rate < protocol.HotFloor {
		return nil
	}
	for i, d := range of {
		list[i].Share = max(d.records/all.records, d.seconds/max(all.seconds, math.SmallestNonzeroFloat64))
	}
	list = slices.DeleteFunc(list, func(d protocol.HotDevice) bool { return d.Share <= protocol.HotShare })
	slices.SortFunc(list, func(a, b protocol.HotDevice) int {
		return cmp.Or(cmp.Compare(b.Share, a.Share), cmp.Compare(a.Device, b.Device))
	})
	return list
}
