package protocol_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
)

// P1: the last-delivered ID stays behind every entry that is unqueued.
func TestTheLastDeliveredIDMovesByWholePagesThatAreFinished(t *testing.T) {
	at := func(seq uint64, read int64) protocol.Position { return protocol.Position{ID: ids(seq)[0], Read: read} }
	began := time.Unix(0, 0)
	var p protocol.Pages
	p.Begin(ids(10)[0])
	require.Equal(t, ids(10)[0], p.End())
	require.Equal(t, ids(10)[0], p.Settles(ids(11)[0], true).ID)

	p.Dispatched(p.Settled(), at(20, 10), began)
	p.Dispatched(p.Settled(), at(30, 20), began.Add(time.Second))
	require.Equal(t, ids(30)[0], p.End())
	require.Equal(t, 2, p.Open())
	for _, tt := range []struct {
		unqueued uint64
		any      bool
		want     protocol.Position
	}{
		{11, true, at(10, -1)},
		{20, true, at(10, -1)},
		{21, true, at(20, 10)},
		{30, true, at(20, 10)},
		{31, true, at(30, 20)},
		{0, false, at(30, 20)},
	} {
		require.Equal(t, tt.want, p.Settles(ids(tt.unqueued)[0], tt.any), "unqueued from %d on: %v", tt.unqueued, tt.any)
	}
	_, overdue := p.Overdue(began)
	require.False(t, overdue)
	end, overdue := p.Overdue(began.Add(time.Millisecond))
	require.True(t, overdue)
	require.Equal(t, ids(20)[0], end)

	p.Dispatched(ids(20)[0], at(30, 21), began.Add(time.Minute)) // it read nothing, and learned of one trimmed unread
	require.Equal(t, ids(20)[0], p.Settled())
	require.Equal(t, 1, p.Open())
	require.Equal(t, at(30, 21), p.Settles(ids(99)[0], false))
	p.Dispatched(ids(40)[0], at(40, 31), began.Add(time.Minute))
	require.Zero(t, p.Open())
	require.Equal(t, ids(40)[0], p.End())
	p.Begin(ids(5)[0])
	require.Equal(t, ids(5)[0], p.End())
}
