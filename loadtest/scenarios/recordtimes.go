package scenarios

import (
	"cmp"
	"slices"
	"time"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// recordTimes are when each record came into the stream and when it was committed,
// by the clocks of Redis and of Postgres: what a person waits for, whatever the
// service says about itself.
type recordTimes struct{ rows []recordTime }

type recordTime struct {
	shard           int
	arrived, stored int64 // microseconds since 1970
}

func (t *recordTimes) add(shard int, id oracle.ID, atUS int64) {
	t.rows = append(t.rows, recordTime{shard: shard, arrived: int64(id.Ms) * 1000, stored: atUS})
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
	if len(took) == 0 {
		return nil
	}
	slices.Sort(took)
	ms := cli.Round(float64(took[(len(took)*99+99)/100-1])/1000, 1)
	return &ms
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
