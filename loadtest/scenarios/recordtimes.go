package scenarios

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// recordTimes are when each record came into the stream and when it was committed,
// by the clocks of Redis and of Postgres: what a person waits for, whatever the
// service says about itself.
type recordTimes struct {
	rows    []recordTime
	members map[string]int // their numbers
}

type recordTime struct {
	shard, member   int
	arrived, stored int64 // microseconds since 1970
}

func (t *recordTimes) add(c oracle.Commit, shard int, id oracle.ID) {
	n, known := t.members[c.Member]
	if !known {
		if n = len(t.members); n == 0 {
			t.members = make(map[string]int)
		}
		t.members[c.Member] = n
	}
	t.rows = append(t.rows, recordTime{shard: shard, member: n, arrived: int64(id.Ms) * 1000, stored: c.AtUS})
}

// busiest returns how much the member that stored most of what came in a span of time
// stored, relative to the mean of n members; nil where nothing was.
func (t *recordTimes) busiest(from, to time.Time, n int) *float64 {
	total, of := 0, make(map[int]int)
	for _, r := range t.rows {
		if r.arrived >= from.UnixMicro() && r.arrived < to.UnixMicro() {
			total++
			of[r.member]++
		}
	}
	if total == 0 {
		return nil
	}
	return new(cli.Round(float64(slices.Max(slices.Collect(maps.Values(of))))*float64(n)/float64(total), 2))
}

// rate returns how many of the records that were stored came per second of a span of time.
func (t *recordTimes) rate(from, to time.Time) float64 {
	n := 0
	for _, r := range t.rows {
		if r.arrived >= from.UnixMicro() && r.arrived < to.UnixMicro() {
			n++
		}
	}
	return float64(n) / to.Sub(from).Seconds()
}

// p99 returns the latency in milliseconds that 99 % of the records that came in a span
// of time kept to, nil where there are none.
func (t *recordTimes) p99(from, to time.Time) *float64 {
	var took []int64
	for _, r := range t.rows {
		if r.arrived >= from.UnixMicro() && r.arrived < to.UnixMicro() {
			took = append(took, r.stored-r.arrived)
		}
	}
	slices.Sort(took)
	return percentile(took, 99)
}

// percentile returns what so many of a hundred sorted latencies in microseconds keep to, in
// milliseconds; nil where there are none.
func percentile(took []int64, n int) *float64 {
	if len(took) == 0 {
		return nil
	}
	return new(cli.Round(float64(took[(len(took)*n+99)/100-1])/1000, 1))
}

// longestGap returns the longest time in milliseconds for which entries of one shard
// waited and none was committed, ended in a span of time; nil where nothing was.
func (t *recordTimes) longestGap(from, to time.Time) (ms *float64, shard int) {
	rows := slices.SortedFunc(slices.Values(t.rows), func(a, b recordTime) int {
		return cmp.Or(cmp.Compare(a.shard, b.shard), cmp.Compare(a.stored, b.stored), cmp.Compare(a.arrived, b.arrived))
	})
	longest := int64(-1)
	for i, r := range rows {
		waiting := r.arrived // the first of its commit came first
		if i > 0 && rows[i-1].shard == r.shard {
			waiting = max(waiting, rows[i-1].stored)
		}
		if gap := r.stored - waiting; gap > longest && r.stored >= from.UnixMicro() && r.stored < to.UnixMicro() {
			longest, shard = gap, r.shard
		}
	}
	if longest < 0 {
		return nil, 0
	}
	gap := cli.Round(float64(longest)/1000, 1)
	return &gap, shard
}

// servedAgain returns how many milliseconds after the death of a member the last record was
// committed that waited for one of its shards: that came before the shard's next owner
// committed for the first time. Nil where the member owned nothing.
func (t *recordTimes) servedAgain(member string, died time.Time) *float64 {
	dead, known := t.members[member]
	if !known {
		return nil
	}
	at := died.UnixMicro()
	last := make(map[int]recordTime) // of each shard, before the death
	resumed := make(map[int]int64)   // when each shard of the dead had its next owner's first commit
	for _, r := range t.rows {
		if r.stored < at && r.stored > last[r.shard].stored {
			last[r.shard] = r
		}
	}
	next := func(r recordTime) bool {
		return r.stored >= at && r.member != dead && last[r.shard].member == dead && last[r.shard].stored > 0
	}
	for _, r := range t.rows {
		if first, ok := resumed[r.shard]; next(r) && (!ok || r.stored < first) {
			resumed[r.shard] = r.stored
		}
	}
	served := int64(-1)
	for _, r := range t.rows {
		if next(r) && r.arrived < resumed[r.shard] {
			served = max(served, r.stored-at)
		}
	}
	if served < 0 {
		return nil
	}
	return new(cli.Round(float64(served)/1000, 1))
}
