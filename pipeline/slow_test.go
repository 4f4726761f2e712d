package pipeline_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// A thousand devices of one shard, whose late records cost 4 ms each.
func TestASlowShardDelaysTheOthersOfItsWorkerByItsShareOnly(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	b := newBench(t)
	crafted, ordinary := make([]int, 0, 1000), make([]int, 0, 60)
	for d := 0; len(crafted) < cap(crafted); d++ {
		switch telemetry.ShardOf(fleet.DeviceID(d), shards) {
		case 3:
			crafted = append(crafted, d)
		default:
			if len(ordinary) < cap(ordinary) {
				ordinary = append(ordinary, d)
			}
		}
	}
	one := b.Start("one", oneWorker)
	b.AcquireAll(one)
	var entries [][]string
	for _, d := range crafted {
		entries = append(entries, at(d, 100_000))
	}
	b.Publish(entries...)
	b.Settled(20*time.Second, 0)
	b.Exec(`
create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(0.004); return new; end';
create trigger slow before insert on positions for each row when (new.latitude = 42) execute function slow()`)

	late := func(d int, s int64) []string {
		m := fleet.Message{DeviceID: fleet.DeviceID(d), Codec: "8", Time: time.Unix(1_700_000_000+s, 0).UTC(), Latitude: 42, Longitude: 1, Satellites: 9}
		return fleet.EntryFields(&m)
	}
	entries = nil
	for s := range int64(20) {
		for _, d := range crafted {
			entries = append(entries, late(d, s))
		}
		for _, d := range ordinary {
			for n := range int64(10) {
				entries = append(entries, at(d, 10*s+n))
			}
		}
	}
	began := time.Now()
	b.Publish(entries...)
	done := func(slow bool) int {
		return b.Count("select count(*) from positions where (latitude = 42) = $1 and ts < to_timestamp(1700100000)", slow)
	}
	testenv.Wait(t, 25*time.Second, func() error {
		if n := done(false); n < 12_000 {
			return fmt.Errorf("%d of 12000 stored of the others, %d of 20000 of the slow shard", n, done(true))
		}
		return nil
	})
	slow := done(true)
	t.Logf("12,000 records of the others after %s, %d of 20,000 of the slow shard by then", time.Since(began).Round(time.Millisecond), slow)
	require.Less(t, slow, 10_000, "the others do not wait for it")
	b.Exec("drop trigger slow on positions")
	b.Settled(60*time.Second, 0)
	require.Equal(t, 20_000, done(true))
	require.Empty(t, one.Lost())
}
