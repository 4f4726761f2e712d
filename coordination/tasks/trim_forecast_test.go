package tasks

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

func TestForecastSaysWhenTrimmingReachesTheOldestUnfinishedEntry(t *testing.T) {
	t.Parallel()
	begin := time.UnixMilli(1_700_000_000_000)
	id := func(after time.Duration) telemetry.EntryID {
		return telemetry.EntryID{Ms: uint64(begin.Add(after).UnixMilli())}
	}
	tests := []struct {
		name   string
		pace   float64 // seconds of stream time trimmed per second
		jump   time.Duration
		watch  time.Duration
		oldest telemetry.EntryID
		want   time.Duration
		known  bool
	}{
		{"as fast as they came", 1, 0, time.Minute, id(11 * time.Minute), 10 * time.Minute, true},
		{"twice as fast", 2, 0, time.Minute, id(12 * time.Minute), 5 * time.Minute, true},
		{"in jumps", 1, 5 * time.Second, 100 * time.Second, id(700 * time.Second), 10 * time.Minute, true},
		{"reached", 1, 0, time.Minute, id(30 * time.Second), 0, true},
		{"nothing is trimmed", 0, 0, time.Minute, id(time.Minute), 0, false},
		{"nothing is unfinished", 1, 0, time.Minute, telemetry.EntryID{}, 0, false},
		{"not watched for long", 1, 0, 5 * time.Second, id(time.Minute), 0, false},
	}
	for _, tt := range tests {
		var f forecast
		for at := time.Duration(0); at <= tt.watch; at += time.Second {
			moved := time.Duration(float64(at) * tt.pace)
			if tt.jump > 0 {
				moved = moved.Truncate(tt.jump)
			}
			f.see(begin.Add(time.Hour+at), protocol.TrimPoint{First: id(moved), Length: 1000, Removed: 1 + int64(moved/time.Second)})
		}
		left, known := f.reaches(tt.oldest)
		require.Equal(t, tt.known, known, tt.name)
		require.InDelta(t, tt.want.Seconds(), left.Seconds(), 1+0.05*tt.want.Seconds(), tt.name)
		require.LessOrEqual(t, len(f.seen), 123, "what is remembered is bounded")
	}
}

// P10: a recreated stream invalidates the forecast.
func TestForecastForgetsAStreamThatWasRecreated(t *testing.T) {
	t.Parallel()
	var f forecast
	now := time.UnixMilli(1_700_000_000_000)
	f.see(now, protocol.TrimPoint{First: telemetry.EntryID{Ms: 1000}, Removed: 100})
	f.see(now.Add(time.Minute), protocol.TrimPoint{First: telemetry.EntryID{Ms: 61_000}, Removed: 200})
	_, known := f.reaches(telemetry.EntryID{Ms: 90_000})
	require.True(t, known)
	f.see(now.Add(2*time.Minute), protocol.TrimPoint{First: telemetry.EntryID{Ms: 100}, Removed: 1})
	_, known = f.reaches(telemetry.EntryID{Ms: 90_000})
	require.False(t, known)
}
