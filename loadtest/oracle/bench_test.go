package oracle_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
)

// BenchmarkMillionEntries judges a million entries from a log on disk, and
// tells what that costs.
func BenchmarkMillionEntries(b *testing.B) {
	const entries = 1_000_000
	file := filepath.Join(b.TempDir(), "send.log")
	f, err := os.Create(file)
	require.NoError(b, err)
	w, err := fleet.NewLogWriter(f)
	require.NoError(b, err)
	p := fleet.Rally(1)
	p.Devices, p.Duration, p.Limit = 1000, time.Hour, entries
	source, err := p.Source()
	require.NoError(b, err)
	n := uint64(0)
	for it, ok := source.Next(); ok; it, ok = source.Next() {
		require.NoError(b, w.Append(&fleet.Sent{ID: telemetry.EntryID{Ms: 1_780_000_000_000 + n/8, Seq: n % 8}, Message: it.Message}))
		n++
	}
	require.NoError(b, w.Flush())
	info, err := f.Stat()
	require.NoError(b, err)
	require.NoError(b, f.Close())
	log, err := fleet.OpenLog(file)
	require.NoError(b, err)
	defer log.Close()

	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for b.Loop() {
		o, err := oracle.New(log)
		require.NoError(b, err)
		runtime.GC()
		runtime.ReadMemStats(&after)
		report, err := o.Judge(oracle.Observed{Positions: o.Positions(), Crossings: o.Crossings(rules), Rules: rules})
		require.NoError(b, err)
		require.True(b, report.Good(), "%v", report.Examples)
	}
	b.ReportMetric(float64(entries)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "index-MB")
	b.ReportMetric(float64(info.Size())/entries, "log-bytes/entry")
}
