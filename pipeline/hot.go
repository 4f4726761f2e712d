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
	costSample = 8                // of so many records one is looked at; fewer of a large batch
	costsKept  = 64               // devices of a worker, by records and by time: no share is more than 1/64 too small
	costMemory = 30 * time.Second // time constant of the averages
	costsAfter = 10 * time.Second // that a worker has committed before its costs tell something
)

// costs are what devices cost a worker of late, of those that cost most: a sample, in
// Misra and Gries' summary of frequent items, all of which decays. There are two, since few
// records may take long. The committer adds, a heartbeat reads.
type costs struct {
	mu    sync.Mutex
	began time.Time // of the first batch
	at    time.Time // up to which all has decayed
	all   cost
	of    map[string]*cost // those with the most records
	dear  map[string]*cost // those that took longest
}

// cost is a moving sum. What is in flight follows records, since those of a batch wait alike.
type cost struct{ records, seconds float64 }

// add notes a batch that took some time. Where it took so long that its late records are
// looked into, the time is theirs.
func (c *costs) add(now time.Time, fresh, late []telemetry.Record, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of, c.dear, c.began, c.at = make(map[string]*cost), make(map[string]*cost), now, now
	}
	c.decay(now)
	ofFresh := took.Seconds() / float64(max(1, len(fresh)+len(late)))
	ofLate := ofFresh
	if took >= slowAfter && len(late) > 0 {
		ofFresh, ofLate = 0, took.Seconds()/float64(len(late))
	}
	c.count(fresh, ofFresh)
	c.count(late, ofLate)
}

func (c *costs) decay(now time.Time) {
	passed := now.Sub(c.at)
	if passed < time.Second {
		return
	}
	by := math.Exp(-passed.Seconds() / costMemory.Seconds())
	c.all.records, c.all.seconds, c.at = c.all.records*by, c.all.seconds*by, now
	for _, of := range []map[string]*cost{c.of, c.dear} {
		for _, d := range of {
			d.records, d.seconds = d.records*by, d.seconds*by
		}
	}
}

// count looks at a sample of records that took so many seconds each, and lets each of the
// sample stand for as many more as the sample is smaller than one in costSample. The few
// late records of a large batch, which may have taken all its time, are a list of their own.
func (c *costs) count(list []telemetry.Record, seconds float64) {
	every := max(costSample, len(list)/costsKept)
	weight := float64(every) / costSample
	for i := range list {
		if rand.IntN(every) != 0 {
			continue
		}
		seen := cost{weight, weight * seconds}
		c.all.records += seen.records
		c.all.seconds += seen.seconds
		keep(c.of, list[i].DeviceID, seen, func(d *cost) *float64 { return &d.records })
		keep(c.dear, list[i].DeviceID, seen, func(d *cost) *float64 { return &d.seconds })
	}
}

// keep adds to what is kept of a device. Where there is no room for it, all of them lose the
// least that one has, or that came.
func keep(of map[string]*cost, device string, more cost, weight func(*cost) *float64) {
	if d := of[device]; d != nil {
		d.records, d.seconds = d.records+more.records, d.seconds+more.seconds
		return
	}
	if len(of) == costsKept {
		least := *weight(&more)
		for _, d := range of {
			least = min(least, *weight(d))
		}
		for id, d := range of {
			if *weight(d) -= least; *weight(d) <= 0 {
				delete(of, id)
			}
		}
		*weight(&more) -= least
	}
	if *weight(&more) > 0 {
		of[strings.Clone(device)] = &more // it would pin the reply that it came in
	}
}

// kept returns what is known of each device. Both summaries say at most too little.
func (c *costs) kept() map[string]cost {
	all := make(map[string]cost, 2*costsKept)
	for _, of := range []map[string]*cost{c.of, c.dear} {
		for id, d := range of {
			all[id] = cost{max(all[id].records, d.records), max(all[id].seconds, d.seconds)}
		}
	}
	return all
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
			for id, d := range w.costs.kept() {
				list, of = append(list, protocol.HotDevice{Device: id, Shard: telemetry.ShardOf(id, p.cfg.Shards), Rate: d.records * perSecond}), append(of, d)
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
