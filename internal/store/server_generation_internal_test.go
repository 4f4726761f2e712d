package store

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A primary that comes back beside its promoted standby accepts writes, too.
func TestAnOldPrimaryIsRefusedOnceItsStandbyWasSeen(t *testing.T) {
	t.Parallel()
	r := NewServerGeneration()
	require.NoError(t, r.note("7100", 1))
	require.NoError(t, r.note("7100", 2), "promoted")
	require.ErrorContains(t, r.note("7100", 1), "shut the old primary down")
	require.NoError(t, r.note("7100", 2), "the other goes on")
	require.NoError(t, r.note("7200", 1), "another server is for the identity to judge")
	require.NoError(t, NewServerGeneration().note("7100", 1), "after a restart of the instance")
}
