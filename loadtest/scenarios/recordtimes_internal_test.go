package scenarios

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/loadtest/oracle"
)

func TestLatencyCountsTheRecordsThatCameInTheSpan(t *testing.T) {
	t.Parallel()
	var times recordTimes
	require.Nil(t, times.p99(time.UnixMilli(0), time.UnixMilli(1e6)))
	for n := range 200 {
		times.add(oracle.Commit{AtUS: int64(1000+n)*1000 + int64(n)*1000}, n%4, oracle.ID{Ms: uint64(1000 + n)})
	}
	times.add(oracle.Commit{AtUS: 90_000_000}, 0, oracle.ID{Ms: 5000}) // after the span
	require.InDelta(t, 197, *times.p99(time.UnixMilli(1000), time.UnixMilli(2000)), 0)
	require.InDelta(t, 99, *times.p99(time.UnixMilli(1000), time.UnixMilli(1101)), 1)
}

func TestGapIsWaitingNotSilence(t *testing.T) {
	t.Parallel()
	var times recordTimes
	add := func(shard int, arrivedMS, storedMS int) {
		times.add(oracle.Commit{AtUS: int64(storedMS) * 1000}, shard, oracle.ID{Ms: uint64(arrivedMS)})
	}
	add(0, 1000, 1020)
	add(0, 9000, 9030) // 8 s without an entry are no gap
	add(1, 1000, 1020)
	add(1, 1010, 1420) // the first of a commit waited longest, but only since the commit before
	add(1, 1400, 1420)
	add(2, 1100, 1110)
	gap, shard := times.longestGap(time.UnixMilli(0), time.UnixMilli(1e6))
	require.InDelta(t, 400, *gap, 0)
	require.Equal(t, 1, shard)
	gap, shard = times.longestGap(time.UnixMilli(2000), time.UnixMilli(1e6))
	require.InDelta(t, 30, *gap, 0)
	require.Zero(t, shard)
	gap, _ = times.longestGap(time.UnixMilli(10_000), time.UnixMilli(1e6))
	require.Nil(t, gap)
}

func TestTheBusiestMemberIsComparedWithTheMeanOfAll(t *testing.T) {
	t.Parallel()
	var times recordTimes
	require.Nil(t, times.busiest(time.UnixMilli(0), time.UnixMilli(1e6), 3))
	for n := range 12 {
		times.add(oracle.Commit{Member: []string{"a", "a", "b"}[n%3]}, 0, oracle.ID{Ms: uint64(1000 + n)})
	}
	times.add(oracle.Commit{Member: "b"}, 0, oracle.ID{Ms: 5000}) // after the span
	require.InDelta(t, 2, *times.busiest(time.UnixMilli(1000), time.UnixMilli(2000), 3), 0, "8 of 12, and one stored nothing")
}

func TestTheLastRecordThatWaitedForADeadMemberCounts(t *testing.T) {
	t.Parallel()
	var times recordTimes
	died := time.UnixMilli(10_000)
	require.Nil(t, times.servedAgain("dead", died))
	add := func(member string, shard, arrivedMS, storedMS int) {
		times.add(oracle.Commit{Member: member, AtUS: int64(storedMS) * 1000}, shard, oracle.ID{Ms: uint64(arrivedMS)})
	}
	for shard, member := range []string{"dead", "dead", "other"} {
		add(member, shard, 9000, 9020)
	}
	add("dead", 0, 9990, 10_010) // what it had sent before
	add("other", 0, 10_100, 15_500)
	add("other", 0, 15_400, 15_900) // came before the shard was served
	add("other", 0, 15_600, 17_000) // and after
	add("other", 1, 10_200, 15_700)
	add("other", 2, 10_050, 18_000) // of a shard that was not the dead member's
	require.InDelta(t, 5900, *times.servedAgain("dead", died), 0)
	require.Nil(t, times.servedAgain("other", time.UnixMilli(1000)), "it owned nothing then")
}

func TestTheMinuteInWhichMostShardsMovedCounts(t *testing.T) {
	t.Parallel()
	began := time.UnixMilli(0)
	var spans []OwnershipSpan
	for _, s := range []int{-5, 10, 20, 75, 76, 77, 300} {
		spans = append(spans, OwnershipSpan{From: time.Duration(s) * time.Second}, OwnershipSpan{Slot: -1, From: time.Duration(s) * time.Second})
	}
	require.Equal(t, 4, mostMoves((&run{began: began}).acquired(spans, began, began.Add(100*time.Second))))
}
