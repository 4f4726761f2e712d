package equivalence_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/loadtest/fleet"
)

// BenchmarkFootprint is what records of real trackers take in Redis, while they
// are in the stream, and in Postgres, in bytes a record.
func BenchmarkFootprint(b *testing.B) {
	bb := newBench(b)
	var messages []fleet.Message
	for n := range 10 { // each time as other devices, so that none is a duplicate
		for _, m := range fmbLog(b) {
			m.DeviceID = fmt.Sprintf("%s-%d", m.DeviceID, n)
			messages = append(messages, m)
		}
	}
	for b.Loop() {
		name := fmt.Sprint("footprint", time.Now().UnixNano())
		w := newWorld(b, bb, bb.Stream+name)
		number := func(sql string) (n float64) {
			require.NoError(b, bb.Pool.QueryRow(b.Context(), sql).Scan(&n))
			return n
		}
		wal := number("select pg_current_wal_lsn() - '0/0'")
		for rest := messages; len(rest) > 0; {
			n := min(len(rest), 5000)
			w.publish(rest[:n])
			rest = rest[n:]
		}
		waiting, err := bb.Client.MemoryUsage(b.Context(), w.Stream, 0).Result()
		require.NoError(b, err)
		w.join(0, false)
		w.keepOwned()
		require.NoError(b, w.quiet(time.Minute))
		w.end()
		rows := number("select count(*) from public.positions")
		b.Logf("%d entries, %.0f rows", len(messages), rows)
		b.ReportMetric(float64(waiting)/float64(len(messages)), "redis-B/entry")
		b.ReportMetric(number("select pg_table_size('public.positions')")/rows, "table-B/row")
		b.ReportMetric(number("select pg_indexes_size('public.positions')")/rows, "indexes-B/row")
		b.ReportMetric((number("select pg_current_wal_lsn() - '0/0'")-wal)/rows, "wal-B/row")
	}
}
