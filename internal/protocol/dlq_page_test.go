package protocol_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// A page of dead letters is bounded by bytes, whatever they are: P9.
func TestP9PagesOfDeadLettersFollowTheirSize(t *testing.T) {
	t.Parallel()
	page := func(n, size int) []protocol.DLQEntry {
		letters := make([]protocol.DLQEntry, n)
		for i := range letters {
			letters[i].Entry = telemetry.Entry{Fields: []string{"payload", strings.Repeat("x", size)}}
		}
		return letters
	}
	require.Equal(t, 16, protocol.DLQPageSize(200, nil), "nothing is known yet")
	require.Equal(t, 5, protocol.DLQPageSize(5, nil))
	require.Equal(t, 64, protocol.DLQPageSize(200, page(16, 400)), "one small page says little about the next")
	require.Equal(t, 200, protocol.DLQPageSize(200, page(64, 400)))
	require.Equal(t, 3, protocol.DLQPageSize(200, page(16, 1<<20)), "four megabytes with their names are a little more")
	require.Equal(t, 1, protocol.DLQPageSize(200, page(3, 100<<20)))
	require.Equal(t, 4, protocol.DLQPageSize(200, page(1, 400)), "and it grows again")
}
