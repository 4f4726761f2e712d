package pipeline_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
)

// The version of the set goes back with Postgres, and the same number can mean another set.
func TestP5TheFencesOfAnotherServerAreLoadedWhateverTheirVersion(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Square()
	in := b.Start("one")
	b.AcquireAll(in)
	crossed := func() (list []string) {
		rows, err := b.Pool.Query(t.Context(), "select device_id || ' ' || fence_id from processor.timing_records order by 1")
		require.NoError(t, err)
		defer rows.Close()
		for rows.Next() {
			var s string
			require.NoError(t, rows.Scan(&s))
			list = append(list, s)
		}
		return list
	}
	first, second := at(0, 0), at(1, 0)
	b.Publish(first)
	b.Settled(20*time.Second, 0)
	before := crossed()
	require.Len(t, before, 1)
	b.Exec(`
update processor.geofences set id = 'other';
update processor.geofence_set set version = version - 1`)
	in.Abandon()
	testenv.Wait(t, 10*time.Second, func() error {
		if n := len(in.Lost()); n == 0 {
			return fmt.Errorf("no shard is given up")
		}
		return nil
	})
	b.AcquireAll(in)
	b.Publish(second)
	b.Settled(20*time.Second, 0)
	require.Len(t, crossed(), 2)
	require.Contains(t, crossed()[1], " other")
}
