package stream

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
)

// What was read from one server stays the mark for a while after another one answers,
// also when that one changes again meanwhile.
func TestTheMarkOfOneServerIsNotHiddenByThatOfTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g Group
		g.keep() // nothing was read yet
		require.True(t, g.HighWatermark().IsZero())
		id := func(ms uint64) telemetry.EntryID { return telemetry.EntryID{Ms: ms} }
		g.observed(id(1))
		g.keep()
		g.observed(id(2))
		require.Equal(t, id(1), g.HighWatermark())
		time.Sleep(keptFor - time.Millisecond)
		g.keep()
		require.Equal(t, id(1), g.HighWatermark())
		time.Sleep(time.Millisecond)
		require.Equal(t, id(2), g.HighWatermark())
		g.keep()
		g.observed(id(3))
		require.Equal(t, id(2), g.HighWatermark())
	})
}

func TestAnEntryAheadOfTheClockDoesNotStayTheMark(t *testing.T) {
	t.Parallel()
	now := uint64(time.Now().UnixMilli())
	var g Group
	g.observed(telemetry.EntryID{Ms: now + uint64(time.Hour.Milliseconds())})
	for _, ms := range []uint64{now, now - 1} {
		g.observed(telemetry.EntryID{Ms: ms})
		require.Equal(t, telemetry.EntryID{Ms: now}, g.HighWatermark())
	}
}
