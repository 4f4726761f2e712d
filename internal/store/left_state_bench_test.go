package store_test

import (
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/internal/testenv"
)

// leftBytes is what a device takes in the state that an owner leaves, with an IMEI.
const leftBytes = 27 + 15

// BenchmarkLeftState is what a hand-over costs with and without state, in Postgres, where it
// is part of the release and of the acquisition, and what it would cost beside them in Redis.
func BenchmarkLeftState(b *testing.B) {
	bb := newBench(b)
	ctx := b.Context()
	client := testenv.Redis(b)
	const key = "left"
	bb.exec("insert into processor.assignments (stream, group_name, shard, member) values ($1, $2, 0, 'a') "+
		"on conflict (stream, group_name, shard) do update set member = 'a'", scope.Stream, scope.Group)
	median := func(took []time.Duration) float64 {
		slices.Sort(took)
		return float64(took[len(took)/2].Microseconds())
	}
	for _, devices := range []int{0, 1000, 10_000} {
		var left []byte
		if devices > 0 {
			left = make([]byte, devices*leftBytes)
			_, _ = rand.Read(left)
		}
		b.Run(fmt.Sprint("postgres/", devices), func(b *testing.B) {
			var leaving, taking []time.Duration
			for b.Loop() {
				began := time.Now()
				taken, err := bb.shards.Acquire(ctx, 0, "a", "")
				require.NoError(b, err)
				taking = append(taking, time.Since(began))
				if len(taking) > 1 {
					require.Len(b, taken.Left, len(left))
				}
				began = time.Now()
				require.NoError(b, bb.shards.Release(ctx, protocol.ShardLease{Shard: 0, Epoch: taken.Epoch, Left: left}, "a", telemetry.EntryID{Ms: 1}))
				leaving = append(leaving, time.Since(began))
			}
			b.ReportMetric(median(leaving), "us/release")
			b.ReportMetric(median(taking), "us/acquisition")
		})
		if devices == 0 {
			continue
		}
		b.Run(fmt.Sprint("redis/", devices), func(b *testing.B) {
			var leaving, taking []time.Duration
			for b.Loop() {
				began := time.Now()
				require.NoError(b, client.Client().Set(ctx, client.Key(key), left, 30*time.Second).Err())
				leaving = append(leaving, time.Since(began))
				began = time.Now()
				got, err := client.Client().GetDel(ctx, client.Key(key)).Bytes()
				require.NoError(b, err)
				require.Len(b, got, len(left))
				taking = append(taking, time.Since(began))
			}
			b.ReportMetric(median(leaving), "us/set")
			b.ReportMetric(median(taking), "us/getdel")
		})
	}
}
