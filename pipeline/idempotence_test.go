package pipeline_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestP2AnEntryIsStoredOnceThoughItsRowTakesNoPartInState delivers entries again whose
// rows the watermark does not show, having been flagged faulty: they look
// new, and are not.
func TestP2AnEntryIsStoredOnceThoughItsRowTakesNoPartInState(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	in := b.Start("one")
	b.AcquireAll(in)
	b.Publish(at(1, 1), at(1, 2), at(1, 3))
	b.Settled(10*time.Second, 0)
	_, err := b.Pool.Exec(t.Context(), "update positions set faulty = true where ts > to_timestamp(1700000001)")
	require.NoError(t, err)
	const rows = "select md5(string_agg(p::text, ' ' order by ts)) from positions p"
	var before, after string
	require.NoError(t, b.Pool.QueryRow(t.Context(), rows).Scan(&before))
	b.AcquireAll(in) // on fresh state
	b.Publish(at(1, 2), at(1, 3))
	b.Settled(10*time.Second, 0)
	require.NoError(t, b.Pool.QueryRow(t.Context(), rows).Scan(&after))
	require.Equal(t, before, after)
	require.Zero(t, b.Client.XLen(t.Context(), b.Stream+":dlq").Val(), "no entry is at fault")
}
