package demo

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/fleet"
)

// Invalid entries that are dead letters make up for no record that was never dispatched.
func TestValidRecordsBeyondTheLastOneDispatchedAreStuck(t *testing.T) {
	t.Parallel()
	var file bytes.Buffer
	w, err := fleet.NewLogWriter(&file)
	require.NoError(t, err)
	for ms := range uint64(10) {
		s := fleet.Sent{ID: telemetry.EntryID{Ms: 1 + ms}}
		if ms < 5 || ms == 9 {
			s.Class = "invalid"
		}
		require.NoError(t, w.Append(&s))
	}
	require.NoError(t, w.Flush())
	left := leftover{pending: map[telemetry.EntryID]bool{{Ms: 5}: true, {Ms: 6}: true}, dispatched: telemetry.EntryID{Ms: 7}}
	n, err := left.stuck(fleet.NewLog(bytes.NewReader(file.Bytes()), int64(file.Len())))
	require.NoError(t, err)
	require.EqualValues(t, 3, n, "6 is pending, 8 and 9 are on no queue; 5 and 10 are invalid")
	require.False(t, (&Result{Stuck: n}).Good())
}
