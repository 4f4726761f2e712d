package demo_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/loadtest/demo"
)

// P10: what is not known yet is not 0.
func TestProgressShowsUnknownAsUnknown(t *testing.T) {
	first := demo.Snapshot{Sent: 12_000, Stored: 9929}
	require.Equal(t, "in 12,000  stored 9,929  -  duplicates 0  backlog unknown  p99 -", first.String())
	idle := 0.0
	require.Equal(t, "in 12,000  stored 9,929  0/s  duplicates 0  backlog 2,071  p99 -",
		demo.Snapshot{Sent: 12_000, Stored: 9929, Rate: &idle, Backlog: 2071, Known: true}.String())
}
